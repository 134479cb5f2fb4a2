"""Work on a request's texts, off the event loop: reading a body, laying out a prompt, tokenising.

A large body takes up to seconds of a processor. So large ones go one at a time, in a lane of their
own that small ones never wait in, and the client's leaving ends the work at its next slice. Knows
nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from runtimes.contract import IsCancelled, never_cancelled
from runtimes.errors import BusyError, Cancelled
from runtimes.server.http.guard import Receive

SMALL_BYTES = 64 * 1024  # guessed: tens of milliseconds of work; editors send less
SMALL_THREADS = 4  # guessed: one that waits for something else does not hold up the others
LARGE_S = 1  # guessed: what a large body takes, for those that are told to come again
T = TypeVar("T")


class Offload:
    """The threads for one server's requests. `close` it."""

    def __init__(self, waiting: int) -> None:
        """waiting: large bodies that may wait at once; more are refused."""
        self._small = ThreadPoolExecutor(SMALL_THREADS, "small-request")
        self._large = ThreadPoolExecutor(1, "large-request")
        self._waiting = waiting
        self._large_count = 0

    async def run(self, work: Callable[[IsCancelled], T], size_bytes: int, receive: Receive) -> T:
        """What `work` returns or raises, for a body of that size; raises BusyError, Cancelled.

        `receive` of ASGI says when the client has gone.
        """
        loop = asyncio.get_running_loop()
        if size_bytes <= SMALL_BYTES:
            return await loop.run_in_executor(self._small, work, never_cancelled)
        if self._large_count > self._waiting:
            raise BusyError(
                f"{self._large_count} large requests are waiting already",
                retry_after_s=LARGE_S * self._large_count,
                remedy="try again later, or send less text",
            )
        gone = threading.Event()
        self._large_count += 1
        try:
            async with _watched(receive, gone):
                return await loop.run_in_executor(self._large, _unless_gone, work, gone)
        finally:
            self._large_count -= 1

    def close(self) -> None:
        """Drop what waits; what runs was told so when its task was cancelled."""
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)


def _unless_gone(work: Callable[[IsCancelled], T], gone: threading.Event) -> T:
    if gone.is_set():
        raise Cancelled("the client went away")
    return work(gone.is_set)


@asynccontextmanager
async def _watched(receive: Receive, gone: threading.Event) -> AsyncIterator[None]:
    """Set `gone` when the client leaves, and when the block is left in any way."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watch = asyncio.create_task(until_gone())
    try:
        yield
    finally:
        gone.set()
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
