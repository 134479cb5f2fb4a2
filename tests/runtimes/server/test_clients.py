"""What clients really send, replayed, and the answers read as those clients read them.

The requests are in clients/, field by field in the order of the named source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving import listening, make_service

REQUESTS = [
    request
    for file in sorted((Path(__file__).parent / "clients").glob("*.json"))
    for request in json.loads(file.read_text(encoding="utf-8"))
]
PARSERS: dict[str, Callable[[httpx.Response, dict[str, Any]], str | None]] = {}


def parser(function):
    """Known by its name, less `parse_`; returns the completion, None where there is none."""
    PARSERS[function.__name__.removeprefix("parse_")] = function
    return function


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(make_service(tmp_path_factory.mktemp("clients"))) as url:
        yield url


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request["name"])
def test_the_client_gets_what_it_parses(url: str, request_: dict[str, Any]) -> None:
    headers = {"authorization": "Bearer not-needed-here", "content-type": "application/json"}
    data = json.dumps(request_["body"])
    answer = httpx.post(url + request_["path"], content=data, headers=headers, timeout=20)
    assert answer.status_code == 200, answer.text
    completion = PARSERS[request_["parse"]](answer, request_["body"])
    if completion is not None:
        assert completion  # the toy always has something to say
        assert not any(mark in completion for mark in ("<fim_", "<file_sep>", "<|endoftext|>"))


def test_every_kind_of_answer_is_asked_for():
    assert {request["parse"] for request in REQUESTS} == PARSERS.keys()


def sse(answer: httpx.Response) -> list[str]:
    assert answer.headers["content-type"] == "text/event-stream"
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


@parser
def parse_infill(answer, body):
    """llama.vim reads flat keys: get(l:response, 'timings/prompt_n', 0)."""
    data = answer.json()
    assert data.keys() == set(body["response_fields"])
    assert data["timings/predicted_n"] > 0 and data["timings/predicted_ms"] > 0
    assert data["truncated"] is False
    extra = "".join(f"{e['filename']}\n{e['text']}" for e in body["input_extra"])
    least = len(extra + body["input_prefix"] + body["prompt"] + body["input_suffix"]) // 2
    assert least < data["tokens_cached"]
    lines = data["content"].split("\n")[1:]
    assert all(line.startswith(" " * body["n_indent"]) for line in lines if line)
    return data["content"]


@parser
def parse_warm_up(answer, _body):
    assert answer.json() == {}


@parser
def parse_infill_content(answer, _body):
    data = answer.json()
    assert {"generation_settings", "tokens_cached", "truncated", "timings"} <= data.keys()
    assert isinstance(data["content"], str)
    return data["content"]


@parser
def parse_infill_several(answer, body):
    data = answer.json()
    assert [one["index"] for one in data] == list(range(body["n_cmpl"]))
    assert data[0]["starpack"]["ignored"] == ["samplers", "lora"]
    return data[0]["content"]


@parser
def parse_tabby_llama(answer, body):
    """serde: `content` and `stop` are not optional in any event."""
    events = [json.loads(event) for event in sse(answer)]
    assert all(isinstance(e["content"], str) and isinstance(e["stop"], bool) for e in events)
    assert [e["stop"] for e in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["generation_settings"]["seed"] == body["seed"]
    return "".join(event["content"] for event in events)


@parser
def parse_tabby_openai(answer, _body):
    """async-openai: choices[0] in each event; a finish reason has come before [DONE]."""
    *events, done = sse(answer)
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] in ("stop", "length")
    return "".join(choice["text"] for choice in choices)


@parser
def parse_continue_llama(answer, _body):
    events = [json.loads(event) for event in sse(answer)]
    assert events[-1]["starpack"]["dropped_stops"] == ["t.", "\nt"]
    assert events[-1]["starpack"]["budget"][0]["extras_tokens"] > 0
    return "".join(event["content"] for event in events)


@parser
def parse_openai_whole(answer, _body):
    data = answer.json()
    assert data["usage"]["total_tokens"] > data["usage"]["prompt_tokens"] > 0
    assert data["choices"][0]["finish_reason"] in ("stop", "length")
    assert data["model"] and data["created"]
    return data["choices"][0]["text"]


@parser
def parse_zed(answer, _body):
    data = answer.json()
    assert isinstance(data["id"], str)
    return data["choices"][0]["text"]


@parser
def parse_llm_ls_tgi(answer, _body):
    """One object: its TGI adaptor refuses a list."""
    return answer.json()["generated_text"]


@parser
def parse_ollama_whole(answer, _body):
    return answer.json()["response"]


@parser
def parse_ollama_stream(answer, _body):
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert [e["done"] for e in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["done_reason"] in ("stop", "length") and events[-1]["eval_count"] > 0
    return "".join(event["response"] for event in events)


@parser
def parse_ollama_show(answer, _body):
    """Continue fills in through Ollama only where the template has this."""
    assert ".Suffix" in answer.json()["template"]
