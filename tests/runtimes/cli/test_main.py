"""`python -m runtimes`, in process, over the toy backend: output, exit codes, manners."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimes import backends
from runtimes.cli import main as cli
from runtimes.cli.invocation import Invocation
from runtimes.errors import IntegrityError, UsageError
from runtimes.prompts.input_text import split_at_cursor, split_at_marker
from runtimes.trust.console import Console
from tests.support.runtime_toys import ToyBackend, module_with, scripted_logits
from tests.support.tiny import tiny_tokenizer
from tests.support.toy_bundles import write_bundle, write_manifest

PROMPT = "def f():"
ANSWER = " return 'é😀'"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose model answers PROMPT with ANSWER."""
    encode = tiny_tokenizer().encode
    logits = scripted_logits(len(encode(PROMPT).ids), encode(ANSWER).ids)
    use(monkeypatch, logits)
    return write_bundle(tmp_path / "bundle")


def use(monkeypatch: pytest.MonkeyPatch, logits) -> list[ToyBackend]:
    opened: list[ToyBackend] = []
    module = SimpleNamespace(**module_with(logits, opened))
    monkeypatch.setattr(backends, "load", lambda format: module)
    return opened


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline="")
    monkeypatch.setattr(sys, "stdin", stdin)


def test_generate_streams_the_answer_and_remarks_beside_it(bundle: Path, capsys) -> None:
    assert cli.main(["generate", PROMPT, "--bundle", str(bundle)]) == 0
    out, err = capsys.readouterr()
    assert out == ANSWER
    assert err.count("Machine-generated code") == 1
    assert "ended by: stop" in err and "generated: " in err


def test_quiet_and_json(bundle: Path, capsys) -> None:
    assert cli.main(["generate", PROMPT, "--bundle", str(bundle), "--quiet"]) == 0
    assert capsys.readouterr() == (ANSWER, "")
    assert cli.main(["generate", PROMPT, "--bundle", str(bundle), "--json", "--logprobs=2"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert (value["text"], value["finish_reason"], err) == (ANSWER, "stop", "")
    assert value["machine_generated"] is True
    assert len(value["logprobs"][0]["top"]) == 2
    assert value["timings"]["generated_tokens"] == len(value["ids"])


def test_prompts_from_a_file_and_from_standard_input(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "prompt.py").write_bytes(PROMPT.encode())
    file = str(tmp_path / "prompt.py")
    flags = ["--bundle", str(bundle), "--quiet", "--stop", "'"]
    assert cli.main(["generate", "--file", file, *flags]) == 0
    type_in(monkeypatch, PROMPT)
    assert cli.main(["generate", *flags]) == 0
    assert capsys.readouterr().out == " return " * 2
    assert cli.main(["generate", "x", "--file", file, *flags]) == 2


@pytest.mark.parametrize("way", ["files", "cursor", "marker"])
def test_infill_by_each_way_to_name_the_gap(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, way: str
) -> None:
    encode = tiny_tokenizer().encode
    prompt_tokens = 3 + len(encode("a\r\n\tb").ids) + len(encode("c\r\n").ids)
    use(monkeypatch, scripted_logits(prompt_tokens, encode(ANSWER).ids))
    (tmp_path / "head").write_bytes(b"a\r\n\tb")
    (tmp_path / "tail").write_bytes(b"c\r\n")
    (tmp_path / "whole").write_bytes(b"a\r\n\tbc\r\n")
    flags = {
        "files": ["--prefix-file", str(tmp_path / "head"), "--suffix-file", str(tmp_path / "tail")],
        "cursor": ["--file", str(tmp_path / "whole"), "--cursor", "2:3"],
        "marker": ["--marker", "@@"],
    }[way]
    type_in(monkeypatch, "a\r\n\tb@@c\r\n")
    assert cli.main(["infill", "--bundle", str(bundle), "--quiet", *flags]) == 0
    assert capsys.readouterr().out == ANSWER


def test_repository_flags_reach_the_prompt(bundle: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "other.py").write_text("x = 1\n")
    flags = ["--repo-name", "me", "--repo-file", str(tmp_path / "other.py"), "--path", "a.py"]
    assert cli.main(["generate", PROMPT, "--bundle", str(bundle), "--json", *flags]) == 0
    text = f"me{tmp_path / 'other.py'}\nx = 1\na.py\n{PROMPT}"
    tokens = json.loads(capsys.readouterr().out)["timings"]["prompt_tokens"]
    # <repo_name> and two <file_sep>; merges may not join pieces that are encoded apart
    assert tokens >= 3 + len(tiny_tokenizer().encode(text).ids)


def test_repl_grows_one_text(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    lines = iter(["def f():", "", ":new", "abc", "", ":quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    flags = ["--bundle", str(bundle), "--max-tokens", "3", "--quiet"]
    assert cli.main(["repl", *flags]) == 0
    # the line break that the user typed stands where the answer's first id would be
    tokenizer = tiny_tokenizer()
    first = tokenizer.decode(tokenizer.encode(ANSWER).ids[1:4])
    assert capsys.readouterr().out == first + "\n"  # and nothing after the short "abc"
    assert cli.main(["repl", "--json", *flags]) == 2


def test_verify_and_doctor(bundle: Path, capsys) -> None:
    assert cli.main(["verify", "--bundle", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith("OK: 3 files verified, ")
    assert cli.main(["doctor", "--bundle", str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["window"]["window_tokens"] == 6
    assert facts["engine"] == {"engine": "toy"}
    assert cli.main(["doctor", "--bundle", str(bundle)]) == 0
    assert "key_values_bytes" in capsys.readouterr().out
    (bundle / "empty.txt").write_text("x")
    assert cli.main(["verify", "--bundle", str(bundle)]) == 5
    capsys.readouterr()
    assert cli.main(["doctor", "--bundle", str(bundle), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"] == "IntegrityError"


def test_errors_are_explained_with_their_exit_code(bundle: Path, tmp_path: Path, capsys) -> None:
    at = ["--bundle", str(bundle)]
    assert cli.main(["generate", "x", "--bundle", str(tmp_path)]) == 5
    assert cli.main(["generate", "x", "--temperature", "-1", *at]) == 2
    assert cli.main(["generate", "--file", str(tmp_path / "absent"), *at]) == 2
    assert cli.main(["infill", *at]) == 2
    assert cli.main(["generate", "x" * 300, "--context", "20", *at]) == 2
    err = capsys.readouterr().err
    assert "remedy: send less" in err
    (tmp_path / "latin").write_bytes(b"\xe9")
    assert cli.main(["generate", "--file", str(tmp_path / "latin"), "--json", *at]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["what"] == "byte 0 is not UTF-8 text"


def test_the_version_is_the_packer_s_in_a_bundle_and_the_checkout_s_elsewhere(
    bundle: Path, monkeypatch, capsys
) -> None:
    def shown() -> str:
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(["--version"])
        return capsys.readouterr().out

    assert shown() == f"starpack {version('starpack')}\n"
    write_manifest(bundle, versions={"starpack": "7.8.9"})
    monkeypatch.setattr(cli, "OWN_FOLDER", bundle)
    assert shown() == "starpack 7.8.9\n"


def raising(error: BaseException):
    def command(*_: object) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("words", "error", "code", "name"),
    [
        (["verify"], IntegrityError("damaged"), 5, "IntegrityError"),
        (["verify"], OSError(28, "No space left on device", "/x"), 1, "StarpackError"),
        (["verify"], KeyboardInterrupt(), 130, "Cancelled"),
        (["serve", "--port", "x"], None, 2, "UsageError"),
        (["generate", "x", "--nonsense"], None, 2, "UsageError"),
        (["nonsense"], None, 2, "UsageError"),
    ],
)
def test_with_json_a_failure_is_one_object_on_standard_output(
    bundle: Path, monkeypatch, capsys, words: list[str], error, code: int, name: str
) -> None:
    if error is not None:
        monkeypatch.setattr("runtimes.cli.verify.verify", raising(error))
    assert cli.main([*words, "--bundle", str(bundle), "--json"]) == code
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert (value["error"], value["exit_code"], err) == (name, code, "")
    assert out.count("\n") == 1


def test_a_failure_after_the_answer_adds_no_second_object(
    bundle: Path, monkeypatch, capsys
) -> None:
    def command(_args: object, call: Invocation) -> None:
        call.console.data({"url": "x"})
        raise KeyboardInterrupt

    monkeypatch.setattr("runtimes.cli.verify.verify", command)
    assert cli.main(["verify", "--bundle", str(bundle), "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out) == {"url": "x"} and "interrupted" in err


def test_a_context_beyond_training_is_warned_of(bundle: Path, capsys) -> None:
    flags = ["--bundle", str(bundle), "--json", "--context", "201"]
    assert cli.main(["generate", PROMPT, *flags]) == 0
    assert "past 200 are beyond" in capsys.readouterr().err


def test_interrupted(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupt(position: int, ids) -> None:
        raise KeyboardInterrupt

    opened = use(monkeypatch, interrupt)
    assert cli.main(["generate", PROMPT, "--bundle", str(bundle)]) == 130
    assert opened[0].closed
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_progress_shows_only_on_a_terminal_and_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    clock = [0.0]
    monkeypatch.setattr("runtimes.trust.console.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Console().meter("prompt", "tokens")
    progress(1, 9)
    assert capsys.readouterr().err == ""
    clock[0] = 2.5
    progress(5, 9)
    assert capsys.readouterr().err == "\rprompt: 5 of 9 tokens"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    silent = Console().meter("prompt", "tokens")
    clock[0] = 9.0
    silent(5, 9)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("cursor", "before"),
    [("1:1", ""), ("1:2", "é"), ("1:3", "éb"), ("2:1", "éb\r\n"), ("2:3", "éb\r\ncd"),
     ("3:1", "éb\r\ncd\n")],
)  # fmt: skip
def test_cursors(cursor: str, before: str) -> None:
    text = "éb\r\ncd\n"
    assert split_at_cursor(text, cursor) == (before, text[len(before) :])


@pytest.mark.parametrize("cursor", ["1:4", "4:1", "0:1", "1:0", "1", "1:1:1", "-1:1", "\uff11:1"])
def test_cursors_outside_the_text(cursor: str) -> None:
    with pytest.raises(UsageError):
        split_at_cursor("éb\r\ncd\n", cursor)


def test_markers() -> None:
    assert split_at_marker("a@@b", "@@") == ("a", "b")
    for text, marker in [("ab", "@@"), ("@@a@@", "@@"), ("ab", "")]:
        with pytest.raises(UsageError, match="marker"):
            split_at_marker(text, marker)


@pytest.mark.parametrize("name", sorted(cli.MODULES))
def test_the_help_of_every_command_has_examples_that_parse(name: str, capsys) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out.partition("examples (")[2].replace("\\\n", " ")
    lines = re.findall(r"python -m runtimes (.*)", shown)
    assert lines
    for line in lines:
        assert cli.parser().parse_args(shlex.split(line)).command == name


def test_help_teaches_and_loads_no_libraries() -> None:
    code = (
        "import sys, runtimes.cli.main as cli\n"
        "text = cli.parser().format_help()\n"
        "assert 'infill --file app.py --cursor 12:5' in text and 'doctor' in text\n"
        "assert not {'numpy', 'tokenizers', 'llama_cpp'} & set(sys.modules)\n"
        "import runtimes.cli.verify\n"
        "assert not {'numpy', 'tokenizers', 'llama_cpp'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cli.__file__).parents[2])
