"""The packages that people write their own clients with, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import ollama
import openai
import prometheus_client.parser
import pytest
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient

from runtimes.generation.runtime import GenerateOptions
from runtimes.server.app import Settings
from runtimes.server.http.guard import Access
from tests.support.serving import listening, make_service

PREFIX, SUFFIX = "def f(", "):\n    pass\n"
KEY = "a-key-of-this-test-alone"


@pytest.fixture
def url(service) -> Iterator[str]:
    with listening(service, Settings(access=Access((KEY,)))) as url:
        yield url


@pytest.fixture
def expected(tmp_path) -> str:
    runtime = make_service(tmp_path).runtime
    return runtime.infill(PREFIX, SUFFIX, GenerateOptions(20)).text


def test_openai(url, expected):
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["toy"]
        ask = {"model": "toy", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 20}
        done = client.completions.create(**ask, logprobs=1)
        assert done.choices[0].text == expected
        assert done.usage.completion_tokens == len(done.choices[0].logprobs.tokens)
        assert done.model_extra["starpack"]["finish_reasons"]
        options = {"include_usage": True}
        events = list(client.completions.create(**ask, stream=True, stream_options=options))
        assert "".join(e.choices[0].text for e in events if e.choices) == expected
        assert events[-1].usage.total_tokens == done.usage.total_tokens
        repository = {"starpack": {"files": [{"path": "a.py", "text": "A = 1"}]}}
        more = client.completions.create(**ask, extra_body=repository)
        assert more.usage.prompt_tokens > done.usage.prompt_tokens
        with pytest.raises(openai.BadRequestError, match="9000 before the gap"):
            client.completions.create(model="toy", prompt="x" * 9000)
    with (
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_ollama(url, expected):
    client = ollama.Client(host=url, headers={"Authorization": f"Bearer {KEY}"})
    with client._client:
        assert [model.model for model in client.list().models] == ["toy"]
        assert ".Suffix" in client.show("toy").template
        ask = {"model": "toy", "prompt": PREFIX, "suffix": SUFFIX, "options": {"num_predict": 20}}
        done = client.generate(**ask)
        assert done.response == expected and done.done and done.eval_count
        parts = list(client.generate(**ask, stream=True))
        assert "".join(part.response for part in parts) == expected and parts[-1].done
        with pytest.raises(ollama.ResponseError, match="before the gap"):
            client.generate(model="toy", prompt="x" * 9000)


def test_hugging_face(url, expected):
    client = InferenceClient(model=url, token=KEY)
    raw = f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>"
    assert client.text_generation(raw, max_new_tokens=20) == expected
    assert "".join(client.text_generation(raw, max_new_tokens=20, stream=True)) == expected


def test_prometheus(client: TestClient):
    client.post("/completion", json={"prompt": "abc", "n_predict": 5})
    client.post("/completion", json={"prompt": "abc", "n_predict": 5})
    client.post("/v1/completions", json={})
    client.get("/nowhere")
    answer = client.get("/metrics")
    families = prometheus_client.parser.text_string_to_metric_families(answer.text)
    samples = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
    assert samples["starpack_requests_total", "llama.cpp", "200"] == 2
    assert samples["starpack_requests_total", "openai", "400"] == 1
    assert samples["starpack_requests_total", "starpack", "404"] == 1
    assert samples["starpack_first_token_seconds_count",] == 2
    assert samples["starpack_token_seconds_count",] == 8
    assert samples["starpack_token_seconds_bucket", "+Inf"] == 8
    assert samples["starpack_prompt_tokens_total",] == 6
    assert samples["starpack_prompt_tokens_reused_total",] == 2
    assert samples["starpack_generated_tokens_total",] == 10
    assert samples["starpack_weights_bytes",] == 1 and samples["starpack_resident_bytes",] > 1e6
    assert samples["starpack_queue_waiting",] == 0 and samples["starpack_ready",] == 1


def test_urls_of_this_test_are_local(url):
    assert urlsplit(url).hostname == "127.0.0.1"
