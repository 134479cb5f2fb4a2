"""A prompt that spells a whole infill prompt, and everything that only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.contract import SpecialIds
from runtimes.prompts.fim import Context, RepoFile, infill_ids
from runtimes.server.dialects.fields import text_prompt
from runtimes.server.dialects.raw_fim import read_raw
from runtimes.server.request import ServerDefaults, TextPrompt

MARKS = ["<repo_name>", "<file_sep>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
PLAIN = st.text(alphabet="ab<>_fim\n", max_size=12).filter(
    lambda text: not any(mark in text for mark in MARKS)
)


@given(PLAIN, PLAIN)
def test_the_plain_form(prefix, suffix):
    raw = f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    assert read_raw(raw) == TextPrompt(prefix, suffix)


@given(st.none() | PLAIN, st.lists(PLAIN, max_size=3), PLAIN, PLAIN)
def test_with_other_files_before_it(name, files, prefix, suffix):
    head = "" if name is None else f"<repo_name>{name}"
    head += "".join(f"<file_sep>{file}" for file in files)
    raw = read_raw(f"{head}<file_sep><fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>")
    context = Context(name, tuple(RepoFile(None, file) for file in files))
    assert raw == TextPrompt(prefix, suffix, context)


@given(st.lists(PLAIN, min_size=4, max_size=4))
def test_what_is_read_gives_the_ids_that_were_spelt(texts):
    """With one id for each character and mark, the prompt is the raw text's own translation."""
    marks = SpecialIds().tokens
    name, file, prefix, suffix = texts
    raw = f"<repo_name>{name}<file_sep>{file}<file_sep>"
    raw += f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    read = read_raw(raw)

    def encode(text: str) -> list[int]:
        return [100 + ord(character) for character in text]

    ids = infill_ids(encode, SpecialIds(), read.prefix, read.suffix, read.context)
    spelt = {token_id: text for text, token_id in marks.items()}
    assert "".join(spelt.get(i) or chr(i - 100) for i in ids) == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def f(",
        "<fim_prefix>a<fim_suffix>b",
        "<fim_prefix>a<fim_suffix>b<fim_middle>c",
        " <fim_prefix>a<fim_suffix>b<fim_middle>",
        "<fim_prefix>a<fim_suffix>b<fim_middle><fim_middle>",
        "<fim_prefix>a<fim_suffix>b<fim_suffix>c<fim_middle>",
        "<fim_prefix>a<fim_prefix>b<fim_suffix>c<fim_middle>",
        "<fim_suffix>b<fim_prefix>a<fim_middle>",
        "<fim_prefix>a<file_sep>c<fim_suffix>b<fim_middle>",
        "<file_sep>f<fim_prefix>a<fim_suffix>b<fim_middle>",
        "<repo_name>r<fim_prefix>a<fim_suffix>b<fim_middle>",
        "<file_sep>f<repo_name>r<file_sep><fim_prefix>a<fim_suffix>b<fim_middle>",
        "< fim_prefix>a<fim_suffix>b<fim_middle>",
    ],
)
def test_anything_else_is_plain_text(text):
    assert read_raw(text) is None
    assert text_prompt(text, None, ServerDefaults()) == TextPrompt(text)


def test_it_can_be_turned_off_and_gives_way_to_a_suffix():
    raw = "<fim_prefix>a<fim_suffix>b<fim_middle>"
    assert text_prompt(raw, None, ServerDefaults()) == TextPrompt("a", "b")
    assert text_prompt(raw, None, ServerDefaults(raw_fim=False)) == TextPrompt(raw)
    assert text_prompt(raw, "c", ServerDefaults()) == TextPrompt(raw, "c")
    assert text_prompt(raw, None, ServerDefaults(), Context("r")) == TextPrompt(
        "a", "b", Context("r")
    )
