"""llama.cpp's server: llama.vim, llama.vscode, Tabby and Continue in their llama.cpp kinds.

`input_extra` becomes the repository prompt that StarCoder2 was trained on. Every event of a stream
has `content` and `stop`. `t_max_prompt_ms` is honoured, which llama.cpp itself does not: what was
taken in stays there, so the next request goes on from it; `t_max_predict_ms` as there, once the
answer has a line break. `samplers` and `lora` are not honoured, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtimes.contract import IsCancelled
from runtimes.errors import DeviceError
from runtimes.generation.completion import Chunk, Finish, FinishReason, Timings
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
    Work,
    list_of,
    object_of,
)
from runtimes.server.dialects.llamacpp_requests import (
    CompletionBody,
    DetokenizeBody,
    InfillBody,
    OptionsBody,
    TokenizeBody,
    read_completion,
    read_infill,
)
from runtimes.server.request import Model, PreparedRequest, Result, report
from runtimes.server.service import Service

STOP_TYPES: dict[FinishReason, str] = {
    "stop": "eos", "stop_string": "word", "length": "limit", "indent": "limit", "time": "limit",
}  # fmt: skip
ONE = {"type": "object"}  # response_fields decides what is in it
ANSWER = {"anyOf": [ONE, list_of(ONE)]}


class CompletionView:
    """The objects of /completion and /infill."""

    framing: Framing = "sse"

    def __init__(self, body: OptionsBody, prepared: PreparedRequest, model: Model) -> None:
        self._prepared = prepared
        self._model = model
        self._fields = body.response_fields
        self._tokens = bool(body.return_tokens)
        self._predicted = [0] * len(prepared.sequences)

    def whole(self, results: list[Result]) -> object:
        """See View: one object, or a list of them where several were asked for."""
        objects = []
        for index, result in enumerate(results):
            done = result.completion
            last = self._last(index, done.finish, done.text, done.ids)
            objects.append(self._chosen(last | self._probabilities(done.logprobs)))
        return objects[0] if len(objects) == 1 else objects

    def scores(self, index: int, entries: Sequence[TokenLogprobs]) -> None:
        """See View: never asked for here."""

    def chunk(self, index: int, chunk: Chunk) -> Iterator[object]:
        """See View."""
        self._predicted[index] += len(chunk.ids)
        if chunk.text or (chunk.ids and (self._tokens or chunk.logprobs)):
            event = {
                "index": index,
                "content": chunk.text,
                "tokens": list(chunk.ids) if self._tokens else [],
                "stop": False,
                "id_slot": 0,
                "tokens_predicted": self._predicted[index],
                "tokens_evaluated": self._prepared.budget_of(index).prompt_tokens,
            }
            yield event | self._probabilities(chunk.logprobs)

    def finish(self, index: int, finish: Finish) -> Iterator[object]:
        """See View."""
        yield self._chosen(self._last(index, finish, finish.text))

    def end(self) -> Iterator[object]:
        """See View: the event with `stop` was the last."""
        return iter(())

    def _last(self, index: int, end: Finish, text: str, ids: Sequence[int] = ()) -> dict[str, Any]:
        timings, budget = end.timings, self._prepared.budget_of(index)
        options = self._prepared.sequences[index].options
        return {
            "index": index,
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
            "truncated": budget.dropped_tokens > 0,
            "stop_type": STOP_TYPES.get(end.reason, "none"),
            "stopping_word": end.stop or "",
            "tokens_cached": timings.prompt_tokens + timings.generated_tokens,
            "timings": _timings(timings),
            "starpack": report(self._prepared, [end]),
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
        if self._prepared.request.stream:
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


def _tokenize(service: Service, body: TokenizeBody) -> Work:
    """Control tokens in the text stay text, whatever `parse_special` says."""

    def work(cancelled: IsCancelled) -> object:
        ids = service.tokenize(body.content, fields.MAX_IDS, cancelled)
        if not body.with_pieces:
            return {"tokens": ids}
        token_bytes = service.runtime.tokenizer.token_bytes
        return {"tokens": [{"id": i, "piece": _piece(token_bytes(i))} for i in ids]}

    return work


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _detokenize(service: Service, body: DetokenizeBody) -> object:
    ids = tuple(body.tokens)
    service.check_ids(ids)
    return {"content": service.runtime.tokenizer.decode(ids)}


def _props(service: Service, _body: None) -> object:
    model, defaults = service.model, service.defaults
    return {
        "default_generation_settings": {
            "n_ctx": model.context_tokens,
            "n_predict": defaults.default_tokens,
            "temperature": defaults.temperature,
        },
        "total_slots": service.slots,
        "model_alias": model.name,
        "model_path": model.name,
        "chat_template": "",
        "build_info": "starpack",
        "sliding_window": model.window_tokens,
    }


def _slots(service: Service, _body: None) -> object:
    """The first slot is the sequence that the backend computes; the others are saved."""
    held = [len(service.runtime.held_ids), *service.runtime.saved_tokens]
    return [
        {
            "id": number,
            "n_ctx": service.model.context_tokens,
            "speculative": True,
            "is_processing": number == 0 and service.queue.is_running,
            "tokens_held": tokens,
            "requests_waiting": service.queue.waiting_jobs if number == 0 else 0,
        }
        for number, tokens in enumerate(held)
    ]


def _health(service: Service, _body: None) -> object:
    if not service.queue.is_healthy:
        raise DeviceError("the engine does not answer", remedy="see the log; ask /ready")
    return {"status": "ok"}


TOKENS = object_of("tokens", tokens=list_of({"anyOf": [INTEGER, {"type": "object"}]}))
DIALECT = Dialect(
    name="llama.cpp",
    completion_endpoints=(
        CompletionEndpoint(
            "/completion", "Complete", CompletionBody, ANSWER, read_completion, CompletionView
        ),
        CompletionEndpoint(
            "/infill", "Fill in, with other files as context", InfillBody, ANSWER, read_infill,
            CompletionView,
        ),
    ),
    info_endpoints=(
        InfoEndpoint("POST", "/tokenize", "Text to ids", TOKENS, _tokenize, TokenizeBody),
        InfoEndpoint(
            "POST", "/detokenize", "Ids to text", object_of("content", content=STRING),
            _detokenize, DetokenizeBody,
        ),
        InfoEndpoint(
            "GET", "/props", "How the model is served",
            object_of("default_generation_settings", "total_slots", total_slots=INTEGER), _props,
        ),
        InfoEndpoint(
            "GET", "/slots", "What the engine holds and does",
            list_of(object_of("id", "n_ctx", "is_processing", id=INTEGER, is_processing=BOOLEAN)),
            _slots,
        ),
        InfoEndpoint(
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
