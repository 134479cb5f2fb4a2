"""GGUF through llama.cpp's low-level API: ids to logits over a window-bounded cache.

Knows what llama.cpp does with keys and values, and refuses what would not be exact. Knows nothing
of text or sampling. WINDOW: exact with the engine that starpack builds; an engine that does not
apply the window is noticed and held to contexts inside it, where full attention is the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtimes.backends.checks import check_rewind, checked_ids
from runtimes.backends.gguf import call_tokens
from runtimes.backends.gguf.engine import Engine, engine, engine_files, engine_version
from runtimes.contract import BackendOptions, MemoryUse, Saved, Window
from runtimes.errors import IF_MEMORY_RAN_OUT, DeviceError, RewindError, WindowError

__all__ = ["REQUIRES", "WINDOW", "GgufBackend", "engine_files", "open_backend"]

# Beside llama-cpp-python, which starpack builds: what importing it loads, found by listing
# sys.modules.
_PACKAGES = ("typing_extensions", "diskcache", "jinja2", "markupsafe")
REQUIRES: Mapping[str, tuple[str, ...]] = {"cpu": _PACKAGES, "cuda": _PACKAGES}
WINDOW: Literal["exact"] = "exact"  # or the model is not opened past its window
ALL_LAYERS = 10_000  # more than any model has: llama.cpp takes as many as there are
SEQUENCE = 0  # one sequence per backend
NO_SLOT = 1  # llama_decode: the cache is full


@dataclass(frozen=True, slots=True)
class Opened:
    """What llama.cpp has open for one model; `cells` of its cache, 0 where nobody asks."""

    engine: Engine
    model: Any
    context: Any
    batch: Any
    cells: int


def open_backend(path: Path, window: Window, options: BackendOptions) -> GgufBackend:
    """Open the GGUF file at `path`.

    Raises DeviceError where the engine cannot load it, WindowError where it would lose the window
    within `options.context_tokens`.
    """
    llama, gpu_layers = engine(), options.gpu_layers
    if options.provider == "cuda" and not gpu_layers:
        gpu_layers = ALL_LAYERS
    options = replace(options, gpu_layers=gpu_layers, flash_attention=_fused(options, gpu_layers))
    chunk_tokens = _chunk_tokens(options)
    llama.lines.clear()
    with ExitStack() as stack:
        model = _load(llama, path, gpu_layers)
        stack.callback(llama.api.llama_model_free, model)
        _check_window(llama, model, window, options.context_tokens)
        context = _create_context(llama, model, chunk_tokens, options)
        stack.callback(llama.api.llama_free, context)
        batch = llama.api.llama_batch_init(chunk_tokens, 0, 1)
        stack.callback(llama.api.llama_batch_free, batch)
        cells = llama.cells() if options.reproducible else 0
        opened = Opened(llama, model, context, batch, cells)
        return GgufBackend(opened, window, options, stack.pop_all())


def _load(llama: Engine, path: Path, gpu_layers: int) -> Any:
    api = llama.api
    if gpu_layers and not api.llama_supports_gpu_offload():
        raise DeviceError(
            "layers were to go on a GPU, but this engine has none",
            where=path,
            remedy="use --provider cpu and --gpu-layers 0, or a bundle with the CUDA engine",
        )
    params = api.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise DeviceError(
            f"llama.cpp cannot load the model: {llama.last_words()}",
            where=path,
            remedy="check the file with `verify`; if memory ran out, use a smaller recipe",
        )
    return model


def _check_window(llama: Engine, model: Any, window: Window, context_tokens: int) -> None:
    applied = llama.api.llama_model_n_swa(model) or None
    wanted = window.size_tokens
    if applied == wanted:
        return
    if applied is None and wanted is not None and context_tokens <= wanted:
        return  # every position still sees every other: full attention is exact here
    remedy = "install the engine that starpack builds (`make wheels`; a bundle carries it)"
    if wanted is not None:
        remedy += f", or stay within --context {wanted}, where every engine is exact"
    raise WindowError(
        f"the installed llama.cpp applies a window of {applied} tokens to this model",
        expected=f"{wanted} tokens, for a context of {context_tokens}",
        remedy=remedy,
    )


def _fused(options: BackendOptions, gpu_layers: int) -> bool:
    """Whether to use llama.cpp's fused attention, where nobody says.

    On a CPU it sums values in half precision, unnormalised, in calls of up to 63 ids, which is
    every generated token (ggml-cpu/ops.cpp). Measured at 4,000 keys: errors of .064 in place of
    .0006. What it does on a GPU was not measured here.
    """
    return gpu_layers > 0 if options.flash_attention is None else options.flash_attention


def _chunk_tokens(options: BackendOptions) -> int:
    fused = bool(options.flash_attention)
    return call_tokens(options.chunk_tokens, options.context_tokens, fused=fused)


def _create_context(llama: Engine, model: Any, chunk_tokens: int, options: BackendOptions) -> Any:
    params = llama.api.llama_context_default_params()
    params.n_ctx = options.context_tokens
    params.n_batch = params.n_ubatch = chunk_tokens
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = int(bool(options.flash_attention))
    params.swa_full = False  # keep window + chunk keys and values, not the full context
    params.offload_kqv = options.gpu_layers > 0
    context = llama.api.llama_init_from_model(model, params)
    if not context:
        raise DeviceError(
            f"llama.cpp cannot open a context: {llama.last_words()}",
            expected=f"memory for {options.context_tokens} tokens",
            remedy="ask for a smaller --context or free memory",
        )
    return context


class GgufBackend:
    """One model with one sequence. Not for use from two threads at once."""

    def __init__(
        self, opened: Opened, window: Window, options: BackendOptions, resources: ExitStack
    ) -> None:
        """Take over what is open; `resources` frees it."""
        self.window = window
        self.context_tokens = options.context_tokens
        self.chunk_tokens = count = _chunk_tokens(options)
        self._fused = bool(options.flash_attention)
        self._reproducible = options.reproducible
        self._position = 0
        self._lap_start = 0  # the position that last went into the cache's first cell
        self._resources = resources
        self._engine, self._cells = opened.engine, opened.cells
        self._model, self._context, self._batch = opened.model, opened.context, opened.batch
        api = self._engine.api
        self.vocab_size: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._cache = api.llama_get_memory(self._context)
        as_array = np.ctypeslib.as_array
        self._ids = as_array(self._batch.token, (count,))
        self._positions = as_array(self._batch.pos, (count,))
        self._wanted = as_array(self._batch.logits, (count,))
        as_array(self._batch.n_seq_id, (count,))[:] = 1
        for i in range(count):
            self._batch.seq_id[i][0] = SEQUENCE
        sizes = (self._engine.buffer_bytes(kind) for kind in ("model", "KV", "compute"))
        self._memory = MemoryUse(*sizes)

    @property
    def position(self) -> int:
        """How many ids have been taken in."""
        return self._position

    @property
    def min_rewind(self) -> int:
        """The least position above 0 that `rewind` can return to exactly.

        The query at position p sees keys p - W + 1 .. p, so all of p - W + 1 .. p - 1 must still
        be in the cache. llama.cpp keeps an unbroken run of positions, from pos_min on.
        """
        least: int = self._engine.api.llama_memory_seq_pos_min(self._cache, SEQUENCE)
        if least <= 0 or self.window.size_tokens is None:
            return 0
        first = least + self.window.size_tokens - 1
        # Rewound to before what last went into the first cell, llama.cpp fills the cells in another
        # order from there on, and adds up in that order (found by comparing bits).
        return max(first, self._lap_start) if self._reproducible else first

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append `ids` (1 to chunk_tokens); float32 logits, (1 or T, vocab), the caller's own."""
        new = checked_ids(self, ids)
        count = len(new)
        self._ids[:count] = new
        self._positions[:count] = np.arange(self._position, self._position + count)
        self._wanted[:count] = not last_only
        self._wanted[count - 1] = 1
        self._batch.n_tokens = count
        api = self._engine.api
        code = None
        try:
            code = api.llama_decode(self._context, self._batch)
        finally:
            if code != 0:  # it failed, or Ctrl-C came: keep nothing that was not counted
                self._drop_from(self._position)
        if code:
            reason = "the cache is full" if code == NO_SLOT else self._engine.last_words()
            raise DeviceError(
                f"llama.cpp failed at position {self._position}: {reason}", remedy=IF_MEMORY_RAN_OUT
            )
        self._position += count
        if self._reproducible:
            self._lap_start = (self._position - 1) // self._cells * self._cells
        rows = 1 if last_only else count
        logits = api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (rows, self.vocab_size)).copy()

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        check_rewind(self, position)
        if position == self._position and position > 0:
            return  # at 0 an interrupted call may have left ids that nobody counted
        self._drop_from(position)
        self._position = position

    def save(self) -> Saved | None:
        """llama.cpp's own copy of the sequence, which leaves out what no window reaches any more.

        What is left lies in other cells when it comes back: not reproducible.
        """
        window = self.window.size_tokens
        if self._reproducible and window is not None and self._position > window:
            return None
        api = self._engine.api
        size = api.llama_state_seq_get_size(self._context, SEQUENCE)
        data = (ctypes.c_uint8 * size)()
        if api.llama_state_seq_get_data(self._context, data, size, SEQUENCE) != size:
            raise DeviceError(
                f"llama.cpp cannot copy a sequence: {self._engine.last_words()}",
                remedy=IF_MEMORY_RAN_OUT,
            )
        return self._position, data

    def load(self, saved: Saved) -> None:
        """Hand the copy back."""
        position, data = saved
        self._drop_from(0)
        self._position = self._lap_start = 0
        api = self._engine.api
        if not api.llama_state_seq_set_data(self._context, data, len(data), SEQUENCE):
            self._drop_from(0)
            raise DeviceError(
                f"llama.cpp cannot take a sequence: {self._engine.last_words()}",
                remedy=IF_MEMORY_RAN_OUT,
            )
        self._position = position

    def _drop_from(self, position: int) -> None:
        api = self._engine.api
        if position == 0:
            api.llama_memory_clear(self._cache, False)
        elif not api.llama_memory_seq_rm(self._cache, SEQUENCE, position, -1):
            raise RewindError(f"llama.cpp cannot drop the positions from {position} on")

    def memory_bytes(self) -> MemoryUse:
        """What llama.cpp said it allocated for weights, keys and values, and computing."""
        return self._memory

    def describe(self) -> dict[str, str]:
        """Engine, version, the window it applies and the kernels it chose."""
        api = self._engine.api
        return {
            "engine": "llama.cpp",
            "version": engine_version(),
            "window_applied": str(api.llama_model_n_swa(self._model) or "none"),
            "attention": "fused" if self._fused else "plain",
            "kernels": self._engine.system_info(),
            "gpu": "available" if api.llama_supports_gpu_offload() else "none",
        }

    def close(self) -> None:
        """Give memory back. Safe to call twice."""
        self._resources.close()
