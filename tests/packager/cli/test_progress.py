"""Progress: lines without control codes for a log, a bar for a terminal, nothing when quiet."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from packager.cli.progress import plain_lines, shown_progress

ROOT = Path(__file__).parents[3]
WORK = """
from packager.cli import progress
progress.LINE_S = 0.0
with progress.shown_progress(quiet=False) as told:
    for done in range(0, 2_000_000_001, 500_000_000):
        told("convert gguf-[bold]Q8_0", done, 2_000_000_000)
"""


def test_a_log_gets_a_line_every_few_seconds() -> None:
    stream, now = io.StringIO(), iter([0, 1, 4.9, 14, 15, 20, 21, 22, 28, 30, 36])
    progress = plain_lines(stream, lambda: next(now))
    for done in (0, 1, 2, 720_000_000, 720_000_001, 1_799_999_999):
        progress("convert gguf-Q4_K_M", done, 1_800_000_000)
    for done in (0, 1, 2, 0, 30):
        progress("infill", done, 60)
    assert stream.getvalue().splitlines() == [
        "convert gguf-Q4_K_M: 40 % of 1.8 GB, 14 s",
        "convert gguf-Q4_K_M: 99 % of 1.8 GB, 20 s",
        "infill: 3 % of 60, 7 s",
        "infill: 50 % of 60, 6 s",
    ]


def test_a_pipe_gets_no_control_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("convert gguf-[bold]Q8_0: 100 % of 2.0 GB, ")
    assert done.stderr.isprintable() or all(line.isprintable() for line in lines)
    assert done.stdout == ""


def test_a_terminal_gets_a_bar_that_goes() -> None:
    above, below = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", WORK], cwd=ROOT, stderr=below, env=environment
    ) as process:
        os.close(below)
        shown = b""
        while chunk := _read(above):
            shown += chunk
    os.close(above)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "convert gguf-[bold]Q8_0" in text and "of 2.0 GB" in text and "100%" in text
    assert shown.rstrip().endswith((b"\x1b[2K", b"\x1b[?25h"))  # what was drawn is erased


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux: nobody has the other end any more
        return b""


def test_quiet_is_quiet(capsys) -> None:
    with shown_progress(quiet=True) as progress:
        progress("convert", 1, 2)
    assert capsys.readouterr() == ("", "")
