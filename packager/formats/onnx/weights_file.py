"""The file of an ONNX variant's weights, written by every core at once.

Rows are read from the memory-mapped shards, quantised and written to their places; no more than two
jobs a core are in memory. Knows where each tensor lies (layout.py), nothing of the graph.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packager.checkpoint.tensors import TensorSource
from packager.core.errors import CheckpointError
from packager.core.parallel import results_in_order
from packager.core.records import Progress
from packager.core.workdir import Ledger
from packager.formats.gptq.reader import GptqWeights
from packager.formats.onnx.layout import BlockMatrix, Placed, Stored
from packager.formats.quant.blocks import Blocks, pack, quantize

BLOCK_BYTES = 8 * 1024 * 1024  # float32 rows per job: enough to keep a core busy, small in memory
COMPARED_ROWS = 64
# Four bits err by about a tenth of the weights; other weights by more than all of them.
MAX_RELATIVE_ERROR = 0.5


@dataclass(frozen=True, slots=True)
class PrecomputedCodes:
    """Codes that another quantiser has chosen.

    orders: of the inputs, by linear, where they have one. zeros: whether any zero point is not the
    middle code.
    """

    weights: GptqWeights
    orders: dict[str, np.ndarray]
    zeros: bool


def precomputed_codes(
    weights: GptqWeights, source: TensorSource, linears: Mapping[str, tuple[str, ...]]
) -> PrecomputedCodes:
    """Look at orders and zero points of all `linears`, by name, each of several modules.

    Raises CheckpointError where modules that share a linear have their inputs in other orders.
    """
    orders: dict[str, np.ndarray] = {}
    zeros = False
    for linear, modules in linears.items():
        shapes = [source.shape(f"{module}.weight") for module in modules]
        found = [weights.order(m, shape) for m, shape in zip(modules, shapes, strict=True)]
        if not all(_same(order, found[0]) for order in found):
            raise CheckpointError(
                f"the inputs of {', '.join(modules)} are in different orders",
                where=modules[0],
                expected="one order, since they have the same inputs",
                remedy="quantise without desc_act, or with static groups",
            )
        if found[0] is not None:
            orders[linear] = found[0]
        for module, shape in zip(modules, shapes, strict=True):
            zeros = zeros or bool((weights.zeros(module, shape) != 1 << (weights.bits - 1)).any())
    return PrecomputedCodes(weights, orders, zeros)


def _same(order: np.ndarray | None, other: np.ndarray | None) -> bool:
    if order is None or other is None:
        return order is other
    return np.array_equal(order, other)


def write_tensors(
    file: Path,
    source: TensorSource,
    tensors: list[Placed],
    codes: PrecomputedCodes | None,
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Write every tensor to its place. Raises CheckpointError for values that do not fit."""
    total = sum(part.nbytes for tensor in tensors for part in tensor.parts)
    with open(file, "r+b" if ledger.jobs else "wb") as stream:
        jobs = _Writer(stream.fileno(), source, codes).jobs(tensors)
        remaining = itertools.islice(jobs, ledger.jobs, None)
        with closing(results_in_order(remaining)) as written:
            for count in written:
                progress("convert", ledger.add(stream, count), total)
        os.fsync(stream.fileno())
    assert ledger.bytes == total, f"{ledger.bytes} bytes written of {total}"
    progress("convert", total, total)


class _Writer:
    """Jobs that each make and write some rows, and return how many bytes that were."""

    def __init__(
        self, descriptor: int, source: TensorSource, codes: PrecomputedCodes | None
    ) -> None:
        self.descriptor, self.source, self.codes = descriptor, source, codes

    def jobs(self, tensors: list[Placed]) -> Iterator[Callable[[], int]]:
        """Every block of rows of every tensor."""
        for tensor in tensors:
            stored = tensor.stored
            if isinstance(stored, BlockMatrix) and stored.order and tensor.order is not None:
                yield functools.partial(self.put, stored.order, 0, tensor.order)
            target = 0
            for name in tensor.sources:
                count = self.source.shape(name)[0]
                if isinstance(stored, BlockMatrix) and tensor.recipe.calibrated:
                    yield functools.partial(self.write_codes, tensor, stored, name, target)
                else:
                    yield from self.row_blocks(tensor, name, count, target)
                target += count

    def row_blocks(
        self, tensor: Placed, name: str, count: int, target: int
    ) -> Iterator[Callable[[], int]]:
        """The tensor `name` in blocks of rows, to rows from `target` on."""
        width = 1 if isinstance(tensor.stored, Stored) else tensor.stored.shape[1]
        step = max(1, BLOCK_BYTES // (4 * width))
        for start in range(0, count, step):
            rows = (start, min(start + step, count))
            yield functools.partial(self.write_rows, tensor, name, rows, target + start)

    def write_rows(self, tensor: Placed, name: str, rows: tuple[int, int], target: int) -> int:
        """Read, quantise and write `rows` of the tensor `name`, to rows from `target` on."""
        values = self.source.read_rows(name, *rows)
        stored, recipe = tensor.stored, tensor.recipe
        if isinstance(stored, BlockMatrix):
            blocks = quantize(
                values, stored.bits, stored.group, symmetric=not recipe.zeros,
                search=recipe.search, scale_type=np.dtype(recipe.activations).type,
            )  # fmt: skip
            return self.put_blocks(stored, target, blocks, name)
        place = stored if isinstance(stored, Stored) else stored.weights
        return self.put(place, target, _narrowed(values, place.type, name))

    def write_codes(self, tensor: Placed, stored: BlockMatrix, name: str, target: int) -> int:
        """Write the precomputed codes of the whole tensor `name`, as they are."""
        assert self.codes is not None, "a calibrated recipe comes with its codes"
        shape = self.source.shape(name)
        blocks = self.codes.weights.blocks(name.removesuffix(".weight"), shape)
        rows = min(COMPARED_ROWS, shape[0])
        wanted = self.source.read_rows(name, 0, rows)
        if tensor.order is not None:
            wanted = wanted[:, tensor.order]
        some = Blocks(blocks.codes[:rows], blocks.scales[:rows], blocks.zeros[:rows])
        if np.linalg.norm(some.weights() - wanted) > MAX_RELATIVE_ERROR * np.linalg.norm(wanted):
            raise CheckpointError(
                f"the GPTQ weights of {name} are not those of this checkpoint",
                where=self.codes.weights.shards.files[0].parent,
                expected=f"weights within {MAX_RELATIVE_ERROR:.0%} of the checkpoint's",
                remedy="name the folder that was quantised from this very model",
            )
        return self.put_blocks(stored, target, blocks, name)

    def put_blocks(self, matrix: BlockMatrix, target: int, blocks: Blocks, name: str) -> int:
        """Write codes, scales and zero points to rows from `target` on."""
        count = self.put(matrix.codes, target, pack(blocks.codes, matrix.bits))
        scales = _narrowed(blocks.scales, matrix.scales.type, name)
        count += self.put(matrix.scales, target, scales)
        if matrix.zeros is not None:
            count += self.put(matrix.zeros, target, pack(blocks.zeros, matrix.bits))
        return count

    def put(self, stored: Stored, row: int, values: np.ndarray) -> int:
        """Write rows to their place in the file."""
        data = np.ascontiguousarray(values).data.cast("B")
        at = stored.offset_bytes + row * (stored.nbytes // stored.shape[0])
        written = 0
        while written < len(data):
            written += os.pwrite(self.descriptor, data[written:], at + written)
        return written


def _narrowed(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """As the stored type; CheckpointError where a value is beyond it."""
    with np.errstate(over="ignore"):
        narrowed = values.astype(kind)
    if not np.isfinite(narrowed).all():
        raise CheckpointError(
            f"the weights of {name} do not fit in {kind}",
            where=name,
            expected="finite values within the range of the type",
            remedy="use a recipe whose activations are in float32",
        )
    return narrowed
