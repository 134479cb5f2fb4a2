"""Samples are spans of their texts, drawn alike each time; nearness is 1 for what is exact."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.calibration.sources import read_named_sources
from packager.core.errors import UsageError
from packager.measurement.infill_samples import (
    KINDS,
    FimSample,
    builtin_texts,
    draw_fim_samples,
    edit_similarity,
    is_exact,
)

CODE = st.text("ab \t\n\x0c\u2028\u00e9", max_size=200)
NAMES = ("a.py", "src/b.c", "b.h", "c.rs")


def test_builtin_texts_are_ten_files_of_ten_languages() -> None:
    texts = builtin_texts()
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
    assert read_named_sources(tmp_path) == [("deep/a.py", "x = 1\n")]
    with pytest.raises(UsageError, match="no source text"):
        read_named_sources(tmp_path / "missing")


def test_samples_of_the_builtin_texts() -> None:
    texts = builtin_texts()
    samples = draw_fim_samples(texts, 40, seed=1)
    assert Counter(sample.kind for sample in samples) == dict.fromkeys(KINDS, 40)
    for kind in KINDS:
        of_kind = [sample for sample in samples if sample.kind == kind]
        assert len(set(of_kind)) == 40
        # in turn: four of each of the ten languages, and no language twice in ten
        assert all(
            len({sample.path for sample in of_kind[i : i + 10]}) == 10 for i in range(0, 40, 10)
        )
    for sample in samples:
        assert_sound(sample, dict(texts))


@given(st.lists(CODE, min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 3))
def test_laws_on_any_text(texts: list[str], count: int, seed: int) -> None:
    files = list(zip(NAMES, texts, strict=False))
    try:
        samples = draw_fim_samples(files, count, seed)
    except UsageError as error:
        assert "have only" in error.what
        return
    assert len(set(samples)) == len(KINDS) * count
    for sample in samples:
        assert_sound(sample, dict(files))
    assert draw_fim_samples(list(reversed(files)), count, seed) == samples


def test_another_seed_draws_others() -> None:
    assert draw_fim_samples(builtin_texts(), 5, seed=0) != draw_fim_samples(
        builtin_texts(), 5, seed=1
    )


def test_long_texts_are_cut_around_the_sample() -> None:
    text = "".join(f"line {i}\n" for i in range(3000))
    for sample in draw_fim_samples([("long.py", text)], 20):
        assert_sound(sample, {"long.py": text})
    lengths = {
        (len(sample.prefix), len(sample.suffix))
        for sample in draw_fim_samples([("l.py", text)], 20)
    }
    assert (3000, 1000) in lengths


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="only 1 different single-line samples"):
        draw_fim_samples([("a.py", "one\n\n \n")], 2)
    with pytest.raises(UsageError, match="0 samples"):
        draw_fim_samples([("a.py", "one\n")], 0)


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


def assert_sound(sample: FimSample, texts: dict[str, str]) -> None:
    text = texts[sample.path]
    whole = sample.prefix + sample.middle + sample.suffix
    assert whole in text
    assert len(sample.prefix) <= 3000 and len(sample.suffix) <= 1000
    assert sample.middle.strip()
    if len(sample.prefix) < 3000:
        assert text.startswith(sample.prefix)
    if len(sample.suffix) < 1000:
        assert text.endswith(sample.suffix)
    if sample.kind == "random-span":
        assert 8 <= len(sample.middle) <= 80
        return
    assert sample.prefix[-1:] in ("", "\n")
    assert sample.middle.endswith("\n") or sample.suffix == ""
    lines = sample.middle.removesuffix("\n").split("\n")
    assert lines[0].strip()
    assert 2 <= len(lines) <= 5 if sample.kind == "multi-line" else len(lines) == 1
