"""Enough descriptors for a server's connections, or an error before it serves; and running out.

Each connection takes one. A process that has none left cannot even refuse a connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import time
from typing import Any

from runtimes.errors import DeviceError

logger = logging.getLogger("starpack.serve")

RESERVE = 32  # guessed: what the engine, its libraries and a look at /proc open besides
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
TOLD_EVERY_S = 60.0  # guessed: one line a minute says as much as a thousand


def spare_connections(connections: int) -> int:
    """Connections above the limit that are taken to be told so; guessed."""
    return min(64, connections)


def backlog(connections: int) -> int:
    """Connections that wait to be accepted, all of which may be at once; guessed."""
    return min(128, connections)


def reserve(connections: int) -> None:
    """Raise this process's own limit where it is too low; raises DeviceError where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd")) + RESERVE
    needed = used + _descriptors(connections)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        fits = next((n for n in range(connections, 0, -1) if used + _descriptors(n) <= hard), 0)
        fewer = f"serve with --connections {fits}, or " if fits else ""
        raise DeviceError(
            f"{connections} connections need {needed} file descriptors",
            where=f"this process may open {hard} (`ulimit -Hn`)",
            remedy=f"{fewer}raise that limit: LimitNOFILE= in a systemd unit, --ulimit nofile= of "
            "docker, /etc/security/limits.conf",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _descriptors(connections: int) -> int:
    return connections + spare_connections(connections) + backlog(connections)


class ShortageHandler:
    """Of an event loop's exceptions: asyncio itself waits a second and accepts again.

    It reports each try, with a traceback; here a line a minute.
    """

    def __init__(self) -> None:
        self._told_at = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See loop.set_exception_handler."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in SHORTAGE):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told_at > TOLD_EVERY_S:
            self._told_at = time.monotonic()
            logger.warning("new connections wait: %s", error.strerror)
