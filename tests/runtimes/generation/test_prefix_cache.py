"""Several sequences beside one backend: the one that begins most like a request is gone on with."""

from __future__ import annotations

import random

import pytest

from runtimes.generation import prefix_cache as module
from runtimes.generation.prefix_cache import PrefixCache
from tests.support.runtime_toys import ToyBackend, random_logits

A, B, C = ([100 + i for i in range(40)], [40 + i for i in range(40)], [7] * 40)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "MIN_SAVED_TOKENS", 4)


def make(sequences: int, window: int = 6) -> PrefixCache:
    cache = PrefixCache(ToyBackend(random_logits(window=window), window=window, chunk_tokens=8))
    cache.max_sequences = sequences
    return cache


def ask(cache: PrefixCache, wanted: list[int]) -> int:
    """Take a prompt in as a request does; returns how much of it was there already."""
    kept = done = cache.keep_prefix(wanted)
    while done < len(wanted):
        cache.forward(wanted[done : done + 8])
        done = len(cache)
    return kept


def test_clients_that_take_turns_each_go_on_where_they_were():
    cache = make(sequences=2)
    assert ask(cache, A) == 0 and ask(cache, B) == 0
    for more in range(1, 4):
        assert ask(cache, A + [50] * more) == len(A) + more - 1
        assert ask(cache, B + [50] * more) == len(B) + more - 1
    assert len(cache.saved_tokens) == 1


def test_one_slot_remembers_the_last_one_alone():
    cache = make(sequences=1)
    ask(cache, A)
    assert ask(cache, B) == 0 and ask(cache, [*A, 1]) == 0
    assert cache.saved_tokens == ()


def test_the_least_recently_used_one_goes_first():
    cache = make(sequences=2)
    for prompt in (A, B, C):
        ask(cache, prompt)
    assert ask(cache, [*B, 1]) == len(B)
    assert ask(cache, [*A, 1]) == 0


def test_little_is_not_worth_a_copy():
    cache = make(sequences=3)
    ask(cache, A)
    ask(cache, [*A[:38], 1, 2, 3])  # the same text, edited at its end
    ask(cache, [1, 2])
    ask(cache, B)  # what was there has two ids
    assert cache.saved_tokens == (41,)


def test_a_backend_that_cannot_copy_is_asked_for_nothing_more():
    cache = make(sequences=3)
    cache._backend.save = lambda: None
    ask(cache, A)
    assert ask(cache, B) == 0 and ask(cache, [*A, 1]) == 0


def test_a_failed_load_leaves_nothing_half_known():
    cache = make(sequences=2)
    ask(cache, A)
    ask(cache, B)

    def fail(_saved):
        cache._backend.rewind(0)
        raise RuntimeError("no")

    cache._backend.load = fail
    with pytest.raises(RuntimeError):
        ask(cache, [*A, 1])
    assert ask(cache, [*B, 1]) == 0
    assert cache.ids == (*B, 1)


def test_any_order_of_requests_gives_what_a_fresh_backend_gives():
    rng = random.Random(3)
    cache = make(sequences=3)
    fresh = make(sequences=1)
    reused = 0
    for _ in range(200):
        prompt = rng.choice([A, B, C, A[:20] + B])[: rng.randint(1, 60)]
        prompt = prompt + [rng.randint(40, 50) for _ in range(rng.randint(0, 3))]
        kept = cache.keep_prefix(prompt)
        reused += kept
        assert list(cache.ids) == prompt[:kept] and kept < len(prompt)
        while len(cache) < len(prompt):
            found = cache.forward(prompt[len(cache) : len(cache) + 8])
        fresh.clear()
        while len(fresh) < len(prompt):
            expected = fresh.forward(prompt[len(fresh) : len(fresh) + 8])
        assert (found[-1] == expected[-1]).all()
    assert reused > 2000


def test_what_was_generated_alone_pushes_nothing_out():
    cache = PrefixCache(
        ToyBackend(random_logits(window=6), window=6, chunk_tokens=8), in_groups=True
    )
    cache.max_sequences = 2
    ask(cache, A)
    ask(cache, B[:4])
    for i in range(30):
        cache.forward([40 + i])
    assert ask(cache, [*C, 1]) == 0
    assert cache.saved_tokens == (40,)
    assert ask(cache, [*A, 1]) == 40


class RoundingByGroup(ToyBackend):
    """An engine whose every position keeps a trace of the call that it came in."""

    def forward(self, ids, last_only=True):
        group = self.position, len(ids)
        self.groups = [*self.groups[: self.position], *[group] * len(ids)]
        return super().forward(ids, last_only) + hash(tuple(self.groups[-6:])) % 1000 / 1000

    groups: tuple[tuple[int, int], ...] = ()

    def save(self):
        return super().save(), self.groups

    def load(self, saved):
        state, self.groups = saved
        super().load(state)


@pytest.mark.parametrize("in_groups", [True, False])
def test_whole_groups_alone_are_kept_for_an_engine_that_rounds_by_them(in_groups):
    rng = random.Random(4)
    logits = random_logits(window=6)
    cache, fresh = (
        PrefixCache(RoundingByGroup(logits, window=6, chunk_tokens=8), in_groups) for _ in range(2)
    )
    cache.max_sequences = 3
    reused = different = 0
    for _ in range(200):
        prompt = rng.choice([A, B, C, A[:20] + B])[: rng.randint(1, 60)]
        prompt = prompt + [rng.randint(40, 50) for _ in range(rng.randint(0, 3))]
        reused += cache.keep_prefix(prompt)
        fresh.clear()
        answers = []
        for of in (cache, fresh):
            while len(of) < len(prompt):
                row = of.forward(prompt[len(of) : len(of) + 8])
            answers.append([row, of.forward([50]), of.forward([51])])
        different += any((a != b).any() for a, b in zip(*answers, strict=True))
    assert reused > 1000
    assert (different == 0) == in_groups
