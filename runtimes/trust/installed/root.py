"""What everything in an installation is checked against: the few values that stand in DIR/run.

    pinned='NAME MANIFEST PACKAGES PYTHON'   of the version that runs
    earlier='...'                            of the one before it, for `rollback`
    key='...'                                the public key that signs what may be installed here

MANIFEST and PACKAGES are SHA-256, of the version's bundle.json and packages.json. The script reads
them itself, so the first byte that is run is one that it has checked; replacing the script in one
step is what changes the version. Who can write DIR/run can do anything. Standard library only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import IntegrityError
from runtimes.trust.files import read_plain

MAX_SCRIPT_BYTES = 64 * 1024  # guessed: ten times what it has
_LINE = re.compile(r"^(pinned|earlier|key)=(.*)$", re.MULTILINE)
NAME_DIGITS = 12
NAME = rf"[0-9a-f]{{{NAME_DIGITS}}}(?:-[0-9]+)?"  # the folder of a version
_PINNED = re.compile(rf"({NAME}) ([0-9a-f]{{64}}) ([0-9a-f]{{64}}) (/[^\n]*)")


@dataclass(frozen=True, slots=True)
class Pinned:
    """What one version must be: its folder's name, the SHA-256 of its two lists, its Python."""

    name: str
    manifest_sha256: str
    packages_sha256: str
    python: str

    @property
    def text(self) -> str:
        """As it stands in the script. Law: Pinned.parse(pinned.text) == pinned."""
        return f"{self.name} {self.manifest_sha256} {self.packages_sha256} {self.python}"

    @classmethod
    def parse(cls, text: str) -> Pinned:
        """Raises ValueError."""
        found = _PINNED.fullmatch(text)
        if found is None:
            raise ValueError(f"not a version: {text[:100]!r}")
        return cls(*found.groups())


@dataclass(frozen=True, slots=True)
class Root:
    """The values of one DIR/run. public_key: PEM, without its first and last line and its ends."""

    current: Pinned
    previous: Pinned | None = None
    public_key: str | None = None

    @classmethod
    def read(cls, script: Path) -> Root | None:
        """From DIR/run; None where there is none, or one that says nothing that can be read."""
        try:
            text = read_plain(script, MAX_SCRIPT_BYTES).decode()
            lines = {name: "".join(shlex.split(value)) for name, value in _LINE.findall(text)}
            earlier = lines["earlier"]
            return cls(
                current=Pinned.parse(lines["pinned"]),
                previous=Pinned.parse(earlier) if earlier else None,
                public_key=lines["key"] or None,
            )
        except (OSError, ValueError, KeyError):
            return None

    def script(self, template: str) -> bytes:
        """The text of DIR/run. template: the bundle's `run`, where the values are empty.

        Law: Root.read of what this returns is equal. Raises IntegrityError for another template.
        """
        values = {
            "pinned": self.current.text,
            "earlier": self.previous.text if self.previous else "",
            "key": self.public_key or "",
        }
        if sorted(_LINE.findall(template)) != sorted((name, "") for name in values):
            raise IntegrityError("the bundle's `run` has no place for what it has to check")
        return _LINE.sub(lambda line: _filled(line[1], values), template).encode()


def _filled(name: str, values: Mapping[str, str]) -> str:
    return f"{name}={shlex.quote(values[name])}"
