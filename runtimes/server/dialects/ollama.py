"""Ollama: Continue, Cody, twinny, llm-ls, and the `ollama` packages.

The template at /api/show has `.Suffix`, by which Continue knows that the model can fill in.
`model` is not looked at. An empty prompt only loads the model, which is loaded already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct

from runtimes.generation.completion import Chunk, Finish, GenerateOptions
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.dialects import fields
from runtimes.server.dialects.endpoint import (
    BOOLEAN,
    INTEGER,
    STRING,
    CompletionEndpoint,
    Dialect,
    Framing,
    InfoEndpoint,
    list_of,
    object_of,
)
from runtimes.server.request import (
    CompletionRequest,
    Model,
    PreparedRequest,
    Result,
    ServerDefaults,
    report,
)
from runtimes.server.service import Service

API_VERSION = "0.6.3"  # of the client package that the tests use
TEMPLATE = (
    "{{ if .Suffix }}<fim_prefix>{{ .Prompt }}<fim_suffix>{{ .Suffix }}<fim_middle>"
    "{{ else }}{{ .Prompt }}{{ end }}"
)
NS = 1_000_000_000
IGNORED = ("template", "context")


class OptionsBody(fields.SamplingBody, kw_only=True):
    """How to generate."""

    num_predict: fields.Length | None = None
    repeat_penalty: fields.Repetition | None = None
    stop: fields.Stops = None


class GenerateBody(Struct, kw_only=True):
    """A prompt, or with a suffix a gap."""

    model: str
    prompt: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    stream: bool | None = None
    options: OptionsBody | None = None
    system: fields.NoText = None
    images: fields.NoList = None
    format: Literal[""] | None = None
    starpack: fields.ExtensionBody | None = None
    template: Any = None
    context: Any = None


class ShowBody(Struct, kw_only=True):
    """A model's name, which is not looked at."""

    model: str | None = None
    name: str | None = None


ANSWER = object_of(
    "model", "created_at", "response", "done",
    model=STRING, created_at=STRING, response=STRING, done=BOOLEAN, done_reason=STRING,
    total_duration=INTEGER, prompt_eval_count=INTEGER, eval_count=INTEGER,
)  # fmt: skip


def read(body: GenerateBody, defaults: ServerDefaults) -> CompletionRequest:
    """/api/generate to request; an empty prompt is none."""
    options = body.options or OptionsBody()
    stops, dropped = fields.read_stops(options.stop)
    prompt, suffix = body.prompt or "", body.suffix or ""
    context = fields.context_of(body.starpack)
    return CompletionRequest(
        prompts=(fields.text_prompt(prompt, suffix, defaults, context),)
        if prompt or suffix
        else (),
        options=GenerateOptions(
            max_tokens=fields.read_length(options.num_predict, defaults),
            sampling=fields.read_sampling(options, defaults, options.repeat_penalty),
            stop=stops,
        ),
        stream=body.stream is not False,
        over_context=fields.over_context_of(body.starpack),
        dropped_stops=dropped,
        ignored=fields.ignored(body, IGNORED),
    )


class GenerateView:
    """The lines of /api/generate."""

    framing: Framing = "ndjson"

    def __init__(self, _body: GenerateBody, prepared: PreparedRequest, model: Model) -> None:
        self._prepared = prepared
        self._model = model

    def whole(self, results: list[Result]) -> object:
        """See View."""
        if not results:
            return self._line("") | {"done": True, "done_reason": "load"}
        done = results[0].completion
        return self._last(done.finish, done.text)

    def scores(self, index: int, entries: Sequence[TokenLogprobs]) -> None:
        """See View: never asked for here."""

    def chunk(self, index: int, chunk: Chunk) -> Iterator[object]:
        """See View."""
        if chunk.text:
            yield self._line(chunk.text)

    def finish(self, index: int, finish: Finish) -> Iterator[object]:
        """See View."""
        if finish.text:
            yield self._line(finish.text)
        yield self._last(finish, "")

    def end(self) -> Iterator[object]:
        """See View: the line that is `done` was the last."""
        if not self._prepared.sequences:
            yield self.whole([])

    def _line(self, text: str) -> dict[str, Any]:
        return {
            "model": self._model.name,
            "created_at": timestamp(datetime.now(UTC)),
            "response": text,
            "done": False,
        }

    def _last(self, end: Finish, text: str) -> dict[str, Any]:
        timings = end.timings
        limited = end.reason in ("length", "time")
        return self._line(text) | {
            "done": True,
            "done_reason": "length" if limited else "stop",
            "total_duration": int((timings.prompt_s + timings.decode_s) * NS),
            "load_duration": 0,
            "prompt_eval_count": timings.prompt_tokens,
            "prompt_eval_duration": int(timings.prompt_s * NS),
            "eval_count": timings.generated_tokens,
            "eval_duration": int(timings.decode_s * NS),
            "starpack": report(self._prepared, [end]),
        }


def timestamp(moment: datetime) -> str:
    """RFC 3339, as Go's time package reads it."""
    return moment.isoformat().replace("+00:00", "Z")


def failure(_status: int, message: str) -> dict[str, object]:
    """Ollama's errors."""
    return {"error": message}


def _details(model: Model) -> dict[str, object]:
    return {
        "parent_model": "",
        "format": model.format,
        "family": "starcoder2",
        "families": ["starcoder2"],
        "parameter_size": "",
        "quantization_level": model.recipe,
    }


def _show(service: Service, _body: ShowBody) -> object:
    model = service.model
    return {
        "license": "\n\n".join(text for _, text in model.licences),
        "modelfile": f'# served by starpack\nFROM {model.name}\nTEMPLATE """{TEMPLATE}"""\n',
        "parameters": "",
        "template": TEMPLATE,
        "details": _details(model),
        "model_info": {
            "general.architecture": "starcoder2",
            "starcoder2.block_count": model.layers,
            "starcoder2.context_length": model.context_tokens,
            "starcoder2.vocab_size": model.vocab_size,
            "starcoder2.attention.sliding_window": model.window_tokens,
        },
        "capabilities": ["completion", "insert"],
        "modified_at": timestamp(datetime.fromtimestamp(model.modified_s, UTC)),
    }


def _tags(service: Service, _body: None) -> object:
    model = service.model
    entry = {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(datetime.fromtimestamp(model.modified_s, UTC)),
        "size": model.size_bytes,
        "digest": model.sha256,
        "details": _details(model),
    }
    return {"models": [entry]}


def _version(_service: Service, _body: None) -> object:
    return {"version": API_VERSION}


DIALECT = Dialect(
    name="ollama",
    completion_endpoints=(
        CompletionEndpoint(
            "/api/generate", "Complete or fill in", GenerateBody, ANSWER, read, GenerateView
        ),
    ),
    info_endpoints=(
        InfoEndpoint(
            "POST", "/api/show", "The model and its template",
            object_of("template", "details", template=STRING), _show,
            ShowBody,
        ),
        InfoEndpoint(
            "GET", "/api/tags", "The models that are served",
            object_of("models", models=list_of(object_of("name", "model", name=STRING))), _tags,
        ),
        InfoEndpoint(
            "GET", "/api/version", "The version of Ollama's API",
            object_of("version", version=STRING), _version,
        ),
    ),
    failure=failure,
    clients={
        "Continue": "provider: ollama, model: starcoder2, apiBase: {url}",
        "Ollama clients": "OLLAMA_HOST={url}",
    },
)  # fmt: skip
