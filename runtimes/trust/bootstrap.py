"""Which files of a bundle run before its hashes have been checked: as few as can be.

Before it is installed: `install`, a shell script to be read, holds the SHA-256 of start.py and of
the modules below. It reads each, checks it and runs what it has read; they check everything else,
so that no other file of the bundle is even looked for by Python. Whoever
distrusts the carrier has to know `install` itself, or bundle.json, which lists it, from elsewhere.

Installed: they lie beside the bundle as copies that were made from checked bytes, so that nothing
that happens to the bundle afterwards changes what checks it.
"""

from __future__ import annotations

STARTER = "start.py"
CHECKER = tuple(
    f"runtimes/{name}.py"
    for name in (
        "__init__ contract errors trust/__init__ trust/bootstrap trust/console trust/delta "
        "trust/entries trust/fields trust/install trust/manifest trust/offline trust/seccomp "
        "trust/verify trust/versions"
    ).split()
)
