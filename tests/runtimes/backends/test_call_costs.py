"""What calls take: learned from those that were made, doubted when they were long ago."""

from __future__ import annotations

from itertools import repeat

import pytest

from runtimes.backends.call_costs import (
    DOUBLING,
    SAMPLES,
    SIZES_ROWS,
    STALE_CALLS,
    TRIALS,
    RowCosts,
)

SURE = repeat(1.0)
MOST = SIZES_ROWS[-1] - 1


def timed(seconds: dict[int, float]) -> RowCosts:
    costs = RowCosts(clock=lambda: 0.0)
    for rows, value in seconds.items():
        for _ in range(TRIALS):
            costs.learn(rows, value)
    return costs


def test_nothing_is_guessed_before_a_single_row_was_timed() -> None:
    assert timed({}).best_guess(SURE, MOST) == 0
    assert timed({4: 1.0}).best_guess(SURE, MOST) == 0
    assert timed({1: 1.0}).best_guess(SURE, MOST) == MOST


def known(costs: RowCosts) -> dict[int, float]:
    return dict(zip(SIZES_ROWS, costs.estimates_s(), strict=False))


def test_what_was_not_timed_is_hoped_to_grow_as_it_has() -> None:
    assert known(timed({})) == {} == known(timed({4: 1.0}))
    assert known(timed({1: 2.0})) == pytest.approx(
        {rows: 2.0 * DOUBLING**i for i, rows in enumerate(SIZES_ROWS)}
    )
    fourfold = timed({1: 2.0, 4: 8.0})  # so each doubling is one
    assert known(fourfold) == pytest.approx(
        {1: 2.0, 2: 2.0 * DOUBLING, 4: 8.0, 8: 16.0, 16: 32.0, 32: 64.0, 64: 128.0}
    )
    free = timed({1: 2.0, 2: 1.9})  # more rows are not hoped to take less
    assert known(free)[64] == pytest.approx(1.9)


def test_one_slow_call_is_not_believed() -> None:
    costs = timed({1: 1.0})
    costs.learn(2, 50.0)  # the first of its size: the engine may have made room for it
    assert known(costs)[2] == DOUBLING
    costs.learn(2, 1.2)
    assert known(costs)[2] == 1.2
    costs.learn(2, 1.3)
    costs.learn(2, 90.0)
    assert known(costs)[2] == 1.3


def test_a_machine_that_has_become_slower_is_noticed() -> None:
    costs = timed({1: 1.0})
    for _ in range(SAMPLES):
        costs.learn(1, 3.0)
    assert known(costs)[1] == 3.0


def test_a_size_that_was_dear_long_ago_gets_another_trial() -> None:
    costs = timed({1: 1.0, 2: 9.0})
    for _ in range(STALE_CALLS):
        assert costs.best_guess(SURE, 1) == 0
        costs.learn(1, 1.0)
    costs.learn(1, 1.0)
    assert costs.best_guess(SURE, 1) == 1
    costs.learn(2, 1.1)  # what it took before is forgotten
    costs.learn(2, 1.1)
    assert known(costs)[2] == 1.1


def test_a_single_row_is_timed_anew_too() -> None:
    costs = timed({1: 1.0, 2: 1.0})
    for _ in range(STALE_CALLS + 1):
        costs.learn(2, 1.0)
    assert costs.best_guess(SURE, 1) == 0


def test_other_sizes_say_nothing() -> None:
    costs = timed({1: 1.0, 3: 0.1, 512: 0.1})
    assert known(costs)[64] == pytest.approx(DOUBLING**6)
    costs.learn(1, 0.0)  # a clock that has not moved
    assert known(costs)[1] == 1.0


def test_the_length_is_the_one_with_the_most_ids_a_second() -> None:
    linear = timed({rows: 0.1 + 0.9 * rows for rows in SIZES_ROWS})
    assert linear.best_guess(repeat(0.5), MOST) == 0
    assert linear.best_guess(SURE, MOST) == MOST
    flat = timed(dict.fromkeys(SIZES_ROWS, 1.0))
    assert flat.best_guess(repeat(0.0), MOST) == 0
    assert flat.best_guess(repeat(0.5), 20) == 15
    steps = timed({1: 1.0, 2: 1.8, 4: 3.0, 8: 5.7, 16: 6.6, 32: 12.3, 64: 20.8})  # as measured
    assert [steps.best_guess(repeat(c), MOST) for c in (0.8, 0.95, 0.995)] == [0, 15, 63]


def test_no_more_chances_are_looked_at_than_fit() -> None:
    costs = timed(dict.fromkeys(SIZES_ROWS, 1.0))
    assert costs.best_guess(iter([1.0, 1.0, 1.0]), 3) == 3
    assert costs.best_guess(iter([]), 0) == 0
