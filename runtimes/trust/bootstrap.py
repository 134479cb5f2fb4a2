"""Which files of a bundle run before its hashes have been checked.

The rule: start.py, and the modules of runtimes/, runtimes/trust/ and the folders in that. They
import each other and the standard library, nothing else.

Before it is installed: `install`, a shell script to be read, holds their SHA-256. It reads each,
checks it and runs what it has read; they check everything else, so that no other file of the
bundle is even looked for by Python. Whoever distrusts the carrier has to know `install` itself, or
bundle.json, which lists it, from elsewhere.

Installed: DIR/run holds the SHA-256 of bundle.json, which lists them. It reads that and each of
them, checks it and runs what it has read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

STARTER = "start.py"
_MODULE = re.compile(
    r"runtimes/(trust/(\w+/)?)?(?!__main__)\w+\.py", re.ASCII
)  # nothing imports __main__


def checker_files(paths: Iterable[str]) -> list[str]:
    """Those of a bundle's `paths` that check all others, in order."""
    return sorted(path for path in paths if path == STARTER or _MODULE.fullmatch(path))
