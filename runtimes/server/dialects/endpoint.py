"""The parts of a dialect: endpoints that run the model, endpoints that inform, and errors.

Data and small helpers; the server gives them HTTP, the description at /openapi.json its schemas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from runtimes.contract import IsCancelled
from runtimes.generation.completion import Chunk, Finish
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.request import (
    CompletionRequest,
    Model,
    PreparedRequest,
    Result,
    ServerDefaults,
)
from runtimes.server.service import Service

Schema = Mapping[str, Any]
B = TypeVar("B")
Framing = Literal["sse", "ndjson"]
Work = Callable[[IsCancelled], object]
"""An answer that takes long: it is made off the event loop, and ends when its client leaves."""
MEDIA_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


class View(Protocol):
    """The answer to one request, in the form of a dialect."""

    framing: Framing

    def whole(self, results: list[Result]) -> object:
        """The answer as one JSON value."""

    def scores(self, index: int, entries: Sequence[TokenLogprobs]) -> None:
        """Take the log-probabilities of a run's prompt, before its first chunk."""

    def chunk(self, index: int, chunk: Chunk) -> Iterable[object]:
        """The events of a stream that a chunk makes."""

    def finish(self, index: int, finish: Finish) -> Iterable[object]:
        """The events that the end of a run makes."""

    def end(self) -> Iterable[object]:
        """The last events; a str is sent as it is."""


@dataclass(frozen=True, slots=True)
class CompletionEndpoint(Generic[B]):
    """A POST endpoint that runs the model. `path` may have {parameters}, which are not looked at.

    body: a msgspec struct. read: body and the server's defaults to request. answer: schema of the
    complete answer.
    """

    path: str
    summary: str
    body: type[B]
    answer: Schema
    read: Callable[[B, ServerDefaults], CompletionRequest]
    view: Callable[[B, PreparedRequest, Model], View]


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is not JSON."""

    text: str
    media_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InfoEndpoint(Generic[B]):
    """An endpoint that informs about the service. `answer` None: text of `media_type`.

    handler: returns the answer, or Work that makes it. body: a msgspec struct, or None.
    """

    method: str
    path: str
    summary: str
    answer: Schema | None
    handler: Callable[[Service, B], object]
    body: type[B] | None = None
    media_type: str = "text/plain"


@dataclass(frozen=True, slots=True)
class Dialect:
    """A family of endpoints. failure(status, message): its error answer, as a JSON object.

    in_stream: what an error has besides where it ends a stream, so that clients can read it.
    clients: what to set in each client that speaks it, where {url} is the server's.
    """

    name: str
    completion_endpoints: tuple[CompletionEndpoint[Any], ...]
    info_endpoints: tuple[InfoEndpoint[Any], ...]
    failure: Callable[[int, str], dict[str, object]]
    in_stream: Mapping[str, object] = field(default_factory=dict)
    clients: Mapping[str, str] = field(default_factory=dict)


def failure(status: int, message: str) -> dict[str, object]:
    """An error in OpenAI's form, which most clients can read."""
    kinds = {
        401: "authentication_error", 403: "permission_error", 404: "not_found_error",
        409: "superseded_error", 413: "invalid_request_error", 429: "rate_limit_error",
    }  # fmt: skip
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def frame(event: object, framing: Framing) -> bytes:
    """One event of a stream as bytes."""
    text = event if isinstance(event, str) else to_json(event)
    return (f"data: {text}\n\n" if framing == "sse" else f"{text}\n").encode()


def to_json(value: object) -> str:
    """JSON in ASCII, so that no text of a client can break it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def to_json_in_parts(value: object, depth: int = 5) -> str:
    """The same text, made piece by piece: the encoder holds Python's lock for as long as it runs.

    depth: how far down; to the entries of an answer's log-probabilities.
    """
    if depth and isinstance(value, dict):
        parts = (f"{to_json(key)}:{to_json_in_parts(v, depth - 1)}" for key, v in value.items())
        return f"{{{','.join(parts)}}}"
    if depth and isinstance(value, list):
        return f"[{','.join(to_json_in_parts(item, depth - 1) for item in value)}]"
    return to_json(value)


def object_of(*required: str, **properties: Schema) -> dict[str, Any]:
    """Schema of an object."""
    return {"type": "object", "properties": properties, "required": list(required)}


def list_of(items: Schema) -> dict[str, Any]:
    """Schema of an array."""
    return {"type": "array", "items": items}


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
