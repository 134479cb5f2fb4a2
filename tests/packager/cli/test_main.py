"""The command line: it teaches, answers in JSON, and explains its refusals."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.cli.main import main
from packager.cli.parser import parser
from tests.support.heavy import HEAVY
from tests.support.tiny import write_checkpoint

COMMANDS = (
    "inspect fetch wheels calibrate convert quality profile select pack bundle plan matrix device "
    "estimate verify"
).split()
GROUPS = {"device": "list", "estimate": "validate"}  # with one of their commands
ROOT = Path(__file__).parents[3]


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command_and_exit_code(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert [c for c in COMMANDS if not re.search(rf"^ +{c}\b", text, re.M)] == []
    assert "examples:" in text and "exit codes:" in text


def parsers(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, those of groups included."""
    groups = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield top
    for group in groups:
        for sub in group.choices.values():
            yield from parsers(sub)


@pytest.mark.parametrize("command", [p.prog for p in parsers(parser())])
def test_every_help_ends_in_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit):
        main([*command.split()[1:], "--help"])
    example = capsys.readouterr().out.split("\nexample:\n")[1].strip()
    assert example.startswith(command)
    assert parser().parse_args(shlex.split(example)[1:]).command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_and_help(capsys, command):
    with pytest.raises(SystemExit):
        main([command, *filter(None, [GROUPS.get(command)]), "--help"])
    assert "--json" in capsys.readouterr().out


def test_inspect_prints_geometry_window_and_memory(capsys, tmp_path):
    write_checkpoint(tmp_path, window=32)
    code, out, _ = run(capsys, "inspect", tmp_path, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["window_tokens"] == 32
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 0
    assert "window" in out and "32" in out


def test_a_refusal_has_its_exit_code_and_says_what_where_and_the_remedy(capsys, tmp_path):
    write_checkpoint(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"window_size"', "").replace("starcoder2", "llama")
    )
    code, out, err = run(capsys, "inspect", tmp_path)
    assert code == 8
    assert out == ""
    assert str(tmp_path) in err and "expected:" in err
    code, out, _ = run(capsys, "inspect", tmp_path, "--json")
    assert code == 8
    assert json.loads(out)["exit_code"] == 8


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["convert", "MODEL", "--formats", "awq"], 2, "unknown format 'awq'"),
        (["convert", "MODEL", "--formats", "gptq"], 2, "needs source code to calibrate on"),
        (["convert", "MODEL", "--formats", "gguf:Q1"], 2, "unknown GGUF recipe 'Q1'"),
        (["profile", "MODEL", "--device", "rtx-3060-13gb"], 2, "a name such as rtx-3060-12gb"),
        (["profile", "MODEL", "--budget", "none.json"], 2, "there is no such budget file"),
        (["plan", "--device", "t4", "--budget", "fast"], 2, "no budget is called 'fast'"),
        (["quality", "MODEL", "--execute"], 2, "belong to --infilling"),
        (["verify", "MODEL"], 5, "not a bundle"),
        (["calibrate", "MODEL", "--sources", "EMPTY", "--out", "x"], 2, "no source text"),
    ],
)
def test_refusals(capsys, tmp_path, arguments, code, message):
    pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")
    write_checkpoint(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    places = {"MODEL": tmp_path / "model", "EMPTY": tmp_path / "empty"}
    words = [places.get(word, word) for word in arguments]
    if arguments[0] in ("convert", "profile"):
        words += ["--out", tmp_path / "out"]
    found, _, err = run(capsys, *words)
    assert found == code
    assert message in err


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (PermissionError(13, "Permission denied", "model"), 1, "StarpackError"),
        (OSError(28, "No space left on device"), 1, "StarpackError"),
        (KeyboardInterrupt(), 130, "Cancelled"),
    ],
)
def test_with_json_every_end_is_one_object(capsys, monkeypatch, raised, code, kind):
    from packager.cli import settings

    def ends(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(settings, "read_checkpoint", ends)
    found, out, err = run(capsys, "inspect", "model", "--json")
    data = json.loads(out)
    assert (found, data["exit_code"], data["error"], err) == (code, code, kind, "")
    assert data["remedy"] and str(getattr(raised, "strerror", "interrupted")) in data["what"]
    found, out, err = run(capsys, "inspect", "model")
    assert (found, out) == (code, "")
    assert err.startswith("starpack: ") and "remedy: " in err


@pytest.mark.parametrize("words", [["inspect"], ["colour"], [], ["pack", "m", "--variants", "0"]])
def test_words_that_make_no_sense_are_told_as_all_else_is(capsys, words):
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"] == "UsageError"
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert re.search(r"remedy: see starpack.* --help", err)


def test_convert_is_resumed_and_an_interrupt_leaves_work_to_go_on_from(
    capsys, tmp_path, monkeypatch
):
    pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")
    model, out = write_checkpoint(tmp_path / "model"), tmp_path / "out"
    from packager.formats.gguf import convert as gguf

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write_tensors", interrupted)
        code, _, err = run(capsys, "convert", model, "--out", out)
    assert code == 130
    assert "interrupted" in err
    assert [folder.suffix for folder in (out / "variants").iterdir()] == [".work"]
    code, first, _ = run(capsys, "convert", model, "--out", out, "--json")
    assert code == 0
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write_tensors", interrupted)  # would fail if it were run again
        code, again, _ = run(capsys, "convert", model, "--out", out, "--json")
    assert code == 0
    assert json.loads(again) == json.loads(first)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_importing_any_module_prints_and_patches_nothing():
    """And loads no heavy library, but for the files that compute with torch from end to end."""
    files = [
        file.relative_to(ROOT)
        for package in ("packager", "runtimes")
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.stem != "__main__" and "bundle_files" not in file.parts
    ]
    names = {f: ".".join(f.with_suffix("").parts).removesuffix(".__init__") for f in files}
    light = [name for f, name in names.items() if f.as_posix() not in HEAVY["torch"]]
    others = [name for name in names.values() if name not in light]
    script = (
        "import os, sys, importlib; before = dict(os.environ)\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        f"for name in {others!r}: importlib.import_module(name)\n"
        "assert dict(os.environ) == before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
