"""GPTQ: round a matrix column by column, the later columns making up for the error so far.

Pure arithmetic on arrays; knows nothing of files or models. After Frantar et al., "GPTQ", 2022
(algorithm 1), with columns in order of their activations and the groups fixed beforehand, so that
the stored order stays natural.

The error of codes with weights V for the original W (R, C), on inputs X (T, C), is

    |X (W - V)^T|^2 = sum over rows of (w - v) H (w - v)^T,   H = X^T X = L L^T

and the component k of (w - v) L holds only columns from k on. So columns are rounded from the last
to the first, each to w_k + sum_{i > k} (w_i - v_i) L_ik / L_kk, which no later choice can improve.
This is the paper's update without its inverse: the factor of H itself is enough (Chen et al., "The
Geometry of LLM Quantization", 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from packager.core.errors import CheckpointError
from packager.formats.quant import blocks
from packager.formats.quant.blocks import Blocks
from packager.formats.quant.products import add_product

# Fractions of the mean diagonal that are added to it, tried in turn. The first is GPTQModel's
# choice for code models; the last leaves little of the correlations.
DAMPINGS = (0.05, 0.1, 0.2, 0.5, 1.0)
PANEL = 512  # columns of the factor per step: long products, a small temporary
LEAF = 64  # measured: of 16 to 64 the fastest, by little; columns rounded without a larger product
ROWS = 1536  # rows per core at a time: two arrays (C, ROWS) of float32 are its memory


class Hessian:
    """The sum of x x^T over inputs x (C,); only the lower triangle, in blocks, is kept up."""

    def __init__(self, columns: int) -> None:
        self.sum = torch.zeros(columns, columns)
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Take in inputs, float32 (T, C)."""
        columns = x.T.contiguous()
        for start in range(0, len(columns), PANEL):
            stop = min(start + PANEL, len(columns))
            add_product(self.sum[start:, start:stop], columns[start:], columns[start:stop])
        self.tokens += len(x)


@dataclass(frozen=True, slots=True)
class Factor:
    """H = L L^T with its columns sorted by their diagonal, the least first.

    order (C,): the column of the matrix that is the i-th here. unit (C, C): L_ik / L_kk below the
    diagonal; the rest has no meaning. importance (C,): the diagonal in natural order, damped, its
    mean about 1. damping: the fraction that was needed.
    """

    order: torch.Tensor
    unit: torch.Tensor
    importance: np.ndarray
    damping: float


def factorize(hessian: Hessian, name: str) -> Factor:
    """Sort, damp and factorise in the memory of `hessian`, which is used up.

    A column that was never active (a zero on the diagonal) is rounded to nearest. `name` is what
    the matrix is called in an error. Raises CheckpointError where the inputs were not finite, or
    where no damping in DAMPINGS makes the matrix positive.
    """
    matrix = hessian.sum
    diagonal = matrix.diagonal().clone()
    if not torch.isfinite(diagonal).all():
        raise _unusable(name, "the inputs of this matrix are not finite")
    _mirror(matrix)
    order = torch.argsort(diagonal, stable=True)
    _permute(matrix, order)
    diagonal = diagonal[order]
    mean = float(diagonal.double().mean()) or 1.0
    diagonal[diagonal <= 0] = mean
    for damping in DAMPINGS:
        matrix.diagonal().copy_(diagonal + damping * mean)
        if _cholesky(matrix):
            matrix /= matrix.diagonal().clone()
            importance = torch.empty_like(diagonal)
            importance[order] = diagonal / mean + damping
            return Factor(order, matrix, importance.numpy(), damping)
        _mirror(matrix, from_upper=True)
    raise _unusable(name, f"its Hessian is singular, also with a damping of {DAMPINGS[-1]}")


def quantize(
    weight: np.ndarray,
    factor: Factor,
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    search: bool = True,
    name: str = "a matrix",
) -> Blocks:
    """Codes, scales and zeros of float32 `weight` (R, C), C a multiple of `group`.

    symmetric: the zero point is the middle code. search: choose the scales by least squared error,
    each column counted by its activations. Scales are exact in float16 and fixed before any code is
    chosen; zeros are 1 or more. Raises CheckpointError where a scale is beyond float16.
    """

    def job(start: int) -> Blocks:
        rows = weight[start : start + step]
        found = blocks.quantize(
            rows, bits, group, symmetric=symmetric, search=search, scale_type=np.float16,
            importance=factor.importance,
        )  # fmt: skip
        if not np.isfinite(found.scales).all():
            raise CheckpointError(
                f"the weights of {name} do not fit in float16 scales",
                where=name,
                expected="finite values within the range of the type",
                remedy="use another format: gguf:BF16, or onnx:fp32",
            )
        # files store zero - 1: a block without a negative weight loses its highest code
        zeros = np.maximum(found.zeros, 1)
        codes = _Rows(rows, factor, found.scales, zeros, (1 << bits) - 1).round()
        return Blocks(codes, found.scales, zeros)

    with _one_thread_each() as cores:
        step = min(ROWS, -(-len(weight) // cores))
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(job, range(0, len(weight), step)))
    return Blocks(
        *(np.concatenate([getattr(part, field) for part in parts]) for field in Blocks.__slots__)
    )


class _Rows:
    """Some rows on their way to codes; everything is transposed, so that a column lies together."""

    def __init__(
        self, weight: np.ndarray, factor: Factor, scales: np.ndarray, zeros: np.ndarray, top: int
    ) -> None:
        columns = weight.shape[1]
        self.factor = factor
        # float32 (C, R), in the factor's order; a column becomes its error when it is rounded
        self.remaining = torch.from_numpy(weight).T.contiguous()[factor.order]
        self.accumulated = torch.zeros_like(self.remaining)
        self.codes = torch.empty(self.remaining.shape, dtype=torch.uint8)
        self.groups = (factor.order // (columns // scales.shape[1])).tolist()
        self.scales = torch.from_numpy(np.ascontiguousarray(scales.T))
        # a block of zeros may have the scale 0: any divisor will do
        self.divisors = torch.where(self.scales == 0, 1.0, self.scales)
        self.zeros = torch.from_numpy(np.ascontiguousarray(zeros.T)).float()
        self.top = top

    def round(self) -> np.ndarray:
        """The codes uint8 (R, C), in natural order."""
        self._round_span(0, len(self.remaining))
        natural = torch.empty_like(self.codes)
        natural[self.factor.order] = self.codes
        return natural.T.numpy()

    def _round_span(self, start: int, stop: int) -> None:
        """Round columns stop-1 down to start, halving so that the products are large."""
        if stop - start <= LEAF:
            self._round_leaf(start, stop)
            return
        middle = (start + stop) // 2
        self._round_span(middle, stop)
        unit, rounded = self.factor.unit[middle:stop, start:middle], self.remaining[middle:stop]
        if len(rounded) < PANEL:
            self.accumulated[start:middle].addmm_(unit.T, rounded)  # copies would cost more
        else:
            add_product(self.accumulated[start:middle], unit.T, rounded.T)
        self._round_span(start, middle)

    def _round_leaf(self, start: int, stop: int) -> None:
        """Round columns stop-1 down to start, one by one."""
        unit = self.factor.unit[start:stop, start:stop].T.contiguous()
        for k in range(stop - 1, start - 1, -1):
            group, column, rounded = self.groups[k], self.remaining[k], self.remaining[k + 1 : stop]
            zeros = self.zeros[group]
            steps = torch.addmv(self.accumulated[k], rounded.T, unit[k - start, k + 1 - start :])
            steps.add_(column).div_(self.divisors[group]).round_().add_(zeros)
            self.codes[k] = steps.clamp_(0, self.top)
            column.addcmul_(steps.sub_(zeros), self.scales[group], value=-1)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """For jobs of many small steps, as many at a time as this gives: torch splits no step further.

    Threads that share a step wait for each other after it. Measured (benchmarks/LOG.md): as fast on
    an idle machine, 10 times faster on a busy one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _cholesky(matrix: torch.Tensor) -> bool:
    """Lower factor in place of the lower triangle; False where the matrix is not positive.

    The strict upper triangle is kept, for another try. torch's own routine needs a second matrix,
    and is no faster (benchmarks/LOG.md).
    """
    for start in range(0, len(matrix), PANEL):
        stop = min(start + PANEL, len(matrix))
        done = matrix[start:stop, :start]
        block = matrix[start:stop, start:stop]
        lower, failed = torch.linalg.cholesky_ex(torch.addmm(block, done, done.T, alpha=-1))
        if failed or not torch.isfinite(lower.diagonal()).all():
            return False
        block.copy_(lower + block.triu(1))
        below = matrix[stop:, start:stop]
        if len(below):
            add_product(below, matrix[stop:, :start], done, sign=-1)
            below.copy_(torch.linalg.solve_triangular(lower.T, below, upper=True, left=False))
    return True


def _mirror(matrix: torch.Tensor, from_upper: bool = False) -> None:
    """Copy one triangle onto the other, in place; the diagonal stays."""
    for start in range(0, len(matrix), PANEL):
        stop = min(start + PANEL, len(matrix))
        block = matrix[start:stop, start:stop]
        kept = block.triu(1) if from_upper else block.tril(-1).T
        block.copy_(kept + kept.T + block.diagonal().diag())
        lower, upper = matrix[stop:, start:stop], matrix[start:stop, stop:]
        if from_upper:
            lower.copy_(upper.T)
        else:
            upper.copy_(lower.T)


def _permute(matrix: torch.Tensor, order: torch.Tensor) -> None:
    """Sort rows and columns, in place: row i of the result was row order[i]."""
    for start in range(0, len(matrix), PANEL):
        rows = matrix[start : start + PANEL]
        rows.copy_(rows[:, order])
    source, placed = order.tolist(), [False] * len(order)
    for first in range(len(source)):
        if placed[first]:
            continue
        # follow the cycle that starts here: each row moves once
        saved, at = matrix[first].clone(), first
        while source[at] != first:
            matrix[at] = matrix[source[at]]
            placed[at] = True
            at = source[at]
        matrix[at] = saved
        placed[at] = True


def _unusable(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot be calibrated: {what}",
        where=name,
        expected="finite activations with a positive Hessian",
        remedy="calibrate on more and other sources; if that does not help, the weights are "
        "damaged: use `--formats gguf`, which needs no calibration, to see",
    )
