"""A request's body off the wire: within its limits of size and time, or a refusal. Plain ASGI.

A connection that is closed on what its client still sends is reset, and takes our answer with it.
So a body that is refused is taken in all the same, up to twice the limit, and thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from runtimes.errors import Cancelled
from runtimes.server.http.guard import Receive
from runtimes.server.http.replies import Problem

DRAINED_LIMITS = 2  # guessed: what is a little too large; for more than that, a reset has to do
DRAIN_S = 3.0  # guessed: on one machine, or a network near by


async def receive_body(
    headers: Mapping[str, str], receive: Receive, max_bytes: int, limit_s: float
) -> bytes:
    """Raises Problem for a body that is encoded, too large or too slow; Cancelled."""
    declared = headers.get("content-length", "0")
    size = int(declared[:20]) if declared.isdecimal() else DRAINED_LIMITS * max_bytes + 1
    refused = None
    if headers.get("content-encoding", "identity").lower() != "identity":
        refused = Problem(415, "the body has a Content-Encoding; send it as it is")
    elif size > max_bytes:
        refused = _too_large(max_bytes)
    if refused and ("expect" in headers or size > DRAINED_LIMITS * max_bytes):
        raise refused  # its client waits for a word of ours, or would send for too long
    try:
        async with asyncio.timeout(DRAIN_S if refused else limit_s):
            return await _collect(receive, max_bytes, refused)
    except TimeoutError:
        raise refused or Problem(408, "the body did not arrive in time") from None


async def _collect(receive: Receive, max_bytes: int, refused: Problem | None) -> bytes:
    data = bytearray()
    received = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away")
        piece = message.get("body", b"")
        received += len(piece)
        if received > max_bytes:
            refused = refused or _too_large(max_bytes)
        if refused is None:
            data += piece
        elif received > DRAINED_LIMITS * max_bytes:
            raise refused
        more = message.get("more_body", False)
    if refused is not None:
        raise refused
    return bytes(data)


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, f"the body has more than {max_bytes} bytes")
