"""A dialect that nobody speaks: what a new one needs, and all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from runtimes.generation.completion import Chunk, Finish, GenerateOptions
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.dialects.endpoint import STRING, CompletionEndpoint, Dialect, object_of
from runtimes.server.request import (
    CompletionRequest,
    Model,
    PreparedRequest,
    Result,
    ServerDefaults,
    TextPrompt,
)


class SayBody(Struct):
    """What to go on with."""

    say: str


ANSWER = object_of("said", said=STRING)


def read(body: SayBody, defaults: ServerDefaults) -> CompletionRequest:
    return CompletionRequest((TextPrompt(body.say),), GenerateOptions(min(5, defaults.max_tokens)))


class View:
    framing = "ndjson"

    def __init__(self, body: SayBody, prepared: PreparedRequest, model: Model) -> None:
        pass

    def whole(self, results: list[Result]) -> object:
        return {"said": results[0].completion.text}

    def scores(self, index: int, entries: Sequence[TokenLogprobs]) -> None:
        pass

    def chunk(self, index: int, chunk: Chunk) -> Iterator[object]:
        yield {"said": chunk.text}

    def finish(self, index: int, finish: Finish) -> Iterator[object]:
        yield {"said": finish.text}

    def end(self) -> Iterator[object]:
        return iter(())


def failure(status: int, message: str) -> dict[str, object]:
    return {"no": f"{status} {message}"}


DIALECT = Dialect(
    name="toy",
    completion_endpoints=(
        CompletionEndpoint("/toys/{name}/say", "Say more", SayBody, ANSWER, read, View),
    ),
    info_endpoints=(),
    failure=failure,
    clients={"a toy": "speak to {url}/toys/bear/say"},
)
