"""Bodies that nobody sends by accident: each is refused in the dialect's words, none breaks it."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from runtimes.server.app import Settings, create_app
from tests.support.serving import HERE, make_service

PATHS = ["/v1/completions", "/completion", "/infill", "/api/generate", "/", "/tokenize"]
GOOD = {
    "/v1/completions": {"prompt": "abc"},
    "/completion": {"prompt": "abc"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/api/generate": {"model": "m", "prompt": "abc", "stream": False},
    "/": {"inputs": "abc"},
    "/tokenize": {"content": "abc"},
}
NUMBERS = (
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "9" * 5000,
    "1" + "0" * 400,
    "-99",
    "0.5",
    '"3"',
    "[]",
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    service = make_service(tmp_path_factory.mktemp("hostile"))
    with TestClient(create_app(service, Settings()), base_url=HERE) as opened:
        yield opened


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "data",
    [
        b"", b"nonsense", b"[1]", b"\xff", b"[" * 200_000, b'{"prompt":' * 200_000,
        b'{"prompt": {"a": 1}}', b'{"prompt": null}', b'{"prompt": []}', b'{"prompt": [[]]}',
        b'{"prompt": [1, "a"]}', b'{"prompt": [true]}', b'{"prompt": [1e400]}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(client, path, data):
    answer = client.post(path, content=data)
    assert answer.status_code == 400, answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/completions", "max_tokens"), ("/v1/completions", "n"), ("/v1/completions", "seed"),
        ("/v1/completions", "logprobs"), ("/completion", "n_predict"), ("/completion", "n_indent"),
        ("/completion", "n_cmpl"), ("/infill", "n_probs"),
    ],
)  # fmt: skip
def test_numbers_that_are_none(client, path, field):
    for number in NUMBERS:
        body = json.dumps(GOOD[path])[:-1] + f', "{field}": {number}}}'
        answer = client.post(path, content=body)
        fine = number == "-99" and field == "n_indent"
        assert answer.status_code == 400, (number, answer.text, fine)


@pytest.mark.parametrize("path", PATHS)
def test_half_a_character(client, path):
    text = {k: "a\\ud800" if v in ("abc", "a") else v for k, v in GOOD[path].items()}
    answer = client.post(path, content=json.dumps(text).replace("\\\\u", "\\u"))
    assert answer.status_code == 400 and "surrogate" in answer.text


def test_strings_that_break_lines_and_headers(client):
    evil = 'a"}\n\ndata: [DONE]\r\n\0\u2028<script>'
    body = {"model": evil, "prompt": evil, "stop": [evil], "user": evil, "stream": True}
    answer = client.post("/v1/completions", json=body, headers={"x-client-id": "a b\tc"})
    assert answer.status_code == 200
    assert answer.text.count("[DONE]") == 1 and answer.text.endswith("data: [DONE]\n\n")


def test_paths_that_are_none(client):
    for path in (
        "/../etc/passwd",
        "/models/",
        "/v1/engines//completions",
        "/%00",
        "/" + "a" * 5000,
    ):
        assert client.get(path).status_code in (404, 405)
        assert client.post(path, json={}).status_code in (400, 404, 405)
    wrong = client.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["message"]


def test_the_largest_of_everything(client):
    """All limits at once take a moment, not for ever."""
    body = {
        "prompt": "ab" * 100,
        "stop": ["b" * 4000 + str(i) for i in range(16)],
        "max_tokens": 100,
        "n": 16,
        "logprobs": 20,
        "temperature": 100,
        "presence_penalty": 100,
        "frequency_penalty": -100,
    }
    assert client.post("/v1/completions", json=body).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=10,
)


@pytest.mark.slow
@given(st.sampled_from(PATHS), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_value_of_any_field_breaks_it(client, path, data):
    document = client.get("/openapi.json").json()
    described = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = described["schema"]["$ref"].removeprefix("#/components/schemas/")
    fields = document["components"]["schemas"][name]["properties"]
    name = data.draw(st.sampled_from(sorted(fields)))
    body = {**GOOD[path], name: data.draw(JSON)}
    text = json.dumps(body)
    assert client.post(path, content=text).status_code in (200, 400)
