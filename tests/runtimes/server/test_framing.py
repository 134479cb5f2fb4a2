"""Where a request ends, and whom it is for: what readers could take in two ways is refused."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest
from starlette.testclient import TestClient

from runtimes.server.app import Settings, create_app
from runtimes.server.http import receive
from runtimes.server.http.guard import Access
from tests.support.serving import HERE, connect, listening, make_service, post, read_all

BODY = b'{"content":"ab"}'
SMUGGLED = b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTHS = {
    "both, the length is of all": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n"
    % (len(CHUNKED) + len(SMUGGLED)),
    "both, the length is of the body": b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n"
    % len(CHUNKED),
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "compressed and chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "two lengths": b"Content-Length: %d\r\nContent-Length: 3\r\n" % len(CHUNKED),
    "a sign": b"Content-Length: +%d\r\n" % len(CHUNKED),
    "a blank before the colon": b"Content-Length : %d\r\n" % len(CHUNKED),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_body_of_two_lengths_ends_the_connection(live, name):
    head = b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\n" + LENGTHS[name] + b"\r\n"
    with connect(live) as client:
        client.sendall(head + CHUNKED + SMUGGLED)
        answer = read_all(client)  # until it is closed
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
    assert b"version" not in answer


def test_a_body_in_chunks_is_followed_by_the_next_request(live):
    head = b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    second = SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connect(live) as client:
        client.sendall(head + CHUNKED + second)
        answer = read_all(client)
    assert answer.count(b"HTTP/1.1 200 ") == 2 and b'"version"' in answer


ODD_HOSTS = [
    "evil.example@127.0.0.1", "127.0.0.1:evil", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:8:9",
    "[127.0.0.1]", "[::1]x", "127.0.0.1/x", "127.0.0.1?x", "127.0.0.1#@evil.example",
    "127.0.0.1\\evil.example",
    "[::1%25lo]", "127.0.0.1:8012 ,x", "127.0.0.1:\u0668", "[", "[::1", "a b",
]  # fmt: skip


@pytest.mark.parametrize("keys", [(), ("correct-horse-battery",)], ids=["no-key", "key"])
@pytest.mark.parametrize("host", ODD_HOSTS)
def test_a_host_that_is_no_name_is_refused(service, host, keys):
    headers = {"host": host.encode(), "authorization": "Bearer correct-horse-battery"}
    with TestClient(create_app(service, Settings(Access(keys))), base_url=HERE) as client:
        assert client.get("/api/version", headers=headers).status_code == 400


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x"])
@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/api/generate", "/tokenize"])
def test_encoded_bodies_are_refused_unread(client, path, encoding):
    data = gzip.compress(json.dumps({"prompt": "abc"}).encode())
    answer = client.post(path, content=data, headers={"content-encoding": encoding})
    assert answer.status_code == 415 and "Content-Encoding" in answer.text
    plain = client.post("/tokenize", content=BODY, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_a_body_just_over_the_limit_has_its_answer_and_not_a_reset(tmp_path, chunked):
    settings = Settings(max_body_bytes=1 << 20)
    data = b" " * ((1 << 20) + 1)
    with listening(make_service(tmp_path), settings) as url:
        for _ in range(5):
            body = iter([data]) if chunked else data
            assert httpx.post(url + "/completion", content=body).status_code == 413


def test_a_body_far_over_the_limit_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(receive, "DRAIN_S", 0.1)
    with listening(make_service(tmp_path), Settings(max_body_bytes=1000)) as url:
        for length in (1001, 1 << 40):
            with connect(url) as client:
                whole = post({"prompt": "abc"})
                client.sendall(whole.replace(b"Content-Length: 17", b"Content-Length: %d" % length))
                assert b" 413 " in read_all(client)
        with connect(url) as client:  # this one would send its body when it is told to
            head = post({"prompt": "abc"}).split(b"\r\n\r\n")[0]
            head = head.replace(b"Content-Length: 17", b"Content-Length: 1001")
            client.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 413 ")
