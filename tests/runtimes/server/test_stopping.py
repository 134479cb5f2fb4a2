"""A server that is stopped: what it cannot end is told so, in the dialect's words."""

from __future__ import annotations

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from runtimes.server.service import Service
from tests.support.serving import connect, listening, make_service, post, read_all, wait_until

# a dialect's path, body, and where its errors have the message
DIALECTS = {
    "openai": ("/v1/completions", {"prompt": "abc", "max_tokens": 300}, ("error", "message")),
    "llama.cpp": ("/completion", {"prompt": "abc", "n_predict": 300}, ("error", "message")),
    "ollama": ("/api/generate", {"model": "m", "prompt": "abc", "options": {"num_predict": 300}},
               ("error",)),
    "tgi": ("/generate", {"inputs": "abc", "parameters": {"max_new_tokens": 300}}, ("error",)),
    "tasks": ("/v1/tasks/complete", {"prompt": "abc", "max_tokens": 300}, ("error", "message")),
}  # fmt: skip


@pytest.fixture
def slow(tmp_path: Path) -> Service:
    """A model that takes 5 ms for each call."""
    service = make_service(tmp_path, queue_jobs=2)
    service.runtime.backend.within_forward = lambda: time.sleep(0.005)
    return service


def message_of(answer: dict, names: tuple[str, ...]) -> object:
    for name in names:
        answer = answer[name]
    return answer


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_runs_and_what_waits_is_told(slow, caplog, dialect, stream):
    path, body, names = DIALECTS[dialect]
    body = body | {"stream": stream}

    def ask(url: str) -> httpx.Response:
        return httpx.post(url + path, json=body, timeout=30)

    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.WARNING):
        with listening(slow, grace_s=0) as url:
            runs = pool.submit(ask, url)
            wait_until(lambda: slow.metrics._generated_tokens > 0 or slow.queue.last_token_at)
            waits = pool.submit(ask, url)
            wait_until(lambda: slow.queue.waiting_jobs == 1)
        answers = [runs.result(), waits.result()]
    refused = answers[1:] if stream else answers
    for answer in refused:
        assert answer.status_code == 503, answer.text
        assert message_of(answer.json(), names) == "the server was stopped"
    if stream:
        assert answers[0].status_code == 200
        last = [line for line in answers[0].text.splitlines() if line][-1]
        assert "server was stopped" in str(
            message_of(json.loads(last.removeprefix("data: ")), names)
        )
    assert not slow.queue.is_alive
    assert "Traceback" not in caplog.text


def test_a_body_that_has_not_come_and_a_client_that_does_not_read(slow, caplog, monkeypatch):
    monkeypatch.setattr(slow.runtime.backend, "within_forward", lambda: None)
    with caplog.at_level(logging.WARNING), listening(slow, grace_s=0) as url:
        half, deaf = connect(url), connect(url)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(post({"prompt": "abc", "max_tokens": 300, "stream": True, "n": 16}))
        half.sendall(post({"prompt": "abc"})[:-2])
        wait_until(lambda: slow.metrics._generated_tokens > 300, 20)
    with half, deaf:
        assert b" 503 " in read_all(half)
    assert "Traceback" not in caplog.text
