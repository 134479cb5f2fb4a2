"""GPTQ weights through torch: ids to logits over a window-bounded cache.

Knows where in the cache each position lies (own_cache/kv_slots.py). The arithmetic is in model.py.
On a GPU single ids and short guesses run as CUDA graphs (cuda_graphs.py). Knows nothing of text or
sampling. WINDOW: exact, since the attention is ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from runtimes.backends.checks import check_one_device, check_rewind, check_window, checked_ids
from runtimes.backends.gptq.cuda_graphs import Step, steps_of
from runtimes.backends.gptq.device import Gpu, choose_kernel_path, find_gpu
from runtimes.backends.gptq.files import Files, read_config
from runtimes.backends.gptq.model import Model
from runtimes.backends.gptq.tiles import check_tiles
from runtimes.backends.own_cache.kv_slots import KvSlots
from runtimes.contract import BackendOptions, MemoryUse, Saved, Window
from runtimes.errors import IF_MEMORY_RAN_OUT, DeviceError, UsageError
from runtimes.host.limits import library_hashes, resident_bytes

# What importing them loads, found by listing sys.modules; torch declares more, for what we do not
# use.
_PACKAGES = ("torch", "safetensors", "typing_extensions")
REQUIRES: Mapping[str, tuple[str, ...]] = {"cpu": _PACKAGES, "cuda": _PACKAGES}
WINDOW: Literal["exact"] = "exact"
PROVIDERS = ("cpu", "cuda")


def engine_files() -> dict[str, str]:
    """SHA-256 of each of torch's libraries, by file name."""
    return library_hashes(Path(torch.__file__).parent / "lib")


def open_backend(
    path: Path, window: Window, options: BackendOptions, *, kernel_path: str | None = None
) -> GptqBackend:
    """Open the weights in the folder `path`.

    kernel_path: one of model.KERNEL_PATHS; None for the best of the device.

    Raises IntegrityError for files that are not such weights, DeviceError for a device that is not
    there, UsageError.
    """
    check_one_device(options)
    if options.provider not in PROVIDERS:
        raise UsageError(f"unknown provider {options.provider!r}", expected=str(PROVIDERS))
    started_s = time.perf_counter()
    gpu = find_gpu() if options.provider == "cuda" else None
    config = read_config(path)
    check_window(config.window_tokens, window, path)
    chunk_tokens = min(options.chunk_tokens, options.context_tokens)
    slots = KvSlots(window, options.context_tokens, chunk_tokens)
    torch.set_num_threads(options.threads)
    files = Files(path, config)
    if kernel_path is None:
        kernel_path = "packed"
        if gpu is not None:
            kernel_path = choose_kernel_path(gpu.capability, gpu.free_bytes, files.half_bytes())
    device = torch.device("cpu") if gpu is None else gpu.device
    try:
        if kernel_path == "tiled":
            check_tiles(device)
        model = Model(
            files,
            slots=slots.count,
            positions=options.context_tokens,
            kernel_path=kernel_path,
            device=device,
        )
        steps = [] if gpu is None else steps_of(model)
    except RuntimeError as error:  # what torch raises, out of memory included
        raise DeviceError(
            f"torch failed to load the model: {error}",
            where=files.file,
            remedy="if memory ran out, use a smaller recipe, --context or --provider cpu",
        ) from None
    return GptqBackend(model, steps, slots, gpu, window, options, started_s)


class GptqBackend:
    """One model with one sequence. Not for use from two threads at once."""

    def __init__(
        self,
        model: Model,
        steps: list[Step],
        slots: KvSlots,
        gpu: Gpu | None,
        window: Window,
        options: BackendOptions,
        started_s: float,
    ) -> None:
        """started_s: when opening began, by time.perf_counter."""
        self.window, self.vocab_size = window, model.config.vocab
        self.context_tokens = options.context_tokens
        self.chunk_tokens = min(options.chunk_tokens, options.context_tokens)
        self.graphs = True  # whether short calls go through recorded graphs, where there are some
        self._model, self._steps, self._slots, self._gpu = model, steps, slots, gpu
        self._threads = options.threads
        self._load_s = time.perf_counter() - started_s
        self._held = resident_bytes()

    @property
    def position(self) -> int:
        """How many ids have been taken in."""
        return self._slots.position

    @property
    def min_rewind(self) -> int:
        """The least position above 0 that `rewind` can return to exactly."""
        return self._slots.min_rewind

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append `ids` (1 to chunk_tokens); float32 logits, (1 or T, vocab), the caller's own."""
        new = checked_ids(self, ids)
        slots, count = self._slots, len(new)
        slots.free_slots(count, self._move)
        try:
            logits: np.ndarray = self._compute(new, last_only).numpy()
        except RuntimeError as error:  # what torch raises, out of memory included
            raise DeviceError(
                f"torch failed at position {slots.position}: {error}",
                remedy=IF_MEMORY_RAN_OUT,
            ) from None
        if self._model.type == torch.float16 and not np.isfinite(logits).all():
            raise DeviceError(
                f"at position {slots.position} a value is beyond the range of float16",
                expected="a GPU with bfloat16 (compute capability 8.0), or another engine",
                remedy="use --provider cpu, or another format",
            )
        slots.position += count
        return logits

    def _compute(self, ids: np.ndarray, last_only: bool) -> torch.Tensor:
        """Logits on the CPU: of a step where one fits, or of an ordinary forward."""
        slots, count = self._slots, len(ids)
        for step in self._steps if self.graphs else ():
            if step.fits(count, slots.position, slots.filled):
                return step(ids, slots.position, slots.filled, last_only)
        seen = range(slots.first_visible, slots.filled + count)
        given = torch.tensor(ids, dtype=torch.int64)
        return self._model.forward(given, slots.position, seen, slots.first, last_only).cpu()

    def _move(self, start: int, count: int) -> None:
        for cache in self._model.cache:
            cache[:, :, :count] = cache[:, :, start : start + count].clone()

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""
        check_rewind(self, position)
        self._slots.rewind(position)

    def save(self) -> Saved:
        """The slots that are filled, and what lies in them."""
        filled = self._slots.filled
        return self._slots.state, [cache[:, :, :filled].clone() for cache in self._model.cache]

    def load(self, saved: Saved) -> None:
        """Put saved slots back."""
        state, caches = saved
        self._slots.rewind(0)
        for cache, kept in zip(self._model.cache, caches, strict=True):
            cache[:, :, : kept.shape[2]] = kept
        self._slots.state = state

    def memory_bytes(self) -> MemoryUse:
        """Weights, keys and values as allocated; computing as measured.

        On a GPU that is what torch's allocator holds besides them, or what the device has lost
        since the model was opened where that is more: libraries, but other processes too.
        """
        cache = sum(int(slots.nbytes) for slots in self._model.cache)
        weights = self._model.weights_bytes
        if self._gpu is None:
            grown = resident_bytes() - self._held
            return MemoryUse(weights, cache, max(grown - cache, 0))
        lost = self._gpu.free_bytes - self._gpu.free_now_bytes()
        held = max(torch.cuda.memory_reserved(self._gpu.device), lost)
        return MemoryUse(weights, cache, max(held - weights - cache, 0))

    def describe(self) -> dict[str, str]:
        """Engine, version, the window and the path that computes."""
        return {
            "engine": "torch",
            "version": torch.__version__,
            "window_applied": str(self.window.size_tokens or "none"),
            "path": self._model.kernel_path.text,
            **self._describe_device(self._gpu),
            "threads": str(self._threads),
            "load_s": f"{self._load_s:.2f}",
        }

    def _describe_device(self, gpu: Gpu | None) -> dict[str, str]:
        if gpu is None:
            return {"capability": torch.backends.cpu.get_cpu_capability()}
        sizes = ", ".join(str(step.size) for step in self._steps)
        return {
            "device": gpu.name,
            "capability": "CUDA {}.{}".format(*gpu.capability),
            "cuda_graphs": f"for up to {sizes} ids",
            "device_free_bytes": str(gpu.free_now_bytes()),
        }

    def close(self) -> None:
        """Give memory back. Safe to call twice."""
        for name in ("_model", "_steps"):
            vars(self).pop(name, None)
        if self._gpu is not None:
            torch.cuda.empty_cache()
