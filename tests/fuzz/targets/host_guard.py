"""The Host and Origin of a request to a server without a key: only this machine's own get in."""

from __future__ import annotations

import re
from pathlib import Path

from runtimes.errors import StarpackError
from runtimes.server.http.guard import Access, App, Guard, Message, Receive, Scope, Send
from tests.fuzz import forms
from tests.fuzz.target import Wrong

FORM = forms.Raw(
    [
        b"localhost", b"127.0.0.1", b"[::1]", b":80", b"host: ", b"origin: ", b"http://", b"null",
        b"evil.com", b"@", b"evil.com@127.0.0.1", b"127.0.0.1:evil", b".", b"[", b"]", b"%", b"#",
        b"?", b"/", b"\\", b" ", b"\t", b"0x7f.1", b"127.1", b"::ffff:127.0.0.1", b"LOCALHOST",
    ]
)  # fmt: skip
SHARE = 150
# As RFC 9110 has a Host, of what is this machine's own; written without the reader's library.
OWN = re.compile(
    rb"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[(0*:)*:?0*1\]|\[(0*:)*:?ffff:127[.\da-f:]+\])"
    rb"(:\d{0,5})?",
    re.IGNORECASE,
)


class Refused(StarpackError):
    """The guard's 401 or 403."""


def seeds(_folder: Path) -> list[bytes]:
    """As browsers and programs send them: a header a line."""
    return [
        b"host: localhost:8000",
        b"host: 127.0.0.1:8000\norigin: http://127.0.0.1:8000",
        b"host: [::1]:80\norigin: http://[::1]:80",
        b"host: localhost\nauthorization: Bearer x\nx-client-id: me",
    ]


def run(data: bytes, _folder: Path) -> None:
    """Who gets in has said one host of this machine, and no other origin."""
    lines = [line.partition(b":") for line in data.split(b"\n")]
    headers = [(name.strip().lower(), value.strip()) for name, _, value in lines]
    _ask(headers)
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts or not OWN.fullmatch(hosts[-1]):
        raise Wrong("another host got in", hosts)
    for origin in [value for name, value in headers if name == b"origin"][-1:]:
        if re.split(rb"[/?#\\]", origin.partition(b"//")[2])[0] != hosts[-1]:
            raise Wrong("another origin got in", origin)


def _ask(headers: list[tuple[bytes, bytes]]) -> None:
    def refuse(status: int, _scope: Scope, message: str) -> App:
        raise Refused(f"{status} {message}")

    async def inside(_scope: Scope, _receive: Receive, _send: Send) -> None:
        """Got in."""

    async def receive() -> Message:
        raise AssertionError("the guard does not read")

    async def send(_message: Message) -> None:
        raise AssertionError("the guard does not answer by itself")

    scope = {"type": "http", "method": "POST", "path": "/completion", "headers": headers}
    coroutine = Guard(inside, Access(), refuse)(scope, receive, send)
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("the guard waits for something")
