"""A server of a bundle in a process of its own, for the benchmarks of the server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

STOP_S = 30  # guessed: a graceful stop takes a few seconds at most


@contextmanager
def served(bundle: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`run serve` of this checkout on a free port of the loopback interface: (url, process)."""
    command = [sys.executable, "-m", "runtimes", "serve", "--bundle", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json", "--quiet", *flags],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        lines = iter(process.stdout.readline, "")
        started = "".join(takewhile(lambda line: line != "}\n", lines))
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        yield json.loads(started + "}")["url"], process
        if process.poll() is not None:
            raise SystemExit(f"the server ended by itself with code {process.returncode}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit("the server did not stop") from None
        finally:
            process.stdout.close()
