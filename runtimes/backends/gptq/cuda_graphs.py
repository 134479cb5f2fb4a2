"""One forward of a fixed number of ids over all slots, in shapes that never change.

This is what a CUDA graph can be made of: ids, positions and slots come from one tensor that stays
in its place, and what a query may not see is masked instead of left out. All slots are read, filled
or not: for StarCoder2 in 4 bits that is 5 to 9 % of the bytes of its weights (calculated). The same
function runs without a graph, on a CPU too, and must give what the ordinary forward gives. Fewer
ids are filled up: those at the end change nothing before them, and the slots that they leave behind
count as empty.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from runtimes.backends.call_costs import SIZES_ROWS
from runtimes.backends.gptq.linear import wide_product
from runtimes.backends.gptq.model import Model, as_rows, from_rows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

STEP_IDS = SIZES_ROWS[:5]  # one id, and with guesses; a tile of the kernel has 16 rows
WARM_UPS = 3  # PyTorch's own example of a capture has as many: libraries allocate in the first


class Step:
    """A forward of at most `size` ids of a model's sequence."""

    def __init__(self, model: Model, size: int) -> None:
        self._model, self.size = model, size
        self._slots = torch.arange(model.cache[0].shape[2], device=model.device)
        pinned = model.device.type == "cuda"  # so that copying does not wait
        self._given = torch.zeros((3, size), dtype=torch.int64, pin_memory=pinned)
        self._inputs = torch.zeros((3, size), dtype=torch.int64, device=model.device)
        self._recorded: tuple[torch.cuda.CUDAGraph, torch.Tensor] | None = None  # and its logits

    def fits(self, count: int, position: int, slot: int) -> bool:
        """Whether `count` ids at `position`, the first to be kept in `slot`, can be taken."""
        available = min(len(self._slots) - slot, len(self._model.cos) - position)
        return count <= self.size <= available

    @torch.inference_mode()
    def __call__(self, ids: np.ndarray, position: int, slot: int, last_only: bool) -> torch.Tensor:
        """Logits float32 (1 or T, vocab) on the CPU of ids (T,), to be kept from `slot` on."""
        count = len(ids)
        given = self._given.numpy()
        given[0, :count], given[0, count:] = ids, 0
        given[1] = np.arange(position, position + self.size)
        given[2] = np.arange(slot, slot + self.size)
        self._inputs.copy_(self._given, non_blocking=True)
        if self._recorded is None:
            logits = self.compute()
        else:
            graph, logits = self._recorded
            graph.replay()
        wanted = logits[count - 1 if last_only else 0 : count]
        return wanted.to("cpu", copy=True)  # the next run writes to the same place

    def compute(self) -> torch.Tensor:
        """Logits float32 (size, vocab) on the device, of what the inputs say."""
        ids, positions, slots = self._inputs
        model = self._model
        state = model.embedding.index_select(0, ids).float()
        turn = (model.cos.index_select(0, positions), model.sin.index_select(0, positions))
        keys = self._slots + (positions[0] - slots[0])
        mask = model.visible(positions, keys, torch.float32)
        attend = [functools.partial(attend_all, cache, slots, mask) for cache in model.cache]
        return model.logits(model.through_layers(state, turn, attend))

    @torch.inference_mode()
    def capture(self, pool: _POOL_HANDLE) -> None:
        """Record the computation as a CUDA graph, which from now on runs in its place.

        To be done while the slots from 0 on are free: it writes to the first of them. Graphs of one
        memory `pool` may overwrite each other's logits, which are copied before another runs.
        """
        given = self._given.numpy()
        given[0], given[1], given[2] = 0, np.arange(self.size), np.arange(self.size)
        self._inputs.copy_(self._given)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not say
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = self.compute()
        self._recorded = graph, logits


def steps_of(model: Model) -> list[Step]:
    """A step for each of STEP_IDS that fits into the model's slots, the smallest first."""
    available = model.cache[0].shape[2]
    steps = [Step(model, size) for size in STEP_IDS if size <= available]
    if model.device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()
        for step in steps:
            step.capture(pool)
    return steps


def attend_all(
    cache: torch.Tensor,
    slots: torch.Tensor,
    mask: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """As Attend, over all slots; k and v are written to `slots` (T,).

    Written out, since fused kernels give a whole head of keys to one block, and StarCoder2 has two
    to four: most of a GPU would wait.
    """
    for kept, new in zip(cache, (k, v), strict=True):
        kept.index_copy_(1, slots, new.transpose(0, 1).to(cache.dtype))
    keys, values = cache  # (kv_heads, slots, D)
    rows = as_rows(q * q.shape[-1] ** -0.5, len(keys)).to(cache.dtype)
    weights = (wide_product(rows, keys.mT) + mask).softmax(-1)
    return from_rows(wide_product(weights.to(cache.dtype), values), len(q))
