"""The last word to clients whose answers a stopping server cannot end. Plain ASGI.

The server cancels what still runs when its grace is over, whatever it waits for: a body, a place
in the queue, the engine, a client that does not read.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from runtimes.server.http.guard import App, Message, Receive, Refuse, Scope, Send

STOPPED = "the server was stopped"
LAST_WORD_S = 1.0  # guessed: a client that does not read cannot be told


class Stopping:
    """Answers 503 where a request is cancelled that has no answer yet."""

    def __init__(self, app: App, refuse: Refuse) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def noted(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if not is_answered:
                await self._refuse(503, scope, STOPPED)(scope, receive, send)


async def last_word(send: Send, data: bytes) -> None:
    """End a stream of a request that was cancelled, if its client reads."""
    with suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(LAST_WORD_S):
            await send({"type": "http.response.body", "body": data})
