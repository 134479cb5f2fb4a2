"""Answers as ASGI applications: whole, as a failure, or as a stream. Plain ASGI, no framework."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping

from runtimes.errors import (
    BusyError,
    Cancelled,
    DeviceError,
    StarpackError,
    StoppingError,
    Superseded,
    UsageError,
)
from runtimes.generation.completion import Chunk, Finish
from runtimes.server.dialects.endpoint import MEDIA_TYPES, Dialect, View, frame, to_json
from runtimes.server.http.guard import Receive, Scope, Send
from runtimes.server.http.stopping import STOPPED, last_word
from runtimes.server.job_queue import Item, SequenceItem
from runtimes.server.request import PreparedRequest
from runtimes.server.stream import JobStream

logger = logging.getLogger("starpack.serve")

CLIENT_GONE = 499  # nobody sees it; the log's word for an answer that had no one left to read it
COMMON_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "link": '</licence>; rel="license"',
}


class Problem(StarpackError):
    """A failure that HTTP has a number for."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


def status_of(error: Exception) -> int:
    """The HTTP status that says what an error means."""
    match error:
        case Problem():
            return error.status
        case UsageError():
            return 400
        case BusyError():
            return 429
        case Superseded():
            return 409
        case Cancelled():
            return CLIENT_GONE
        case StoppingError() | DeviceError():
            return 503
    return 500


class Reply:
    """A whole answer."""

    def __init__(
        self, status: int, text: str, media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.headers = {**COMMON_HEADERS, **(headers or {}), "content-type": media_type}
        self.body = text.encode()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = {**self.headers, "content-length": str(len(self.body))}
        await send({"type": "http.response.start", "status": self.status, "headers": _raw(headers)})
        await send({"type": "http.response.body", "body": self.body})


def json_reply(status: int, value: object, headers: Mapping[str, str] | None = None) -> Reply:
    """A whole answer in JSON."""
    return Reply(status, to_json(value), "application/json", headers)


def failure_reply(dialect: Dialect, error: Exception) -> Reply:
    """An error in the words of a dialect."""
    status = status_of(error)
    headers = {}
    if isinstance(error, BusyError):
        headers["retry-after"] = str(error.retry_after_s)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (408, 413, 415):
        headers["connection"] = "close"  # the rest of the body is not waited for
    return json_reply(status, dialect.failure(status, str(error)), headers)


def budget_headers(prepared: PreparedRequest) -> dict[str, str]:
    """The budget where a client that reads only headers, or a proxy's log, can see it."""
    return {
        "x-starpack-prompt-tokens": str(sum(budget.prompt_tokens for budget in prepared.budgets)),
        "x-starpack-dropped-tokens": str(sum(budget.dropped_tokens for budget in prepared.budgets)),
    }


class Stream:
    """A response whose body is the events of a stream, as a dialect's view shows them."""

    def __init__(
        self,
        dialect: Dialect,
        stream: JobStream,
        first: SequenceItem | None,
        prepared: PreparedRequest,
        view: View,
        write_s: float,
    ) -> None:
        """`first` is the stream's first event. write_s: for a client to take a piece."""
        self._dialect = dialect
        self._stream = stream
        self._event = first
        self._prepared = prepared
        self._view = view
        self._write_s = write_s
        self._scored: set[int] = set()  # runs whose next events show the whole prompt

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """See ASGI."""
        framing = self._view.framing
        headers = {
            "content-type": MEDIA_TYPES[framing],
            "x-accel-buffering": "no",  # a proxy in between is to pass on each event at once
            **COMMON_HEADERS,
            **budget_headers(self._prepared),
        }
        async with self._stream:
            await send({"type": "http.response.start", "status": 200, "headers": _raw(headers)})
            try:
                async for data in self._pieces():
                    async with asyncio.timeout(self._write_s):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                    # neither the queue nor `send` gives way to others while it has no need to wait
                    await asyncio.sleep(0)
            except TimeoutError:
                logger.info("a client has stopped reading")
                return  # without an end, so that the connection is closed
            except asyncio.CancelledError:
                await last_word(send, frame(self._failed(StoppingError(STOPPED)), framing))
                return
            await send({"type": "http.response.body", "body": b""})

    async def _pieces(self) -> AsyncIterator[bytes]:
        framing = self._view.framing
        try:
            while self._event is not None:
                for data in await self._frames(*self._event):
                    yield data
                self._event = await self._stream.next()
            for event in self._view.end():
                yield frame(event, framing)
        except Cancelled as error:
            if isinstance(error, Superseded):  # else there is nobody left to tell
                yield frame(self._failed(error), framing)
        except StarpackError as error:
            yield frame(self._failed(error), framing)

    async def _frames(self, index: int, item: Item) -> list[bytes]:
        def made() -> list[bytes]:
            return [frame(event, self._view.framing) for event in self._shown(index, item)]

        if isinstance(item, tuple):
            self._scored.add(index)
        elif index in self._scored:  # megabytes
            self._scored.discard(index)
            return await asyncio.to_thread(made)
        return made()

    def _shown(self, index: int, item: Item) -> Iterable[object]:
        match item:
            case Chunk():
                return self._view.chunk(index, item)
            case Finish():
                return self._view.finish(index, item)
        self._view.scores(index, item)
        return ()

    def _failed(self, error: StarpackError) -> object:
        dialect = self._dialect
        return {**dialect.failure(status_of(error), str(error)), **dialect.in_stream}


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
