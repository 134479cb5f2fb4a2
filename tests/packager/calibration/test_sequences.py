"""The sequences that a quantiser is calibrated on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from packager.calibration.sequences import SequenceOptions, draw_sequences, sources_sha256
from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint
from tests.support.tiny import write_checkpoint

SAMPLING = SequenceOptions(sequences=10, length_tokens=100, long_sequences=2)
END, PREFIX, MIDDLE, SUFFIX = range(4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path / "model", window=128))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i}.py").write_text("p" * 60)
    for i in range(20):
        (folder / f"{i}.js").write_text("j" * 60)
    for i in range(10):
        (folder / f"{i}.cc").write_text("c" * 30)
        (folder / f"{i}.hpp").write_text("c" * 30)
    return folder


def draw(
    checkpoint: Checkpoint, sources: Path, sampling: SequenceOptions = SAMPLING
) -> list[np.ndarray]:
    return draw_sequences(checkpoint, sources, sampling, 1)[0]


def test_lengths_go_past_the_window_and_not_past_the_context(checkpoint, sources):
    plain = SequenceOptions(10, 100, 2, infill_fraction=0.0)
    assert [len(ids) for ids in draw(checkpoint, sources, plain)] == [192] * 2 + [100] * 10
    for ids, longest in zip(draw(checkpoint, sources), [192] * 2 + [100] * 10, strict=True):
        assert longest - 20 < len(ids) <= longest
    longer = SequenceOptions(sequences=1, length_tokens=5000, long_sequences=1)
    assert longer.lengths(checkpoint) == [192, checkpoint.context_tokens]


def test_languages_take_turns_while_they_last(checkpoint, sources):
    tokenizer = read_letters(checkpoint)
    kinds = [Counter(tokenizer.get(i) for i in ids.tolist()) for ids in draw(checkpoint, sources)]
    main = [count.most_common(1)[0][0] for count in kinds]
    assert Counter(main) == {"p": 4, "j": 4, "c": 4}
    assert main[:3] == main[3:6] and len(set(main[:3])) == 3


def read_letters(checkpoint: Checkpoint) -> dict[int, str]:
    from tests.support.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    return {tokenizer.token_to_id(letter): letter for letter in "pjc"}


def test_half_of_the_sequences_are_arranged_for_filling_in(checkpoint, sources):
    drawn = draw(checkpoint, sources)
    arranged = [ids for ids in drawn if PREFIX in ids]
    assert len(arranged) == len(drawn) // 2
    for ids in arranged:
        control = [i for i in ids.tolist() if i <= SUFFIX]
        first = control[:4]
        assert first == [PREFIX, SUFFIX, MIDDLE, END]
        assert ids[0] == PREFIX
    plain = [ids for ids in drawn if PREFIX not in ids]
    assert all(set(ids[ids < 38].tolist()) <= {END} for ids in plain)
    assert not any(
        PREFIX in ids for ids in draw(checkpoint, sources, SequenceOptions(4, 100, 2, 0.0))
    )


def test_equal_seeds_give_equal_ids_and_others_do_not(checkpoint, sources):
    once, again = draw(checkpoint, sources), draw(checkpoint, sources)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    other = draw(checkpoint, sources, SequenceOptions(10, 100, 2, seed=1))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_a_text_is_drawn_once_and_its_end_is_the_last(checkpoint, tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "a.py").write_text("p" * 150)
    drawn = draw(checkpoint, folder, SequenceOptions(4, 100, 0, 0.0))
    assert [len(ids) for ids in drawn] == [100, 51]
    ids = np.concatenate(drawn)
    assert (ids[:-1] > 38).all() and ids[-1] == END


def test_the_hash_is_of_the_texts_and_their_languages(checkpoint, sources):
    before = sources_sha256(sources)
    assert draw_sequences(checkpoint, sources, SAMPLING, 1)[1] == before
    (sources / "0.py").rename(sources / "0.rb")
    assert sources_sha256(sources) != before
