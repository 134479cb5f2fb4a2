"""One job seen from the event loop: its events as they come, and an end when the client leaves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from runtimes.errors import Cancelled
from runtimes.generation.completion import Chunk, Finish, join
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.job_queue import Event, Job, JobQueue, SequenceItem
from runtimes.server.request import PreparedRequest, PreparedSequence, Result

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class JobStream:
    """`async with` it; whatever happens inside, the job does not outlive the block."""

    def __init__(
        self,
        queue: JobQueue,
        client: str,
        sequences: tuple[PreparedSequence, ...],
        *,
        limit_s: float = math.inf,
        supersede: bool = False,
        name: str = "",
    ) -> None:
        """Submit the sequences, on the loop's thread. See Job, and JobQueue.submit for errors."""
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None
        self.job = Job(
            client, sequences, self._emit, limit_s=limit_s, supersede=supersede, name=name
        )
        queue.submit(self.job)

    async def __aenter__(self) -> JobStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is left of the job."""
        if self._watch is not None:
            self._watch.cancel()
        self._queue.withdraw(self.job)

    def watch(self, receive: Receive) -> None:
        """End the job when `receive`, of ASGI, says that the client has gone."""
        self._watch = self._loop.create_task(self._until_gone(receive))

    async def next(self) -> SequenceItem | None:
        """The next event but an error, which is raised."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def results(self, prepared: PreparedRequest) -> list[Result]:
        """All of it, run by run."""
        items: list[list[Chunk | Finish]] = [[] for _ in prepared.sequences]
        scores: list[tuple[TokenLogprobs, ...]] = [() for _ in prepared.sequences]
        while (event := await self.next()) is not None:
            index, item = event
            if isinstance(item, tuple):
                scores[index] = item
            else:
                items[index].append(item)
        return [Result(join(i), s) for i, s in zip(items, scores, strict=True)]

    def _emit(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: there is nobody left to tell
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._queue.withdraw(self.job)
        self._events.put_nowait(Cancelled("the client went away"))
