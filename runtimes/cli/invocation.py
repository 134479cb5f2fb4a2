"""What a command is run on, besides its own flags. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtimes.trust.console import Console
from runtimes.trust.installed.version import Version


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of the command line. version: what is installed of `bundle`, if it is installed."""

    bundle: Path
    version: Version | None
    console: Console
