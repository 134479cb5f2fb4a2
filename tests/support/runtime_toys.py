"""A model of a few numbers behind the backend contract, strict where real engines are lax.

Its logits are a fixed function of the last `window` ids. It keeps those ids in a ring of
window - 1 + slack cells, each with the position it was written for, and reads them back from
there: a rewind that the contract forbids fails loudly instead of giving other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from runtimes.contract import BackendOptions, MemoryUse, SpecialIds, Window
from runtimes.errors import RewindError
from runtimes.generation.runtime import Runtime
from runtimes.prompts.tokenizer import Tokenizer
from tests.support.tiny import TOKENS, tiny_tokenizer

IDS = SpecialIds()
Logits = Callable[[int, Sequence[int]], np.ndarray]
"""logits(position, ids of the window up to it) -> float32 (vocab,)."""


class ToyBackend:
    """The contract, with a ring."""

    def __init__(
        self,
        logits: Logits,
        window: int = 6,
        context_tokens: int = 200,
        chunk_tokens: int = 8,
        slack_tokens: int | None = None,
    ) -> None:
        self.window = Window(window)
        self.vocab_size = TOKENS
        self.context_tokens = context_tokens
        self.chunk_tokens = chunk_tokens
        slack = chunk_tokens if slack_tokens is None else slack_tokens
        self._ring = [(-1, -1)] * (window - 1 + slack)  # (position, id)
        self._logits = logits
        self._written = 0  # positions below this have been written since the last rewind to 0
        self.position = 0
        self.calls: list[int] = []  # ids per forward
        self.closed = False
        self.within_forward: Callable[[], None] = lambda: None  # after the first id is in

    @property
    def min_rewind(self) -> int:
        lost = max(0, self._written - len(self._ring))  # positions below this are gone
        return lost + self.window.size_tokens - 1 if lost else 0

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        assert not self.closed and 0 < len(ids) <= self.chunk_tokens
        assert self.position + len(ids) <= self.context_tokens
        self.calls.append(len(ids))
        rows = []
        for token_id in ids:
            self._ring[self.position % len(self._ring)] = (self.position, token_id)
            rows.append(self._logits(self.position, self._window_ids()))
            self.position += 1
            self._written = max(self._written, self.position)
            if len(rows) == 1:
                self.within_forward()
        return np.stack(rows[-1:] if last_only else rows)

    def _window_ids(self) -> list[int]:
        first = max(0, self.position - self.window.size_tokens + 1)
        ids = []
        for position in range(first, self.position + 1):
            written_for, token_id = self._ring[position % len(self._ring)]
            assert written_for == position, "the ring has lost a key that the window needs"
            ids.append(token_id)
        return ids

    def rewind(self, position: int) -> None:
        assert 0 <= position <= self.position
        if position == 0:
            self._ring = [(-1, -1)] * len(self._ring)
            self._written = 0
        elif position < self.min_rewind and position != self.position:
            raise RewindError("the ring has lost it")
        self.position = position

    def save(self) -> object:
        return self.position, self._written, list(self._ring)

    def load(self, saved: object) -> None:
        self.position, self._written, ring = saved
        self._ring = list(ring)

    def memory_bytes(self) -> MemoryUse:
        return MemoryUse(1, 2, 3)

    def describe(self) -> dict[str, str]:
        return {"engine": "toy"}

    def close(self) -> None:
        self.closed = True


def random_logits(seed: int = 0, window: int = 6, spread: float = 3.0) -> Logits:
    """A seeded table per offset in the window; every id of it matters. No control ids."""
    tables = np.random.default_rng(seed).normal(0, spread, (window, TOKENS, TOKENS))

    def logits(_position: int, ids: Sequence[int]) -> np.ndarray:
        row = sum(tables[i, token_id] for i, token_id in enumerate(reversed(ids)))
        row[list(IDS.stops)] = -50.0
        return row.astype(np.float32)

    return logits


def looping_logits(period: int = 7) -> Logits:
    """A model that mostly repeats itself: likeliest is what a counter modulo `period` says."""
    noise = np.random.default_rng(1).normal(0, 1, (TOKENS, TOKENS)).astype(np.float32)

    def logits(_position: int, ids: Sequence[int]) -> np.ndarray:
        row = noise[ids[-1]].copy()
        row[list(IDS.stops)] = -50.0
        row[100 + (ids[-1] + 1) % period] += 6.0
        return row

    return logits


def scripted_logits(prompt_tokens: int, answer: Sequence[int]) -> Logits:
    """A model that answers with `answer`, then with <|endoftext|>, whatever the prompt."""

    def logits(position: int, _ids: Sequence[int]) -> np.ndarray:
        row = np.zeros(TOKENS, np.float32)
        place = position + 1 - prompt_tokens
        row[answer[place] if 0 <= place < len(answer) else IDS.endoftext] = 9.0
        return row

    return logits


def toy_tokenizer(folder: Path) -> Tokenizer:
    """The tiny tokenizer through a file, as a bundle has it."""
    file = folder / "tokenizer.json"
    tiny_tokenizer().save(str(file))
    return Tokenizer(file, IDS)


def toy_runtime(folder: Path, logits: Logits | None = None, **shape: int) -> Runtime:
    """A runtime over a ToyBackend of that shape."""
    return runtime_over(ToyBackend(logits or random_logits(), **shape), toy_tokenizer(folder))


def runtime_over(
    backend: ToyBackend, tokenizer: Tokenizer, extra_row_s: float = 0.0, first_row_s: float = 1.0
) -> Runtime:
    """A runtime by whose clock a call takes so long for its first row and for each further one."""

    def clock() -> float:
        calls = len(backend.calls)
        return first_row_s * calls + extra_row_s * (sum(backend.calls) - calls)

    return Runtime(backend, tokenizer, IDS, clock=clock)


def module_with(logits: Logits, opened: list[ToyBackend]) -> Mapping[str, object]:
    """The functions of a backend module; what it opens is put into `opened`."""

    def open_backend(path: Path, window: Window, options: BackendOptions) -> ToyBackend:
        assert path.exists() and window.size_tokens is not None
        backend = ToyBackend(
            logits, window.size_tokens, options.context_tokens, options.chunk_tokens
        )
        opened.append(backend)
        return backend

    return {"open_backend": open_backend, "WINDOW": "exact"}
