"""Over a real socket: clients that leave, that are slow, that are too many, and a graceful stop."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from runtimes.errors import DeviceError, UsageError
from runtimes.server import listen
from runtimes.server.app import Settings, create_app
from runtimes.server.http import receive
from runtimes.server.listen import Address, make_server, open_socket, url_of
from tests.support.serving import connect, listening, make_service, post, read_all, wait_until

LONG = {"prompt": "abc", "max_tokens": 300}


@pytest.fixture
def slow(tmp_path: Path):
    """A model that takes 5 ms for each call."""
    service = make_service(tmp_path, queue_jobs=2)
    service.runtime.backend.within_forward = lambda: time.sleep(0.005)
    return service


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_job(slow, stream):
    calls = slow.runtime.backend.calls
    with listening(slow) as url:
        with connect(url) as client:
            client.sendall(post(LONG | {"stream": stream}))
            if stream:
                assert client.recv(100)
            wait_until(lambda: len(calls) > 5)
        before = len(calls)
        wait_until(lambda: not slow.queue.is_running)
        # the close has to reach the event loop first; then the token at hand is the last
        assert len(calls) - before < 50 < LONG["max_tokens"]
        done = httpx.post(url + "/completion", json={"prompt": "abc", "n_predict": 3})
        assert done.json()["tokens_predicted"] == 3


def test_a_client_that_leaves_while_it_waits(slow):
    with listening(slow) as url, connect(url) as first:
        first.sendall(post(LONG))
        wait_until(lambda: slow.queue.is_running)
        with connect(url) as second:
            second.sendall(post(LONG))
            wait_until(lambda: slow.queue.waiting_jobs == 1)
        wait_until(lambda: slow.queue.waiting_jobs == 0)
        assert slow.queue.is_running


def test_the_bound_is_429_and_the_rest_is_served(slow):
    with listening(slow) as url, ThreadPoolExecutor(8) as pool:
        ask = {"prompt": "abc", "max_tokens": 40}
        answers = list(
            pool.map(lambda _: httpx.post(url + "/v1/completions", json=ask, timeout=30), range(8))
        )
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) == {200, 429} and codes.count(200) >= 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    texts = {a.json()["choices"][0]["text"] for a in answers if a.status_code == 200}
    assert len(texts) == 1


def test_superseded_requests_are_told(slow):
    me = {"x-client-id": "editor-1", "x-supersede": "1"}
    with listening(slow) as url, ThreadPoolExecutor(2) as pool:
        older = pool.submit(httpx.post, url + "/v1/completions", json=LONG, headers=me, timeout=30)
        wait_until(lambda: slow.queue.is_running)
        short = {"prompt": "ab", "max_tokens": 2}
        newer = httpx.post(url + "/v1/completions", json=short, headers=me, timeout=30)
        assert newer.status_code == 200
        assert older.result().status_code == 409


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
def test_a_superseded_stream_ends_with_the_reason(slow, path):
    me = {"x-client-id": "editor-1"}
    body = {"prompt": "abc", "max_tokens": 300, "n_predict": 300, "stream": True}
    with (
        listening(slow, Settings(supersede=True)) as url,
        httpx.stream("POST", url + path, json=body, headers=me, timeout=30) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        httpx.post(url + "/v1/completions", json={"prompt": "ab", "max_tokens": 1}, headers=me)
        last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
    assert "newer request" in last["error"]["message"]
    if path == "/completion":
        assert (last["content"], last["stop"]) == ("", True)


def test_request_time_ends_an_answer(slow):
    with listening(slow, Settings(request_s=0.2)) as url:
        done = httpx.post(url + "/v1/completions", json=LONG, timeout=30).json()
    assert done["starpack"]["finish_reasons"] == ["time"]
    assert done["choices"][0]["finish_reason"] == "length"


def test_time_for_a_prompt_is_honoured_and_what_was_taken_in_stays(slow):
    body = {"input_prefix": "x" * 200, "input_suffix": "", "n_predict": 5, "t_max_prompt_ms": 1}
    with listening(slow) as url:
        done = [httpx.post(url + "/infill", json=body, timeout=30).json() for _ in range(40)]
    assert done[0]["content"] == "" and done[0]["starpack"]["finish_reasons"] == ["time"]
    reused = [answer["timings"]["cache_n"] for answer in done]
    assert reused == sorted(reused) and reused[1] > 0
    assert done[-1]["tokens_predicted"] == 5  # a chunk a request: it gets there in the end


def test_slow_bodies_and_heads_are_not_waited_for(slow, monkeypatch):
    monkeypatch.setattr(listen, "HEAD_S", 0.2)
    with listening(slow, Settings(body_s=0.2)) as url:
        with connect(url) as client:
            client.sendall(b"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                           b"Content-Length: 100\r\n\r\n{")  # fmt: skip
            assert b" 408 " in read_all(client)
        with connect(url) as client:
            client.sendall(b"POST /completion HTTP/1.1\r\nHost:")
            assert read_all(client) == b""  # closed without a word
        with connect(url) as client:  # a whole request in time is not affected
            client.sendall(post({"prompt": "a", "max_tokens": 60}))
            threading.Event().wait(0.3)
            assert b" 200 " in client.recv(100)


def test_large_bodies_and_heads_are_refused_early(live, monkeypatch):
    monkeypatch.setattr(receive, "DRAIN_S", 0.1)
    most = Settings().max_body_bytes
    with connect(live) as client:
        head = f"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {most + 1}\r\n\r\n"
        client.sendall(head.encode())
        assert b" 413 " in client.recv(1000)
    monkeypatch.undo()

    def pieces():
        for _ in range(most // 1000 + 2):
            yield b" " * 1000

    answer = httpx.post(live + "/completion", content=pieces())  # chunked: no length is said
    assert answer.status_code == 413
    with connect(live) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000)
        assert b" 400 " in client.recv(1000)


def test_a_client_that_does_not_read_holds_nobody_up(slow, monkeypatch):
    monkeypatch.setattr(slow.runtime.backend, "within_forward", lambda: None)
    with listening(slow) as url, connect(url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.sendall(post(LONG | {"stream": True, "n": 16}))
        wait_until(lambda: slow.metrics._generated_tokens > 300, 20)
        done = httpx.post(url + "/completion", json={"prompt": "a", "n_predict": 2}, timeout=30)
        assert done.status_code == 200


def test_too_many_connections(slow):
    with listening(slow, connections=2) as url:
        with connect(url), connect(url):
            wait_until(lambda: httpx.get(url + "/health").status_code == 503)
        wait_until(lambda: httpx.get(url + "/health").status_code == 200)


def test_stopping_lets_what_runs_finish(slow):
    with ThreadPoolExecutor(1) as pool:
        with listening(slow) as url:
            body = {"prompt": "abc", "max_tokens": 40}
            asked = pool.submit(httpx.post, url + "/v1/completions", json=body, timeout=30)
            wait_until(lambda: slow.queue.is_running)
        assert asked.result().json()["usage"]["completion_tokens"] == 40
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/health")


def test_readiness_comes_from_a_token(slow, monkeypatch):
    monkeypatch.setattr("runtimes.server.app.PROBE_S", 0.3)
    fault = threading.Event()

    def forward() -> None:
        if fault.is_set():
            raise MemoryError

    monkeypatch.setattr(slow.runtime.backend, "within_forward", forward)
    with listening(slow) as url:
        assert httpx.get(url + "/ready").status_code == 200
        calls = len(slow.runtime.backend.calls)
        assert calls == 1
        assert httpx.get(url + "/ready").status_code == 200
        assert len(slow.runtime.backend.calls) == calls  # the token of just now is enough
        fault.set()
        failed = httpx.post(url + "/completion", json={"prompt": "a"})
        assert failed.status_code == 500 and "MemoryError" not in failed.text
        assert httpx.get(url + "/health").status_code == 503
        assert httpx.get(url + "/ready").status_code == 503
        fault.clear()
        assert httpx.get(url + "/ready").status_code == 200
        assert httpx.get(url + "/health").status_code == 200


def test_tls(service, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with listening(service, tls_cert=cert, tls_key=key) as url:
        assert url.startswith("https://127.0.0.1:")
        verify = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(url + "/health", verify=verify).json() == {"status": "ok"}
    key.write_text("no key")
    with pytest.raises(UsageError, match="certificate cannot be used"):
        make_server(None, Address(tls_cert=cert, tls_key=key))


def test_addresses():
    with open_socket(Address(port=0)) as first:
        port = first.getsockname()[1]
        assert url_of(Address(), first) == f"http://127.0.0.1:{port}"
        with pytest.raises(DeviceError, match="cannot listen") as caught:
            open_socket(Address(port=port))
        assert "--port" in caught.value.remedy
    with pytest.raises(DeviceError):
        open_socket(Address(host="203.0.113.1", port=0))


def test_a_signal_before_the_server_listens_to_signals_is_not_lost(service, monkeypatch):
    where = Address(port=0)
    server = make_server(create_app(service, Settings()), where)
    begin, forgotten = server.run, threading.Event()

    def run(sockets: list[socket.socket]) -> None:
        signal.raise_signal(signal.SIGTERM)
        begin(sockets=sockets)

    def forget() -> None:
        forgotten.set()
        server.should_exit = True

    monkeypatch.setattr(server, "run", run)
    timer = threading.Timer(5, forget)
    timer.start()
    with open_socket(where) as opened:
        listen.run(server, opened)
    timer.cancel()
    assert not forgotten.is_set()
