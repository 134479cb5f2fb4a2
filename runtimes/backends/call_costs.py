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
# Guessed: how much longer than one row two take, where they were not timed. Measured: 1.0 to 1.95.
DOUBLING = 1.5
SAMPLES = 5  # simulated: of 1, 3, 5 and 9, fewer cost speed when one call in 50 is delayed
TRIALS = 2  # guessed: the first call of a size may be slower, since engines allocate then
STALE_CALLS = 1024  # simulated: 256 cost 2 % of the speed where guessing does not pay


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

    def estimates_s(self) -> Iterator[float]:
        """Seconds of a call of each of SIZES_ROWS; none where no single row was timed of late.

        What was not timed, or long ago, is hoped to grow as it does from one row to the sizes
        before it.
        """
        one_s = self._known_s(1)
        if one_s is None:
            return
        yield one_s
        found_s, growth = one_s, DOUBLING
        for doublings, rows in enumerate(SIZES_ROWS[1:], 1):
            known_s, found_s = self._known_s(rows), found_s * growth
            if known_s is not None:
                found_s = known_s if len(self._samples[rows]) >= TRIALS else min(known_s, found_s)
                growth = max(1.0, found_s / one_s) ** (1 / doublings)
            yield found_s

    def best_guess(self, chances: Iterator[float], most: int) -> int:
        """How many ids to guess, 0 to `most`: for the most ids a second that can be expected.

        chances: of each guess to be right if those before it were. Of g guesses that hold with
        chances c_1, c_2, ..., 1 + c_1 + c_1 c_2 + ... ids are expected.
        """
        best, best_rate = 0, 0.0
        expected, reached, guessed = 1.0, 1.0, 0
        for rows, cost_s in zip(SIZES_ROWS, self.estimates_s(), strict=False):
            if rows - 1 > most:
                break
            wanted = best_rate * cost_s
            # no further than it takes to see that too few can be right
            while guessed < rows - 1 and expected + reached * (rows - 1 - guessed) > wanted:
                reached *= next(chances)
                expected += reached
                guessed += 1
            if guessed == rows - 1 and expected > wanted:
                best, best_rate = guessed, expected / cost_s
        return best

    def _known_s(self, rows: int) -> float | None:
        return None if self._is_stale(rows) else self._usual_s.get(rows)

    def _is_stale(self, rows: int) -> bool:
        return self._calls - self._latest[rows] > STALE_CALLS
