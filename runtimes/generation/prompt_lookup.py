"""Prompt lookup: guess the next ids by finding where the last few occurred before.

Code repeats itself, so what followed last time often follows again (Saxena 2023, prompt lookup
decoding). A guess costs nothing to make; the runtime checks several in one forward call, and the
sampler itself chooses every id, so a guess can save time but never change a token. Each id that
comes shows whether it would have been guessed, also while nothing is: so guessing stops by itself
where it does not pay, and starts again where it would (backends/call_costs.py). Knows nothing of
backends or logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runtimes.backends.call_costs import RowCosts

# Tried on 105 edits: with 8 and 4 as well, with 1, or with the place after a wrong id where nothing
# matches, nothing was won (log of benchmarks).
NGRAM_TOKENS = (3, 2)
# How often the next id was the one that followed before, by how many ids before it were the same:
# 2 or 3, 4 to 7, 8 to 15, 16 or more. Measured on 49 files of code in StarCoder2's tokens, each
# looked up in itself.
USUAL_CHANCES = (0.44, 0.63, 0.77, 0.89)
LONGEST_MATCH_TOKENS = 16
USUAL_WEIGHT = 8  # fitted on those and on the edits: as if so many of each kind had been seen


class PromptLookup:
    """Proposes ids, and counts how often it would have been right.

    Work per id is bounded. A place that was right is followed until it is wrong; then the latest
    one is looked for at which the last ids, as many as can be of NGRAM_TOKENS, occurred before.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        """`ids` is the prompt; `append` adds what is generated."""
        self._ids: list[int] = []
        # n-gram -> place after its latest occurrence, for those that something follows
        self._after: dict[tuple[int, ...], int] = {}
        self._right = [0] * len(USUAL_CHANCES)
        self._seen = [0] * len(USUAL_CHANCES)
        for token_id in ids:
            self._remember(token_id)
        self._place: int | None = None  # of the id that is expected next
        self._matched = 0  # how many ids before it are those that came last
        self._find()

    def append(self, token_id: int) -> None:
        """Take one generated id."""
        if self._place is not None:
            right = self._ids[self._place] == token_id
            self._right[_kind(self._matched)] += right
            self._seen[_kind(self._matched)] += 1
            self._place = self._place + 1 if right else None
            self._matched += 1
        self._remember(token_id)
        if self._place is None:
            self._find()

    def propose(self, most: int, costs: RowCosts) -> list[int]:
        """At most `most` ids that may come next; none where nothing matches, or it does not pay."""
        if self._place is None or most <= 0:
            return []
        return self._copy_from(self._place, costs.best_guess(self._chances(), most))

    @property
    def counts(self) -> list[tuple[int, int]]:
        """How many ids were as expected, of how many, by the kinds of USUAL_CHANCES."""
        return list(zip(self._right, self._seen, strict=True))

    def _chances(self) -> Iterator[float]:
        """Of each id from the expected one on, to be right where those before it were."""
        chances = [
            (right + USUAL_WEIGHT * usual) / (seen + USUAL_WEIGHT)
            for right, seen, usual in zip(self._right, self._seen, USUAL_CHANCES, strict=True)
        ]
        matched = self._matched
        while True:
            yield chances[_kind(matched)]
            matched += 1

    def _remember(self, token_id: int) -> None:
        # The n-grams that end at the last id have something after them only now.
        place = len(self._ids)
        for size in NGRAM_TOKENS:
            if place >= size:
                self._after[tuple(self._ids[-size:])] = place
        self._ids.append(token_id)

    def _find(self) -> None:
        for size in NGRAM_TOKENS:
            place = self._after.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if place is not None:
                self._place, self._matched = place, self._common_before(place, size)
                return

    def _common_before(self, place: int, known: int) -> int:
        """How many ids before `place` are the last ones, up to LONGEST_MATCH_TOKENS."""
        ids, count = self._ids, known
        most = min(LONGEST_MATCH_TOKENS, place)
        while count < most and ids[place - count - 1] == ids[-count - 1]:
            count += 1
        return count

    def _copy_from(self, place: int, count: int) -> list[int]:
        """`count` ids from `place` on; where they run out, the copied ids repeat."""
        period = len(self._ids) - place
        return [self._ids[place + i % period] for i in range(count)]


def _kind(matched: int) -> int:
    """Index into USUAL_CHANCES: 2 or 3, 4 to 7, 8 to 15, 16 ids or more."""
    return min(matched.bit_length() - 2, len(USUAL_CHANCES) - 1)
