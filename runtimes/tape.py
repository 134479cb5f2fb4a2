"""The ids that a backend holds, written down beside it.

A backend knows only how many ids it has taken in. The tape knows which, so that a request can
start where the last one agrees with it. Knows nothing of text or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtimes.contract import Backend

if TYPE_CHECKING:
    import numpy as np


class Tape:
    """Law: between calls the backend's state is that of a fresh one which took `ids` in.

    A call that was interrupted (an error of the engine, KeyboardInterrupt) leaves the tape torn;
    the next `keep_prefix` then starts from nothing.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ids: list[int] = []
        self._torn = False

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
        held = self._backend.position - self._backend.kept_from
        return min(held, self._backend.chunk_tokens)

    def keep_prefix(self, wanted: Sequence[int]) -> int:
        """Forget all but the longest exact prefix of `wanted`; returns its length.

        At least the last id of `wanted` is left out, since its logits are needed. Where the ring
        has lost what a shorter sequence needs, everything is forgotten.
        """
        common = 0
        for held, new in zip(self._ids, wanted[:-1], strict=False):
            if held != new:
                break
            common += 1
        intact = not self._torn and self._backend.position == len(self._ids)
        if intact and self._can_return_to(common):
            self.rewind(common)
        else:
            self.clear()
        return len(self._ids)

    def clear(self) -> None:
        """Forget everything; always possible."""
        self.rewind(0)

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Backend.forward, written down: at most `chunk_tokens` ids; logits (1 or T, vocab)."""
        self._torn = True
        logits = self._backend.forward(ids, last_only)
        self._ids += ids
        self._torn = False
        return logits

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        self._torn = True
        self._backend.rewind(position)
        del self._ids[position:]
        self._torn = False

    def _can_return_to(self, position: int) -> bool:
        at_end = position == self._backend.position
        return at_end or position >= self._backend.kept_from
