"""From an ASGI application to a socket: addresses, TLS, limits on connections, a graceful stop.

The only file that knows uvicorn. HTTP/1.1 alone, by h11, which is pure Python.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtimes.errors import DeviceError, UsageError
from runtimes.server.descriptors import ShortageHandler, backlog, spare_connections

HEAD_BYTES = 16 * 1024  # guessed: far above any client's headers, uvicorn's own limit is 64 KiB
HEAD_S = 10.0  # guessed: for the head of a request to arrive
KEEP_ALIVE_S = 30  # guessed: editors ask again within seconds, a new connection costs a round trip


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. port 0: any that is free. connections: more are answered with 503.

    grace_s: what runs may take so long to end when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8012
    tls_cert: Path | None = None
    tls_key: Path | None = None
    connections: int = 256
    grace_s: int = 10


def open_socket(address: Address) -> socket.socket:
    """Listen; raises DeviceError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        opened = socket.create_server(
            (address.host, address.port), family=family, backlog=backlog(address.connections)
        )
        # Connections inherit it. asyncio sets it itself, but only on sockets that say they are
        # TCP, and these do not; without it a small write waits 40 ms for the one before it.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened
    except OSError as error:
        raise DeviceError(
            f"cannot listen: {error.strerror or error}",
            where=f"{address.host}, port {address.port}",
            remedy="choose another --port or --host; what listens there now, `ss -ltnp` shows",
        ) from None


def url_of(address: Address, listening: socket.socket) -> str:
    """What a client on this machine is to be pointed at."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "http" if address.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def make_server(app: Any, address: Address) -> uvicorn.Server:
    """A server that is not running yet; raises UsageError for certificates that cannot be used."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # whoever connects is the client: a header can say anything
        server_header=False,
        backlog=backlog(address.connections),
        limit_concurrency=address.connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=address.grace_s,
        h11_max_incomplete_event_size=HEAD_BYTES,
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the certificate cannot be used: {error}",
            where=f"{address.tls_cert}, {address.tls_key}",
            expected="a certificate chain and its private key, both in PEM",
        ) from None
    return _Server(config)


def run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM. The first one stops gracefully, a second SIGINT at once."""

    # uvicorn raises the signal again when it has stopped; that is then no reason to die of it.
    # One that comes before uvicorn listens to signals is not lost.
    def stop(*_: object) -> None:
        server.should_exit = True

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """uvicorn's, which waits in peace where no descriptor is left for a connection."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(ShortageHandler())
        await super().startup(sockets)


class _Connection(h11.Connection):
    """h11's, which takes a request with two lengths by one of them; whoever is in front of us may
    take it by the other, and the end of its body for a request of somebody else."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("the body has two lengths", 400)
        return event


class _Protocol(H11Protocol):
    """uvicorn's, with a limit on the time that the head of a request may take.

    Of the connections above their limit, some are kept to be told so (503), and no more.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Connection(h11.SERVER, HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self.config.limit_concurrency or 0
        if len(self.connections) > most + spare_connections(most):
            transport.abort()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()

    def _expect_head(self) -> None:
        """Start the clock where a head is not whole yet, and stop it where it is."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
