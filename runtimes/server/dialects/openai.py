"""OpenAI's completions, and the places where its clients look for them.

Tabby, Zed, Continue, llama.vscode, llm-ls, twinny, minuet, the `openai` packages, and proxies in
FauxPilot's manner. `model` is not looked at: clients name what they know. A stream's last event
before [DONE] has a finish reason: Tabby ends without one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta, Struct

from runtimes.errors import UsageError
from runtimes.generation.completion import Chunk, Finish, FinishReason, GenerateOptions
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.dialects import fields
from runtimes.server.dialects.endpoint import (
    INTEGER,
    NUMBER,
    STRING,
    CompletionEndpoint,
    Dialect,
    Framing,
    InfoEndpoint,
    failure,
    list_of,
    object_of,
)
from runtimes.server.dialects.logprobs import Lists, LogprobLists
from runtimes.server.request import (
    CompletionRequest,
    IdsPrompt,
    Model,
    PreparedRequest,
    Result,
    ServerDefaults,
    TextPrompt,
    report,
)
from runtimes.server.service import MAX_RUNS, Service

MAX_STOPS = 16
IGNORED = ("best_of",)
COPILOT_PATH = "/copilot_internal/v2/token"
COPILOT_TOKEN_S = 1800  # guessed: half an hour, as GitHub's own

Texts = Annotated[list[fields.StopText], Meta(max_length=MAX_STOPS)]


class StreamOptions(Struct, kw_only=True):
    """What a stream has besides."""

    include_usage: bool | None = None


class SharedBody(fields.SamplingBody, kw_only=True):
    """What the tasks have as well."""

    max_tokens: fields.Length | None = None
    repetition_penalty: fields.Repetition | None = None
    stop: fields.StopText | Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    starpack: fields.ExtensionBody | None = None


class CompletionsBody(SharedBody, kw_only=True):
    """A prompt is a text or ids; several are a list of texts, or of lists of ids."""

    prompt: str | Annotated[list[str | fields.Id | fields.Ids], Meta(min_length=1)]
    model: str | None = None
    suffix: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_RUNS)] | None = None
    logprobs: fields.Logprobs | None = None
    echo: bool | None = None
    logit_bias: fields.NoObject = None
    best_of: Any = None


ANSWER = object_of(
    "id", "object", "created", "model", "choices", "usage",
    id=STRING, object={"enum": ["text_completion"]}, created=INTEGER, model=STRING,
    choices=list_of(
        object_of(
            "text", "index", "finish_reason",
            text=STRING, index=INTEGER, finish_reason={"enum": ["stop", "length"]},
            logprobs={"type": ["object", "null"]},
        )
    ),
    usage=object_of(
        "prompt_tokens", "completion_tokens", "total_tokens",
        prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER,
    ),
    starpack={"type": "object"},
)  # fmt: skip


def read(body: CompletionsBody, defaults: ServerDefaults) -> CompletionRequest:
    """Body to request."""
    echo = bool(body.echo)
    return replace(
        read_shared(body, defaults, tuple(_prompts(body, defaults)), body.logprobs),
        choices=body.n or 1,
        echo=echo,
        scored=echo and body.logprobs is not None,
        ignored=fields.ignored(body, IGNORED),
    )


def read_shared(
    body: SharedBody,
    defaults: ServerDefaults,
    prompts: tuple[TextPrompt | IdsPrompt, ...],
    logprobs: int | None = None,
) -> CompletionRequest:
    """A request for one completion of each prompt."""
    stops, dropped = fields.read_stops(body.stop)
    return CompletionRequest(
        prompts=prompts,
        options=GenerateOptions(
            max_tokens=fields.read_length(body.max_tokens, defaults),
            sampling=fields.read_sampling(body, defaults, body.repetition_penalty),
            stop=stops,
            logprobs=logprobs,
        ),
        stream=bool(body.stream),
        over_context=fields.over_context_of(body.starpack),
        dropped_stops=dropped,
    )


def _prompts(body: CompletionsBody, defaults: ServerDefaults) -> Iterator[TextPrompt | IdsPrompt]:
    parts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    ids = [part for part in parts if isinstance(part, int)]
    if ids:
        if len(ids) != len(parts) or len(ids) > fields.MAX_IDS:
            raise _bad_prompt()
        yield IdsPrompt(tuple(ids))
        return
    if len(parts) > MAX_RUNS or len({type(part) for part in parts}) != 1:
        raise _bad_prompt()
    context = fields.context_of(body.starpack)
    for part in parts:
        if isinstance(part, str):
            yield fields.text_prompt(part, body.suffix, defaults, context)
        elif isinstance(part, list):
            yield IdsPrompt(tuple(part))


def _bad_prompt() -> UsageError:
    return UsageError(
        "prompt is a list of different kinds, or too long",
        expected=f"at most {MAX_RUNS} texts or lists of ids, or {fields.MAX_IDS} ids",
    )


def finish_reason(reason: FinishReason) -> str:
    """OpenAI knows two; the full one is in `starpack`."""
    return "length" if reason in ("length", "time") else "stop"


class CompletionView:
    """text_completion objects, whole or in pieces."""

    framing: Framing = "sse"

    def __init__(self, body: SharedBody, prepared: PreparedRequest, model: Model) -> None:
        self._prepared = prepared
        self._model = model
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }
        self._ends: list[Finish] = []
        self._started: set[int] = set()
        self._scores: dict[int, Sequence[TokenLogprobs]] = {}
        self._lists: dict[int, LogprobLists] = {}

    def whole(self, results: list[Result]) -> dict[str, object]:
        """See View."""
        choices = []
        for index, result in enumerate(results):
            self._scores[index] = result.prompt_logprobs
            text, lists = self._begin(index)
            completion = result.completion
            self._ends.append(completion.finish)
            lists = self._more(index, lists, completion.logprobs)
            choices.append(_choice(index, text + completion.text, lists, completion.finish.reason))
        return {
            **self._head,
            "choices": choices,
            "usage": self._used(),
            "starpack": report(self._prepared, self._ends),
        }

    def scores(self, index: int, entries: Sequence[TokenLogprobs]) -> None:
        """See View."""
        self._scores[index] = entries

    def chunk(self, index: int, chunk: Chunk) -> Iterator[dict[str, object]]:
        """See View."""
        text, lists = ("", None) if index in self._started else self._begin(index)
        lists = self._more(index, lists, chunk.logprobs)
        text += chunk.text
        if text or lists:
            yield self._event(_choice(index, text, lists, None))

    def finish(self, index: int, finish: Finish) -> Iterator[dict[str, object]]:
        """See View."""
        text, lists = ("", None) if index in self._started else self._begin(index)
        self._ends.append(finish)
        event = self._event(_choice(index, text + finish.text, lists, finish.reason))
        yield event | {"starpack": report(self._prepared, [finish])}

    def _event(self, choice: dict[str, object]) -> dict[str, object]:
        event = {**self._head, "choices": [choice]}
        return event | {"usage": None} if self._usage else event

    def end(self) -> Iterator[object]:
        """See View."""
        if self._usage:
            yield {**self._head, "choices": [], "usage": self._used()}
        yield "[DONE]"

    def _begin(self, index: int) -> tuple[str, Lists | None]:
        """What comes before the first token of a run: its prompt, if it is to be repeated."""
        self._started.add(index)
        options = self._prepared.request.options
        if options.logprobs is not None:
            self._lists[index] = LogprobLists(self._model, options.logprobs)
        if not self._prepared.request.echo:
            return "", None
        prompt, ids = self._prepared.prompt_of(index), self._prepared.sequences[index].ids
        if isinstance(prompt, TextPrompt) and not self._prepared.budget_of(index).dropped_tokens:
            text = prompt.prefix
        else:
            text = b"".join(map(self._model.token_bytes, ids)).decode(errors="replace")
        entries = self._scores.get(index, ())
        lists = self._lists.get(index)
        return text, None if lists is None else lists.prompt(ids, entries)

    def _more(
        self, index: int, before: Lists | None, entries: Sequence[TokenLogprobs]
    ) -> Lists | None:
        if index not in self._lists or not (entries or before):
            return before
        new = self._lists[index].chunk(entries)
        return new if before is None else {name: before[name] + new[name] for name in new}

    def _used(self) -> dict[str, object]:
        prompt = sum(budget.prompt_tokens for budget in self._prepared.budgets)
        generated = sum(end.timings.generated_tokens for end in self._ends)
        reused = sum(
            end.timings.reused_tokens for end in self._ends[:: self._prepared.request.choices]
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": reused},
        }


def _choice(
    index: int, text: str, lists: Lists | None, reason: FinishReason | None
) -> dict[str, object]:
    return {
        "index": index,
        "text": text,
        "logprobs": lists,
        "finish_reason": None if reason is None else finish_reason(reason),
    }


def _models(service: Service, _body: None) -> object:
    model = service.model
    created = int(model.modified_s)
    entry = {"id": model.name, "object": "model", "created": created, "owned_by": "starpack"}
    return {"object": "list", "data": [entry]}


def _copilot_token(_service: Service, _body: None) -> object:
    """Copilot's clients ask for a token before all else. This server's key is not given away."""
    now = int(time.time())
    return {
        "token": "none",
        "expires_at": now + COPILOT_TOKEN_S,
        "refresh_in": COPILOT_TOKEN_S // 2,
    }


MODELS = object_of(
    "object", "data",
    object={"enum": ["list"]},
    data=list_of(object_of("id", "object", "created", "owned_by", id=STRING, object=STRING)),
)  # fmt: skip
TOKEN = object_of("token", "expires_at", token=STRING, expires_at=NUMBER, refresh_in=NUMBER)
SUMMARY = "Complete, or with a suffix fill in"
PATHS = (
    "/v1/completions",
    "/completions",
    "/fim/completions",
    "/v1/fim/completions",
    "/v1/engines/{name}/completions",
)

DIALECT = Dialect(
    name="openai",
    completion_endpoints=tuple(
        CompletionEndpoint(path, SUMMARY, CompletionsBody, ANSWER, read, CompletionView)
        for path in PATHS
    ),
    info_endpoints=(
        InfoEndpoint("GET", "/v1/models", "The model that is served", MODELS, _models),
        InfoEndpoint("GET", COPILOT_PATH, "A token for Copilot's clients", TOKEN, _copilot_token),
    ),
    failure=failure,
    clients={
        "Zed": "api_url: {url}/v1/completions, model: starcoder2",
        "OpenAI clients": "base_url={url}/v1",
    },
)
