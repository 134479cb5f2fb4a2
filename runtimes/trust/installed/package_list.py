"""packages.json: every file that the wheels of an installed bundle have unpacked to.

Standard library only, and little of it: each start reads this.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass

from runtimes.trust import fields as checks
from runtimes.trust.entries import FileEntry, file_entries
from runtimes.trust.strict_json import parse_json

MAX_PACKAGE_FILES = 200_000  # guessed: torch, compiled, has 15,000
MAX_LIST_BYTES = 64 * 1024 * 1024  # guessed: 200,000 files take 32 MB
BYTE_CODE = re.compile(r"(.*/)?__pycache__/[^/]*\.pyc")


@dataclass(frozen=True, slots=True)
class PackageList:
    """What packages.json holds: every file, and the Python that made its byte code.

    Law: PackageList.read(packages.data) == packages.
    """

    files: tuple[FileEntry, ...]
    python: str = sys.version

    @property
    def data(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self)).encode()

    @property
    def sources(self) -> tuple[FileEntry, ...]:
        """All but byte code, which each release of Python writes in its own way."""
        return tuple(e for e in self.files if not BYTE_CODE.fullmatch(e.path))

    @classmethod
    def read(cls, data: bytes) -> PackageList:
        """Raises ValueError, IntegrityError."""
        value = checks.record(parse_json(data), "packages", {"files", "python"})
        files = value["files"]
        return cls(
            file_entries(files, "packages.files", MAX_PACKAGE_FILES) if files else (),
            checks.text(value["python"], "packages.python"),
        )
