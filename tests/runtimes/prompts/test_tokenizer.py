"""Tokenizer and TextStream: no loss, no control ids from text, no broken characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.contract import SpecialIds
from runtimes.errors import IntegrityError, UsageError
from runtimes.prompts.tokenizer import IndentRule, TextStream, Tokenizer, cut_at_stop
from tests.support.runtime_toys import IDS, toy_tokenizer
from tests.support.tiny import TOKENS, tiny_tokenizer

TEXTS = [
    "",
    "def f(x):\n    return x1 + 42\n",
    "a\r\nb\r\n\tc",
    "naïve café 日本語 😀👩‍👩‍👧",
    "<fim_middle><|endoftext|><file_sep> <repo_name>x",
    "  \x00\x1b ",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_gives_no_control_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not IDS.stops & set(ids)


def test_vocabulary_and_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == TOKENS
    assert tokenizer.token_bytes(IDS.fim_middle) == b"<fim_middle>"
    assert tokenizer.token_bytes(TOKENS) == b""
    all_bytes = {tokenizer.token_bytes(i) for i in range(38, 38 + 256)}
    assert all_bytes == {bytes([byte]) for byte in range(256)}


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="surrogate"):
        tokenizer.encode("ab\ud800")


def edited(tmp_path: Path, edit) -> Path:
    file = tmp_path / "tokenizer.json"
    tiny_tokenizer().save(str(file))
    value = json.loads(file.read_text(encoding="utf-8"))
    edit(value)
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def not_special(value: dict) -> None:
    value["added_tokens"][IDS.fim_middle]["special"] = False


def normalised(value: dict) -> None:
    value["normalizer"] = {"type": "NFC"}


def space_in_front(value: dict) -> None:
    value["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (not_special, "encoded as that token"),
        (normalised, "changes the text"),
        (space_in_front, "changes the text"),
        (lambda value: value.pop("model"), "not a tokenizer file"),
    ],
)
def test_a_tokenizer_that_breaks_the_laws_is_refused(tmp_path: Path, edit, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        Tokenizer(edited(tmp_path, edit), IDS)


def test_other_special_ids_are_refused(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda value: None)
    with pytest.raises(IntegrityError, match="has the id 1"):
        Tokenizer(file, SpecialIds(fim_prefix=2, fim_middle=1))
    with pytest.raises(IntegrityError, match="cannot be read"):
        Tokenizer(tmp_path / "absent.json", IDS)


def test_truncation_left_in_the_file_is_not_applied(tmp_path: Path) -> None:
    def truncated(value: dict) -> None:
        value["truncation"] = {
            "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
        }  # fmt: skip

    text = "far more than three tokens"
    assert (tokenizer := Tokenizer(edited(tmp_path, truncated), IDS)).encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_byte_without_a_token_is_an_error_not_a_loss(tmp_path: Path) -> None:
    """StarCoder2 itself has no token for the byte 0xF1."""

    def without_f1(value: dict) -> None:
        value["model"]["vocab"].pop("ñ")  # the stand-in of 0xF1

    tokenizer = Tokenizer(edited(tmp_path, without_f1), IDS)
    with pytest.raises(UsageError, match=r"U\+40000"):
        tokenizer.encode("ok \U00040000")


def stream_out(data: list[bytes], stops: list[str]) -> tuple[str, str | None]:
    stream = TextStream(lambda i: data[i], stops)
    text = "".join([*map(stream.push, range(len(data))), stream.finish()])
    return text, stream.stopped_by


@given(
    st.lists(st.one_of(st.binary(max_size=3), st.text("ab\né😀").map(str.encode))),
    st.lists(st.text("ab\né\ufffd", min_size=1, max_size=4), max_size=3),
)
def test_a_stream_joins_to_the_whole_cut_at_the_stop(data: list[bytes], stops: list[str]) -> None:
    whole = b"".join(data).decode(errors="replace")
    assert stream_out(data, stops) == cut_at_stop(whole, stops)


@given(st.text("aé日😀\n"), st.data())
def test_no_broken_character_however_bytes_are_split(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)))))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    stream = TextStream(lambda i: pieces[i])
    shown = [stream.push(i) for i in range(len(pieces))]
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) + stream.finish() == text


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    stream = TextStream(lambda i: [b"a\n", b"b", b"\n", b"\n", b"c"][i], ["\n\n"])
    assert [stream.push(i) for i in range(5)] == ["a", "\nb", "", "", ""]
    assert (stream.stopped_by, stream.finish()) == ("\n\n", "")


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcd", ["abcd", "c"], ("ab", "c")),  # complete first, though it begins later
        ("abc", ["c", "bc"], ("a", "bc")),  # complete together: the longer
        ("aab", ["ab"], ("a", "ab")),
        ("abc", [], ("abc", None)),
    ],
)
def test_which_stop_wins(text: str, stops: list[str], expected: tuple) -> None:
    assert cut_at_stop(text, stops) == expected
    assert stream_out([c.encode() for c in text], stops) == expected


def test_real_tokenizer_agrees_with_its_published_cases(real_tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer(real_tokenizer_folder / "tokenizer.json", IDS)
    assert tokenizer.vocab_size == 49_152
    vectors = real_tokenizer_folder / "ggml-vocab-starcoder.gguf"
    texts = vectors.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in
           vectors.with_suffix(".gguf.out").read_text().split("\n")]  # fmt: skip
    cases = list(zip(texts[:46], ids[:46], strict=True))
    assert [tokenizer.encode(text) for text, _ in cases] == [expected for _, expected in cases]
    assert [tokenizer.decode(expected) for _, expected in cases] == [text for text, _ in cases]
    for text in [*TEXTS, *IDS.tokens]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert not IDS.stops & set(tokenizer.encode(text))
    with pytest.raises(UsageError, match=r"U\+40000"):
        tokenizer.encode("\U00040000")


INDENTED = [
    ("a b", 2, "a b", False),
    ("a\n  b\n   c", 2, "a\n  b\n   c", False),
    ("a\n  b\n c", 2, "a\n  b", True),
    ("a\n\tb\nc", 1, "a\n\tb", True),
    ("a\n\n  b", 2, "a", True),
    ("a\n ", 2, "a\n ", False),  # the line may go on
    ("\nb", 1, "", True),
    ("a\n  b\nc\n  d", 2, "a\n  b", True),
    ("a\nb", 0, "a\nb", False),
]


@pytest.mark.parametrize(("text", "least", "kept", "ended"), INDENTED)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_indent_rule(text: str, least: int, kept: str, ended: bool, size: int) -> None:
    rule = IndentRule(least)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(map(rule.push, pieces)) + rule.finish() == kept
    assert rule.ended == ended
