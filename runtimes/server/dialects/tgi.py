"""Text Generation Inference: llm-ls, llm-vscode, llm.nvim and Hugging Face's own clients.

They put the whole fill-in-the-middle prompt into `inputs`, control tokens spelt out; see
rawfim.py. The answer is one object at every path: llm-ls takes no list from a TGI server, and its
client for Hugging Face's API takes either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from runtimes.generation.completion import Chunk, Finish, FinishReason, GenerateOptions
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.dialects import fields
from runtimes.server.dialects.endpoint import (
    STRING,
    CompletionEndpoint,
    Dialect,
    Framing,
    object_of,
)
from runtimes.server.request import (
    CompletionRequest,
    Model,
    PreparedRequest,
    Result,
    ServerDefaults,
    TextPrompt,
    report,
)

IGNORED = ("typical_p", "watermark", "truncate", "adapter_id", "best_of")
REASONS: dict[FinishReason, str] = {
    "stop": "eos_token", "stop_string": "stop_sequence", "indent": "stop_sequence",
}  # fmt: skip

Texts = Annotated[list[fields.StopText], Meta(max_length=16)]


class ParametersBody(fields.SamplingBody, kw_only=True):
    """How to generate. llm-ls calls its stop strings `stop_tokens`."""

    max_new_tokens: fields.Length | None = None
    repetition_penalty: fields.Repetition | None = None
    do_sample: bool | None = None
    stop: Texts | None = None
    stop_tokens: Texts | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    grammar: fields.NoObject = None
    typical_p: Any = None
    watermark: Any = None
    truncate: Any = None
    adapter_id: Any = None
    best_of: Any = None


class TextGenerationBody(Struct, kw_only=True):
    """A prompt, with control tokens spelt out where it has a gap."""

    inputs: str
    parameters: ParametersBody | None = None
    stream: bool | None = None
    starpack: fields.ExtensionBody | None = None


ANSWER = object_of("generated_text", generated_text=STRING, details={"type": ["object", "null"]})


def read(body: TextGenerationBody, defaults: ServerDefaults) -> CompletionRequest:
    """Body to request."""
    said = body.parameters or ParametersBody()
    stops, dropped = fields.read_stops(said.stop, said.stop_tokens)
    if said.do_sample is False:
        said = msgspec.structs.replace(said, temperature=0.0)
    stream = bool(body.stream)
    return CompletionRequest(
        prompts=(
            fields.text_prompt(body.inputs, None, defaults, fields.context_of(body.starpack)),
        ),
        options=GenerateOptions(
            max_tokens=fields.read_length(said.max_new_tokens, defaults),
            sampling=fields.read_sampling(said, defaults, said.repetition_penalty),
            stop=stops,
            logprobs=0 if stream or said.details else None,
        ),
        echo=bool(said.return_full_text),
        stream=stream,
        over_context=fields.over_context_of(body.starpack),
        dropped_stops=dropped,
        ignored=fields.ignored(said, IGNORED),
    )


def read_stream(body: TextGenerationBody, defaults: ServerDefaults) -> CompletionRequest:
    """The same, for the path that always streams."""
    return read(msgspec.structs.replace(body, stream=True), defaults)


class GenerateView:
    """One object, or an event for each piece of text."""

    framing: Framing = "sse"

    def __init__(self, body: TextGenerationBody, prepared: PreparedRequest, model: Model) -> None:
        self._prepared = prepared
        self._model = model
        self._details = bool(body.parameters and body.parameters.details)
        prompt = prepared.request.prompts[0]
        self._text = ""  # all of it so far
        if prepared.request.echo and isinstance(prompt, TextPrompt):
            self._text = prompt.prefix
        self._count = 0

    def whole(self, results: list[Result]) -> object:
        """See View."""
        done = results[0].completion
        details = self._end(done.finish) if self._details else None
        if details is not None:
            details |= {"prefill": [], "tokens": [self._token(e) for e in done.logprobs]}
        answer = {"generated_text": self._text + done.text}
        return answer | {"details": details, "starpack": report(self._prepared, [done.finish])}

    def scores(self, index: int, entries: Sequence[TokenLogprobs]) -> None:
        """See View: never shown here."""

    def chunk(self, index: int, chunk: Chunk) -> Iterator[object]:
        """See View. The event's `token` has the text that is certain, which may be of several."""
        self._text += chunk.text
        if chunk.text:
            last = chunk.logprobs[-1] if chunk.logprobs else None
            yield self._event(chunk.text, last) | {"generated_text": None, "details": None}

    def finish(self, index: int, finish: Finish) -> Iterator[object]:
        """See View."""
        self._text += finish.text
        yield self._event(finish.text) | {
            "generated_text": self._text,
            "details": self._end(finish),
            "starpack": report(self._prepared, [finish]),
        }

    def _event(self, text: str, last: TokenLogprobs | None = None) -> dict[str, object]:
        self._count += 1
        token = {"id": 0 if last is None else last.id, "text": text, "special": last is None}
        logprob = 0.0 if last is None else last.logprob
        return {"index": self._count, "token": token | {"logprob": logprob}}

    def end(self) -> Iterator[object]:
        """See View: the event with `generated_text` was the last."""
        return iter(())

    def _end(self, end: Finish) -> dict[str, object]:
        return {
            "finish_reason": REASONS.get(end.reason, "length"),
            "generated_tokens": end.timings.generated_tokens,
            "input_length": end.timings.prompt_tokens,
            "seed": self._prepared.request.options.sampling.seed,
        }

    def _token(self, entry: TokenLogprobs) -> dict[str, object]:
        text = self._model.token_bytes(entry.id).decode(errors="replace")
        return {"id": entry.id, "text": text, "logprob": entry.logprob, "special": False}


def failure(status: int, message: str) -> dict[str, object]:
    """TGI's errors."""
    kinds = {400: "validation", 429: "overloaded", 503: "overloaded"}
    return {"error": message, "error_type": kinds.get(status, "generation")}


PATHS = ("/", "/generate", "/models/{name:path}")
DIALECT = Dialect(
    name="tgi",
    completion_endpoints=(
        *(
            CompletionEndpoint(
                path, "Complete or fill in", TextGenerationBody, ANSWER, read, GenerateView
            )
            for path in PATHS
        ),
        CompletionEndpoint(
            "/generate_stream",
            "The same, as a stream",
            TextGenerationBody,
            ANSWER,
            read_stream,
            GenerateView,
        ),
    ),
    info_endpoints=(),
    failure=failure,
    clients={"llm-ls": "backend: tgi, url: {url}"},
)
