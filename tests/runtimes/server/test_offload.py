"""Large texts do not hold up the server: refused early, one at a time, ended when nobody waits."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from runtimes.errors import BusyError, Cancelled
from runtimes.prompts.tokenizer import Tokenizer
from runtimes.server.app import Settings, create_app
from runtimes.server.dialects.endpoint import to_json, to_json_in_parts
from runtimes.server.dialects.openai import CompletionView
from runtimes.server.offload import SMALL_BYTES, Offload
from tests.support.serving import CONTEXT, HERE, make_service

LARGE = SMALL_BYTES + 1
DIGITS = "1" * 1_900_000  # a token each: M bytes are M tokens
FILE = {"path": "a.py", "text": DIGITS}


async def present() -> dict:
    """`receive` of a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError


async def leaving() -> dict:
    """`receive` of one that leaves."""
    return {"type": "http.disconnect"}


def test_a_large_body_never_keeps_a_small_one_waiting():
    free, entered = threading.Event(), threading.Event()

    def blocked(_cancelled) -> str:
        entered.set()
        assert free.wait(10)
        return "large"

    async def both() -> tuple[str, str]:
        offload = Offload(1)
        large = asyncio.create_task(offload.run(blocked, LARGE, present))
        second = asyncio.create_task(offload.run(lambda _: "second", LARGE, present))
        await asyncio.to_thread(entered.wait, 10)
        small = await offload.run(lambda _: "small", SMALL_BYTES, present)
        with pytest.raises(BusyError, match="2 large requests"):
            await offload.run(lambda _: "third", LARGE, present)
        assert not second.done()
        free.set()
        return small, await large, await second

    assert asyncio.run(both()) == ("small", "large", "second")


@pytest.mark.parametrize("how", ["leaves", "is cancelled"])
def test_a_client_that_goes_ends_the_work(how):
    ended = threading.Event()

    def work(cancelled) -> None:
        while not cancelled():
            ended.wait(0.001)
        ended.set()
        raise Cancelled("seen")

    async def ask() -> None:
        offload = Offload(1)
        asked = asyncio.create_task(
            offload.run(work, LARGE, leaving if how == "leaves" else present)
        )
        if how == "is cancelled":
            await asyncio.sleep(0.02)
            asked.cancel()
        with pytest.raises((Cancelled, asyncio.CancelledError)):
            await asked
        assert await asyncio.to_thread(ended.wait, 10)

    asyncio.run(ask())


def test_what_waits_for_its_turn_is_not_begun_for_nobody():
    free = threading.Event()

    async def ask() -> None:
        offload = Offload(4)
        first = asyncio.create_task(offload.run(lambda _: free.wait(10), LARGE, present))
        gone = asyncio.create_task(offload.run(lambda _: pytest.fail(), LARGE, leaving))
        await asyncio.sleep(0.02)
        free.set()
        assert await first
        with pytest.raises(Cancelled):
            await gone

    asyncio.run(ask())


BODIES = {
    "/v1/completions prompt": {"prompt": DIGITS},
    "/v1/completions prompts": {"prompt": [DIGITS[: 1 << 20], DIGITS[: 1 << 19]]},
    "/v1/completions suffix": {"prompt": "a", "suffix": DIGITS},
    "/v1/completions files": {"prompt": "a", "starpack": {"files": [FILE]}},
    "/v1/completions repo_name": {"prompt": "a", "starpack": {"repo_name": DIGITS}},
    "/v1/completions path": {"prompt": "a", "starpack": {"path": DIGITS}},
    "/completion": {"prompt": DIGITS},
    "/infill prefix": {"input_prefix": DIGITS, "input_suffix": "b"},
    "/infill suffix": {"input_prefix": "a", "input_suffix": DIGITS},
    "/infill prompt": {"input_prefix": "a", "input_suffix": "b", "prompt": DIGITS},
    "/infill extra": {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": DIGITS}]},
    "/api/generate": {"model": "m", "prompt": DIGITS, "stream": False},
    "/api/generate suffix": {"model": "m", "prompt": "a", "suffix": DIGITS, "stream": False},
    "/generate": {"inputs": DIGITS},
    "/generate raw": {"inputs": f"<fim_prefix>a<fim_suffix>{DIGITS}<fim_middle>"},
    "/v1/tasks/complete": {"prompt": DIGITS},
    "/v1/tasks/infill": {"prefix": "a", "suffix": DIGITS},
    "/v1/tasks/explain": {"code": DIGITS, "language": "python"},
    "/v1/tasks/translate": {"code": DIGITS, "language": "python", "to": "go"},
    "/v1/tasks/docstring": {"code": f"def f():\n  {DIGITS}", "language": "python"},
    "/tokenize": {"content": DIGITS},
}


@pytest.mark.parametrize("over", ["error", "trim"])
@pytest.mark.parametrize("name", BODIES)
def test_megabytes_are_refused_or_cut_before_they_are_tokenised(tmp_path, monkeypatch, name, over):
    characters: list[int] = []
    encode = Tokenizer.encode_slices

    def counted(self, text, *more):
        characters.append(len(text))
        return encode(self, text, *more)

    monkeypatch.setattr(Tokenizer, "encode_slices", counted)
    service = make_service(tmp_path)
    characters.clear()
    path, body = name.split(" ")[0], dict(BODIES[name])
    if over == "trim":
        body["starpack"] = {**body.get("starpack", {}), "over_context": "trim"}
    with TestClient(create_app(service, Settings()), base_url=HERE) as client:
        answer = client.post(path, json=body)
    assert answer.status_code in ((400,) if over == "error" else (200, 400)), answer.text[:200]
    assert answer.status_code == 200 or "error" in answer.json()
    # texts that were cut to the context, and a step of the cut; each is encoded once or twice
    assert sum(characters) < 5 * (CONTEXT + 64 * 1024)


SCORED = {"prompt": "abcdef", "max_tokens": 3, "echo": True, "logprobs": 5}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_with_its_prompts_log_probabilities_is_made_off_the_event_loop(
    service, monkeypatch, stream
):
    """16 choices of a prompt of 4,000 tokens are 34 MB, which took seconds to make."""
    name = "chunk" if stream else "whole"
    made, threads = getattr(CompletionView, name), []

    def noted(self, *arguments):
        threads.append(threading.get_ident())
        return made(self, *arguments)

    monkeypatch.setattr(CompletionView, name, noted)
    plain = {"prompt": "abcdef", "max_tokens": 3, "stream": stream}
    with TestClient(create_app(service, Settings()), base_url=HERE) as client:
        client.post("/v1/completions", json=plain)
        on_loop = set(threads)
        threads.clear()
        client.post("/v1/completions", json=SCORED | {"stream": stream})
    assert len(on_loop) == 1 and threads[0] not in on_loop


def test_scoring_a_prompt_ends_with_the_time_of_a_request(service):
    settings = Settings(request_s=0.05)
    body = SCORED | {"prompt": "a" * 300}
    service.runtime.backend.within_forward = lambda: time.sleep(0.1)
    with TestClient(create_app(service, settings), base_url=HERE) as client:
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 429 and "log-probabilities" in answer.text
        assert client.get("/health").status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    max_leaves=30,
)  # fmt: skip


@given(JSON, st.integers(0, 6))
def test_json_in_parts_is_the_same_text(value, depth):
    assert to_json_in_parts(value, depth) == to_json(value)
