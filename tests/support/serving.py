"""A toy model behind the whole server, in the process and over a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtimes.server.app import Settings, create_app
from runtimes.server.listen import Address, make_server, open_socket, url_of
from runtimes.server.request import Model, ServerDefaults
from runtimes.server.service import Service
from tests.support.runtime_toys import Logits, toy_runtime

HERE = "http://127.0.0.1"


CONTEXT = 400


LICENCE = "Use restrictions: none of this for harm."


def make_service(folder: Path, logits: Logits | None = None, **options: Any) -> Service:
    """A service over a toy; `defaults` and `queue_jobs` go to it, the rest shapes the toy."""
    defaults, queue_jobs = options.pop("defaults", ServerDefaults()), options.pop("queue_jobs", 32)
    runtime = toy_runtime(folder, logits, **({"context_tokens": CONTEXT} | options))
    model = Model(
        name="toy",
        format="gguf",
        recipe="F32",
        window_tokens=6,
        context_tokens=runtime.backend.context_tokens,
        vocab_size=runtime.backend.vocab_size,
        layers=2,
        size_bytes=100,
        sha256="0" * 64,
        modified_s=1_700_000_000.0,
        token_bytes=runtime.tokenizer.token_bytes,
        licences=(("licence/model/LICENSE", LICENCE),),
    )
    return Service(runtime, model, defaults, queue_jobs=queue_jobs)


@contextmanager
def listening(service: Service, settings: Settings | None = None, **address: Any) -> Iterator[str]:
    """The application behind a real socket of this machine; its address as a URL."""
    where = Address(port=0, **({"grace_s": 5} | address))
    server = make_server(create_app(service, settings or Settings()), where)
    with open_socket(where) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield url_of(where, opened)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


def connect(url: str) -> socket.socket:
    """A connection to the server of that URL."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def post(body: dict, path: str = "/v1/completions") -> bytes:
    """A whole request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def read_all(client: socket.socket) -> bytes:
    """Until the other end closes."""
    data = b""
    while piece := client.recv(1000):
        data += piece
    return data


def wait_until(true: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for another thread."""
    ended = threading.Event()
    for _ in range(int(limit_s / 0.005)):
        if true():
            return
        ended.wait(0.005)
    raise AssertionError("it did not happen")
