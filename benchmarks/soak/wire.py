"""One exchange with the server on a connection of its own. h11 tells a whole answer from a part."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass

import h11

PIECE_BYTES = 4096
ANSWER_S = 120.0  # guessed: of a starved machine; the server's own limit is as long
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole one. retry_after_s: what the server said, else 0."""

    status: int
    text: str
    retry_after_s: float


def request_bytes(path: str, body: dict[str, object] | None) -> bytes:
    """A whole request; a GET without a body."""
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Wire:
    """`async with` it: a connection, closed at the end."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Wire:
        connect = asyncio.open_connection("127.0.0.1", self._port)
        self.reader, self.writer = await asyncio.wait_for(connect, ANSWER_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Leave with a reset."""
        own = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    async def ask(self, data: bytes, pause_s: float = 0.0) -> Answer:
        """Send a request and read its whole answer, with a pause before each piece.

        Raises OSError, TimeoutError, or h11.RemoteProtocolError for an answer that is cut off.
        """
        async with asyncio.timeout(ANSWER_S):
            self.writer.write(data)
            await self.writer.drain()
            return await self._answer(data[:4] == b"GET ", pause_s)

    async def _answer(self, is_get: bool, pause_s: float) -> Answer:
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", "127.0.0.1"), ("Connection", "close")]
        method = "GET" if is_get else "POST"
        connection.send(h11.Request(method=method, target="/", headers=headers))
        connection.send(h11.EndOfMessage())
        status, retry_after_s, pieces = 0, 0.0, []
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                await asyncio.sleep(pause_s)
                connection.receive_data(await self.reader.read(PIECE_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
                retry_after_s = float(dict(event.headers).get(b"retry-after", b"0"))
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            else:
                return Answer(status, b"".join(pieces).decode(), retry_after_s)
