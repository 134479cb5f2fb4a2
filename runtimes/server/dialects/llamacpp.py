"""llama.cpp's server: llama.vim, llama.vscode, Tabby and Continue in their llama.cpp kinds.

`input_extra` becomes the repository prompt that StarCoder2 was trained on. Every event of a stream
has `content` and `stop`. `t_max_prompt_ms` is honoured, which llama.cpp itself does not: what was
taken in stays there, so the next request goes on from it; `t_max_predict_ms` as there, once the
answer has a line break. `samplers` and `lora` are not honoured, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtimes.errors import DeviceError
from runtimes.generation.completion import Chunk, Finish, FinishReason, GenerateOptions, Timings
from runtimes.generation.sampling import TokenLogprobs
from runtimes.prompts.fim import Context, RepoFile
from runtimes.server.dialects import fields
from runtimes.server.dialects.endpoint import (
    BOOLEAN,
    INTEGER,
    STRING,
    Body,
    Completing,
    Dialect,
    Framing,
    Telling,
    given,
    list_of,
    object_of,
)
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

IGNORED = ("samplers", "lora")
STOP_TYPES: dict[FinishReason, str] = {
    "stop": "eos", "stop_string": "word", "length": "limit", "indent": "limit", "time": "limit",
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "n_predict": fields.LENGTH,
    **fields.SAMPLING,
    "repeat_penalty": fields.REPETITION,
    "stop": fields.stops_schema(fields.MOST_STOPS),
    "stream": fields.SWITCH,
    "n_probs": fields.whole_number(0, fields.MOST_LOGPROBS),
    "n_indent": fields.whole_number(-1, 1000),
    "n_cmpl": fields.whole_number(1, MOST_RUNS),
    "t_max_prompt_ms": fields.number(-1, fields.LARGEST),
    "t_max_predict_ms": fields.number(-1, fields.LARGEST),
    "return_tokens": fields.SWITCH,
    "response_fields": fields.nullable(list_of(STRING, 100)),
    "grammar": {"type": ["string", "null"], "maxLength": 0},
    "json_schema": fields.NOTHING_OF,
    "starpack": fields.EXTENSION,
}
COMPLETION = object_of("prompt", prompt={"anyOf": [STRING, fields.IDS]}, **OPTIONS)
EXTRA = fields.nullable(
    list_of(object_of("text", text=STRING, filename=fields.TEXT), fields.MOST_FILES)
)
INFILL = object_of(
    "input_prefix", "input_suffix",
    input_prefix=STRING, input_suffix=STRING, input_extra=EXTRA, prompt=fields.TEXT, **OPTIONS,
)  # fmt: skip
ONE = {"type": "object"}  # response_fields decides what is in it
ANSWER = {"anyOf": [ONE, list_of(ONE)]}


def read_completion(body: Body, rules: Rules) -> Ask:
    """/completion to ask."""
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return _ask(body, rules, fields.text_prompt(prompt, None, rules, fields.context_of(body)))
    return _ask(body, rules, fields.ids_prompt(prompt))


def read_infill(body: Body, rules: Rules) -> Ask:
    """/infill to ask: `prompt` is the start of the line at the cursor, so it ends the prefix."""
    said = fields.context_of(body)
    extra = tuple(
        RepoFile(given(file, "filename"), file["text"]) for file in given(body, "input_extra", ())
    )
    prefix = body["input_prefix"] + given(body, "prompt", "")
    context = Context(said.repo_name, (*said.files, *extra), said.path)
    return _ask(body, rules, TextPrompt(prefix, body["input_suffix"], context))


def _ask(body: Body, rules: Rules, prompt: TextPrompt | IdsPrompt) -> Ask:
    stops, dropped = fields.read_stops(given(body, "stop"))
    probs = int(given(body, "n_probs", 0))
    return Ask(
        prompts=(prompt,),
        options=GenerateOptions(
            max_tokens=fields.read_length(given(body, "n_predict"), rules),
            sampling=fields.read_sampling(body, rules, "repeat_penalty"),
            stop=stops,
            logprobs=probs or None,
            min_indent=max(0, int(given(body, "n_indent", 0))),
            max_prompt_s=fields.seconds(given(body, "t_max_prompt_ms")),
            max_decode_s=fields.seconds(given(body, "t_max_predict_ms")),
        ),
        choices=int(given(body, "n_cmpl", 1)),
        stream=fields.is_stream(body),
        over_context=fields.over_context_of(body),
        dropped_stops=dropped,
        ignored=fields.unhonoured(body, IGNORED),
    )


class CompletionView:
    """The objects of /completion and /infill."""

    framing: Framing = "sse"

    def __init__(self, body: Body, plan: Plan, model: Model) -> None:
        self._plan = plan
        self._model = model
        self._fields = given(body, "response_fields")
        self._tokens = bool(given(body, "return_tokens", False))
        self._predicted = [0] * len(plan.runs)

    def whole(self, results: list[Result]) -> object:
        """See View: one object, or a list of them where several were asked for."""
        objects = []
        for run, result in enumerate(results):
            done = result.completion
            last = self._last(run, done.finish, done.text, done.ids)
            objects.append(self._chosen(last | self._probabilities(done.logprobs)))
        return objects[0] if len(objects) == 1 else objects

    def scores(self, run: int, entries: Sequence[TokenLogprobs]) -> None:
        """See View: never asked for here."""

    def chunk(self, run: int, chunk: Chunk) -> Iterator[object]:
        """See View."""
        self._predicted[run] += len(chunk.ids)
        if chunk.text or (chunk.ids and (self._tokens or chunk.logprobs)):
            event = {
                "index": run,
                "content": chunk.text,
                "tokens": list(chunk.ids) if self._tokens else [],
                "stop": False,
                "id_slot": 0,
                "tokens_predicted": self._predicted[run],
                "tokens_evaluated": self._plan.fit_of(run).prompt_tokens,
            }
            yield event | self._probabilities(chunk.logprobs)

    def finish(self, run: int, finish: Finish) -> Iterator[object]:
        """See View."""
        yield self._chosen(self._last(run, finish, finish.text))

    def end(self) -> Iterator[object]:
        """See View: the event with `stop` was the last."""
        return iter(())

    def _last(self, run: int, end: Finish, text: str, ids: Sequence[int] = ()) -> dict[str, Any]:
        timings, fit = end.timings, self._plan.fit_of(run)
        options = self._plan.runs[run].options
        return {
            "index": run,
            "content": text,
            "tokens": list(ids) if self._tokens else [],
            "id_slot": 0,
            "stop": True,
            "model": self._model.name,
            "tokens_predicted": timings.generated_tokens,
            "tokens_evaluated": timings.prompt_tokens,
            "generation_settings": {
                "n_predict": options.max_tokens,
                "seed": options.sampling.seed,
                "temperature": options.sampling.temperature,
                "top_k": options.sampling.top_k,
                "top_p": options.sampling.top_p,
                "min_p": options.sampling.min_p,
                "stop": list(options.stop),
            },
            "truncated": fit.dropped_tokens > 0,
            "stop_type": STOP_TYPES.get(end.reason, "none"),
            "stopping_word": end.stop or "",
            "tokens_cached": timings.prompt_tokens + timings.generated_tokens,
            "timings": _timings(timings),
            "starpack": report(self._plan, [end]),
        }

    def _probabilities(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, object]:
        if not logprobs:
            return {}
        entries = [
            {
                **self._token(entry.id, entry.logprob),
                "top_logprobs": [self._token(other, value) for other, value in entry.top],
            }
            for entry in logprobs
        ]
        return {"completion_probabilities": entries}

    def _token(self, token_id: int, logprob: float) -> dict[str, object]:
        data = self._model.token_bytes(token_id)
        text = data.decode(errors="replace")
        return {"id": token_id, "token": text, "bytes": list(data), "logprob": logprob}

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Only `response_fields`, each under its whole path; a name that is not there is left out.

        An event of a stream keeps `content` and `stop`, without which clients cannot go on.
        """
        if self._fields is None:
            return answer
        kept = {}
        if self._plan.ask.stream:
            kept = {"content": answer["content"], "stop": answer["stop"]}
        for path in self._fields:
            value: Any = answer
            for name in path.split("/"):
                value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
            if value is not _MISSING:
                kept[path] = value
        return kept


_MISSING = object()


def _timings(timings: Timings) -> dict[str, float]:
    prompt_n = timings.prompt_tokens - timings.reused_tokens
    # a warm-up, or one whose first token is its last, has no time to divide by
    parts = {"prompt": (prompt_n, timings.prompt_s)}
    parts["predicted"] = (timings.generated_tokens, timings.decode_s)
    result: dict[str, float] = {"cache_n": timings.reused_tokens}
    for name, (count, time_s) in parts.items():
        result[f"{name}_n"] = count
        result[f"{name}_ms"] = 1000 * time_s
        result[f"{name}_per_token_ms"] = 1000 * time_s / count if count else 0.0
        result[f"{name}_per_second"] = count / time_s if time_s else 0.0
    return result


def failure(status: int, message: str) -> dict[str, object]:
    """llama.cpp's errors."""
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"code": status, "message": message, "type": kind}}


def _tokenize(service: Service, body: Body) -> object:
    """Control tokens in the text stay text, whatever `parse_special` says."""
    ids = service.runtime.tokenizer.encode(body["content"])
    if not given(body, "with_pieces", False):
        return {"tokens": ids}
    token_bytes = service.runtime.tokenizer.token_bytes
    return {"tokens": [{"id": i, "piece": _piece(token_bytes(i))} for i in ids]}


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _detokenize(service: Service, body: Body) -> object:
    ids = tuple(int(i) for i in body["tokens"])
    service.check_ids(ids)
    return {"content": service.runtime.tokenizer.decode(ids)}


def _props(service: Service, _body: Body) -> object:
    model, rules = service.model, service.rules
    return {
        "default_generation_settings": {
            "n_ctx": model.context_tokens,
            "n_predict": rules.default_tokens,
            "temperature": rules.temperature,
        },
        "total_slots": service.slots,
        "model_alias": model.name,
        "model_path": model.name,
        "chat_template": "",
        "build_info": "starpack",
        "sliding_window": model.window_tokens,
    }


def _slots(service: Service, _body: Body) -> object:
    """The backend computes one sequence, the first; the others wait to be gone on with."""
    held = [len(service.runtime.held_ids), *service.runtime.aside_tokens]
    return [
        {
            "id": number,
            "n_ctx": service.model.context_tokens,
            "speculative": True,
            "is_processing": number == 0 and service.engine.is_running,
            "tokens_held": tokens,
            "requests_waiting": service.engine.waiting_jobs if number == 0 else 0,
        }
        for number, tokens in enumerate(held)
    ]


def _health(service: Service, _body: Body) -> object:
    if not service.engine.is_sound:
        raise DeviceError("the engine does not answer", remedy="see the log; ask /ready")
    return {"status": "ok"}


CONTENT = object_of("content", content=STRING, with_pieces=fields.SWITCH)
TOKENS = object_of("tokens", tokens=list_of({"anyOf": [INTEGER, {"type": "object"}]}))
DIALECT = Dialect(
    name="llama.cpp",
    completing=(
        Completing(
            "/completion", "Complete", COMPLETION, ANSWER, read_completion, CompletionView
        ),
        Completing(
            "/infill", "Fill in, with other files as context", INFILL, ANSWER, read_infill,
            CompletionView,
        ),
    ),
    telling=(
        Telling("POST", "/tokenize", "Text to ids", TOKENS, _tokenize, CONTENT),
        Telling(
            "POST", "/detokenize", "Ids to text", object_of("content", content=STRING),
            _detokenize, object_of("tokens", tokens={**fields.IDS, "minItems": 0}),
        ),
        Telling(
            "GET", "/props", "How the model is served",
            object_of("default_generation_settings", "total_slots", total_slots=INTEGER), _props,
        ),
        Telling(
            "GET", "/slots", "What the engine holds and does",
            list_of(object_of("id", "n_ctx", "is_processing", id=INTEGER, is_processing=BOOLEAN)),
            _slots,
        ),
        Telling(
            "GET", "/health", "Whether the engine takes requests; /ready asks it for a token",
            object_of("status", status=STRING), _health,
        ),
    ),
    failure=failure,
    in_stream={"content": "", "stop": True},  # Tabby ends at an event without them
    clients={
        "llama.vim": "let g:llama_config = {'endpoint_fim': '{url}/infill'}",
        "llama.vscode": '"llama-vscode.endpoint": "{url}"',
        "Tabby": 'kind = "llama.cpp/completion", api_endpoint = "{url}", '
        'prompt_template = "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"',
    },
)  # fmt: skip
