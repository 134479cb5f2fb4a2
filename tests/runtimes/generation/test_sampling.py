"""Choosing an id: each option on a distribution small enough to check by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtimes.errors import Cancelled, DeviceError, UsageError
from runtimes.generation.completion import GenerateOptions
from runtimes.generation.sampling import GREEDY, Sampler, Sampling, log_sum_exp, token_logprobs
from tests.support.runtime_toys import random_logits, toy_runtime

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=5)


def frequencies(sampling: Sampling, logits: np.ndarray = LOGITS, draws: int = 4000) -> np.ndarray:
    sampler = Sampler(sampling, [], logits.size)
    picked = [sampler.pick(logits) for _ in range(draws)]
    return np.bincount(picked, minlength=logits.size) / draws


def support(**options: float) -> set[int]:
    """Ids that are ever drawn at temperature 1."""
    return set(np.flatnonzero(frequencies(Sampling(temperature=1, **options))).tolist())


def test_greedy_is_the_default_and_takes_the_first_of_equals() -> None:
    assert Sampler(GREEDY, [], 5).pick(LOGITS) == 1
    assert Sampler(GREEDY, [], 3).pick(np.zeros(3, np.float32)) == 0
    filters = Sampling(top_k=1, top_p=0.1, min_p=0.9, seed=3)
    assert Sampler(filters, [], 5).pick(LOGITS) == 1


def test_temperature_one_draws_the_distribution() -> None:
    assert np.abs(frequencies(Sampling(temperature=1)) - PROBABILITIES).max() < 0.03


def test_temperature_sharpens_and_flattens() -> None:
    squared = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert np.abs(frequencies(Sampling(temperature=0.5)) - squared).max() < 0.03
    assert frequencies(Sampling(temperature=1e-4))[1] == 1  # no overflow on the way to greedy
    assert np.abs(frequencies(Sampling(temperature=1e6)) - 0.2).max() < 0.03


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_k": -1, "top_p": -1, "min_p": -1}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.8}, {1, 3, 4}),
        ({"min_p": 0.37}, {1, 3, 4}),
        ({"min_p": 1.0}, {1}),
        # top-k first: of its two ids, 0.4 / 0.7 is more than half, so the nucleus is one id
        ({"top_k": 2, "top_p": 0.55}, {1}),
    ],
)
def test_filters_keep_what_they_say(options: dict, expected: set[int]) -> None:
    assert support(**options) == expected


def test_temperature_comes_before_top_p() -> None:
    """At 0.5 the likeliest has 0.16 / 0.285 = 0.56 of the mass, so it alone reaches 0.55."""
    kept = frequencies(Sampling(temperature=0.5, top_p=0.55))
    assert kept[1] == 1


def test_top_p_agrees_with_a_plain_sort_on_a_real_vocabulary() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 49_152).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    order = np.argsort(-weights)
    nucleus = order[: np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum()) + 1]
    drawn = np.flatnonzero(frequencies(Sampling(temperature=1, top_p=0.5), logits, draws=300))
    assert set(drawn.tolist()) <= set(nucleus.tolist())
    assert len(drawn) > 100


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.array([2.0, 1.5, -0.5, -0.4], np.float32)
    assert Sampler(Sampling(repetition_penalty=1.5), [0], 4).pick(logits) == 1
    assert Sampler(Sampling(repetition_penalty=1.5), [3], 4).pick(logits[2:].repeat(2)) == 2
    sampler = Sampler(Sampling(repetition_penalty=1.5), [], 4)
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 0]  # its own choices count too
    assert logits.tolist() == np.array([2.0, 1.5, -0.5, -0.4], np.float32).tolist()


def test_a_seed_fixes_the_choices_for_ever() -> None:
    sampler = Sampler(Sampling(temperature=1, seed=7), [], 5)
    again = Sampler(Sampling(temperature=1, seed=7), [], 5)
    other = Sampler(Sampling(temperature=1, seed=8), [], 5)
    first = [sampler.pick(LOGITS) for _ in range(20)]
    assert first == [again.pick(LOGITS) for _ in range(20)]
    assert first != [other.pick(LOGITS) for _ in range(20)]
    assert first[:8] == [3, 4, 3, 1, 1, 4, 0, 3]  # a golden: other numpy versions must agree


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_p": 1.1},
        {"top_p": -0.5},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_values_out_of_range_are_named(options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(DeviceError, match="not numbers"):
        Sampler(GREEDY, [], 3).pick(np.array([0, bad, 1], np.float32))


def test_logprobs_are_of_the_unchanged_distribution() -> None:
    entry = token_logprobs(LOGITS + 100, 2, top=3)
    assert entry.id == 2
    assert math.isclose(entry.logprob, math.log(0.05), abs_tol=1e-4)
    assert [token_id for token_id, _ in entry.top] == [1, 3, 4]
    assert np.allclose([math.exp(value) for _, value in entry.top], [0.4, 0.3, 0.15], atol=1e-4)
    assert token_logprobs(LOGITS, 0).top == ()
    assert len(token_logprobs(LOGITS, 0, top=99).top) == 5
    assert math.isclose(log_sum_exp(np.array([1000.0, 1000.0])), 1000 + math.log(2))


# In the runtime


def test_logprobs_are_those_of_the_logits(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path)
    options = GenerateOptions(12, SAMPLED, logprobs=3)
    done = runtime.generate("abc", options)
    assert [entry.id for entry in done.logprobs] == list(done.ids)
    sequence = [*runtime.tokenizer.encode("abc"), *done.ids]
    scores = runtime.score(sequence)
    assert np.allclose([entry.logprob for entry in done.logprobs], scores[-len(done.ids) :])
    for entry in done.logprobs:
        values = [value for _, value in entry.top]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert entry.logprob <= values[0]
    assert runtime.generate("abc", GenerateOptions(12)).logprobs == ()
    bare = runtime.generate("abc", GenerateOptions(12, logprobs=0)).logprobs
    assert len(bare) == 12 and bare[0].top == ()


def test_score_does_not_depend_on_chunks(tmp_path: Path) -> None:
    ids = [100 + i % 50 for i in range(30)]
    scores = toy_runtime(tmp_path, chunk_tokens=7).score(ids)
    logits = random_logits()
    for i in range(1, 30):
        row = logits(i - 1, ids[max(0, i - 6) : i]).astype(np.float64)
        assert np.isclose(scores[i - 1], row[ids[i]] - log_sum_exp(row))
    assert toy_runtime(tmp_path).score([100]).shape == (0,)


def test_a_seed_gives_the_same_answer_and_another_seed_another(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, random_logits(spread=0.3))
    one, same, other = (
        runtime.generate("abc", GenerateOptions(12, replace(SAMPLED, seed=seed))).ids
        for seed in (5, 5, 6)
    )
    assert one == same != other


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    logits = np.array([0.0, 3.0, 2.5, 1.0], np.float32)
    once = Sampler(Sampling(presence_penalty=1.0), [1, 1, 1], 4)
    assert [once.pick(logits) for _ in range(4)] == [1, 2, 1, 1]
    each = Sampler(Sampling(frequency_penalty=1.0), [1, 1, 1], 4)
    assert [each.pick(logits) for _ in range(4)] == [1, 2, 1, 2]
    assert logits.tolist() == [0.0, 3.0, 2.5, 1.0]  # left as they were


def test_token_scores_have_the_likeliest_beside_them(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path)
    ids = list(range(100, 120))
    entries = runtime.token_scores(ids, top=3)
    assert [entry.id for entry in entries] == ids[1:]
    assert all(len(entry.top) == 3 and entry.top[0][1] >= entry.logprob for entry in entries)
    assert np.allclose([entry.logprob for entry in entries], runtime.score(ids))
    with pytest.raises(Cancelled):
        runtime.token_scores(ids, cancelled=lambda: True)
