"""What a forward call of so many rows takes here, by timing each; and how many rows pay.

On a GPU several rows cost about as much as one, on a CPU nearly as many times one, and it depends
on engine, recipe, threads and depth. So it is measured while it happens. Knows nothing of ids.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

Clock = Callable[[], float]
"""clock() in seconds, from any point in time on."""

# Few sizes, so that each is timed often. Measured: llama.cpp's products on AVX-512 are made of
# whole sixteens (16 rows of StarCoder2-3B in Q4_K_M take less time than 12), and 64 rows, the most
# of which each gave something, are still 3 times as fast as one at a time.
SIZES_ROWS = (1, 2, 4, 8, 16, 32, 64)
# Guessed for a size that has not been timed: how much longer it takes than half of it. Measured on
# the engines here: 1.15 to 1.98. Low, so that it is tried where guesses are good.
DOUBLING = 1.5
SAMPLES = 5  # guessed: their median stands for a size, so that one delayed call does not count
TRIALS = 2  # measured: the first call of a size may be slower, since engines allocate then
STALE_CALLS = 256  # guessed: after so many others, a size is worth another trial


class RowCosts:
    """Seconds of a call, by its rows."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self._calls = 0
        self._samples = {rows: deque[float](maxlen=SAMPLES) for rows in SIZES_ROWS}
        self._usual_s: dict[int, float] = {}  # the median of the samples
        self._latest = dict.fromkeys(SIZES_ROWS, 0)  # the call that timed it last

    def learn(self, rows: int, seconds: float) -> None:
        """Take the time of one call; of other sizes than SIZES_ROWS nothing is kept."""
        self._calls += 1
        samples = self._samples.get(rows)
        if samples is None or seconds <= 0:  # a clock that is too coarse says nothing
            return
        if self._is_stale(rows):
            samples.clear()
        samples.append(seconds)
        self._usual_s[rows] = sorted(samples)[(len(samples) - 1) // 2]
        self._latest[rows] = self._calls

    def estimate_s(self, rows: int) -> float | None:
        """Seconds of a call of SIZES_ROWS; None where none was timed that says anything about it.

        What was not timed, or long ago, is taken to be cheap.
        """
        found = None
        for size in SIZES_ROWS[: SIZES_ROWS.index(rows) + 1]:
            found = self._estimate_s(size, found)
        return found

    def best_guess(self, chances: Iterator[float], most: int) -> int:
        """How many ids to guess, 0 to `most`: for the most ids a second that can be expected.

        chances: of each guess to be right if those before it were. Of g guesses that hold with
        chances c_1, c_2, ..., 1 + c_1 + c_1 c_2 + ... ids are expected.
        """
        cost_s = self._estimate_s(1, None)
        if cost_s is None:
            return 0
        best, best_rate = 0, 1 / cost_s
        expected, reached, guessed = 1.0, 1.0, 0
        for rows in SIZES_ROWS[1:]:
            if rows - 1 > most:
                break
            cost_s = self._estimate_s(rows, cost_s)
            wanted = best_rate * cost_s
            # no further than it takes to see that too few can be right
            while guessed < rows - 1 and expected + reached * (rows - 1 - guessed) > wanted:
                reached *= next(chances)
                expected += reached
                guessed += 1
            if guessed == rows - 1 and expected > wanted:
                best, best_rate = guessed, expected / cost_s
        return best

    def _estimate_s(self, rows: int, half_s: float | None) -> float | None:
        """As estimate_s, where half as many rows are known to take `half_s`."""
        hoped_s = None if half_s is None else DOUBLING * half_s
        usual_s = self._usual_s.get(rows)
        if usual_s is None or self._is_stale(rows):
            return hoped_s
        if hoped_s is not None and len(self._samples[rows]) < TRIALS:
            return min(usual_s, hoped_s)
        return usual_s

    def _is_stale(self, rows: int) -> bool:
        return self._calls - self._latest[rows] > STALE_CALLS
