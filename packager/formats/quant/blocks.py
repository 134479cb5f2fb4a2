"""Integer weights in blocks: choose a scale and a zero point per block, round, pack.

Pure arithmetic on arrays; knows nothing of files or models. A block is `group` neighbouring
weights of one row, and weight = (code - zero) * scale. ONNX Runtime's MatMulNBits and GPTQ files
both compute this, with other packings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Scales tried, as fractions of the one that spans a block. Measured (benchmarks/LOG.md): twice as
# many take twice as long and lower the error of normal rows by 0.7 %.
FRACTIONS = tuple(np.linspace(0.75, 1.05, 7))
# Elements worked on at a time: the temporaries then stay in a core's own cache.
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Blocks:
    """Codes (R, C) uint8, scales (R, G) float32, zeros (R, G) uint8; C / G weights a block."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray

    def weights(self) -> np.ndarray:
        """What the codes stand for, float32 (R, C)."""
        codes = self.codes.reshape(self.scales.size, -1)
        scales, zeros = self.scales.reshape(-1, 1), self.zeros.reshape(-1, 1)
        values = np.empty(codes.shape, np.float32)
        step = max(1, CHUNK // codes.shape[1])
        for start in range(0, len(codes), step):
            at = slice(start, start + step)
            values[at] = codes[at]
            values[at] -= zeros[at]
            values[at] *= scales[at]
        return values.reshape(self.codes.shape)


def quantize(
    rows: np.ndarray,
    bits: int,
    group: int,
    *,
    symmetric: bool,
    search: bool,
    scale_type: type[np.floating] = np.float32,
    importance: np.ndarray | None = None,
) -> Blocks:
    """Quantise float32 rows (R, C), C a multiple of `group`.

    symmetric: the zero point is the middle code. search: try the scales of FRACTIONS, refit each to
    its codes by least squares, and keep what has the least squared error; else round to nearest.
    importance (C,), all above 0: what each column's squared error counts in the search.
    Scales are rounded to `scale_type` before the final codes are chosen. A block whose scale is
    beyond `scale_type` gets an infinite one: the caller has to look.
    """
    count, columns = rows.shape
    blocks = rows.reshape(-1, group)
    codes = np.empty(blocks.shape, np.uint8)
    scales = np.empty(len(blocks), np.float32)
    zeros = np.empty(len(blocks), np.uint8)
    groups = columns // group
    step = max(1, CHUNK // group)
    for start in range(0, len(blocks), step):
        at = slice(start, start + step)
        weights = None
        if importance is not None:
            columns_of = np.arange(start, min(start + step, len(blocks))) % groups
            weights = importance.reshape(groups, group)[columns_of]
        codes[at], scales[at], zeros[at] = _quantize_chunk(
            blocks[at], weights, bits, symmetric, FRACTIONS if search else (1.0,), scale_type
        )
    return Blocks(
        codes.reshape(count, columns), scales.reshape(count, groups), zeros.reshape(count, groups)
    )


def _quantize_chunk(
    blocks: np.ndarray,
    importance: np.ndarray | None,
    bits: int,
    symmetric: bool,
    fractions: tuple[float, ...],
    scale_type: type[np.floating],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, scales, zeros) of blocks (B, group), each weight counted by its importance."""
    top = (1 << bits) - 1
    low, high = blocks.min(1), blocks.max(1)
    if symmetric:
        # the weight of largest size gets the code 0: there is one more step below the middle
        span = np.where(-low > high, low, high) / np.float32(-(1 << (bits - 1)))
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        span = (high - low) / np.float32(top)
    best = _Best(blocks, importance, top, scale_type)
    for fraction in fractions:
        scales = _nonzero(span * np.float32(fraction))
        zeros = np.full_like(scales, 1 << (bits - 1))
        if not symmetric:
            zeros = np.clip(np.rint(-low / scales), 0, top)
        if len(fractions) > 1:
            steps = best.round(scales, zeros)
            counted = steps if importance is None else steps * importance
            fitted = (counted * blocks).sum(1) / np.maximum((counted * steps).sum(1), 1e-20)
            scales = _nonzero(fitted)
        best.offer(scales, zeros)
    return best.codes, best.scales, best.zeros.astype(np.uint8)


class _Best:
    """The codes with the least squared error so far, block by block."""

    def __init__(
        self,
        blocks: np.ndarray,
        importance: np.ndarray | None,
        top: int,
        scale_type: type[np.floating],
    ) -> None:
        self.blocks, self.importance = blocks, importance
        self.top, self.scale_type = top, scale_type
        self.codes = np.zeros(blocks.shape, np.uint8)
        self.scales = np.zeros(len(blocks), np.float32)
        self.zeros = np.zeros(len(blocks), np.float32)
        self.errors = np.full(len(blocks), np.inf, np.float32)

    def round(self, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """Whole steps from the zero point, float32, within the codes there are."""
        steps: np.ndarray = np.rint(self.blocks / scales[:, None])
        return np.clip(steps, -zeros[:, None], (self.top - zeros)[:, None], out=steps)

    def offer(self, scales: np.ndarray, zeros: np.ndarray) -> None:
        """Take these scales and zeros where they are better."""
        with np.errstate(over="ignore"):
            scales = scales.astype(self.scale_type).astype(np.float32)
        steps = self.round(_nonzero(scales), zeros)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(steps * scales[:, None] - self.blocks)
            errors = (squares if self.importance is None else squares * self.importance).sum(1)
        better = ~(errors >= self.errors)  # an error that is not a number is kept and seen
        self.codes[better] = (steps + zeros[:, None])[better]
        self.scales[better], self.zeros[better] = scales[better], zeros[better]
        self.errors[better] = errors[better]


def _nonzero(scales: np.ndarray) -> np.ndarray:
    """A scale of zero would divide by it; any other gives a block of zeros the same codes."""
    return np.where(scales == 0, np.float32(1), scales)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (R, C) to bytes (R, ceil(C * bits / 8)); the first code in the lowest bits."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: np.ndarray = codes[:, ::2] | (codes[:, 1::2] << 4)
    return packed
