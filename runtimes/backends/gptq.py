"""GPTQ weights through torch: ids to logits over a window-bounded cache.

Knows where in the cache each position lies (cells.py); the arithmetic is in gptq_model.py. Knows
nothing of text or sampling. WINDOW: exact, since the attention is ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from runtimes.cells import Cells
from runtimes.contract import BackendOptions, MemoryUse, Window
from runtimes.errors import DeviceError
from runtimes.gptq_files import read_config
from runtimes.gptq_model import Model
from runtimes.host import library_hashes, resident_bytes
from runtimes.positions import check_rewind, check_whole, check_window, checked_ids

# What importing them loads, found by listing sys.modules; torch declares more, for what we do not
# use.
REQUIRES = ("torch", "safetensors", "typing_extensions")


def engine_files() -> dict[str, str]:
    """SHA-256 of each of torch's libraries, by file name."""
    return library_hashes(Path(torch.__file__).parent / "lib")


def open_backend(
    path: Path, window: Window, options: BackendOptions, *, way: str = "packed"
) -> GptqBackend:
    """Open the weights in the folder `path`; `way` as in gptq_model.WAYS.

    Raises IntegrityError for files that are not such weights, DeviceError for a device that is not
    there, UsageError.
    """
    return GptqBackend(path, window, options, way)


class GptqBackend:
    """One model with one sequence. Not for use from two threads at once."""

    def __init__(self, path: Path, window: Window, options: BackendOptions, way: str) -> None:
        self._model: Model | None = None
        check_whole(options)
        if options.provider != "cpu":
            raise DeviceError(
                f"GPTQ does not run on {options.provider} yet",
                expected="--provider cpu",
                remedy="use a GGUF bundle with the CUDA engine on a GPU",
            )
        started = time.perf_counter()
        config = read_config(path)
        check_window(config.window_tokens, window, path)
        self.window, self.vocab_size = window, config.vocab
        self.context_tokens = options.context_tokens
        self.chunk_tokens = min(options.chunk_tokens, options.context_tokens)
        self._cells = Cells(window, self.context_tokens, self.chunk_tokens)
        self._threads = options.threads
        torch.set_num_threads(options.threads)
        self._model = Model(
            path, config, cells=self._cells.count, positions=self.context_tokens, way=way
        )
        self._load_s = time.perf_counter() - started
        self._held = resident_bytes()

    @property
    def position(self) -> int:
        """How many ids have been taken in."""
        return self._cells.position

    @property
    def kept_from(self) -> int:
        """The least position above 0 that `rewind` can return to exactly."""
        return self._cells.kept_from

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append `ids` (1 to chunk_tokens); float32 logits, (1 or T, vocab), the caller's own."""
        new = checked_ids(self, ids)
        cells, count = self._cells, len(new)
        cells.make_room(count, self._move)
        seen = range(cells.needed, cells.filled + count)
        try:
            logits = self._model.forward(new.tolist(), cells.position, seen, cells.first, last_only)
        except RuntimeError as error:  # what torch raises, out of memory included
            raise DeviceError(
                f"torch failed at position {cells.position}: {error}",
                remedy="if memory ran out, use a smaller --context or recipe",
            ) from None
        cells.position += count
        return logits.numpy()

    def _move(self, start: int, count: int) -> None:
        for cache in self._model.cache:
            cache[:, :, :count] = cache[:, :, start : start + count].clone()

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        check_rewind(self, position)
        self._cells.rewind(position)

    def memory_bytes(self) -> MemoryUse:
        """Weights, keys and values as allocated; computing as measured."""
        cache = sum(cells.nbytes for cells in self._model.cache)
        grown = resident_bytes() - self._held
        return MemoryUse(self._model.weights_bytes, cache, max(grown - cache, 0))

    def describe(self) -> dict[str, str]:
        """Engine, version, the window and the path that computes."""
        return {
            "engine": "torch",
            "version": torch.__version__,
            "window_applied": str(self.window.size_tokens or "none"),
            "path": self._model.path,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": str(self._threads),
            "load_s": f"{self._load_s:.2f}",
        }

    def close(self) -> None:
        """Give memory back. Safe to call twice."""
        self._model = None
