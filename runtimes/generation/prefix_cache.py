"""The ids that a backend holds, written down beside it.

A backend knows only how many ids it has taken in. The tape knows which, so that a request can
start where an earlier one agrees with it: the last one, or one of a few that were put aside when
another came. Knows nothing of text or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtimes.backends.call_costs import RowCosts
from runtimes.contract import Backend, Saved

if TYPE_CHECKING:
    import numpy as np


WORTH_TOKENS = 64  # guessed: fewer are computed again as fast as they are copied


class Tape:
    """Law: between calls the backend's state is that of a fresh one which took `ids` in.

    A call that was interrupted (an error of the engine, KeyboardInterrupt) leaves the tape torn;
    the next `keep_prefix` then starts from nothing.

    in_groups: keep whole chunks only that came in one call each, at a multiple of their length. A
    prompt that is taken in by whole chunks then always comes in the same groups, whatever was
    there before, and an engine whose rounding depends on them rounds alike.
    """

    def __init__(
        self, backend: Backend, in_groups: bool = False, costs: RowCosts | None = None
    ) -> None:
        self.costs = RowCosts() if costs is None else costs
        self.slots = 1  # how many sequences are remembered, the one in the backend included
        self._backend = backend
        self.in_groups = in_groups
        self._ids: list[int] = []
        self._grouped = 0  # how many of them came in whole chunks
        self._torn = False
        self._aside: list[tuple[list[int], Saved]] = []  # the least recently used first

    @property
    def ids(self) -> tuple[int, ...]:
        """What the backend holds, position by position."""
        return tuple(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def slack_tokens(self) -> int:
        """How many of the last ids can surely be forgotten, after any further `forward` too.

        A backend that makes room in steps keeps at least a chunk's worth each time.
        """
        held = self._backend.position - self._backend.min_rewind
        return min(held, self._backend.chunk_tokens)

    @property
    def aside_tokens(self) -> tuple[int, ...]:
        """Lengths of the sequences that are remembered beside the one in the backend."""
        return tuple(len(ids) for ids, _ in self._aside)

    def keep_prefix(self, wanted: Sequence[int]) -> int:
        """Forget all but the longest exact prefix of `wanted`; returns its length.

        Of the sequences that are remembered, the one that begins most like `wanted` is taken; what
        the backend held is put aside where much of it would be lost. At least the last id of
        `wanted` is left out, since its logits are needed. Where the ring has lost what a shorter
        sequence needs, everything is forgotten.
        """
        if self.slots > 1 and self._intact():
            self._exchange(wanted)
        common = _common(self._ids, wanted)
        if self.in_groups:
            common = min(self._grouped, common - common % self._backend.chunk_tokens)
        if self._intact() and self._can_return_to(common):
            self.rewind(common)
        else:
            self.clear()
        return len(self._ids)

    def _exchange(self, wanted: Sequence[int]) -> None:
        held = _common(self._ids, wanted)
        likeness = [_common(ids, wanted) for ids, _ in self._aside]
        best = max(range(len(likeness)), key=lambda i: (likeness[i], i), default=None)
        if best is not None and likeness[best] > held:
            ids, saved = self._aside.pop(best)
            self._put_aside(held)
            self._torn = True
            self._ids = []
            self._backend.load(saved)
            self._ids, self._grouped = ids, len(ids)
            self._torn = False
        else:
            self._put_aside(held)

    def _put_aside(self, common: int) -> None:
        """Remember what the backend holds, unless little but the first `common` ids are in it."""
        kept = self._grouped if self.in_groups else len(self._ids)
        if kept - common < WORTH_TOKENS or common > kept // 2:
            return
        if self.in_groups:  # the rest would be computed again
            if not self._can_return_to(self._grouped):
                return
            self.rewind(self._grouped)
        saved = self._backend.save()
        if saved is not None:
            self._aside.append((list(self._ids), saved))
            del self._aside[: 1 - self.slots]

    def _intact(self) -> bool:
        return not self._torn and self._backend.position == len(self._ids)

    def clear(self) -> None:
        """Forget everything; always possible."""
        self.rewind(0)

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Backend.forward, written down: at most `chunk_tokens` ids; logits (1 or T, vocab)."""
        self._torn = True
        started_s = self.costs.clock()
        logits = self._backend.forward(ids, last_only)
        if len(ids) == len(logits):  # the head's work for all rows is part of what they take
            self.costs.learn(len(ids), self.costs.clock() - started_s)
        if self._grouped == len(self._ids) and len(ids) == self._backend.chunk_tokens:
            self._grouped += len(ids)
        self._ids += ids
        self._torn = False
        return logits

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        self._torn = True
        self._backend.rewind(position)
        del self._ids[position:]
        self._grouped = min(self._grouped, position - position % self._backend.chunk_tokens)
        self._torn = False

    def _can_return_to(self, position: int) -> bool:
        at_end = position == self._backend.position
        return at_end or position >= self._backend.min_rewind


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many ids both begin with, the last of `wanted` aside."""
    for i, (one, other) in enumerate(zip(held, wanted[:-1], strict=False)):
        if one != other:
            return i
    return max(0, min(len(held), len(wanted) - 1))
