"""Whatever tries to use the network at install or run time ends it with exit code 6."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.packing import sh, write_bundle

pytestmark = pytest.mark.bundle

ROOT = Path(__file__).parents[3]
GUARD = f"""
import os, socket, sys
sys.path.insert(0, {str(ROOT)!r})
from runtimes.trust import offline
from runtimes.errors import OfflineError
offline.forbid_network(serving=%r)
def refused(call):
    before = len(offline.attempts())
    try:
        call()
    except OfflineError:
        return len(offline.attempts()) == before + 1
    except OSError:
        pass
    return False
def tcp():
    return socket.socket()
def udp():
    return socket.socket(type=socket.SOCK_DGRAM)
"""


def guarded(code: str, serving: bool = False) -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", GUARD % serving + code], check=True)


@pytest.mark.parametrize(
    "call",
    [
        "tcp().connect(('127.0.0.1', 9))",  # a proxy or a collector of telemetry, on this machine
        "tcp().connect(('192.0.2.1', 443))",
        "tcp().connect_ex(('192.0.2.1', 443))",
        "socket.create_connection(('192.0.2.1', 443), 0.1)",
        "udp().sendto(b'x', ('192.0.2.1', 53))",
        "udp().sendmsg([b'x'], [], 0, ('192.0.2.1', 53))",
        "socket.getaddrinfo('huggingface.example', 443)",
        "socket.gethostbyname('huggingface.example')",
        "socket.gethostbyaddr('192.0.2.1')",
        "udp().connect(('192.0.2.1', 53))",
        "__import__('urllib.request').request.urlopen('http://192.0.2.1/')",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socket(socket.AF_VSOCK)",
        "socket.socket(proto=132)",
    ],
)
@pytest.mark.parametrize("serving", [False, True])
def test_nothing_leaves(call: str, serving: bool) -> None:
    guarded(f"assert refused(lambda: {call})", serving)


def test_only_a_server_waits_for_connections() -> None:
    guarded("assert refused(lambda: tcp().bind(('127.0.0.1', 0)))")
    guarded(
        "socket.getaddrinfo('localhost', 8000); socket.getaddrinfo('127.0.0.1', 8000)\n"
        "import asyncio\n"
        "async def serve():\n"
        "    server = await asyncio.start_server(print, 'localhost', 0)\n"
        "    server.close(); await server.wait_closed()\n"
        "asyncio.run(serve()); assert not offline.attempts()",
        serving=True,
    )


LOCAL = """
unix = socket.socket(socket.AF_UNIX); unix.bind({path!r}); unix.listen()
a, b = socket.socketpair(); a.sendall(b'x'); a.sendmsg([b'x'])
assert os.environ['HF_HUB_OFFLINE'] == '1' and not offline.attempts()
connect = lambda: socket.socket(socket.AF_UNIX).connect({path!r})
"""


@pytest.mark.parametrize("serving", [False, True])
def test_local_sockets_wait_but_do_not_connect(tmp_path: Path, serving: bool) -> None:
    """Who listens there may well ask the network: nscd does, and systemd's resolver."""
    guarded(LOCAL.format(path=str(tmp_path / "s")) + "assert refused(connect)", serving)


def test_cuda_reaches_the_service_that_shares_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    local = LOCAL.format(path=str(tmp_path / "s"))
    guarded(local + "assert refused(connect)")
    (tmp_path / "s").unlink()
    (tmp_path / "control").touch()
    guarded(local + "connect(); assert refused(lambda: socket.socket())")
    (tmp_path / "s").unlink()
    guarded(local + "assert refused(connect)", serving=True)


ANSWER = """
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
stream = server.accept()[0]
stream.sendall(b"an "); stream.sendmsg([b"answer"])
assert not offline.attempts()
"""


def test_whoever_has_connected_is_answered() -> None:
    """By `sendmsg` too, which asyncio uses from Python 3.12 on."""
    code = GUARD % True + ANSWER
    command = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(60)
            assert client.makefile("rb").read() == b"an answer"
    assert process.returncode == 0


def test_without_a_filter_python_s_hook_is_told_of_alone() -> None:
    """On such a machine compiled code has no guard: `doctor` says so."""
    guarded(
        "import platform; platform.machine = lambda: 'riscv64'\n"
        'offline.forbid_network(); assert offline.guards() == ("Python\'s hook",)'
    )


CALL = "__import__('socket').create_connection(('192.0.2.1', 443), 0.1)"
SWALLOWED = f"try:\n    {CALL}\nexcept Exception:\n    pass\n"


UNTOLD = "import onnxruntime"


@pytest.mark.parametrize("code", [CALL, SWALLOWED])
def test_a_package_that_calls_home_is_not_installed(tmp_path: Path, code: str) -> None:
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle", code=code)
    refused = sh(bundle / "install", "--to", tmp_path / "target")
    assert refused.returncode == 6, refused.stderr
    assert "demo_package/__init__.py" in refused.stderr and "the network" in refused.stderr
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("code", [CALL, SWALLOWED])
def test_a_command_in_which_a_library_calls_home_fails(tmp_path: Path, code: str) -> None:
    kept_still = "import sys\nif 'try' not in sys.argv:\n"  # while it was installed
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    bundle = write_bundle(
        tmp_path / "parts", tmp_path / "bundle", code=kept_still + lines, package="numpy"
    )
    done = sh(bundle / "install", "--to", tmp_path / "target")
    assert done.returncode == 0, done.stderr
    refused = sh(tmp_path / "target" / "run", "doctor")
    assert refused.returncode == 6, refused.stderr
    assert "numpy/__init__.py" in refused.stderr and "Traceback" not in refused.stderr


def test_onnx_runtime_leaves_no_identifier_of_the_machine(tmp_path: Path) -> None:
    """As published it writes one into the user's cache as it is imported, and would send events."""
    pytest.importorskip("onnxruntime")
    environment = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for code, left in (
        ("import runtimes.backends.onnx.session; runtimes.backends.onnx.session.engine()", False),
        (UNTOLD, True),
    ):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        assert (tmp_path / "home").exists() == left
