"""Prompt lookup: what it proposes, when it keeps quiet, and that it never changes an id."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runtimes.completion import GenerateOptions, join
from runtimes.runtime import Runtime
from runtimes.sampling import Sampling
from runtimes.speculation import (
    FIRST_GUESS_TOKENS,
    FIRST_REST_TOKENS,
    MOST_GUESS_TOKENS,
    PATIENCE_GUESSES,
    PromptLookup,
)
from tests.runtime_toys import IDS, ToyBackend, looping_logits, toy_runtime, toy_tokenizer


def test_it_proposes_what_followed_last_time() -> None:
    assert PromptLookup([1, 2, 3, 4, 5, 6, 9, 1, 2, 3]).propose(8) == [4, 5, 6, 9]
    assert PromptLookup([1, 2, 3, 7, 7, 1, 2, 3, 8, 8, 1, 2, 3]).propose(2) == [8, 8]
    assert PromptLookup([5, 2, 3, 4, 6, 2, 3]).propose(8) == [4, 6, 2, 3]  # two ids will do


def test_three_ids_are_trusted_more_than_two_later_ones() -> None:
    assert PromptLookup([1, 2, 3, 4, 9, 2, 3, 8, 1, 2, 3]).propose(1) == [4]


def test_a_loop_goes_on() -> None:
    lookup = PromptLookup([1, 2, 1, 2, 1, 2])
    lookup.learn(4, 4)
    assert lookup.propose(99) == [1, 2] * 4


def test_nothing_where_nothing_matches_or_nothing_fits() -> None:
    assert PromptLookup([]).propose(8) == []
    assert PromptLookup([1]).propose(8) == []
    assert PromptLookup([1, 2, 3, 4]).propose(8) == []
    assert PromptLookup([1, 2, 1, 2]).propose(0) == []
    assert PromptLookup([1, 2, 1, 2]).propose(-1) == []


def test_generated_ids_count_too() -> None:
    lookup = PromptLookup([1, 2])
    for token_id in [3, 4, 1, 2]:
        lookup.append(token_id)
    assert lookup.propose(2) == [3, 4]


def test_the_length_follows_success() -> None:
    lookup = PromptLookup([1, 2] * 3)
    assert len(lookup.propose(99)) == FIRST_GUESS_TOKENS
    for _ in range(9):
        lookup.learn(FIRST_GUESS_TOKENS, FIRST_GUESS_TOKENS)
    assert len(lookup.propose(99)) == MOST_GUESS_TOKENS
    lookup.learn(MOST_GUESS_TOKENS, 3)
    assert len(lookup.propose(99)) == MOST_GUESS_TOKENS // 2


def rest_tokens(lookup: PromptLookup) -> int:
    """How many ids pass until it proposes again."""
    count = 0
    while not lookup.propose(1):
        lookup.append(1 + count % 2)
        count += 1
    return count


def test_it_rests_after_failures_then_longer() -> None:
    lookup = PromptLookup([1, 2] * 3)
    for expected in (FIRST_REST_TOKENS, 2 * FIRST_REST_TOKENS):
        for _ in range(PATIENCE_GUESSES):
            assert lookup.propose(1)
            lookup.learn(1, 0)
        assert rest_tokens(lookup) == expected
    lookup.learn(1, 1)
    for _ in range(PATIENCE_GUESSES):
        lookup.learn(1, 0)
    assert rest_tokens(lookup) == FIRST_REST_TOKENS


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
    assert with_guesses.finish_reason == plain.finish_reason


def test_speculation_pays_on_repetition_and_rests_on_noise(tmp_path: Path) -> None:
    ids = [100 + i % 7 for i in range(20)]
    options = GenerateOptions(max_tokens=60)
    looping = toy_runtime(tmp_path, looping_logits())
    join(looping.run(ids, options))
    assert len(looping.backend.calls) < 30  # 60 ids and three chunks of prompt
    hot = dataclasses.replace(options, sampling=Sampling(temperature=50.0), max_tokens=150)
    noisy = toy_runtime(tmp_path, looping_logits())
    join(noisy.run(ids, hot))
    assert sum(noisy.backend.calls) < 20 + 150 * 1.5


def test_no_guess_is_longer_than_the_ring_can_undo(tmp_path: Path) -> None:
    runtime = Runtime(
        ToyBackend(looping_logits(), chunk_tokens=8, slack_tokens=2), toy_tokenizer(tmp_path), IDS
    )
    ids = [100 + i % 7 for i in range(20)]
    fresh = toy_runtime(tmp_path, looping_logits())
    for seed in range(4):
        hot = GenerateOptions(60, Sampling(temperature=1.3, seed=seed))
        plain = join(fresh.run(ids, dataclasses.replace(hot, speculate=False)))
        assert join(runtime.run(ids, hot)).ids == plain.ids
    assert 3 in runtime.backend.calls  # two guesses and the id before them
