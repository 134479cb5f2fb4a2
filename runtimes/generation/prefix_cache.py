"""Prefix reuse: which ids the KV cache of a backend holds, and the sequences saved beside it.

A backend knows only how many ids it has taken in. The prefix cache knows which, so that a request
reuses the longest prefix that it shares with the last request, or with a saved one. Knows nothing
of text or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtimes.backends.call_costs import RowCosts
from runtimes.contract import Backend, Saved

if TYPE_CHECKING:
    import numpy as np


MIN_SAVED_TOKENS = 64  # guessed: fewer are computed again as fast as they are copied


class PrefixCache:
    """Law: between calls the backend's state is that of a fresh one which took `ids` in.

    A call that was interrupted (an error of the engine, KeyboardInterrupt) leaves the cache dirty;
    the next `keep_prefix` then starts from nothing.

    in_groups: keep only full chunks that came in one call each, at a multiple of their length. A
    prompt then always comes in the same groups, whatever was there before. An engine whose rounding
    depends on the groups rounds alike.
    """

    def __init__(
        self, backend: Backend, in_groups: bool = False, costs: RowCosts | None = None
    ) -> None:
        self.costs = RowCosts() if costs is None else costs
        self.max_sequences = 1  # the one in the backend, and those that are saved beside it
        self._backend = backend
        self.in_groups = in_groups
        self._ids: list[int] = []
        self._grouped = 0  # how many of them came in full chunks
        self._dirty = False
        self._saved: list[tuple[list[int], Saved]] = []  # the least recently used first

    @property
    def ids(self) -> tuple[int, ...]:
        """What the backend holds, position by position."""
        return tuple(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def slack_tokens(self) -> int:
        """How many of the last ids can surely be forgotten, after any further `forward` too.

        A backend that frees slots in steps keeps at least a chunk's worth each time.
        """
        held = self._backend.position - self._backend.min_rewind
        return min(held, self._backend.chunk_tokens)

    @property
    def saved_tokens(self) -> tuple[int, ...]:
        """Lengths of the sequences that are saved beside the one in the backend."""
        return tuple(len(ids) for ids, _ in self._saved)

    def keep_prefix(self, wanted: Sequence[int]) -> int:
        """Forget all but the longest exact prefix of `wanted`; returns its length.

        The saved sequence that shares the longest prefix with `wanted` is loaded, if that is longer
        than the backend's own. What the backend held is saved where much of it would be lost. At
        least the last id of `wanted` is left out, since its logits are needed. Where the backend
        no longer has the keys that a shorter sequence needs, everything is forgotten.
        """
        if self.max_sequences > 1 and self._is_clean():
            self._switch(wanted)
        common = _common(self._ids, wanted)
        if self.in_groups:
            common = min(self._grouped, common - common % self._backend.chunk_tokens)
        if self._is_clean() and self._can_return_to(common):
            self.rewind(common)
        else:
            self.clear()
        return len(self._ids)

    def _switch(self, wanted: Sequence[int]) -> None:
        held = _common(self._ids, wanted)
        shared = [_common(ids, wanted) for ids, _ in self._saved]
        best = max(range(len(shared)), key=lambda i: (shared[i], i), default=None)
        if best is not None and shared[best] > held:
            ids, saved = self._saved.pop(best)
            self._save(held)
            self._dirty = True
            self._ids = []
            self._backend.load(saved)
            self._ids, self._grouped = ids, len(ids)
            self._dirty = False
        else:
            self._save(held)

    def _save(self, common: int) -> None:
        """Save what the backend holds, unless little but the first `common` ids are in it.

        The least recently used of the saved sequences are evicted.
        """
        kept = self._grouped if self.in_groups else len(self._ids)
        if kept - common < MIN_SAVED_TOKENS or common > kept // 2:
            return
        if self.in_groups:  # the rest would be computed again
            if not self._can_return_to(self._grouped):
                return
            self.rewind(self._grouped)
        saved = self._backend.save()
        if saved is not None:
            self._saved.append((list(self._ids), saved))
            del self._saved[: 1 - self.max_sequences]

    def _is_clean(self) -> bool:
        return not self._dirty and self._backend.position == len(self._ids)

    def clear(self) -> None:
        """Forget everything; always possible."""
        self.rewind(0)

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """As Backend.forward: at most `chunk_tokens` ids; logits (1 or T, vocab)."""
        self._dirty = True
        started_s = self.costs.clock()
        logits = self._backend.forward(ids, last_only)
        if len(ids) == len(logits):  # the head's work for all rows is part of what they take
            self.costs.learn(len(ids), self.costs.clock() - started_s)
        if self._grouped == len(self._ids) and len(ids) == self._backend.chunk_tokens:
            self._grouped += len(ids)
        self._ids += ids
        self._dirty = False
        return logits

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        self._dirty = True
        self._backend.rewind(position)
        del self._ids[position:]
        self._grouped = min(self._grouped, position - position % self._backend.chunk_tokens)
        self._dirty = False

    def _can_return_to(self, position: int) -> bool:
        at_end = position == self._backend.position
        return at_end or position >= self._backend.min_rewind


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many ids both begin with, not counting the last of `wanted`."""
    for i, (one, other) in enumerate(zip(held, wanted[:-1], strict=False)):
        if one != other:
            return i
    return max(0, min(len(held), len(wanted) - 1))
