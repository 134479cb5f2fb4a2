"""Products with 4- and 8-bit weights on a CPU, and with floats anywhere.

Few rows go through torch's own int4 kernel. Many rows are cheaper as an ordinary product: chunks
of the same packed weights are expanded just before they are used. So there is one copy of the
weights. 8-bit codes are two planes of 4 bits: code = 16 high + low. What GPUs do is in
tiles.py. Knows nothing of models.
"""

from __future__ import annotations

import functools
import threading
from typing import Protocol

import torch
import torch.nn.functional as F

from runtimes.backends.gptq.files import Codes
from runtimes.errors import DeviceError


class Linear(Protocol):
    """(T, in) to (T, out), both of the type that the model computes in; float16 gives float32."""

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


# Measured on 3072 x 12288: up to about 64 rows the kernel is faster (benchmarks/LOG.md).
FEW_ROWS = 48
CHUNK_ELEMENTS = 1 << 21  # guessed: 4 MB expanded, which stays in a core's cache
PADDED_ROWS = 64  # the kernel packs blocks of 32 or 64 outputs
MIDDLE = 8  # the kernel computes (code - 8) * scale + zero
_ops = torch.ops.aten


@functools.cache
def block_layout() -> torch.Tensor:
    """Which output of its block each half of a byte is, int64 (block,): low halves, high ones.

    torch packs outputs in blocks of 32 or 64, in an order that depends on the processor. So it is
    asked: the number of each output is packed in place of its codes.
    """
    inputs = 32
    numbers = torch.arange(64, dtype=torch.int32)[:, None].expand(64, inputs)
    low, high = (
        _ops._convert_weight_to_int4pack_for_cpu(part.contiguous(), 1)
        for part in (numbers & 15, numbers >> 4)
    )
    for block in (64, 32):
        at = [x.view(64 // block, inputs, block // 2)[0] for x in (low, high)]
        halves = torch.cat(
            [(at[0] & 15) | ((at[1] & 15) << 4), (at[0] >> 4) | (at[1] >> 4 << 4)], -1
        ).long()  # (inputs, block)
        complete = halves[0].sort().values.equal(torch.arange(block))
        if complete and halves.eq(halves[0]).all():
            return halves[0]
    raise DeviceError(
        f"torch {torch.__version__} packs 4-bit weights in an unknown way",
        expected="the version that the bundle carries",
        remedy="install the bundle with its own ./install, or run `make setup`",
    )


Plane = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""4-bit codes (out, in), scales (out, G), offsets (out, G): (code - MIDDLE) * scale + offset."""


def planes_of(codes: Codes, bits: int) -> list[Plane]:
    """Planes whose sum is what the codes stand for: one of 4 bits, or two for 8."""
    if bits == 4:
        return [(codes.codes, codes.scales, (MIDDLE - codes.zeros) * codes.scales)]
    # scale (16 (high - 8) + (low - 8) + 136 - zero)
    low = (17 * MIDDLE - codes.zeros) * codes.scales
    high = (codes.codes >> 4, 16 * codes.scales, torch.zeros_like(low))
    return [high, (codes.codes & 15, codes.scales, low)]


def wide_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32, of two matrices or two batches of them, of any one type of float."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cpu":  # there is no such product on CPUs
        return a.float() @ b.float()
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    return multiply(a, b, out_dtype=torch.float32)


class PackedLinear:
    """A linear of 4- or 8-bit codes, computed in bfloat16 on a CPU."""

    def __init__(self, codes: Codes, bits: int) -> None:
        self.outputs, self.inputs = codes.codes.shape
        self.group = self.inputs // codes.scales.shape[1]
        self.bias, self.order = codes.bias.bfloat16(), codes.order
        self.planes = [_Plane(*plane) for plane in planes_of(codes, bits)]

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(p.packed.nbytes + p.scales_zeros.nbytes for p in self.planes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As Linear."""
        if self.order is not None:
            x = x[:, self.order]
        y = self._few(x) if len(x) <= FEW_ROWS else self._many(x)
        return y[:, : self.outputs] + self.bias

    def _few(self, x: torch.Tensor) -> torch.Tensor:
        parts: list[torch.Tensor] = [
            _ops._weight_int4pack_mm_for_cpu(x, p.packed, self.group, p.scales_zeros)
            for p in self.planes
        ]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _many(self, x: torch.Tensor) -> torch.Tensor:
        """Chunks of outputs, each expanded to (in, outputs) and multiplied."""
        order = block_layout()
        block, blocks = len(order), self.planes[0].blocks
        step = max(1, CHUNK_ELEMENTS // (self.inputs * block))
        y = x.new_empty(len(x), blocks, block)
        for start in range(0, blocks, step):
            stop = min(start + step, blocks)
            part = x @ self.planes[0].expand(start, stop)
            for plane in self.planes[1:]:
                part += x @ plane.expand(start, stop)
            y[:, start:stop] = part.view(len(x), stop - start, block)
        natural = torch.equal(order, torch.arange(block))
        return (y if natural else y[..., order.argsort()]).view(len(x), -1)


class _Plane:
    """4-bit codes (out, in) packed for torch's kernel, with their scales and offsets (out, G)."""

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, offset: torch.Tensor) -> None:
        extra = -len(codes) % PADDED_ROWS
        codes, scales, offset = (F.pad(x, (0, 0, 0, extra)) for x in (codes, scales, offset))
        self.inputs, self.groups = codes.shape[1], scales.shape[1]
        self.packed = _ops._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        pair = torch.stack([scales.T, offset.T], -1)
        self.scales_zeros = pair.bfloat16().contiguous()  # (G, out, 2)
        order = block_layout()
        self.blocks = len(codes) // len(order)
        # the same in the order of the packed halves: (G, 1, blocks, block)
        ordered = self.scales_zeros.view(self.groups, 1, self.blocks, len(order), 2)[..., order, :]
        self.scales, zeros = ordered[..., 0].contiguous(), ordered[..., 1].contiguous()
        self.zeros = zeros if zeros.any() else None

    def expand(self, start: int, stop: int) -> torch.Tensor:
        """Weights of blocks start..stop-1, bfloat16 (in, outputs): all low halves, all high ones.

        In memory that the next call of this thread uses again.
        """
        count, half = stop - start, self.scales.shape[-1] // 2
        data = self.packed.view(self.blocks, self.inputs, half)[start:stop]
        halves = _scratch((count, self.inputs, 2, half), torch.uint8)
        torch.bitwise_and(data, 15, out=halves[:, :, 0])
        torch.bitwise_right_shift(data, 4, out=halves[:, :, 1])
        steps = _scratch(halves.shape, torch.bfloat16).copy_(halves)
        steps = steps.view(count, self.groups, -1, 2 * half).permute(1, 2, 0, 3)
        # one pass, rounded once; the permutation costs nothing beside it
        found, scales = _scratch(steps.shape, torch.bfloat16), self.scales[:, :, start:stop]
        torch.addcmul(scales * -MIDDLE, steps, scales, out=found)
        if self.zeros is not None:
            found += self.zeros[:, :, start:stop]
        return found.view(self.inputs, -1)


def _scratch(shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    """Memory of this thread, used again: asking the system for more costs a fifth of the time."""
    return _kept(threading.get_ident(), tuple(shape), kind)


@functools.lru_cache(maxsize=32)
def _kept(thread: int, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=kind)


class FloatLinear:
    """A linear of floats (out, in), in the type that they have.

    Of float16 the results are float32: what leaves a layer can be more than float16 holds.
    """

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weights, self.half = weights, weights.dtype == torch.float16
        self.bias = bias if bias is None or self.half else bias.to(weights.dtype)

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return self.weights.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As Linear."""
        if not self.half:
            return F.linear(x, self.weights, self.bias)
        y = wide_product(x, self.weights.T)
        return y if self.bias is None else y + self.bias


class ByteLinear:
    """A linear of 8 bits with one scale per output, for the head, on a CPU."""

    def __init__(self, weights: torch.Tensor) -> None:
        scales = weights.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.codes = (weights.float() / scales).round().to(torch.int8)
        self.scales = scales.flatten().bfloat16()

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return self.codes.nbytes + self.scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As Linear."""
        y: torch.Tensor = _ops._weight_int8pack_mm(x, self.codes, self.scales)
        return y
