"""Whatever a model, a licence or a device is called, it stays text in the documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from markdown_it.token import Token

from packager.bundle.artifacts import Packed
from packager.bundle.documents.collect import documents
from packager.bundle.documents.render import as_code, as_markdown, render
from packager.engine.target import this_machine
from tests.support.packing import MEASURED, write_artifact, write_checkpoint

HOSTILE = [
    "a | b",
    "`rm -rf`",
    "``",
    "[link](http://example.org)",
    "![image](x.png)",
    "<script>alert(1)</script>",
    "**bold** ~~gone~~ &lt;",
    "two\n\n# lines\r\n---",
    "back\\slash | `",
    "{{ model }} {% include 'NOTICE' %}",
    "license: mit\n---\n",
]


def tokens(text: str) -> list[Token]:
    """Block and inline tokens of a text, its front matter aside."""
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [t for token in parsed for t in (token, *(token.children or []))]


def shape(text: str) -> Counter[str]:
    """How many there are of everything but words."""
    return Counter(token.type for token in tokens(text) if token.type != "text")


@pytest.mark.parametrize("value", HOSTILE)
def test_text_reads_as_it_was_given(value: str) -> None:
    expected = " ".join(value.split())
    assert shape(f"x {as_markdown(value)} y") == shape("x plain y")
    shown = "".join(t.content for t in tokens(f"x {as_markdown(value)} y") if t.type == "text")
    assert shown == f"x {expected} y"
    (cell,) = [t for t in tokens(f"| |\n|---|\n| {as_code(value)} |\n") if t.type == "code_inline"]
    assert cell.content == expected


@pytest.mark.parametrize("value", HOSTILE)
def test_documents_keep_their_shape(value: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    artifact = write_artifact(tmp_path / "artifact")
    shapes, fronts = [], []
    for text in ("plain", value):
        front = yaml.safe_dump({"license": text})
        (checkpoint.path / "README.md").write_text(f"---\n{front}---\n# x\n")
        variant = replace(artifact.variant, recipe=text)
        entry = replace(artifact.files[0], path=text)
        named = replace(artifact, variant=variant, files=(entry,), versions={text: "1"})
        part = Packed(named, MEASURED | {"device": text})
        found = documents([part, part], replace(checkpoint, revision=text), [], this_machine())
        card, readme = found["MODEL_CARD.md"].decode(), found["README.md"].decode()
        _, head, body = card.split("---\n", 2)
        fronts.append(yaml.safe_load(head))
        shapes.append((shape(body), shape(readme), found["NOTICE"].count(b"\n")))
    assert shapes[0] == shapes[1]
    assert fronts[1] == fronts[0] | {"license": " ".join(value.split())}


def test_a_value_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="python"):
        render("deploy/Containerfile", port=1, folder="/x")
