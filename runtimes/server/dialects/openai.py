"""OpenAI's completions, and the places where its clients look for them.

Tabby, Zed, Continue, llama.vscode, llm-ls, twinny, minuet, the `openai` packages, and proxies in
FauxPilot's manner. `model` is not looked at: clients name what they know. A stream's last event
before [DONE] has a finish reason: Tabby ends without one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from runtimes.generation.completion import Chunk, Finish, FinishReason, GenerateOptions
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.dialects import fields
from runtimes.server.dialects.endpoint import (
    INTEGER,
    NUMBER,
    STRING,
    Body,
    Completing,
    Dialect,
    Framing,
    Telling,
    failure,
    given,
    list_of,
    object_of,
)
from runtimes.server.dialects.logprobs import Lists, LogprobLists
from runtimes.server.request import (
    Ask,
    IdsPrompt,
    Model,
    Plan,
    Result,
    Rules,
    TextPrompt,
    report,
)
from runtimes.server.service import MOST_RUNS, Service

MOST_STOPS = 16
IGNORED = ("best_of",)
COPILOT_PATH = "/copilot_internal/v2/token"
COPILOT_TOKEN_S = 1800  # guessed: half an hour, as GitHub's own

BODY = object_of(
    "prompt",
    model=fields.TEXT,
    prompt={
        "anyOf": [
            STRING,
            list_of(STRING, MOST_RUNS, 1),
            fields.IDS,
            list_of(fields.IDS, MOST_RUNS, 1),
        ]
    },
    suffix=fields.TEXT,
    max_tokens=fields.LENGTH,
    repetition_penalty=fields.REPETITION,
    n=fields.whole_number(1, MOST_RUNS),
    stop=fields.stops_schema(MOST_STOPS),
    logprobs=fields.whole_number(0, fields.MOST_LOGPROBS),
    echo=fields.SWITCH,
    stream=fields.SWITCH,
    stream_options=fields.nullable(object_of(include_usage=fields.SWITCH)),
    logit_bias=fields.NOTHING_OF,
    starpack=fields.EXTENSION,
    **fields.SAMPLING,
)
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


def read(body: Body, rules: Rules) -> Ask:
    """Body to ask."""
    stops, dropped = fields.read_stops(given(body, "stop"))
    logprobs = given(body, "logprobs")
    echo = bool(given(body, "echo", False))
    return Ask(
        prompts=tuple(_prompts(body, rules)),
        options=GenerateOptions(
            max_tokens=fields.read_length(given(body, "max_tokens"), rules),
            sampling=fields.read_sampling(body, rules, "repetition_penalty"),
            stop=stops,
            logprobs=None if logprobs is None else int(logprobs),
        ),
        choices=int(given(body, "n", 1)),
        echo=echo,
        scored=echo and logprobs is not None,
        stream=fields.is_stream(body),
        over_context=fields.over_context_of(body),
        dropped_stops=dropped,
        ignored=fields.unhonoured(body, IGNORED),
    )


def _prompts(body: Body, rules: Rules) -> Iterator[TextPrompt | IdsPrompt]:
    suffix, context = given(body, "suffix"), fields.context_of(body)
    prompt = body["prompt"]
    if isinstance(prompt, str):
        prompt = [prompt]
    elif not isinstance(prompt[0], str | list):
        prompt = [prompt]  # one prompt of ids
    for part in prompt:
        if isinstance(part, str):
            yield fields.text_prompt(part, suffix, rules, context)
        else:
            yield fields.ids_prompt(part)


def finish_reason(reason: FinishReason) -> str:
    """OpenAI knows two; the full one is in `starpack`."""
    return "length" if reason in ("length", "time") else "stop"


class CompletionView:
    """text_completion objects, whole or in pieces."""

    framing: Framing = "sse"

    def __init__(self, body: Body, plan: Plan, model: Model) -> None:
        self._plan = plan
        self._model = model
        self._usage = bool(given(given(body, "stream_options", {}), "include_usage", False))
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
        for run, result in enumerate(results):
            self._scores[run] = result.prompt_logprobs
            text, lists = self._begin(run)
            completion = result.completion
            self._ends.append(completion.finish)
            lists = self._more(run, lists, completion.logprobs)
            choices.append(_choice(run, text + completion.text, lists, completion.finish.reason))
        return {
            **self._head,
            "choices": choices,
            "usage": self._used(),
            "starpack": report(self._plan, self._ends),
        }

    def scores(self, run: int, entries: Sequence[TokenLogprobs]) -> None:
        """See View."""
        self._scores[run] = entries

    def chunk(self, run: int, chunk: Chunk) -> Iterator[dict[str, object]]:
        """See View."""
        text, lists = ("", None) if run in self._started else self._begin(run)
        lists = self._more(run, lists, chunk.logprobs)
        text += chunk.text
        if text or lists:
            yield self._event(_choice(run, text, lists, None))

    def finish(self, run: int, finish: Finish) -> Iterator[dict[str, object]]:
        """See View."""
        text, lists = ("", None) if run in self._started else self._begin(run)
        self._ends.append(finish)
        event = self._event(_choice(run, text + finish.text, lists, finish.reason))
        yield event | {"starpack": report(self._plan, [finish])}

    def _event(self, choice: dict[str, object]) -> dict[str, object]:
        event = {**self._head, "choices": [choice]}
        return event | {"usage": None} if self._usage else event

    def end(self) -> Iterator[object]:
        """See View."""
        if self._usage:
            yield {**self._head, "choices": [], "usage": self._used()}
        yield "[DONE]"

    def _begin(self, run: int) -> tuple[str, Lists | None]:
        """What comes before the first token of a run: its prompt, if it is to be repeated."""
        self._started.add(run)
        options = self._plan.ask.options
        if options.logprobs is not None:
            self._lists[run] = LogprobLists(self._model, options.logprobs)
        if not self._plan.ask.echo:
            return "", None
        prompt, ids = self._plan.prompt_of(run), self._plan.runs[run].ids
        if isinstance(prompt, TextPrompt) and not self._plan.fit_of(run).dropped_tokens:
            text = prompt.prefix
        else:
            text = b"".join(map(self._model.token_bytes, ids)).decode(errors="replace")
        entries = self._scores.get(run, ())
        lists = self._lists.get(run)
        return text, None if lists is None else lists.prompt(ids, entries)

    def _more(
        self, run: int, before: Lists | None, entries: Sequence[TokenLogprobs]
    ) -> Lists | None:
        if run not in self._lists or not (entries or before):
            return before
        new = self._lists[run].chunk(entries)
        return new if before is None else {name: before[name] + new[name] for name in new}

    def _used(self) -> dict[str, object]:
        prompt = sum(fit.prompt_tokens for fit in self._plan.fits)
        generated = sum(end.timings.generated_tokens for end in self._ends)
        reused = sum(end.timings.reused_tokens for end in self._ends[:: self._plan.ask.choices])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": reused},
        }


def _choice(
    run: int, text: str, lists: Lists | None, reason: FinishReason | None
) -> dict[str, object]:
    return {
        "index": run,
        "text": text,
        "logprobs": lists,
        "finish_reason": None if reason is None else finish_reason(reason),
    }


def _models(service: Service, _body: Body) -> object:
    model = service.model
    created = int(model.modified_s)
    entry = {"id": model.name, "object": "model", "created": created, "owned_by": "starpack"}
    return {"object": "list", "data": [entry]}


def _copilot_token(_service: Service, _body: Body) -> object:
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
PATHS = (
    "/v1/completions",
    "/completions",
    "/fim/completions",
    "/v1/fim/completions",
    "/v1/engines/{name}/completions",
)

DIALECT = Dialect(
    name="openai",
    completing=tuple(
        Completing(path, "Complete, or with a suffix fill in", BODY, ANSWER, read, CompletionView)
        for path in PATHS
    ),
    telling=(
        Telling("GET", "/v1/models", "The model that is served", MODELS, _models),
        Telling("GET", COPILOT_PATH, "A token for Copilot's clients", TOKEN, _copilot_token),
    ),
    failure=failure,
    clients={
        "Zed": "api_url: {url}/v1/completions, model: starcoder2",
        "OpenAI clients": "base_url={url}/v1",
    },
)
