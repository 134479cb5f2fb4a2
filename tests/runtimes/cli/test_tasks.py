"""The task commands and --repo, in process, over a toy that says what it was asked."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimes import backends
from runtimes.cli import main as cli
from tests.support.runtime_toys import module_with, scripted_logits
from tests.support.tiny import tiny_tokenizer
from tests.support.toy_bundles import write_bundle

CODE = "def f(x):\n    return x\n"
ANSWER = "Answer é."


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """ask(prompt_tokens, *words) -> (exit code, output, remarks); the toy says ANSWER."""
    folder = write_bundle(tmp_path / "bundle")

    def run(prompt_tokens: int, *words: str) -> tuple[int, str, str]:
        logits = scripted_logits(prompt_tokens, tiny_tokenizer().encode(ANSWER).ids)
        module = SimpleNamespace(**module_with(logits, []))
        monkeypatch.setattr(backends, "load", lambda format: module)
        code = cli.main([*words, "--bundle", str(folder)])
        return code, *capsys.readouterr()

    return run


def tokens(*texts: str) -> int:
    """Of texts that are encoded apart."""
    return sum(len(tiny_tokenizer().encode(text).ids) for text in texts)


def test_a_docstring_is_shown_as_it_is_to_be_put_in(ask, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(CODE)
    asked = 3 + tokens('def f(x):\n    """', '"""\n    return x\n')
    words = ["docstring", "--file", str(tmp_path / "a.py"), "--quiet"]
    assert ask(asked, *words) == (0, f'    """{ANSWER}"""\n', "")
    code, out, _ = ask(asked, *words, "--json")
    value = json.loads(out)
    assert (value["text"], value["before"], value["after"]) == (ANSWER, '    """', '"""\n')
    assert CODE[: value["at"]] == "def f(x):\n" and code == 0


def test_explaining_and_translating(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def type_in() -> None:
        stdin = io.TextIOWrapper(io.BytesIO(CODE.encode()), encoding="utf-8", newline="")
        monkeypatch.setattr(sys, "stdin", stdin)

    type_in()
    asked = tokens(CODE + '\n"""\nWhat the code above does, step by step:\n\n1.')
    code, out, _ = ask(asked, "explain", "--language", "python", "--quiet")
    assert (code, out) == (
        0,
        f'"""\nWhat the code above does, step by step:\n\n1.{ANSWER}\n"""\n',
    )
    type_in()
    quoted = "// Python:\n//\n//     def f(x):\n//         return x\n//\n// The same in Go:\n\n"
    words = ["translate", "--language", "python", "--to", "go", "--quiet"]
    assert ask(tokens(quoted), *words) == (0, ANSWER, "")


def test_a_language_has_to_be_known(ask, tmp_path: Path) -> None:
    assert ask(1, "explain")[0] == 2
    (tmp_path / "Makefile").write_text("x")
    code, _, err = ask(1, "explain", "--file", str(tmp_path / "Makefile"))
    assert code == 2 and "--language" in err
    (tmp_path / "a.py").write_text("x")
    assert ask(1, "translate", "--file", str(tmp_path / "a.py"), "--to", "klingon")[0] == 2


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/main.py").write_text("import text\n")
    (folder / "pkg/text.py").write_text("x = 1\n")
    (folder / "zoo.py").write_text("z" * 400)
    return folder


def test_generating_within_a_repository(ask, repo: Path) -> None:
    asked = 3 + tokens("tools", "pkg/text.py\nx = 1\n", "pkg/main.py\nimport text\n")
    words = ["generate", "--repo", str(repo), "--repo-tokens", "30"]
    code, out, err = ask(asked, *words, "--file", "pkg/main.py")
    assert (code, out) == (0, ANSWER)
    used = 1 + tokens("pkg/text.py\nx = 1\n")
    assert f"repository: 1 files, {used} of 30 tokens (pkg/text.py); 1 left out" in err
    assert ask(asked, *words, "import text\n", "--path", "pkg/main.py")[:2] == (0, ANSWER)
    named = asked - tokens("tools") + tokens("me/tools")
    more = ["--repo-name", "me/tools", "--file", str(repo / "pkg/main.py")]
    assert ask(named, *words, *more)[:2] == (0, ANSWER)


def test_infilling_within_a_repository(ask, repo: Path) -> None:
    asked = 6 + tokens("tools", "pkg/text.py\nx = 1\n", "pkg/main.py\nimport ", "text\n")
    words = ["infill", "--repo", str(repo), "--repo-tokens", "30", "--file", "pkg/main.py"]
    assert ask(asked, *words, "--cursor", "1:8")[:2] == (0, ANSWER)
    value = json.loads(ask(asked, *words, "--cursor", "1:8", "--json")[1])
    assert value["repository"] == {
        "files": ["pkg/text.py"],
        "tokens": 1 + tokens("pkg/text.py\nx = 1\n"),
        "budget_tokens": 30,
        "left_out": 1,
        "is_complete": True,
    }


def test_what_a_repository_needs_is_said(ask, repo: Path) -> None:
    assert ask(1, "generate", "x", "--repo", str(repo))[0] == 2
    assert ask(1, "generate", "x", "--repo-tokens", "9")[0] == 2
    repo_words = ["--repo", str(repo), "--path", "zoo.py"]
    assert ask(1, "generate", "x", *repo_words, "--repo-tokens", "-1")[0] == 2
    assert ask(1, "generate", "--repo", str(repo), "--file", "../x.py")[0] == 2
    code, _, err = ask(1, "generate", "--repo", str(repo), "--file", "absent.py")
    assert code == 2 and "cannot be read in the repository's folder" in err
