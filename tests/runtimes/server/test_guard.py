"""Who may ask: hosts, origins, keys. And what the log has of it."""

from __future__ import annotations

import logging

import pytest
from starlette.testclient import TestClient

from runtimes.server.app import Settings, create_app
from runtimes.server.http.guard import Access, is_loopback
from tests.support.serving import HERE, make_service

KEY, OTHER = "correct-horse-battery", "staple-of-another-team"
ASK = {"prompt": "abc", "max_tokens": 2}


OPEN = Access()


@pytest.fixture
def ask(tmp_path):
    """ask(access, headers) -> the answer to a completion."""

    def ask(access: Access = OPEN, headers: dict | None = None, base_url: str = HERE):
        app = create_app(make_service(tmp_path), Settings(access=access))
        with TestClient(app, base_url=base_url) as client:
            return client.post("/v1/completions", json=ASK, headers=headers or {})

    return ask


@pytest.mark.parametrize("host", ["127.0.0.1:8012", "localhost:1", "[::1]:8012", "127.8.9.1"])
def test_names_of_the_loopback_interface(ask, host):
    assert ask(base_url=f"http://{host}").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "192.168.1.5:8012", "localhost.evil.example"])
def test_other_hosts_need_a_key(ask, host):
    url = f"http://{host}"
    assert ask(base_url=url).status_code == 403  # a page's own name for this machine
    key = {"authorization": f"Bearer {KEY}"}
    assert ask(Access((KEY,)), key, url).status_code == 200


def test_no_host_is_not_this_machine(ask):
    assert ask(headers={"host": ""}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://[", "", "file://"]
)
def test_pages_of_other_origins_may_not_ask(ask, origin):
    assert ask(headers={"origin": origin}).status_code == 403


def test_own_and_allowed_origins_may(ask):
    assert ask(headers={"origin": HERE, "host": "127.0.0.1"}).status_code == 200
    allowed = Access(origins=frozenset({"https://ide.example"}))
    done = ask(allowed, {"origin": "https://ide.example"})
    assert done.headers["access-control-allow-origin"] == "https://ide.example"
    assert ask(allowed, {"origin": "https://evil.example"}).status_code == 403
    assert ask(Access(origins=frozenset("*")), {"origin": "null"}).status_code == 200


def test_no_cors_unless_asked(ask):
    done = ask(headers={"origin": HERE, "host": "127.0.0.1"})
    assert not [name for name in done.headers if name.startswith("access-control")]


def test_preflight_of_an_allowed_origin_needs_no_key(service):
    access = Access((KEY,), frozenset({"https://ide.example"}))
    headers = {"origin": "https://ide.example", "access-control-request-method": "POST"}
    with TestClient(create_app(service, Settings(access=access)), base_url=HERE) as client:
        assert client.options("/v1/completions", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer  {KEY} "}, 200),
        ({"authorization": f"token {OTHER}"}, 200),  # Copilot's clients
        ({"x-api-key": OTHER}, 200),
        ({"authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic abc"}, 401),
        ({"authorization": "Bearer \xe9"}, 401),
    ],
)
def test_keys(ask, headers, status):
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = ask(Access((KEY, OTHER)), encoded)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "API key" in answer.json()["error"]["message"]


def test_probes_need_no_key_and_all_else_does(service):
    app = create_app(service, Settings(access=Access((KEY,))))
    with TestClient(app, base_url=HERE) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for path in ("/metrics", "/slots", "/openapi.json", "/nowhere", "/api/tags"):
            assert client.get(path).status_code == 401, path
        assert isinstance(client.get("/api/tags").json()["error"], str)  # in the dialect's words


def test_keys_are_compared_in_constant_time(ask, monkeypatch):
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("runtimes.server.http.guard.hmac.compare_digest", compare)
    ask(Access((KEY, OTHER)), {"x-api-key": KEY})
    assert [a for a, _ in compared[:2]] == [KEY.encode(), OTHER.encode()]


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


@pytest.mark.parametrize("asked", [False, True])
def test_the_log_has_no_prompts_unless_asked(service, caplog, asked):
    caplog.set_level(logging.DEBUG)
    secret = {"prompt": "SECRET <fim_prefix>", "max_tokens": 2}
    app = create_app(service, Settings(log_prompts=asked))
    with TestClient(app, base_url=HERE) as client:
        client.post("/v1/completions?token=SECRET", json=secret)
        client.post("/v1/completions", json=secret | {"suffix": ["SECRET"]})
        client.post("/completion", json={"prompt": "SECRET" * 1000})
    ours = [r.getMessage() for r in caplog.records if r.name == "starpack.serve"]
    assert any("POST '/v1/completions' 200" in line for line in ours)
    assert any("SECRET" in line for line in ours) == asked
