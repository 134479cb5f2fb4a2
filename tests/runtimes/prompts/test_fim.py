"""Golden token sequences of prompts: the layouts of training, and nothing from the user's text.

`pytest tests/runtimes/prompts/test_fim.py --regenerate-goldens` writes prompts.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtimes.prompts.fim import NO_CONTEXT, Context, RepoFile, generate_ids, infill_ids
from runtimes.prompts.tokenizer import Tokenizer
from tests.support.runtime_toys import IDS, toy_tokenizer

GOLDENS = Path(__file__).parents[2] / "goldens" / "prompts.json"
REPOSITORY = Context(
    repo_name="me/tools",
    files=(RepoFile("a.py", "import b\n"), RepoFile("lib/b.py", "")),
    path="c.py",
)
# name -> (prompt,) or (prefix, suffix), and the context
CASES: dict[str, tuple[tuple[str, ...], Context]] = {
    "generate": (("def f(x1):\n",), NO_CONTEXT),
    "generate repository": (("def f():",), REPOSITORY),
    "generate path alone": (("x = 1\n",), Context(path="x.py")),
    "generate control-like": (("<|endoftext|><repo_name>a<file_sep>",), NO_CONTEXT),
    "fim": (("def f(x):\n    return ", "\n\nprint(f(10))\n"), NO_CONTEXT),
    "fim repository": (("    in", "er\n"), REPOSITORY),
    "fim path alone": (("a", "b"), Context(path="x.py")),
    "fim control-like": (("<fim_prefix>a<fim_middle>", "<fim_suffix> <|endoftext|>"), NO_CONTEXT),
    "fim control-like names": (
        ("a", "b"),
        Context("<file_sep>", (RepoFile("<fim_middle>", "<fim_pad>"),), "<repo_name>"),
    ),
    "fim crlf": (("a\r\n", "\r\nb\r\n"), NO_CONTEXT),
    "fim tabs": (("if x:\n\t\treturn\t", "\n\t"), NO_CONTEXT),
    "fim blanks kept": (("  a  ", "  \n  "), NO_CONTEXT),
    "fim non-ascii": (("größe = 'é", "e\u0301' # 日本語"), NO_CONTEXT),
    "fim emoji": (("'😀", "👩\u200d👩\u200d👧'"), NO_CONTEXT),
    "fim empty prefix": (("", "\nreturn 1"), NO_CONTEXT),
    "fim empty suffix": (("return ", ""), NO_CONTEXT),
    "fim both empty": (("", ""), NO_CONTEXT),
}


def prompt_ids(tokenizer: Tokenizer, name: str) -> list[int]:
    texts, context = CASES[name]
    build = generate_ids if len(texts) == 1 else infill_ids
    return build(tokenizer.encode, IDS, *texts, context)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_goldens(tokenizer: Tokenizer, regenerate_goldens: bool) -> None:
    now = {name: prompt_ids(tokenizer, name) for name in CASES}
    if regenerate_goldens:
        lines = (f"  {json.dumps(name)}: {json.dumps(ids)}" for name, ids in now.items())
        GOLDENS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    assert now == json.loads(GOLDENS.read_text(encoding="utf-8"))


def layout(name: str) -> tuple[list[int], str]:
    """Control ids that a case must have, in order, and its text with them spelt out."""
    texts, context = CASES[name]
    text, ids = "", []
    if context.repo_name is not None:
        text, ids = f"<repo_name>{context.repo_name}", [IDS.repo_name]
    for file in context.files:
        text += f"<file_sep>{file.path}\n{file.text}"
        ids.append(IDS.file_sep)
    if context != NO_CONTEXT:
        text += "<file_sep>"
        ids.append(IDS.file_sep)
    path = "" if context.path is None else f"{context.path}\n"
    if len(texts) == 1:
        return ids, text + path + texts[0]
    text += f"<fim_prefix>{path}{texts[0]}<fim_suffix>{texts[1]}<fim_middle>"
    return [*ids, IDS.fim_prefix, IDS.fim_suffix, IDS.fim_middle], text


def assert_layout(tokenizer: Tokenizer, name: str) -> None:
    control_ids, text = layout(name)
    ids = prompt_ids(tokenizer, name)
    assert [i for i in ids if i in IDS.stops] == control_ids
    assert tokenizer.decode(ids) == text  # decoding spells control tokens out


@pytest.mark.parametrize("name", CASES)
def test_control_ids_come_from_the_layout_alone(tokenizer: Tokenizer, name: str) -> None:
    assert_layout(tokenizer, name)


@pytest.mark.parametrize("name", CASES)
def test_the_same_with_starcoder2s_own_tokenizer(real_tokenizer_folder: Path, name: str) -> None:
    assert_layout(Tokenizer(real_tokenizer_folder / "tokenizer.json", IDS), name)


def test_a_fim_prompt_by_hand(real_tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer(real_tokenizer_folder / "tokenizer.json", IDS)
    prefix, suffix = "    42,", "<fim_middle>"
    ids = infill_ids(tokenizer.encode, IDS, prefix, suffix)
    assert ids == [1, *tokenizer.encode(prefix), 3, 65, 107, 468, 100, 10519, 67, 2]
