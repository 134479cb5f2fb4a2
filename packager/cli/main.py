"""The `starpack` command line: progress, what is printed, and exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from tqdm import tqdm

from packager.cli.parser import parser
from packager.core.errors import SelectionError, StarpackError
from packager.core.record_store import to_plain

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        with _Bars(shown=not arguments.json and sys.stderr.isatty()) as bars:
            report = arguments.command(arguments, bars.update)
    except StarpackError as error:
        if arguments.json:
            data = error.to_json()
            if isinstance(error, SelectionError):
                data["rejected"] = to_plain(error.rejected)
            print(json.dumps(data, indent=2))
        else:
            print(f"starpack: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"starpack: {error}", file=sys.stderr)
        print(
            "  remedy: check the path, the permissions and the space on the disk", file=sys.stderr
        )
        return StarpackError.exit_code
    except KeyboardInterrupt:
        print("starpack: interrupted; finished steps are kept and resumed", file=sys.stderr)
        return INTERRUPTED
    try:
        print(json.dumps(report.data, indent=2) if arguments.json else report.text, flush=True)
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return report.exit_code


class _Bars:
    """One progress bar at a time, on stderr; gone when its work is done."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: tqdm | None = None
        self.what = ""

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, what: str, done: int, total: int) -> None:
        if not self.shown:
            return
        if what != self.what or self.bar is None or self.bar.total != total:
            self.close()
            self.what = what
            self.bar = tqdm(total=total, desc=what, leave=False, unit_scale=True)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
