"""Tokenizer and TextStream: no loss, no control ids from text, no broken characters."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.contract import SpecialIds
from runtimes.errors import Cancelled, IntegrityError, UsageError
from runtimes.prompts import tokenizer as tokenizer_module
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


# What a first step of a tokenizer decides by: blanks of all kinds, digits, contractions, marks,
# letters of one byte and of three, accents that follow their letter, and control tokens spelt out.
PIECES = list(" \n\t\r'abstZé日\uff0c😀12٣½Ⅷ\u00a0\u2028\u0085\x1c\u3000\u0301_-=!.(){}<>")
PIECES += ["'s", "'ll", "<fim_prefix>", "\n\n", "    ", "\r\n", "return "]
DEMO = Path(__file__).parents[3] / "examples" / "demo" / "tokenizer.json"


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


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO, IDS)


@cache
def library(file: Path) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer.from_file(str(file))
    model.encode_special_tokens = True
    return model


def whole_ids(file: Path, text: str) -> list[int]:
    """The library's own ids of a text in one piece."""
    return library(file).encode(text, add_special_tokens=False).ids


def check_slices(file: Path, opened: Tokenizer, text: str) -> None:
    """Cut at every place that can be cut, a text has the ids that it has whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "SLICE_CHARACTERS", 1)
        slices = list(opened.encode_slices(text))
    assert [i for ids in slices for i in ids] == whole_ids(file, text)
    assert len(slices) > 1 or " " not in text.strip()


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(max_examples=400, deadline=None)
def test_slices_have_the_ids_of_the_whole(demo: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "SLICE_CHARACTERS", 1)
        assert demo.encode(text) == whole_ids(DEMO, text)


def test_code_in_slices(demo: Tokenizer) -> None:
    check_slices(DEMO, demo, Path(__file__).read_text(encoding="utf-8"))


def test_code_in_slices_of_the_real_tokenizer(real_tokenizer_folder: Path) -> None:
    file = real_tokenizer_folder / "tokenizer.json"
    check_slices(file, Tokenizer(file, IDS), Path(__file__).read_text(encoding="utf-8"))


def test_an_unknown_first_step_is_never_cut(tmp_path: Path, monkeypatch) -> None:
    """GPT-4's kind takes line ends into the word before them, where StarCoder2's is cut."""

    def other(value: dict) -> None:
        value["pre_tokenizer"]["pretokenizers"].pop(0)

    monkeypatch.setattr(tokenizer_module, "SLICE_CHARACTERS", 1)
    assert len(list(Tokenizer(edited(tmp_path, other), IDS).encode_slices("a b 1 c"))) == 1


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_the_bound_of_tokens_holds(demo: Tokenizer, text: str, most: int) -> None:
    data, bound = text.encode(), demo.bound
    assert bound.min_tokens(data) <= len(demo.encode(text)) <= len(data)
    head, tail = bound.head_bytes(data, most), bound.tail_bytes(data, most)
    assert (
        bound.min_tokens(data[:head]) <= most and bound.min_tokens(data[len(data) - tail :]) <= most
    )
    assert head == len(data) or bound.min_tokens(data[: head + 1]) > most
    assert tail == len(data) or bound.min_tokens(data[len(data) - tail - 1 :]) > most


def test_a_cancelled_text_ends_at_its_next_slice(demo: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer_module, "SLICE_CHARACTERS", 1)
    asked: list[None] = []

    def third() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        demo.encode("1" * 1000, third)
    assert len(asked) == 3


def test_other_threads_run_while_a_word_of_a_megabyte_is_tokenised(demo: Tokenizer) -> None:
    """The longest that another thread had to wait is a small part of the call."""
    gaps: list[float] = []
    ended = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not ended.wait(0.001):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        ticking = pool.submit(tick)
        started = time.monotonic()
        demo.encode("a" * 1_000_000)
        took = time.monotonic() - started
        ended.set()
        ticking.result()
    assert max(gaps) < took / 2


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
