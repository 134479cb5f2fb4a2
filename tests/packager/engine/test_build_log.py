"""A build of minutes shows that it goes on, while it goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from packager.engine import build_log
from packager.engine.build_log import run_logged

# A build tool that pauses longer than the heartbeat, as a large file to be compiled makes it.
NINJA = """
import pathlib, sys, time
print("configuring", flush=True)
for step in (1, 2, 3):
    print(f"  [{step}/3] /usr/bin/g++ -c file.cpp", flush=True)
    deadline = time.monotonic() + 60
    while not pathlib.Path(sys.argv[1], str(step)).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
print("the end, without a line break", end="")
"""


def test_steps_are_shown_as_they_come_and_again_while_one_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_log, "HEARTBEAT_S", 0.05)
    seen: list[tuple[int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        assert what == "compiling"
        seen.append((done, total))
        if seen.count((done, total)) == 3:  # twice without any output, then the tool may go on
            (tmp_path / str(done)).touch()

    started = time.monotonic()
    run_logged(
        [sys.executable, "-c", NINJA, str(tmp_path)],
        tmp_path / "log",
        what="compiling",
        progress=progress,
    )
    assert time.monotonic() - started < 50
    steps = [step for step in seen if step != (0, 1)]  # before the first
    assert list(dict.fromkeys(steps)) == [(1, 3), (2, 3), (3, 3)] and steps == sorted(steps)
    log = (tmp_path / "log").read_text().splitlines()
    assert log[0] == "configuring" and log[-1] == "the end, without a line break" and len(log) == 5


def test_output_that_is_no_text_is_kept(tmp_path: Path) -> None:
    run_logged(["printf", r"a\377b\n[1/1] c\r\n"], tmp_path / "log", what="compiling")
    assert (tmp_path / "log").read_bytes().decode() == "a\ufffdb\n[1/1] c\r\n"
