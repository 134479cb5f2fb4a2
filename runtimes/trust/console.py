"""What a person or a program sees: results on standard output, everything else on the other.

With `json` a command prints one JSON value on standard output, its error included, and no remarks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from runtimes.errors import StarpackError, explained

NOTICE = (
    "Machine-generated code: review it before use, and say so where you publish it. "
    "Licence and use restrictions: run --licence."
)
PATIENCE_S = 2.0  # specified: work that takes longer shows its progress
REFRESH_S = 0.1  # guessed: smooth to the eye


class Console:
    """Standard output and standard error, with the manners that the flags ask for."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._remarks = not (as_json or quiet)
        self._is_answered = False  # the one JSON value has been printed

    def text(self, piece: str) -> None:
        """Show a piece of a result at once."""
        sys.stdout.write(piece)
        sys.stdout.flush()

    def data(self, value: object) -> None:
        """Print the one JSON value of a command."""
        self._is_answered = True
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def remark(self, line: str) -> None:
        """A line beside the result; not with `json` or `quiet`."""
        if self._remarks:
            print(line, file=sys.stderr)

    def warn(self, line: str) -> None:
        """What the user should know whatever the flags, but `quiet`."""
        if not self._quiet:
            print(f"warning: {line}", file=sys.stderr)

    def error(self, error: StarpackError) -> None:
        """An explained failure: with `json` the command's one value, unless it has printed that."""
        if self.as_json and not self._is_answered:
            self._is_answered = True
            print(json.dumps(error.to_json(), ensure_ascii=False))
        else:
            print(f"error: {error}", file=sys.stderr)

    def failed(self, error: StarpackError | OSError | KeyboardInterrupt) -> int:
        """Show why a command ends early; returns its exit code."""
        reason = explained(error)
        self.error(reason)
        return reason.exit_code

    def meter(self, label: str, unit: str, per_unit: int = 1) -> Callable[[int, int], None]:
        """progress(done, total) that shows itself on a terminal once the work takes long."""
        started = shown = time.monotonic()
        visible = self._remarks and sys.stderr.isatty()

        def progress(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            ended = done >= total
            if not visible or now - started < PATIENCE_S or (now - shown < REFRESH_S and not ended):
                return
            shown = now
            line = f"{label}: {done // per_unit} of {total // per_unit} {unit}"
            print(f"\r{line}", end="\r\033[K" if ended else "", file=sys.stderr, flush=True)

        return progress
