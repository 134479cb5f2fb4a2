"""Compiled code finds no way out. Each is tried in a process of its own, without a guard too."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ways_out

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this machine"
)

ROOT = Path(__file__).parents[3]
MODES = ("run", "serve")


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Somebody who waits for what gets out."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def try_way(way: str, mode: str, listener: socket.socket) -> subprocess.CompletedProcess[str]:
    port = str(listener.getsockname()[1])
    command = [sys.executable, "-I", "-S", ways_out.__file__, str(ROOT), mode, way, port]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def nobody_called(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("way", ways_out.WAYS)
def test_a_way_out_is_refused(way: str, listener: socket.socket) -> None:
    unguarded = try_way(way, "open", listener)
    while not nobody_called(listener):
        pass
    if unguarded.returncode < 0:
        pytest.skip(f"this kernel kills whoever tries it: signal {-unguarded.returncode}")
    assert unguarded.stdout.strip() not in ("", "ENETUNREACH"), unguarded.stderr
    for mode in MODES:
        guarded = try_way(way, mode, listener)
        assert guarded.stdout.strip() == "ENETUNREACH", (mode, guarded.stdout, guarded.stderr)
        assert nobody_called(listener)


@pytest.mark.parametrize("way", ways_out.NO_WAYS)
@pytest.mark.parametrize("mode", ["open", *MODES])
def test_what_the_filter_cannot_see_is_no_way(way: str, mode: str, listener: socket.socket) -> None:
    tried = try_way(way, mode, listener)
    assert tried.stdout.strip() == "EPIPE", (tried.stdout, tried.stderr)  # it is not connected
    assert nobody_called(listener)


ONE_LIST = """
import ctypes, errno, socket, sys
from itertools import product
sys.path.insert(0, sys.argv[1])
from runtimes.errors import OfflineError
from runtimes.trust import offline, seccomp
serving = sys.argv[2] == "serve"
offline.forbid_network(serving=serving)
libc = ctypes.CDLL(None, use_errno=True)
def by_kernel(*wanted):
    made = libc.socket(*wanted)
    return made >= 0 or ctypes.get_errno() != errno.ENETUNREACH
def by_python(*wanted):
    try:
        socket.socket(*wanted)
    except OfflineError:
        return False
    except OSError as error:
        return error.errno != errno.ENETUNREACH
    return True
allowed = []
for wanted in product(range(48), (1, 2, 3, 5, 10, 1 | 0o4000), (0, 1, 6, 17, 58, 132, 262)):
    expected = seccomp.may_open(*wanted, serving=serving)
    assert by_kernel(*wanted) == by_python(*wanted) == expected, wanted
    allowed += [wanted] if expected else []
print({(family, kind & 15) for family, kind, _ in allowed if family != 1})
"""


@pytest.mark.parametrize(("mode", "allowed"), [("run", set()), ("serve", {(2, 1), (10, 1)})])
def test_python_and_the_kernel_have_one_list(mode: str, allowed: set[tuple[int, int]]) -> None:
    command = [sys.executable, "-I", "-S", "-c", ONE_LIST, str(ROOT), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(allowed)


GOES_ON = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from runtimes.trust import offline
assert offline.guards() == ()
offline.forbid_network(serving=sys.argv[2] == "serve")
assert offline.guards() == ("Python's hook", "the kernel's filter")
libc = ctypes.CDLL(None, use_errno=True)
found = ctypes.c_void_p()
for name in (b"localhost", b"127.0.0.1", b"::1"):
    assert libc.getaddrinfo(name, b"80", None, ctypes.byref(found)) == 0, name
assert libc.getaddrinfo(b"host.example", b"80", None, ctypes.byref(found)) != 0
assert libc.getifaddrs(ctypes.byref(found)) == -1  # as where there is no netlink; no crash
"""


@pytest.mark.parametrize("mode", MODES)
def test_the_c_library_does_without(mode: str) -> None:
    command = [sys.executable, "-I", "-S", "-c", GOES_ON, str(ROOT), mode]
    subprocess.run(command, check=True)
