"""The kernel refuses the network to this process, whatever compiled code in it may try.

A seccomp filter (man 2 seccomp, Documentation/userspace-api/seccomp_filter.rst), for this process,
its threads and its children, and not to be taken back. A refused call fails as if there were no
route, which libraries bear. What is not named here is refused: the kernel has some 40 families of
sockets, and several ways to send.

- A socket is a local one; or, to serve, one of TCP that waits for connections and answers them.
- Nothing connects, local sockets neither: services of the machine, such as nscd and systemd's
  resolver, ask the network for whoever connects to them. CUDA under NVIDIA's MPS is excepted.
- Nothing is sent with MSG_FASTOPEN, which connects as it sends; nor by io_uring, past this filter.
- No socket is taken out of another process, and no name is resolved by the kernel's key service.

The drivers of GPUs need no more: they talk to their device files. glibc asks AF_NETLINK for the
machine's addresses, and does without.

Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of system calls; specified by the kernel's headers."""

    audit: int
    seccomp: int
    socket: int
    socketpair: int
    connect: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    request_key: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, 41, 53, 42, 44, 46, 307, 249),
    "aarch64": _Machine(0xC00000B7, 277, 198, 199, 203, 206, 211, 269, 218),
}
# The same on every machine: io_uring_setup, _enter and _register; pidfd_getfd.
_IO_URING, _PIDFD_GETFD = (425, 426, 427), 438
# Specified: linux/prctl.h, seccomp.h, bpf_common.h, socket.h and the offsets of seccomp_data.
_NO_NEW_PRIVS, _SET_FILTER, _ALL_THREADS = 38, 1, 1
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.ENETUNREACH
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_ARGUMENTS = (16, 24, 32, 40)  # their low halves: the kernel takes these as 32-bit numbers, too
_X32 = 0x40000000  # system calls of another calling convention have this bit
_FASTOPEN = 0x20000000
# Specified: AF_UNIX; AF_INET, AF_INET6; SOCK_STREAM, and the bits that are no flags; by default,
# and IPPROTO_TCP. Others of the internet's streams, such as SCTP, connect as they send.
LOCAL, INTERNET = 1, (2, 10)
_STREAM, _KIND_BITS, _TCP = 1, 0xF, (0, 6)

Instruction = tuple[int, int, int, int]
"""code, steps to skip if true, steps to skip if false, operand."""

_ALLOWED: list[Instruction] = [(_RETURN, 0, 0, _ALLOW)]
_REFUSED: list[Instruction] = [(_RETURN, 0, 0, _REFUSE)]


class _Step(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def may_open(family: int, kind: int, protocol: int, *, serving: bool) -> bool:
    """Whether there may be such a socket; what the filter below says to the kernel."""
    is_tcp = family in INTERNET and kind & _KIND_BITS == _STREAM and protocol in _TCP
    return family == LOCAL or (serving and is_tcp)


def refuse_network(*, serving: bool, connects: bool = False) -> bool:
    """Install the filter; False where this kernel or machine has none.

    serving: sockets of TCP may wait for connections and answer them; without it there are none.
    connects: local sockets may connect, and so may one of the internet that this process was given.
    """
    machine = _MACHINES.get(platform.machine())
    if platform.system() != "Linux" or machine is None:
        return False
    program = _program(machine, serving, connects)
    steps = (_Step * len(program))(*(_Step(*step) for step in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        return False
    arguments = ctypes.c_ulong(_SET_FILTER), ctypes.c_ulong(_ALL_THREADS)
    given = ctypes.byref(_Program(len(program), steps))
    failed: int = libc.syscall(ctypes.c_long(machine.seccomp), *arguments, given)
    return not failed


def _program(machine: _Machine, serving: bool, connects: bool) -> Sequence[Instruction]:
    """The filter in the kernel's own instructions; each falls through to the next at `0, 0`."""
    refused = [*_IO_URING, _PIDFD_GETFD, machine.request_key]
    if not connects:
        refused.append(machine.connect)
    calls = {number: _REFUSED for number in refused} | {
        machine.sendto: _refuse_fast_open(_ARGUMENTS[3]),
        machine.sendmsg: _refuse_fast_open(_ARGUMENTS[2]),
        machine.sendmmsg: _refuse_fast_open(_ARGUMENTS[3]),
        machine.socketpair: [*_need(_ARGUMENTS[0], [LOCAL]), *_ALLOWED],
        machine.socket: _check_socket(serving),
    }
    return [
        *_need(_ARCHITECTURE, [machine.audit]),
        (_LOAD, 0, 0, _NUMBER),
        *_when(_AT_LEAST, _X32, _REFUSED),
        *(step for number, steps in calls.items() for step in _when(_EQUAL, number, steps)),
        *_ALLOWED,
    ]


def _check_socket(serving: bool) -> list[Instruction]:
    family, kind, protocol = _ARGUMENTS[:3]
    if not serving:
        return [*_need(family, [LOCAL]), *_ALLOWED]
    return [
        (_LOAD, 0, 0, family),
        *_when(_EQUAL, LOCAL, _ALLOWED),
        *_need(family, INTERNET),
        *_need(kind, [_STREAM], _KIND_BITS),
        *_need(protocol, _TCP),
        *_ALLOWED,
    ]


def _refuse_fast_open(flags: int) -> list[Instruction]:
    return [(_LOAD, 0, 0, flags), *_when(_ANY_BIT, _FASTOPEN, _REFUSED), *_ALLOWED]


def _when(test: int, operand: int, steps: Sequence[Instruction]) -> list[Instruction]:
    """What is loaded passes a test: these steps, which have to end the filter."""
    return [(test, 0, len(steps), operand), *steps]


def _need(place: int, values: Sequence[int], mask: int = 0xFFFFFFFF) -> list[Instruction]:
    """Refuse the call unless what stands at a place, in the bits of a mask, is one of these."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [(_LOAD, 0, 0, place), (_AND, 0, 0, mask), *tests, *_REFUSED]
