"""No network: libraries are told so, and one that tries all the same is found out.

Python reports every use of a socket by Python code to its audit hooks (PEP 578). The hook here
refuses what leaves this process: any socket but a local one, or one of TCP to serve, and any
connection. A library may swallow that refusal, so it is remembered too, and the process ends with
OfflineError's exit code. Compiled code opens sockets without Python's knowledge: to that the kernel
refuses the same, see runtimes/trust/seccomp.py. Such an attempt fails, but nobody hears of it.

Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from runtimes.errors import OfflineError
from runtimes.trust.seccomp import INTERNET, LOCAL, may_open, refuse_network

# What keeps these libraries from trying in the first place: downloads, look-ups, telemetry.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 does, on Linux too; see its Privacy.md
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "*",
}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# Specified by NVIDIA's guide to its Multi-Process Service: where its clients find it.
_MPS_VARIABLE, _MPS_FOLDER = "CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"
_OF_A_DESCRIPTOR = -1  # a Python socket for a descriptor that is there already

_attempts: list[OfflineError] = []
_guards: list[str] = []


def forbid_network(*, serving: bool = False) -> None:
    """From now on, for as long as this process lives: no connection leaves it.

    serving: it may wait for connections and answer them.
    """
    os.environ.update(SETTINGS)
    for name in PROXIES:
        os.environ.pop(name, None)
    connects = not serving and _shares_a_gpu()
    sys.addaudithook(_hook(serving, connects))
    _guards[:] = ["Python's hook"]
    if refuse_network(serving=serving, connects=connects):
        _guards.append("the kernel's filter")


def guards() -> tuple[str, ...]:
    """What refuses the network to this process: nothing, Python's hook, or the kernel as well."""
    return tuple(_guards)


def attempts() -> tuple[OfflineError, ...]:
    """What has been refused so far, whoever swallowed the error."""
    return tuple(_attempts)


def _shares_a_gpu() -> bool:
    """Whether MPS is at work: CUDA connects to it by a local socket, or has no GPU of its own."""
    return Path(os.environ.get(_MPS_VARIABLE, _MPS_FOLDER), "control").exists()


def _hook(serving: bool, connects: bool) -> Callable[[str, tuple[object, ...]], None]:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith("socket.") and _leaves(event, arguments, serving, connects):
            error = OfflineError(
                f"something tried to use the network: {_describe(event, arguments)}",
                where=_culprit(),
                expected="no network at install or run time",
                remedy="report it: a bundle has to work without; nothing was sent",
            )
            _attempts.append(error)
            raise error

    return hook


def _leaves(event: str, arguments: tuple[object, ...], serving: bool, connects: bool) -> bool:
    match event, arguments:
        case "socket.connect", (socket, *_):
            return not (connects and getattr(socket, "family", None) == LOCAL)
        case "socket.sendto" | "socket.sendmsg", (socket, address):
            # without an address it goes to whoever has connected
            return address is not None and getattr(socket, "family", None) in INTERNET
        case "socket.__new__", (_, int(family), int(kind), int(protocol)):
            is_new = family != _OF_A_DESCRIPTOR
            return is_new and not may_open(family, kind, protocol, serving=serving)
        case "socket.getaddrinfo" | "socket.gethostbyname", (host, *_):
            return not _is_literal(host)
        case "socket.gethostbyaddr" | "socket.getnameinfo", _:
            return True
    return False


def _is_literal(host: object) -> bool:
    """Whether a host needs no look-up beyond this machine's own files."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        ip_address(host.decode() if isinstance(host, bytes) else str(host))
    except ValueError:
        return False
    return True


def _describe(event: str, arguments: tuple[object, ...]) -> str:
    if event == "socket.__new__":
        return "it asked for a socket of family {}, type {}, protocol {}".format(*arguments[1:])
    what = [str(value) for value in arguments if isinstance(value, (tuple, str, bytes))]
    return " ".join([event.removeprefix("socket."), *what])


def _culprit() -> str:
    """The innermost code that is not ours nor the standard library's socket module."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith("socket.py"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
