"""Ways by which compiled code could reach a network: `python ways_out.py ROOT MODE WAY PORT`.

A program of its own, since a guard cannot be taken back. MODE: open (no guard), run or serve. It
makes the system calls itself, without Python's sockets, against a listener at 127.0.0.1:PORT, and
prints what came of it: "out", or the name of the error. Numbers are specified by Linux's headers.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from itertools import product, starmap
from typing import Any

UNIX, INET, INET6, PACKET = 1, 2, 10, 17
STREAM, DGRAM, RAW, SEQPACKET, OLD_PACKET = 1, 2, 3, 5, 10
TCP, SCTP, MPTCP, SMC = 6, 132, 262, 256
FASTOPEN, X32 = 0x20000000, 0x40000000
REFUSED = errno.ENETUNREACH  # what the guard's filter answers, and nothing else does on loopback
X86 = platform.machine() == "x86_64"
NUMBERS = (
    {"socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "socketpair": 53}
    | {"sendmmsg": 307, "request_key": 249}
    if X86
    else {"socket": 198, "connect": 203, "sendto": 206, "sendmsg": 211, "socketpair": 199}
    | {"sendmmsg": 269, "request_key": 218}
) | {"pidfd_open": 434, "pidfd_getfd": 438, "io_uring": 425}
LIBC = ctypes.CDLL(None, use_errno=True)
TEXT = b"a prompt"
GIVEN = 100  # the descriptor of a socket in another process


def call(number: int, *values: object) -> int:
    """A system call; a number's high bits are kept, as the kernel and a filter see them."""
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    done: int = LIBC.syscall(ctypes.c_long(number), *given)
    return done if done >= 0 else -ctypes.get_errno()


def made(family: int, kind: int, protocol: int = 0) -> int:
    return call(NUMBERS["socket"], family, kind, protocol)


class Peer:
    """The listener's address, and sockets from before the guard, as a process may be given them."""

    def __init__(self, port: int) -> None:
        self.address = (ctypes.c_ubyte * 16)(INET, 0, port >> 8, port & 255, 127, 0, 0, 1)
        self.old = made(INET, STREAM)
        ours, theirs = socket.socketpair()
        self.channel = ours
        self.child = os.fork()
        if not self.child:  # a process that is willing to help
            helper = socket.socket()
            os.dup2(helper.fileno(), GIVEN)
            socket.send_fds(theirs, [b"x"], [GIVEN])
            signal.pause()

    def stream(self) -> int:
        """A TCP socket of its own where there are any, else the old one."""
        new = made(INET, STREAM)
        return new if new >= 0 else self.old

    def connect(self, descriptor: int) -> int:
        return call(NUMBERS["connect"], descriptor, self.address, 16)


class Vector(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct msghdr, and after it the length of a struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("vector", ctypes.POINTER(Vector)),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def message(peer: Peer, flags: int = 0) -> Any:
    vector = Vector(TEXT, len(TEXT))
    address = ctypes.addressof(peer.address)
    return ctypes.byref(Message(address, 16, ctypes.pointer(vector), 1, None, 0, flags, 0))


def worst(outcomes: Iterable[int]) -> int:
    """The first that the guard has not refused, if any."""
    return next((done for done in outcomes if done != -REFUSED), -REFUSED)


def sockets(families: Iterable[int], kinds: Iterable[int], protocols: Iterable[int] = (0,)) -> int:
    return worst(starmap(made, product(families, kinds, protocols)))


def in_thread(way: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(way()))
    thread.start()
    thread.join()
    return found[0]


def in_child(way: Callable[[], int]) -> int:
    reads, writes = os.pipe()
    if not os.fork():
        os.write(writes, str(way()).encode())
        os._exit(0)
    return int(os.read(reads, 20))


def by_old_gate(number: int, *values: int) -> int:
    """A system call of 32-bit programs, `int 0x80`, from this 64-bit one."""
    code = bytes.fromhex("53 89f8 89f3 4189c8 89d1 4489c2 cd80 5b 4898 c3")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    kind = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_int] * 4)
    done: int = kind(start)(number, *values)
    return done


def received(peer: Peer) -> int:
    """Connect with what another process has sent over a local socket."""
    return peer.connect(socket.recv_fds(peer.channel, 1, 1)[1][0])


def taken(peer: Peer) -> int:
    """Take a socket out of another process."""
    peer.channel.recv(1)  # it is ready
    return call(NUMBERS["pidfd_getfd"], call(NUMBERS["pidfd_open"], peer.child, 0), GIVEN, 0)


def program(peer: Peer) -> int:
    """Another program, which brings its own libc and knows nothing of a guard."""
    port = peer.address[2] << 8 | peer.address[3]
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    return 0 if not done.returncode else -REFUSED if f"Errno {REFUSED}" in done.stderr else -1


def set_fast(stream: int) -> int:
    """TCP_FASTOPEN_CONNECT; 0 where it is set."""
    done: int = LIBC.setsockopt(stream, TCP, 30, ctypes.byref(ctypes.c_int(1)), 4)
    return done


def told_to_be_fast(peer: Peer) -> int:
    """With that option connect(2) waits for the first bytes to send."""
    stream = peer.stream()
    set_fast(stream)
    done = peer.connect(stream)
    return done if done < 0 else call(NUMBERS["sendto"], stream, TEXT, len(TEXT), 0, None, 0)


def local_service(_: Peer) -> int:
    """A name service of this machine that would ask the network for us; here a listener of ours."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(b"\0" + str(os.getpid()).encode())
    listening.listen()
    name = b"\1\0\0" + str(os.getpid()).encode()
    return call(NUMBERS["connect"], made(UNIX, STREAM), name, len(name))


def fast(peer: Peer, name: str, flags: int = FASTOPEN, *, old: bool = False) -> int:
    """Connect and send in one call, as TCP Fast Open has it."""
    stream = peer.old if old else peer.stream()
    if name == "sendto":
        return call(NUMBERS[name], stream, TEXT, len(TEXT), flags, peer.address, 16)
    count = [1] if name == "sendmmsg" else []
    return call(NUMBERS[name], stream, message(peer), *count, flags)


NO_SIGNAL, DONT_WAIT = 0x4000, 0x40
KINDS = tuple(
    kind | flag for kind in (STREAM, DGRAM, RAW, SEQPACKET, OLD_PACKET) for flag in (0, 0o4000)
)
WAYS: dict[str, Callable[[Peer], int]] = {
    "other families": lambda _: sockets({*range(64)} - {UNIX, INET, INET6}, KINDS),
    "family with high bits": lambda _: made(PACKET | 1 << 32, RAW),
    "packets by AF_INET": lambda _: made(INET, OLD_PACKET),
    "UDP, ICMP, raw": lambda _: sockets((INET, INET6), KINDS[2:], (0, 1, 17, 58, SCTP, 255)),
    "SCTP, MPTCP, SMC": lambda _: sockets((INET, INET6), KINDS[:2], (SCTP, MPTCP, SMC, 33, 17)),
    "socketpair": lambda _: worst(
        call(NUMBERS["socketpair"], family, STREAM, 0, (ctypes.c_int * 2)())
        for family in {*range(64)} - {UNIX}
    ),
    "connect": lambda peer: peer.connect(peer.stream()),
    "connect, socket from before": lambda peer: peer.connect(peer.old),
    "connect, socket received": received,
    "connect, socket taken": taken,
    "connect, a local service": local_service,
    "connect, TCP_FASTOPEN_CONNECT": told_to_be_fast,
    "sendto": lambda peer: fast(peer, "sendto"),
    "sendto, socket from before": lambda peer: fast(peer, "sendto", old=True),
    "sendto, more flags": lambda peer: fast(peer, "sendto", FASTOPEN | NO_SIGNAL | DONT_WAIT),
    "sendto, high bits": lambda peer: fast(peer, "sendto", FASTOPEN | 1 << 40),
    "sendmsg": lambda peer: fast(peer, "sendmsg"),
    "sendmmsg": lambda peer: fast(peer, "sendmmsg"),
    "a thread": lambda peer: in_thread(lambda: peer.connect(peer.stream())),
    "a child": lambda peer: in_child(lambda: peer.connect(peer.stream())),
    "another program": program,
    "io_uring": lambda _: worst(
        call(NUMBERS["io_uring"] + step, 1, (ctypes.c_ubyte * 120)(), 0, 0, 0, 0)
        for step in range(3)
    ),
    "the kernel's key service": lambda _: call(
        NUMBERS["request_key"], b"dns_resolver", b"host.example", b"", 0
    ),
}
if X86:
    WAYS |= {
        "32-bit socket": lambda _: by_old_gate(359, PACKET, RAW, 0),
        "x32 socket": lambda _: call(X32 | NUMBERS["socket"], PACKET, RAW, 0),
        "x32 sendmsg": lambda peer: call(X32 | 518, peer.old, message(peer), FASTOPEN),
    }
# Linux itself heeds neither: the flag counts as an argument, the option with connect(2).
NO_WAYS: dict[str, Callable[[Peer], int]] = {
    "flag within a message": lambda peer: call(
        NUMBERS["sendmsg"], peer.old, message(peer, FASTOPEN), NO_SIGNAL
    ),
    "flag within messages": lambda peer: call(
        NUMBERS["sendmmsg"], peer.old, message(peer, FASTOPEN), 1, NO_SIGNAL
    ),
    "option without connect": lambda peer: (
        set_fast(peer.old) or call(NUMBERS["sendto"], peer.old, TEXT, len(TEXT), NO_SIGNAL, 0, 0)
    ),
}


def main() -> None:
    root, mode, way, port = sys.argv[1:]
    sys.path.insert(0, root)
    from runtimes.trust import offline

    peer = Peer(int(port))
    try:
        if mode != "open":
            offline.forbid_network(serving=mode == "serve")
        done = (WAYS | NO_WAYS)[way](peer)
    finally:
        os.kill(peer.child, signal.SIGKILL)
    print("out" if done >= 0 else errno.errorcode.get(-done, -done))


if __name__ == "__main__":
    main()
