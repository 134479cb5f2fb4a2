"""Prompt lookup: what it proposes, what it counts, when it pays, and that no id ever changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runtimes.backends.call_costs import SIZES_ROWS, TRIALS, RowCosts
from runtimes.generation.completion import GenerateOptions, join
from runtimes.generation.prompt_lookup import USUAL_CHANCES, USUAL_WEIGHT, PromptLookup
from runtimes.generation.sampling import Sampling
from tests.support.runtime_toys import (
    ToyBackend,
    looping_logits,
    runtime_over,
    toy_runtime,
    toy_tokenizer,
)


def costs(**seconds: float) -> RowCosts:
    """Every size timed twice: as long as one row, but for those named (r16=3.0)."""
    known = RowCosts(clock=lambda: 0.0)
    for rows in SIZES_ROWS:
        for _ in range(2):
            known.learn(rows, seconds.get(f"r{rows}", 1.0))
    return known


FREE = costs()


def test_it_proposes_what_followed_last_time() -> None:
    assert PromptLookup([1, 2, 3, 4, 5, 6, 9, 1, 2, 3]).propose(3, FREE) == [4, 5, 6]
    assert PromptLookup([1, 2, 3, 7, 7, 1, 2, 3, 8, 8, 1, 2, 3]).propose(1, FREE) == [8]
    assert PromptLookup([5, 2, 3, 4, 6, 2, 3]).propose(3, FREE) == [4, 6, 2]  # two ids will do


def test_three_ids_are_trusted_more_than_two_later_ones() -> None:
    assert PromptLookup([1, 2, 3, 4, 9, 2, 3, 8, 1, 2, 3]).propose(1, FREE) == [4]


def test_a_loop_goes_on() -> None:
    assert PromptLookup([1, 2, 1, 2, 1, 2]).propose(8, FREE) == [1, 2, 1, 2, 1, 2, 1]


def test_nothing_where_nothing_matches_or_nothing_fits() -> None:
    assert PromptLookup([]).propose(8, FREE) == []
    assert PromptLookup([1]).propose(8, FREE) == []
    assert PromptLookup([1, 2, 3, 4]).propose(8, FREE) == []
    assert PromptLookup([1, 2, 1, 2]).propose(0, FREE) == []
    assert PromptLookup([1, 2, 1, 2]).propose(-1, FREE) == []


def test_generated_ids_count_too() -> None:
    lookup = PromptLookup([1, 2])
    for token_id in [3, 4, 1, 2]:
        lookup.append(token_id)
    assert lookup.propose(1, FREE) == [3]


def test_a_place_that_is_right_is_followed_though_the_same_occurs_later() -> None:
    # 1 2 3 occurs at the start, and 3 4 later, with something else after it
    lookup = PromptLookup([1, 2, 3, 4, 5, 0, 9, 8, 3, 4, 7, 0, 1, 2, 3])
    lookup.append(4)
    assert lookup.propose(1, FREE) == [5]


def test_every_id_shows_what_a_guess_would_have_been_worth() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 1, 2])
    for token_id in [3, 4, 9, 9]:  # two as expected, after two and three ids; one not, after four
        lookup.append(token_id)
    assert lookup.counts == [(2, 2), (0, 1), (0, 0), (0, 0)]


def test_a_long_match_is_seen_as_one() -> None:
    first = list(range(20, 45))
    lookup = PromptLookup([*first, 0, *first[:20]])
    lookup.append(first[20])
    assert lookup.counts[-1] == (1, 1)


def test_guesses_are_as_long_as_they_have_been_right() -> None:
    dear = costs(r2=1.5, r4=2.5, r8=4.5, r16=8.5, r32=16.5, r64=32.5)
    text = [1, 2, *range(100, 400), 1, 2]
    lookup = PromptLookup(text)
    assert len(lookup.propose(99, dear)) == 0  # two ids are the same: an even chance
    lengths = []
    for token_id in text[2:302]:
        lookup.append(token_id)
        lengths.append(len(lookup.propose(99, dear)))
    assert lengths == sorted(lengths) and (lengths[0], lengths[-1]) == (1, 31)


def test_the_usual_chances_grow_with_the_match() -> None:
    assert list(USUAL_CHANCES) == sorted(USUAL_CHANCES)
    seen: list[float] = []

    class Spy(RowCosts):
        def best_guess(self, chances, most):
            seen.extend(next(chances) for _ in range(most))
            return 0

    lookup = PromptLookup([1, 2, 3, 4, 1, 2])
    lookup.propose(20, Spy())
    expected = [USUAL_CHANCES[0]] * 2 + [USUAL_CHANCES[1]] * 4 + [USUAL_CHANCES[2]] * 8
    assert seen == pytest.approx(expected + [USUAL_CHANCES[3]] * 6)
    lookup.append(9)
    lookup.append(1)
    lookup.append(2)
    lookup.propose(1, Spy())
    assert seen[-1] == pytest.approx(USUAL_CHANCES[0] * USUAL_WEIGHT / (USUAL_WEIGHT + 1))


# In the runtime


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_speculation_never_changes_an_id(
    tmp_path: Path, seed: int, temperature: float, penalty: float
) -> None:
    sampling = Sampling(temperature, top_p=0.9, repetition_penalty=penalty, seed=seed)
    options = GenerateOptions(60, sampling, logprobs=2, speculate=False)
    ids = [100 + i % 7 for i in range(20)]
    with_guesses, plain = (
        join(toy_runtime(tmp_path, looping_logits()).run(ids, each))
        for each in (dataclasses.replace(options, speculate=True), options)
    )
    assert with_guesses.ids == plain.ids
    assert with_guesses.text == plain.text
    assert with_guesses.logprobs == plain.logprobs
    assert with_guesses.finish.reason == plain.finish.reason


REPETITIVE = [100 + i % 7 for i in range(20)]


def calls(tmp_path: Path, extra_row_s: float, temperature: float = 0.0) -> list[int]:
    """Rows of each call after the prompt, for 150 ids of a model that likes to repeat itself."""
    backend = ToyBackend(looping_logits(), chunk_tokens=64)
    runtime = runtime_over(backend, toy_tokenizer(tmp_path), extra_row_s)
    options = GenerateOptions(150, Sampling(temperature=temperature))
    assert len(join(runtime.run(REPETITIVE, options)).ids) == 150
    return backend.calls[1:]


def test_it_pays_where_rows_are_cheap_and_text_repeats(tmp_path: Path) -> None:
    assert len(calls(tmp_path, extra_row_s=0.1)) < 20


def test_it_is_off_where_a_row_costs_as_much_as_a_call(tmp_path: Path) -> None:
    rows = calls(tmp_path, extra_row_s=1.1, temperature=0.8)
    # each size is tried as often as it takes to know it, and never again
    assert all(rows.count(size) <= TRIALS for size in SIZES_ROWS[1:])
    assert rows[-50:] == [1] * 50


def test_it_is_off_on_noise(tmp_path: Path) -> None:
    rows = calls(tmp_path, extra_row_s=0.5, temperature=4.0)
    assert sum(rows) < 150 * 1.05


def test_no_guess_is_longer_than_the_ring_can_undo(tmp_path: Path) -> None:
    runtime = runtime_over(
        ToyBackend(looping_logits(), chunk_tokens=8, slack_tokens=3), toy_tokenizer(tmp_path)
    )
    fresh = toy_runtime(tmp_path, looping_logits())
    ids = [100 + i % 7 for i in range(24)]  # three whole chunks
    for seed in range(4):
        hot = GenerateOptions(60, Sampling(temperature=0.7, seed=seed))
        plain = join(fresh.run(ids, dataclasses.replace(hot, speculate=False)))
        assert join(runtime.run(ids, hot)).ids == plain.ids
    assert 4 in runtime.backend.calls  # three guesses and the id before them
