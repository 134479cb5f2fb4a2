"""No network: libraries are told so, and one that tries all the same is found out.

Python reports every use of a socket by Python code to its audit hooks (PEP 578). The hook here
refuses what leaves this process, and sockets of the internet altogether unless it serves. A library
may swallow that refusal, so it is remembered too, and the process ends with OfflineError's exit
code. Compiled code opens sockets without Python's knowledge: to that the kernel refuses them, see
runtimes/trust/seccomp.py. Such an attempt fails, but nobody hears of it.

Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from ipaddress import ip_address

from runtimes.errors import OfflineError
from runtimes.trust.seccomp import refuse_network

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
# Specified by Linux's headers: AF_INET, AF_INET6; SOCK_STREAM, and the bits that are no flags.
_INTERNET = (2, 10)
_STREAM, _KIND_BITS = 1, 0xF

_attempts: list[OfflineError] = []


def forbid_network(*, serving: bool = False) -> None:
    """From now on, for as long as this process lives: no connection leaves it.

    serving: it may wait for connections and answer them.
    """
    os.environ.update(SETTINGS)
    for name in PROXIES:
        os.environ.pop(name, None)
    sys.addaudithook(_hook(serving))
    refuse_network(serving=serving)


def attempts() -> tuple[OfflineError, ...]:
    """What has been refused so far, whoever swallowed the error."""
    return tuple(_attempts)


def _hook(serving: bool) -> Callable[[str, tuple[object, ...]], None]:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith("socket.") and _leaves(event, arguments, serving):
            error = OfflineError(
                f"something tried to use the network: {_describe(event, arguments)}",
                where=_culprit(),
                expected="no network at install or run time",
                remedy="report it: a bundle has to work without; nothing was sent",
            )
            _attempts.append(error)
            raise error

    return hook


def _leaves(event: str, arguments: tuple[object, ...], serving: bool) -> bool:
    match event:
        case "socket.connect" | "socket.sendto" | "socket.sendmsg":
            return _is_internet(arguments[0])
        case "socket.__new__":
            _, family, kind, _ = arguments
            stream = isinstance(kind, int) and kind & _KIND_BITS == _STREAM
            return family in _INTERNET and not (serving and stream)
        case "socket.getaddrinfo" | "socket.gethostbyname":
            return not _is_literal(arguments[0])
        case "socket.gethostbyaddr" | "socket.getnameinfo":
            return True
    return False


def _is_internet(socket: object) -> bool:
    """Whether a socket is of the internet's kinds; the others stay on this machine."""
    return getattr(socket, "family", None) in _INTERNET


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
        return "it asked for a socket of the internet"
    what = [str(value) for value in arguments if isinstance(value, (tuple, str, bytes))]
    return " ".join([event.removeprefix("socket."), *what])


def _culprit() -> str:
    """The innermost code that is not ours nor the standard library's socket module."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith("socket.py"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
