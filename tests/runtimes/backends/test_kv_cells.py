"""The bookkeeping of a cache that slides, against a plain list of positions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.backends.own_cache.kv_cells import STEP, Cells, EngineRing
from runtimes.contract import Window

STEPS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 40)), max_size=120)


@given(window=st.integers(1, 9), chunk=st.integers(1, 6), steps=STEPS)
@settings(deadline=None)
def test_cells_hold_what_the_next_position_sees(window, chunk, steps):
    cells = Cells(Window(window), 10_000, chunk)
    held = [-1] * cells.count  # the position in each cell

    def move(start: int, count: int) -> None:
        held[:count] = held[start : start + count]

    for new, back in steps:
        new = min(new, chunk)
        before = cells.first
        cells.make_room(new, move)
        if cells.first > before:  # it moved: a chunk can be forgotten
            assert cells.position - cells.kept_from >= chunk
        assert cells.first % STEP == 0
        for i in range(new):
            held[cells.filled + i] = cells.position + i
        cells.position += new
        assert cells.position - cells.kept_from >= new  # and what was added, always
        seen = range(max(0, cells.position - window + 1), cells.position)
        assert held[cells.needed : cells.filled] == list(seen)
        target = max(0, cells.position - back)
        if target >= cells.kept_from or target == 0:
            cells.rewind(target)
            seen = range(max(0, target - window + 1), target)
            assert held[cells.needed : cells.filled] == list(seen)


def test_an_interrupted_move_leaves_no_position():
    cells = Cells(Window(4), 100, 2)
    cells.position = cells.count

    def interrupted(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.make_room(1, interrupted)
    assert (cells.position, cells.kept_from, cells.filled) == (0, 0, 0)


def test_without_a_window_everything_is_kept():
    cells = Cells(Window(None), 50, 8)
    cells.position = 50
    assert (cells.count, cells.kept_from, cells.needed) == (50, 0, 0)


def test_the_ring_of_an_engine_keeps_nothing_past_the_window():
    ring = EngineRing(Window(4), 100, 2)
    ring.position = 2
    assert (ring.count, ring.kept_from) == (4, 0)
    ring.position = 3  # two more would be past the window, and could not be undone
    assert ring.kept_from == 3
    ring.make_room(2, lambda *_: pytest.fail("the engine makes room"))
    ring.position = 6
    assert ring.kept_from == 6
