"""The kernel refuses the network to this process, whatever compiled code in it may try.

A seccomp filter (man 2 seccomp, Documentation/userspace-api/seccomp_filter.rst), for this process,
its threads and its children, and not to be taken back. A refused call fails as if there were no
route, which libraries bear. Local sockets, such as those between a GPU's driver and its services,
stay; a server that waits for connections cannot itself connect, to them neither.

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
    connect: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, 41, 42),
    "aarch64": _Machine(0xC00000B7, 277, 198, 203),
}
# Specified: linux/prctl.h, seccomp.h, bpf_common.h, socket.h and the offsets of seccomp_data.
_NO_NEW_PRIVS, _SET_FILTER, _ALL_THREADS = 38, 1, 1
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.ENETUNREACH
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_INET, _INET6, _STREAM, _TYPE_BITS = 2, 10, 1, 0xF
_IO_URING_SETUP = 425  # another way to the same calls, past this filter
_X32 = 0x40000000  # system calls of another calling convention have this bit

Instruction = tuple[int, int, int, int]
"""code, steps to skip if true, steps to skip if false, operand."""


class _Step(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def refuse_network(*, serving: bool) -> bool:
    """Install the filter; False where this kernel or machine has none.

    serving: sockets of the internet may wait for connections and answer them, over TCP; without it
    there are none at all.
    """
    machine = _MACHINES.get(platform.machine())
    if platform.system() != "Linux" or machine is None:
        return False
    program = filter_program(machine, serving)
    steps = (_Step * len(program))(*(_Step(*step) for step in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        return False
    arguments = ctypes.c_ulong(_SET_FILTER), ctypes.c_ulong(_ALL_THREADS)
    given = ctypes.byref(_Program(len(program), steps))
    failed: int = libc.syscall(ctypes.c_long(machine.seccomp), *arguments, given)
    return not failed


def filter_program(machine: _Machine, serving: bool) -> Sequence[Instruction]:
    """The filter in the kernel's own instructions; it falls through to the next at each `0, 0`."""
    # jumps count the steps that they skip
    any_internet = [
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 2, 0, _INET),
        (_EQUAL, 1, 0, _INET6),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    internet_but_tcp = [
        *any_internet[:-1],
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_AND, 0, 0, _TYPE_BITS),
        (_EQUAL, 1, 0, _STREAM),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    socket = internet_but_tcp if serving else any_internet
    refused = [machine.connect, _IO_URING_SETUP] if serving else [_IO_URING_SETUP]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
        *_refuse_if(_AT_LEAST, _X32),
        *(step for number in refused for step in _refuse_if(_EQUAL, number)),
        (_EQUAL, 0, len(socket), machine.socket),
        *socket,
        (_RETURN, 0, 0, _ALLOW),
    ]


def _refuse_if(test: int, operand: int) -> list[Instruction]:
    return [(test, 0, 1, operand), (_RETURN, 0, 0, _REFUSE)]
