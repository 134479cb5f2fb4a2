"""Prompt lookup: guess the next ids by finding where the last few occurred before.

Code repeats itself, so what followed last time often follows again (Saxena 2023, prompt lookup
decoding). A guess costs nothing to make; the runtime checks several in one forward call, and the
sampler itself chooses every id, so a guess can save time but never change a token. Knows nothing
of backends or logits.
"""

from __future__ import annotations

from collections.abc import Iterable

# Guessed, not measured: the length of a match that is worth trusting, longest first.
NGRAM_TOKENS = (3, 2)
FIRST_GUESS_TOKENS = 4  # guessed
MOST_GUESS_TOKENS = 16  # guessed; beyond it an engine on CPUs pays more than it saves
PATIENCE_GUESSES = 2  # guessed: fully wrong guesses in a row before resting
FIRST_REST_TOKENS = 16  # guessed; doubles each time that resting did not help
MOST_REST_TOKENS = 256  # guessed


class PromptLookup:
    """Proposes ids and learns from how many were right.

    Work per id is bounded: one table entry per n-gram length. After a guess that was right to the
    end the next one is twice as long, after one that was wrong half as long; after
    PATIENCE_GUESSES that were wrong from the first id it rests for a while, then for longer.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        """`ids` is the prompt; `append` adds what is generated."""
        self._ids: list[int] = []
        # n-gram -> place after its latest occurrence, for those that something follows
        self._after: dict[tuple[int, ...], int] = {}
        self._length = FIRST_GUESS_TOKENS
        self._misses = 0
        self._rest = 0
        self._next_rest = FIRST_REST_TOKENS
        for token_id in ids:
            self._remember(token_id)

    def append(self, token_id: int) -> None:
        """Take one generated id."""
        self._remember(token_id)
        self._rest = max(0, self._rest - 1)

    def propose(self, most: int) -> list[int]:
        """At most `most` ids that may come next; empty where nothing matches, or at rest."""
        if self._rest or most <= 0:
            return []
        for size in NGRAM_TOKENS:
            place = self._after.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if place is not None:
                return self._copy_from(place, min(self._length, most))
        return []

    def learn(self, proposed: int, right: int) -> None:
        """Say how many ids of the last proposal, from its start, were what came."""
        if proposed == 0:
            return
        if right == proposed:
            self._length = min(2 * self._length, MOST_GUESS_TOKENS)
        else:
            self._length = max(1, self._length // 2, right)
        if right:
            self._misses, self._next_rest = 0, FIRST_REST_TOKENS
            return
        self._misses += 1
        if self._misses >= PATIENCE_GUESSES:
            self._misses, self._rest = 0, self._next_rest
            self._next_rest = min(2 * self._next_rest, MOST_REST_TOKENS)

    def _remember(self, token_id: int) -> None:
        # The n-grams that end at the last id have something after them only now.
        place = len(self._ids)
        for size in NGRAM_TOKENS:
            if place >= size:
                self._after[tuple(self._ids[-size:])] = place
        self._ids.append(token_id)

    def _copy_from(self, place: int, count: int) -> list[int]:
        """`count` ids from `place` on; where they run out, what was copied goes on (a loop)."""
        period = len(self._ids) - place
        return [self._ids[place + i % period] for i in range(count)]
