"""How few tokens a text can have, by the vocabulary alone: what cannot fit is not tokenised.

A byte lies in one token, and no longer one than the longest that has such a byte. So each byte is
worth at least one part in so many of a token, and the parts of a text add up to a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

ROUNDING = 1e-3  # tokens; guessed: far above the error of a sum of millions of float64 parts


class TokenBound:
    """The bound of one vocabulary."""

    def __init__(self, tokens: Iterable[bytes]) -> None:
        """`tokens`: the bytes of every token that a text can become."""
        bytes_of: dict[int, set[int]] = {}  # by the length of the token
        for token in tokens:
            bytes_of.setdefault(len(token), set()).update(token)
        longest = [0] * 256
        for length in sorted(bytes_of):
            for byte in bytes_of[length]:
                longest[byte] = length
        # a byte that no token has cannot be said at all, so it adds nothing to the bound
        self._parts = np.array([1 / length if length else 0.0 for length in longest])

    def min_tokens(self, data: bytes) -> int:
        """A text of these bytes has at least so many tokens."""
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        return _whole(float(counts @ self._parts))

    def head_bytes(self, data: bytes, tokens: int) -> int:
        """The longest start of `data` that may be of so many tokens; no longer one can be."""
        return self._reach(np.frombuffer(data, np.uint8), tokens)

    def tail_bytes(self, data: bytes, tokens: int) -> int:
        """The longest end of `data` that may be of so many tokens; no longer one can be."""
        return self._reach(np.frombuffer(data, np.uint8)[::-1], tokens)

    def _reach(self, data: np.ndarray, tokens: int) -> int:
        sums = np.cumsum(self._parts[data])
        return int(np.searchsorted(sums, max(0, tokens) + ROUNDING, side="right"))


def _whole(tokens: float) -> int:
    return int(np.ceil(tokens - ROUNDING))
