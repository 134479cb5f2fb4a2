"""bench and licence: what they show, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimes import backends
from runtimes.backends.timing import go_to, time_prompt, time_steps
from runtimes.cli import main as cli
from tests.support.runtime_toys import ToyBackend, module_with, random_logits
from tests.support.toy_bundles import write_bundle, write_manifest

SMALL = ["--prompt-tokens", "20,10", "--depths", "50,30", "--steps", "3", "--repeat", "2"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = SimpleNamespace(**module_with(random_logits(), []))
    monkeypatch.setattr(backends, "load", lambda format: module)
    return write_bundle(tmp_path / "bundle")


def test_a_table_and_the_same_as_json(bundle: Path, capsys) -> None:
    assert cli.main(["bench", "--bundle", str(bundle), *SMALL, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in value["prompts"]] == [10, 20]
    assert [len(row["seconds"]) for row in value["prompts"]] == [2, 2]
    assert [row["depth_tokens"] for row in value["steps"]] == [30, 50]
    assert [len(row["seconds"]) for row in value["steps"]] == [3, 3]
    assert value["memory"] == {"weights_bytes": 1, "key_values_bytes": 2, "compute_bytes": 3}
    assert value["window_tokens"] == 6 and value["engine"] == {"engine": "toy"}
    assert cli.main(["bench", "--bundle", str(bundle), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy F32, window 6, context 200 tokens"
    assert [line.split()[0] for line in lines if line[:16].strip().isdigit()] == [
        "10", "20", "30", "50",
    ]  # fmt: skip


def test_the_usual_is_cut_to_what_fits_and_the_asked_for_is_not(bundle: Path, capsys) -> None:
    flags = ["bench", "--bundle", str(bundle), "--repeat", "1", "--json"]
    assert cli.main(flags) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in value["prompts"]] == [128]
    assert [row["depth_tokens"] for row in value["steps"]] == [128]
    assert cli.main([*flags, "--context", "40", "--steps", "20"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["prompts"][0]["tokens"] == 40 and value["steps"][0]["depth_tokens"] == 20
    for more in (["--prompt-tokens", "201"], ["--depths", "180"], ["--depths", "0"],
                 ["--steps", "0"], ["--repeat", "0"], ["--steps", "200"]):  # fmt: skip
        assert cli.main([*flags, *more]) == 2
        capsys.readouterr()
    for text in ("", "1,", "x", "-1", "1e3", "²"):
        assert cli.main([*flags, "--depths", text]) == 2
        assert "argument --depths" in json.loads(capsys.readouterr().out)["what"]


def test_what_is_timed_is_what_it_says() -> None:
    backend = ToyBackend(random_logits(), context_tokens=100, chunk_tokens=8)
    prompt = time_prompt(backend, 30)
    assert (prompt.tokens, backend.calls) == (30, [8, 8, 8, 6]) and prompt.seconds > 0
    backend.calls.clear()
    go_to(backend, 50)
    steps = time_steps(backend, 4)
    assert backend.calls == [8, 8, 4, 1, 1, 1, 1]
    assert (steps.depth_tokens, len(steps.seconds), backend.position) == (50, 4, 54)
    assert 0 < steps.p50_s <= steps.p90_s
    go_to(backend, 10)  # not further on: from the start
    assert backend.position == 10


def test_the_licence_is_shown_in_full(tmp_path: Path, capsys) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    assert cli.main(["licence", "--bundle", str(bundle)]) == 5
    assert "lacks the licence" in capsys.readouterr().err
    folder = bundle / "licence" / "model"
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_text("terms\nAttachment A - USE RESTRICTIONS\n(n) the last\n")
    write_manifest(bundle)
    assert cli.main(["licence", "--bundle", str(bundle)]) == 0
    assert "(n) the last" in capsys.readouterr().out
    (bundle / "NOTICE").write_text("it was modified\n")
    write_manifest(bundle)
    for words in (["--licence"], ["licence"]):
        assert cli.main([*words, "--bundle", str(bundle)]) == 0
        out = capsys.readouterr().out
        assert out.startswith("it was modified") and "USE RESTRICTIONS" in out
        assert "Apache License 2.0" in out
    assert cli.main(["--licence", "--bundle", str(bundle), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["notice"] == "it was modified\n" and list(value["texts"]) == [
        "licence/model/LICENSE"
    ]
