"""`serve`: from flags to a server that answers, and the refusals before the model is opened."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import httpx
import pytest

from runtimes import backends
from runtimes.cli import main as cli
from runtimes.server import dialects
from tests.support import toy_dialect
from tests.support.runtime_toys import module_with, random_logits
from tests.support.serving import wait_until
from tests.support.toy_bundles import write_bundle, write_manifest

KEY = "a-key-of-this-test-alone"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    opened: list = []
    module = SimpleNamespace(**module_with(random_logits(), opened))
    monkeypatch.setattr(backends, "load", lambda format: module)
    monkeypatch.delenv("STARPACK_API_KEY", raising=False)
    folder = write_bundle(tmp_path / "bundle")
    (folder / "licence").mkdir()
    (folder / "licence" / "LICENSE").write_text("Use restrictions apply.")
    provenance = {"model": "starcoder2-toy", "licences": ["licence/LICENSE"]}
    write_manifest(folder, provenance=provenance)
    return folder


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def serve_and_ask(words: list[str], ask) -> tuple[int, object]:
    """Run the command in this thread, as signals want it, and `ask` in another; then SIGTERM."""

    def asked() -> object:
        try:
            return ask()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    # should it come before the server listens to it
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(asked)
            code = cli.main(words)
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
            return code, answer.result()
    finally:
        signal.signal(signal.SIGTERM, before)


def is_up(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.ConnectError:
        return False


def test_it_serves_until_it_is_told_to_stop(bundle, port, capsys):
    url = f"http://127.0.0.1:{port}"

    def ask() -> list:
        wait_until(lambda: is_up(url))
        done = httpx.post(url + "/completion", json={"prompt": "abc", "n_predict": 9})
        return [done.json(), httpx.get(url + "/licence").text, httpx.get(url + "/api/tags").json()]

    words = ["serve", "--bundle", str(bundle), "--port", str(port), "--max-tokens", "4"]
    code, (done, licence, tags) = serve_and_ask(words, ask)
    assert code == 0
    assert done["model"] == "starcoder2-toy" and done["tokens_predicted"] == 4
    assert "Use restrictions apply." in licence
    assert tags["models"][0]["size"] == 256 * 20_000
    out, err = capsys.readouterr()
    assert out == f"serving starcoder2-toy at {url}\n"
    assert "Machine-generated code" in err and f"{url}/infill" in err


def test_json_says_where(bundle, port, capsys, manifest_reads):
    def ask() -> None:
        wait_until(lambda: is_up(f"http://127.0.0.1:{port}"))

    words = ["serve", "--bundle", str(bundle), "--port", str(port), "--json", "--name", "mine"]
    assert serve_and_ask(words, ask)[0] == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"url": f"http://127.0.0.1:{port}", "model": "mine"}
    assert err == ""
    assert manifest_reads == [bundle]


@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("how", ["full", "broken"])
def test_it_serves_without_a_log(bundle, port, monkeypatch, how, stream):
    url = f"http://127.0.0.1:{port}"

    def ask() -> int:
        wait_until(lambda: is_up(url))
        return httpx.post(url + "/completion", json={"prompt": "a", "n_predict": 2}).status_code

    names = ["stdout", "stderr"] if stream == "both" else [stream]
    with ExitStack() as stack:
        for name in names:
            file = stack.enter_context(unwritable(how))
            monkeypatch.setattr(sys, name, file)
        assert serve_and_ask(["serve", "--bundle", str(bundle), "--port", str(port)], ask) == (
            0,
            200,
        )
        for name in names:  # as Python does at its end
            getattr(sys, name).flush()


@contextmanager
def unwritable(how: str) -> Iterator[TextIO]:
    """A stream on a full disk, or to a reader that has gone."""
    if how == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    with open(number, "w") as file:
        yield file


def test_it_serves_where_its_output_is_closed(bundle, port, monkeypatch):
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    words = ["serve", "--bundle", str(bundle), "--port", str(port)]
    assert serve_and_ask(words, lambda: wait_until(lambda: is_up(url)))[0] == 0


def test_an_address_that_cannot_be_told_is_an_error(bundle, monkeypatch, capsys):
    with unwritable("full") as file:
        monkeypatch.setattr(sys, "stdout", file)
        words = ["serve", "--bundle", str(bundle), "--port", "0", "--json"]
        code = cli.main(words)
        assert code == 1
        assert "No space left on device" in capsys.readouterr().err
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def test_too_few_descriptors_are_an_error_at_start(bundle, monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    assert cli.main(["serve", "--bundle", str(bundle), "--port", "0"]) == 7
    assert "256 connections need" in capsys.readouterr().err


def test_a_new_dialect_is_one_file_and_one_name(bundle, port, monkeypatch, capsys):
    monkeypatch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, toy_dialect.DIALECT))
    url = f"http://127.0.0.1:{port}"

    def ask() -> tuple[httpx.Response, ...]:
        wait_until(lambda: is_up(url))
        good, bad = ({"say": "abc"}, {"say": 3})
        toy = f"{url}/toys/bear/say"
        wrong_host = httpx.post(toy, json=good, headers={"host": "elsewhere"})
        answers = (httpx.post(toy, json=good), httpx.post(toy, json=bad), wrong_host)
        return *answers, httpx.get(f"{url}/openapi.json"), httpx.get(f"{url}/metrics")

    words = ["serve", "--bundle", str(bundle), "--port", str(port)]
    code, (good, bad, wrong_host, description, metrics) = serve_and_ask(words, ask)
    assert code == 0 and good.status_code == 200 and good.json()["said"]
    assert bad.json()["no"].startswith("400 say is of type int")
    assert wrong_host.json()["no"].startswith("403 ")
    described = description.json()["paths"]["/toys/{name}/say"]["post"]
    assert described["tags"] == ["toy"] and described["parameters"][0]["name"] == "name"
    assert 'starpack_requests_total{dialect="toy",status="403"} 1' in metrics.text
    assert f"a toy            speak to {url}/toys/bear/say" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reused"), [(["--reproducible"], 64), ([], 100)], ids=["reproducible", "as-usual"]
)
def test_reproducible_answers_reuse_whole_groups(bundle, port, flags, reused):
    url = f"http://127.0.0.1:{port}"

    def ask() -> list[int]:
        wait_until(lambda: is_up(url))
        prompts = [[*range(40, 140), 40], [*range(40, 140), 41, 42]]
        bodies = [{"prompt": prompt, "n_predict": 2} for prompt in prompts]
        answers = [httpx.post(url + "/completion", json=body).json() for body in bodies]
        return [answer["timings"]["cache_n"] for answer in answers]

    words = ["serve", "--bundle", str(bundle), "--port", str(port), *flags]
    assert serve_and_ask(words, ask) == (0, [0, reused])


@pytest.mark.parametrize("where", ["file", "variable"])
def test_other_addresses_with_a_key(bundle, port, tmp_path, monkeypatch, capsys, where):
    words = ["serve", "--bundle", str(bundle), "--port", str(port), "--host", "0.0.0.0"]
    if where == "file":
        file = tmp_path / "keys"
        file.write_text(f"\n{KEY}\n{KEY}-of-others\n")
        file.chmod(0o600)
        words += ["--api-key-file", str(file)]
    else:
        monkeypatch.setenv("STARPACK_API_KEY", KEY)
    url = f"http://127.0.0.1:{port}"

    def ask() -> list[int]:
        wait_until(lambda: is_up(url))
        key = {"authorization": f"Bearer {KEY}"}
        return [httpx.get(url + "/slots", headers=h).status_code for h in ({}, key)]

    assert serve_and_ask(words, ask) == (0, [401, 200])
    assert "without TLS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "without an API key, anybody who reaches 0.0.0.0 could use the model",
        ),
        (["--host", "::"], "without an API key, anybody who reaches :: could use the model"),
        (["--host", "example.org"], "without an API key, anybody who reaches example.org"),
        (["--api-key-file", "nowhere"], "cannot read the API keys"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "the certificate cannot be used"),
        (
            ["--port", "99999"],
            "argument --port: '99999' is not a whole number of at least 0 and at most 65535",
        ),
        (["--queue", "0"], "argument --queue: '0' is not a whole number of at least 1"),
        (["--max-body", "-1"], "argument --max-body: '-1'"),
        (["--max-tokens", "0"], "argument --max-tokens: '0'"),
        (
            ["--temperature", "-1"],
            "argument --temperature: '-1' is not a number of at least 0 and at most 100",
        ),
        (["--temperature", "nan"], "argument --temperature: 'nan'"),
        (
            ["--request-time", "0"],
            "argument --request-time: '0' is not a number above 0 and at most 1000000",
        ),
        (["--suffix-share", "0.9", "--extras-share", "0.2"], "--suffix-share"),
    ],
)
def test_refusals(bundle, capsys, flags, message):
    assert cli.main(["serve", "--bundle", str(bundle), "--port", "0", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("tiny-key", 0o600, "too short"),
        ("with spaces in it, so no key", 0o600, "an HTTP header cannot carry"),
        ("schlüssel-mit-umlaut-darin", 0o600, "an HTTP header cannot carry"),
        ("", 0o600, "is empty"),
        (KEY, 0o644, "other users may read"),
    ],
)
def test_keys_that_are_none(bundle, tmp_path, capsys, text, mode, message):
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    words = ["serve", "--bundle", str(bundle), "--host", "0.0.0.0", "--api-key-file", str(file)]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert not text or text not in err
