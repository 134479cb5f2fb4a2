"""The `starpack` command line: what is printed, and exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from packager.cli.parser import parser
from packager.cli.progress import shown_progress
from packager.cli.result import Command
from packager.core.errors import SelectionError, StarpackError
from packager.core.record_store import to_plain
from runtimes.errors import explained

UMASK = 0o022  # what is made is for all to read and nobody else to write, whatever the shell's is


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. With --json one object is printed, always."""
    umask = os.umask(UMASK)
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    finally:
        os.umask(umask)


def _run(words: Sequence[str]) -> int:
    as_json = "--json" in words  # until the words are understood
    try:
        arguments = parser().parse_args(words)
        as_json = arguments.json
        with shown_progress(quiet=arguments.json or arguments.quiet) as progress:
            command: Command = arguments.command
            result = command(arguments, progress)
        _print(json.dumps(result.data, indent=2) if as_json else result.text)
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (StarpackError, OSError, KeyboardInterrupt) as error:
        return _failed(error, as_json)
    return result.exit_code


def _print(text: str) -> None:
    print(text, flush=True)


def _failed(error: StarpackError | OSError | KeyboardInterrupt, as_json: bool) -> int:
    """Say why a command ended early; returns its exit code."""
    reason = explained(error, "run it again: finished steps are kept")
    if as_json:
        data = reason.to_json()
        if isinstance(reason, SelectionError):
            data["rejected"] = to_plain(reason.rejected)
        _print(json.dumps(data, indent=2))
    else:
        print(f"starpack: {reason}", file=sys.stderr)
    return reason.exit_code
