"""The bookkeeping of a cache that slides, against a plain list of positions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.backends.own_cache.kv_slots import STEP, KvSlots, RingCache
from runtimes.contract import Window

STEPS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 40)), max_size=120)


@given(window=st.integers(1, 9), chunk=st.integers(1, 6), steps=STEPS)
@settings(deadline=None)
def test_cells_hold_what_the_next_position_sees(window, chunk, steps):
    slots = KvSlots(Window(window), 10_000, chunk)
    held = [-1] * slots.count  # the position in each slot

    def move(start: int, count: int) -> None:
        held[:count] = held[start : start + count]

    for new, back in steps:
        new = min(new, chunk)
        before = slots.first
        slots.free_slots(new, move)
        if slots.first > before:  # it moved: a chunk can be forgotten
            assert slots.position - slots.min_rewind >= chunk
        assert slots.first % STEP == 0
        for i in range(new):
            held[slots.filled + i] = slots.position + i
        slots.position += new
        assert slots.position - slots.min_rewind >= new  # and what was added, always
        seen = range(max(0, slots.position - window + 1), slots.position)
        assert held[slots.first_visible : slots.filled] == list(seen)
        target = max(0, slots.position - back)
        if target >= slots.min_rewind or target == 0:
            slots.rewind(target)
            seen = range(max(0, target - window + 1), target)
            assert held[slots.first_visible : slots.filled] == list(seen)


def test_an_interrupted_move_leaves_no_position():
    slots = KvSlots(Window(4), 100, 2)
    slots.position = slots.count

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slots.free_slots(1, interrupted)
    assert (slots.position, slots.min_rewind, slots.filled) == (0, 0, 0)


def test_without_a_window_everything_is_kept():
    slots = KvSlots(Window(None), 50, 8)
    slots.position = 50
    assert (slots.count, slots.min_rewind, slots.first_visible) == (50, 0, 0)


def test_the_ring_of_an_engine_keeps_nothing_past_the_window():
    ring = RingCache(Window(4), 100, 2)
    ring.position = 2
    assert (ring.count, ring.min_rewind) == (4, 0)
    ring.position = 3  # two more would be past the window, and could not be undone
    assert ring.min_rewind == 3
    ring.free_slots(2, lambda *_: pytest.fail("the engine makes room"))
    ring.position = 6
    assert ring.min_rewind == 6
