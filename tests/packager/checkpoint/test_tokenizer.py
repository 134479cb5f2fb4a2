"""tokenizer.json: StarCoder2's kind and ids, and each departure refused by its message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from packager.checkpoint.tokenizer import read_special_ids
from packager.core.errors import CheckpointError
from runtimes.contract import SpecialIds
from tests.support.refusal import refusal
from tests.support.tiny import TOKENS, edit_json, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def refused(folder: Path, message: str) -> CheckpointError:
    return refusal(lambda: read_special_ids(folder, TOKENS), message)


def test_tiny_tokenizer_is_sound(folder: Path) -> None:
    assert read_special_ids(folder, TOKENS) == SpecialIds()


def test_vocabulary_larger_than_the_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has 300 entries, the model 299 rows"):
        read_special_ids(folder, TOKENS - 1)


def test_entries_may_be_unused(folder: Path) -> None:
    """A model may have more rows than the tokenizer has entries: padding."""
    assert read_special_ids(folder, TOKENS + 84) == SpecialIds()


def test_bytes_that_no_text_has(folder: Path) -> None:
    """StarCoder2's own vocabulary has no letter for 0xFF ("ÿ"): not an error."""

    def change(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        vocab["zz"] = vocab.pop("ÿ")

    edit_json(folder / "tokenizer.json", change)
    assert read_special_ids(folder, TOKENS) == SpecialIds()


def test_an_added_token_that_the_vocabulary_lacks(folder: Path) -> None:
    """The library gives it the next free id: right behind the vocabulary, wrong in a gap of it."""

    def append(tokenizer: dict[str, Any]) -> None:
        new = tokenizer["added_tokens"][-1] | {"id": TOKENS, "content": "<new>"}
        tokenizer["added_tokens"].append(new)

    def lack(tokenizer: dict[str, Any]) -> None:
        del tokenizer["model"]["vocab"]["<pr_base_code>"]

    edit_json(folder / "tokenizer.json", append)
    assert read_special_ids(folder, TOKENS + 1) == SpecialIds()
    edit_json(folder / "tokenizer.json", lack)
    with pytest.raises(CheckpointError, match="'<pr_base_code>' does not get its id 23"):
        read_special_ids(folder, TOKENS + 1)


def other_split(tokenizer: dict[str, Any]) -> None:
    del tokenizer["pre_tokenizer"]["pretokenizers"][0]  # what AutoTokenizer does


def grouped_digits(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False


def added_begin(tokenizer: dict[str, Any]) -> None:
    tokenizer["post_processor"] = {"type": "TemplateProcessing"}


def other_fim(tokenizer: dict[str, Any]) -> None:
    for text, token_id in (("<fim_middle>", 3), ("<fim_suffix>", 2)):
        tokenizer["model"]["vocab"][text] = token_id
        entry = next(e for e in tokenizer["added_tokens"] if e["content"] == text)
        entry["id"] = token_id


def plain_control(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][2]["special"] = False


def ordinary_issue(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][7]["special"] = False  # not among the ids that the runtime knows


def greedy_issue(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][7]["lstrip"] = True


def unmarked(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"].pop(2)


def gap(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["a"] = 301


def lost_byte(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["zz"] = vocab.pop("Z")


BROKEN_TOKENIZER: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no digits": (other_split, "pre_tokenizer is"),
    "grouped digits": (grouped_digits, "pre_tokenizer is"),
    "none": (lambda t: t.update(pre_tokenizer=None), "pre_tokenizer is None"),
    "normalizer": (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer is"),
    "truncation": (lambda t: t.update(truncation={"max_length": 512}), "truncation is"),
    "padding": (lambda t: t.update(padding={"strategy": "BatchLongest"}), "padding is"),
    "decoder": (lambda t: t.update(decoder=None), "decoder is None"),
    "begin": (added_begin, "post_processor is"),
    "model": (lambda t: t["model"].update(type="Unigram"), "the model is Unigram"),
    "dropout": (lambda t: t["model"].update(dropout=0.1), "model.dropout is 0.1"),
    "fim": (other_fim, "<fim_middle> is 3"),
    "plain": (plain_control, "special of the added token '<fim_middle>' is False"),
    "ordinary": (ordinary_issue, "special of the added token '<issue_start>' is False"),
    "greedy": (greedy_issue, "lstrip of the added token '<issue_start>' is True"),
    "unmarked": (unmarked, "<fim_middle> is 2, not a control token"),
    "gap": (gap, "ids are not contiguous"),
    "merge": (
        lambda t: t["model"]["merges"].append("q q"),
        "the merge q q is not of the vocabulary",
    ),
    "byte": (lost_byte, "1 bytes have no token"),
    "two ids": (lambda t: t["added_tokens"][0].update(id=9), "has the id 9"),
}


@pytest.mark.parametrize("case", BROKEN_TOKENIZER)
def test_broken_tokenizer(folder: Path, case: str) -> None:
    change, message = BROKEN_TOKENIZER[case]
    edit_json(folder / "tokenizer.json", change)
    refused(folder, message)


def test_a_key_twice_among_very_many_is_found_at_once(folder: Path) -> None:
    keys = ",".join(f'"{i}":0' for i in range(300_000))  # minutes, if each were searched for
    (folder / "tokenizer.json").write_text(f'{{{keys},"299999":0}}')
    refused(folder, "the key '299999' is given twice")


def odd_processor(tokenizer: dict[str, Any]) -> None:
    tokenizer["post_processor"] = {"type": "ByteLevel", "add_prefix_space": "x"}


def no_version(tokenizer: dict[str, Any]) -> None:
    tokenizer["version"] = "2.0"


def odd_decoder(tokenizer: dict[str, Any]) -> None:
    tokenizer["decoder"] = {"type": "ByteLevel", "trim_offsets": 7}


def unknown_key(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["dropout"] = None
    tokenizer["added_tokens"][0]["id"] = tokenizer["added_tokens"][0]["id"]
    tokenizer["added_tokens"][0]["content_of"] = []
    tokenizer["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = None


@pytest.mark.parametrize("change", [odd_processor, no_version, odd_decoder, unknown_key])
def test_what_the_library_cannot_load_is_refused_now_and_not_on_the_device(
    folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit_json(folder / "tokenizer.json", change)
    with pytest.raises(Exception):  # noqa: B017 - the library has no class of its own
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    error = refused(folder, "not a tokenizer file")
    assert error.where == str(folder / "tokenizer.json")
