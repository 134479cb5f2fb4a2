"""Code that a model wrote can do no harm by accident, and every end of it is a verdict."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packager.core.errors import DeviceError
from packager.measurement.sandbox import Containment, Limits, find_containment

SHORT = Limits(cpu_s=1, wall_s=30.0)
NOBODY = 65534


@pytest.fixture(scope="module")
def containment() -> Containment:
    return find_containment()


def test_only_a_program_that_comes_to_its_end_has_passed(containment) -> None:
    assert containment.run("x = [1]\nassert x").passed
    for program, reason in (
        ("assert 1 == 2, 'unequal'", "AssertionError: unequal"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended itself with status 0"),
        ("import signal; signal.raise_signal(11)", "ended by signal 11"),
        ("def f(:", "SyntaxError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise Exception('\\ud800' * 9999)", "Exception: ???"),
        ("print('passed'); print('0' * 32, 'passed'); 1 / 0", "ZeroDivisionError"),
    ):
        verdict = containment.run(program)
        assert not verdict.passed and reason in verdict.reason, program
        assert len(verdict.reason) < 500


def test_the_interpreter_lends_nothing_of_its_own(containment) -> None:
    # not the future statement of the child, its names, its environment, arguments or folder
    assert containment.run("def f(x: int): ...\nassert f.__annotations__ == {'x': int}").passed
    assert containment.run("assert set(globals()) == {'__name__', '__builtins__'}").passed
    assert containment.run("import os\nassert set(os.environ) <= {'LC_CTYPE'}").passed
    assert containment.run("import os\nassert os.getcwd() != '/'").passed
    verdict = containment.run("input()")
    assert verdict.reason.startswith("EOFError")


def test_loops_and_sleep_end(containment) -> None:
    verdict = containment.run("while True: pass", SHORT)
    assert "1 s of processor time" in verdict.reason
    start = time.monotonic()
    verdict = containment.run("import time\ntime.sleep(60)", Limits(wall_s=1.0))
    assert verdict.reason == "stopped after 1.0 s"
    assert time.monotonic() - start < 30


def test_output_goes_nowhere(containment) -> None:
    assert containment.run("for _ in range(200): print('x' * 100_000)").passed
    flood = (
        "import os\nfor fd in range(3, 64):\n"
        "    try:\n        while True: os.write(fd, b'x' * 9999)\n    except OSError: pass"
    )
    assert not containment.run(flood, Limits(wall_s=1.0)).passed


def test_memory_is_limited(containment) -> None:
    verdict = containment.run("x = bytearray(1 << 31)")
    assert verdict.reason.startswith("MemoryError")


@pytest.mark.parametrize(
    "program",
    [
        "open({file!r}, 'a')",
        "import os; os.open({file!r}, os.O_RDWR)",
        "import os; os.remove({file!r})",
        "import pathlib; pathlib.Path({file!r}).rename('x')",
        "import shutil; shutil.rmtree({folder!r})",
        "open('inside', 'w')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.kill(os.getppid(), 9)",
        "import ctypes",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        "import socket; socket.socket()",
    ],
)
def test_the_hooks_refuse(tmp_path, containment, program: str) -> None:
    file = tmp_path / "precious"
    file.write_text("kept")
    verdict = containment.run(program.format(file=str(file), folder=str(tmp_path)))
    assert verdict.reason.startswith("PermissionError: refused: ")
    assert file.read_text() == "kept"


def test_the_kernel_refuses_what_passes_the_hooks(containment) -> None:
    verdict = containment.run("import os\nos.write(os.memfd_create('x'), b'abc')")
    assert "File too large" in verdict.reason
    threads = containment.run("import threading\nthreading.Thread(target=print).start()")
    assert threads.passed != containment.no_processes
    routes = "assert len(open('/proc/net/route').readlines()) <= 1"
    if containment.command:
        assert containment.run(routes).passed


def test_root_goes_on_as_nobody_where_it_can(monkeypatch) -> None:
    """With an interpreter that everybody can read; CI's own may be root's alone."""
    public = Path("/usr/bin/python3")
    if os.geteuid() == 0 and public.exists():
        monkeypatch.setattr(sys, "executable", str(public))
    containment = find_containment()
    if not containment.as_nobody:
        return
    assert containment.no_processes
    assert containment.run(f"import os\nassert os.getuid() == os.geteuid() == {NOBODY}").passed
    verdict = containment.run("import _thread\n_thread.start_new_thread(print, ())")
    assert "can't start new thread" in verdict.reason
    more = "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (9, 9))"
    assert "not allowed to raise" in containment.run(more).reason


def test_without_unshare_the_rest_still_holds(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    containment = find_containment()
    assert containment.command == ()
    assert "the network is only hooked" in containment.describe()
    assert not containment.run("import socket; socket.socket()").passed


def test_an_interpreter_that_does_not_start_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match="programs cannot be run here: ended itself"):
        find_containment()


def test_nothing_is_left_when_the_caller_is_interrupted(monkeypatch, containment) -> None:
    started = []

    def interrupted(process: subprocess.Popen, *_: object) -> None:
        started.append(process)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        containment.run("import time\ntime.sleep(60)")
    assert started[0].wait(20) < 0
