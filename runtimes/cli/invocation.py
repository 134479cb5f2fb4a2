"""What a command is run on, besides its own flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtimes.trust.console import Console
from runtimes.trust.installed.version import Verified, Version


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of the command line.

    version: what is installed of `bundle`, if it is installed; verified: as it was found when
    it was started.
    """

    bundle: Path
    version: Version | None
    console: Console
    verified: Verified | None = None
