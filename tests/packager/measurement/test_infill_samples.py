"""Holes are stretches of their texts, drawn alike each time; nearness is 1 for what is exact."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.core.errors import UsageError
from packager.measurement.infill_samples import (
    KINDS,
    Hole,
    draw_holes,
    edit_similarity,
    is_exact,
    own_texts,
    texts_of,
)

CODE = st.text("ab \t\n\x0c\u2028\u00e9", max_size=200)
NAMES = ("a.py", "src/b.c", "b.h", "c.rs")


def test_own_texts_are_ten_files_of_ten_languages() -> None:
    texts = own_texts()
    suffixes = {PurePath(name).suffix for name, _ in texts}
    assert suffixes == set(".c .cpp .go .java .js .py .rs .sh .sql .ts".split())
    assert len(texts) == 10
    for name, text in texts:
        assert text.isascii() and text.endswith("\n"), name
        assert 60 <= text.count("\n") <= 110, name


def test_texts_of_a_folder_go_by_their_place_in_it(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("no source\n")
    assert texts_of(tmp_path) == [("deep/a.py", "x = 1\n")]
    with pytest.raises(UsageError, match="no source text"):
        texts_of(tmp_path / "missing")


def test_holes_of_our_own_texts() -> None:
    texts = own_texts()
    holes = draw_holes(texts, 40, seed=1)
    assert Counter(hole.kind for hole in holes) == dict.fromkeys(KINDS, 40)
    for kind in KINDS:
        of_kind = [hole for hole in holes if hole.kind == kind]
        assert len(set(of_kind)) == 40
        # in turn: four of each of the ten languages, and no language twice in ten
        assert all(len({hole.path for hole in of_kind[i : i + 10]}) == 10 for i in range(0, 40, 10))
    for hole in holes:
        assert_sound(hole, dict(texts))


@given(st.lists(CODE, min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 3))
def test_laws_on_any_text(texts: list[str], count: int, seed: int) -> None:
    files = list(zip(NAMES, texts, strict=False))
    try:
        holes = draw_holes(files, count, seed)
    except UsageError as error:
        assert "room for only" in error.what
        return
    assert len(set(holes)) == len(KINDS) * count
    for hole in holes:
        assert_sound(hole, dict(files))
    assert draw_holes(list(reversed(files)), count, seed) == holes


def test_another_seed_draws_others() -> None:
    assert draw_holes(own_texts(), 5, seed=0) != draw_holes(own_texts(), 5, seed=1)


def test_long_texts_are_cut_around_the_hole() -> None:
    text = "".join(f"line {i}\n" for i in range(3000))
    for hole in draw_holes([("long.py", text)], 20):
        assert_sound(hole, {"long.py": text})
    lengths = {(len(hole.prefix), len(hole.suffix)) for hole in draw_holes([("l.py", text)], 20)}
    assert (3000, 1000) in lengths


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="room for only 1 different single-line holes"):
        draw_holes([("a.py", "one\n\n \n")], 2)
    with pytest.raises(UsageError, match="0 holes"):
        draw_holes([("a.py", "one\n")], 0)


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_nearness_is_one_for_what_is_exact(a: str, b: str) -> None:
    similarity = edit_similarity(a, b)
    assert 0 <= similarity <= 1
    assert similarity == edit_similarity(b, a)
    assert (similarity == 1) == is_exact(a, b)


def test_nearness_by_hand() -> None:
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("", "abc") == 0
    assert is_exact("  return x", "  return x\n")
    assert not is_exact("return x", "  return x\n")


def assert_sound(hole: Hole, texts: dict[str, str]) -> None:
    text = texts[hole.path]
    whole = hole.prefix + hole.middle + hole.suffix
    assert whole in text
    assert len(hole.prefix) <= 3000 and len(hole.suffix) <= 1000
    assert hole.middle.strip()
    if len(hole.prefix) < 3000:
        assert text.startswith(hole.prefix)
    if len(hole.suffix) < 1000:
        assert text.endswith(hole.suffix)
    if hole.kind == "random-span":
        assert 8 <= len(hole.middle) <= 80
        return
    assert hole.prefix[-1:] in ("", "\n")
    assert hole.middle.endswith("\n") or hole.suffix == ""
    lines = hole.middle.removesuffix("\n").split("\n")
    assert lines[0].strip()
    assert 2 <= len(lines) <= 5 if hole.kind == "multi-line" else len(lines) == 1
