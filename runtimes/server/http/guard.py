"""What every request passes before anything else looks at it: host, origin, key; and the log.

A server without a key answers only to names of the loopback interface, so that a web page cannot
reach it under a name of its own (DNS rebinding), and to no page of another origin. Plain ASGI.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

logger = logging.getLogger("starpack.serve")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[int, Scope, str], App]
"""refuse(status, scope, message): an application that answers so."""

# For probes, which have no key; the page that asks its user for one; and what binds every user.
# To be read only: POST / runs the model.
OPEN_PATHS = frozenset({"/health", "/ready", "/", "/licence"})
# A name or an address, and a port (RFC 9112, 3.2): no user, and nothing that readers take apart in
# different ways.
HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])(?::([0-9]{0,5}))?", re.ASCII)
MAX_PORT = 65_535  # specified: RFC 9293
NAME_CHARACTERS = 128  # guessed: of a client's own name for itself


@dataclass(frozen=True, slots=True)
class Access:
    """Who has access. Without keys anybody on this machine; `origins` of web pages, "*" for all."""

    keys: tuple[str, ...] = ()
    origins: frozenset[str] = frozenset()


class Guard:
    """Refuses with 400, 401 and 403.

    Those that pass have scope["starpack.client"], whose turn they take, and scope["starpack.name"],
    what the client calls itself: that is for it to say, so it has no part in the turns.
    """

    def __init__(self, app: App, access: Access, refuse: Refuse) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        app = self._app
        if scope["type"] == "http":
            headers = read_headers(scope)
            status, message = self._objection(scope["method"], scope["path"], headers)
            if status:
                app = self._refuse(status, scope, message)
            else:
                address = (scope.get("client") or ("",))[0]
                scope["starpack.client"] = f"{self._key(headers)} {address}"
                scope["starpack.name"] = headers.get("x-client-id", "")[:NAME_CHARACTERS]
        await app(scope, receive, send)

    def _objection(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        host = headers.get("host", "")
        name = host_name(host) if host else ""  # HTTP/1.0 has no need to say one
        if name is None:
            return 400, "the Host header is not the name of a host, with or without a port"
        if not self._access.keys and not is_loopback(name):
            return 403, "this server answers on the loopback interface only"
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, host):
            return 403, "web pages of this origin are not allowed; see --allow-origin"
        is_open = path in OPEN_PATHS and method in ("GET", "HEAD")
        if self._access.keys and not is_open and self._key(headers) is None:
            return 401, "an API key is needed: Authorization: Bearer KEY"
        return 0, ""

    def _is_allowed(self, origin: str, host: str) -> bool:
        allowed = self._access.origins
        same = _split(origin).netloc == host != ""
        return same or origin in allowed or "*" in allowed

    def _key(self, headers: Mapping[str, str]) -> int | None:
        """Which of the keys a request has. All are compared, and each in constant time."""
        words = headers.get("authorization", "").split(None, 1)
        bearer = len(words) == 2 and words[0].lower() in ("bearer", "token")
        presented = (words[1] if bearer else headers.get("x-api-key", "")).strip().encode()
        found = None
        for i, key in enumerate(self._access.keys):
            if hmac.compare_digest(key.encode(), presented):
                found = i
        return found


class Log:
    """One line for each request, without anything of its body; `count` hears of it as well."""

    def __init__(self, app: App, count: Callable[[Scope, int], None]) -> None:
        """count(scope, status) when an answer has been sent."""
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._count(scope, status)
            took_ms = 1000 * (time.monotonic() - started)
            # %r: a path may hold anything, line breaks too
            logger.info("%s %.200r %d %.0f ms", scope["method"], scope["path"], status, took_ms)


def read_headers(scope: Scope) -> dict[str, str]:
    """Header names are lower case in ASGI; of one that is there twice, the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def host_name(host: str) -> str | None:
    """The name or address in a Host header, without the brackets of IPv6; None where it is bad."""
    found = HOST.fullmatch(host)
    if found is None or int(found[2] or 0) > MAX_PORT:
        return None
    return found[1].strip("[]").lower()


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of the loopback interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as an unfinished address in brackets
        return urlsplit("")
