"""The licence that a card declares is one, whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.checkpoint.model_card import MAX_CARD_BYTES, declared_licence
from packager.core.errors import CheckpointError


def card(folder: Path, front: str, end: str = "\n") -> Path:
    text = f"---{end}{front}{end}---{end}# A model{end}"
    (folder / "README.md").write_bytes(text.encode())
    return folder


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: bigcode-openrail-m", "bigcode-openrail-m"),
        ('license: "bigcode-openrail-m"', "bigcode-openrail-m"),
        ("license: 'bigcode-openrail-m'", "bigcode-openrail-m"),
        ("license: apache-2.0  # not the datasets'", "apache-2.0"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license:\n- mit\n- apache-2.0", "mit, apache-2.0"),
        ("tags:\n- code\nlicense: mit\nmodel-index: of no use", "mit"),
        ('license: "two\\nlines  and | more"', "two lines and | more"),
        ("license:", None),
        ("tags: [code]\nextra:\n  license: mit", None),
        ("# nothing but a comment", None),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_front_matter_declares(
    front: str, licence: str | None, end: str, tmp_path: Path
) -> None:
    assert declared_licence(card(tmp_path, front.replace("\n", end), end)) == licence


@pytest.mark.parametrize(
    "front",
    [
        "license: [unclosed",
        "license: mit\n\t- tab",
        "- a list",
        "license: 2.0",
        "license: {name: mit}",
        "license: " + "x" * 300,
        "1: mit",
    ],
)
def test_front_matter_that_cannot_be_read_is_refused(front: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="card is damaged") as caught:
        declared_licence(card(tmp_path, front))
    assert str(tmp_path) in str(caught.value.where) and caught.value.remedy


@pytest.mark.parametrize("text", ["", "# no front matter\nlicense: mit\n", "---\nlicense: mit\n"])
def test_no_front_matter_declares_nothing(text: str, tmp_path: Path) -> None:
    assert declared_licence(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert declared_licence(tmp_path) is None


def test_a_large_card_is_not_read_to_its_end(tmp_path: Path) -> None:
    card(tmp_path, "license: mit")
    with (tmp_path / "README.md").open("ab") as stream:
        stream.truncate(64 * MAX_CARD_BYTES)
    assert declared_licence(tmp_path) == "mit"
    (tmp_path / "README.md").write_bytes(b"---\n" + b"#" * MAX_CARD_BYTES + b"\n---\n")
    with pytest.raises(CheckpointError, match="does not end"):
        declared_licence(tmp_path)


def test_quoting_changes_nothing_in_a_model_file(tmp_path: Path) -> None:
    from packager.checkpoint.reader import read_checkpoint
    from packager.formats.gguf.convert import write_header
    from packager.formats.gguf.recipe import variant as gguf_variant
    from tests.support.tiny import write_checkpoint

    folder = write_checkpoint(tmp_path / "star")
    files = []
    for number, front in enumerate(("license: mit", 'license: "mit"')):
        checkpoint = read_checkpoint(card(folder, front))
        files.append(tmp_path / f"{number}.gguf")
        write_header(files[-1], checkpoint, gguf_variant("Q8_0"), [])
    first, second = (file.read_bytes() for file in files)
    assert first == second and b"general.license" in first
