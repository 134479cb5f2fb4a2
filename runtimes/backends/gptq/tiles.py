"""Products with 4- and 8-bit weights on NVIDIA GPUs, with what torch itself has there.

TiledLinear is for compute capability 8.0 and newer: few rows go through torch's int4 kernel
(aten/src/ATen/native/cuda/int4mm.cu), many are cheaper as an ordinary product. Both read one copy
of the weights, in the kernel's own order: that order is taken apart here with whole-number
arithmetic. To multiply the kernel by an identity matrix would give the weights too, without knowing
the order, but at the price of a product with as many rows as there are inputs. `check_tiles` tries
the order out on the device, so another order is an error and not a wrong answer.

ExpandedLinear is for GPUs before that, which have neither the kernel nor bfloat16: codes are
expanded to float16 before each product, and the sums are float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runtimes.backends.gptq.files import Codes
from runtimes.backends.gptq.linear import MIDDLE, planes_of, wide_product
from runtimes.errors import DeviceError

TILE_OUTPUTS, TILE_INPUTS = 8, 16  # of a tensor core's matrix: m16n8k16
INNER_TILES = (8, 4, 2)  # tiles of inputs that a thread reads at once; the more the better
# Guessed from what torchao published for an A6000 (4096 x 4096, prototype/hqq): 0.07 ms at 64 rows,
# 0.25 at 128, 0.52 at 256. Expanding and an ordinary product are estimated at 0.4 ms for all.
FEW_ROWS = 128
CHUNK_ELEMENTS = 1 << 24  # guessed: 32 MiB expanded, enough to keep a GPU busy
_ops = torch.ops.aten


class TiledLinear:
    """A linear of 4- or 8-bit codes, computed in bfloat16."""

    def __init__(self, codes: Codes, bits: int) -> None:
        self.outputs, self.inputs = codes.codes.shape
        self.bias, self.order = codes.bias.bfloat16(), codes.order
        self.planes = [Tiles(*plane) for plane in planes_of(codes, bits)]

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(p.packed.nbytes + p.scales_zeros.nbytes for p in self.planes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As Linear."""
        if self.order is not None:
            x = x[:, self.order]
        multiply = Tiles.few if len(x) <= FEW_ROWS else Tiles.many
        y = multiply(self.planes[0], x)
        for plane in self.planes[1:]:
            y = y + multiply(plane, x)
        return y[:, : self.outputs] + self.bias


class Tiles:
    """4-bit codes (out, in) in the order of torch's kernel, with scales and offsets (out, G)."""

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, offset: torch.Tensor) -> None:
        extra = -len(codes) % TILE_OUTPUTS
        codes, scales, offset = (F.pad(x, (0, 0, 0, extra)) for x in (codes, scales, offset))
        self.inputs, self.groups = codes.shape[1], scales.shape[1]
        self.inner = next(n for n in INNER_TILES if self.inputs % (n * TILE_INPUTS) == 0)
        pairs = codes[:, ::2] << 4 | codes[:, 1::2]  # (out, in / 2), the first in the high half
        # int32 (out / 8, in / (16 inner), 32, inner / 2)
        self.packed = _ops._convert_weight_to_int4pack(pairs.contiguous(), self.inner)
        pair = torch.stack([scales.T, offset.T], -1)
        self.scales_zeros = pair.bfloat16().contiguous()  # (G, out, 2)

    def few(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in) to (T, out) by the kernel; best up to FEW_ROWS."""
        group = self.inputs // self.groups
        y: torch.Tensor = _ops._weight_int4pack_mm(
            x.contiguous(), self.packed, group, self.scales_zeros
        )
        return y

    def many(self, x: torch.Tensor) -> torch.Tensor:
        """The same as ordinary products with chunks of the weights, each expanded for it."""
        tiles = len(self.packed)
        step = max(1, CHUNK_ELEMENTS // (self.inputs * TILE_OUTPUTS))
        y = x.new_empty(len(x), tiles * TILE_OUTPUTS)
        for start in range(0, tiles, step):
            stop = min(start + step, tiles)
            torch.mm(x, self.expand(start, stop).T, out=y[:, 8 * start : 8 * stop])
        return y

    def expand(self, start: int, stop: int) -> torch.Tensor:
        """Weights of tiles start..stop-1, bfloat16 (outputs, in).

        In a word are the codes of one output and 8 of 32 inputs: thread t of 32 has output t / 4,
        and with t % 4 = f its half-bytes, from the lowest on, are inputs 2f, 2f + 8, 2f + 16,
        2f + 24, then the odd ones 2f + 1, 2f + 9, 2f + 17, 2f + 25.
        """
        count, words = stop - start, self.inner // 2
        # tile, block of inputs, output, f, word, odd, upper half of the 32
        shape = (count, -1, TILE_OUTPUTS, 4, words, 2, 2)
        data = self.packed[start:stop].view(torch.uint8).view(shape)
        halves = torch.stack([data & 15, data >> 4], -1)
        ordered = halves.permute(0, 2, 1, 4, 6, 7, 3, 5)
        codes = ordered.to(torch.bfloat16, memory_format=torch.contiguous_format)
        codes = codes.reshape(count * TILE_OUTPUTS, self.groups, -1).sub_(MIDDLE)
        rows = slice(start * TILE_OUTPUTS, stop * TILE_OUTPUTS)
        pair = self.scales_zeros[:, rows].permute(2, 1, 0).contiguous()
        scales, zeros = pair[..., None]  # (out, G, 1) each
        # rounded once, as in the kernel
        return torch.addcmul(zeros, codes, scales).view(count * TILE_OUTPUTS, self.inputs)


def check_tiles(device: torch.device) -> None:
    """Try both ways to multiply on known weights; DeviceError where torch has other plans."""
    outputs, right = 2 * TILE_OUTPUTS, True
    for inner in INNER_TILES:
        inputs = 3 * inner * TILE_INPUTS
        random = torch.Generator().manual_seed(inner)
        codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=random)
        scales = torch.full((outputs, inputs // 32), 0.5)
        given = (x.to(device) for x in (codes, scales, torch.zeros_like(scales)))
        tiles, one = Tiles(*given), torch.eye(inputs, dtype=torch.bfloat16, device=device)
        for weights in (tiles.few(one).T, tiles.expand(0, 2)):
            right &= torch.equal(weights.cpu().float(), (codes.float() - MIDDLE) / 2)
    if not right:
        raise DeviceError(
            f"torch {torch.__version__} orders 4-bit weights for GPUs in an unknown way",
            expected="that of torch 2.13",
            remedy="install that version, or use --provider cpu",
        )


class ExpandedLinear:
    """A linear of 4- or 8-bit codes: float16 in, float32 out, expanded for each product."""

    def __init__(self, codes: Codes, bits: int) -> None:
        self.outputs, self.inputs = codes.codes.shape
        self.bits, self.bias, self.order = bits, codes.bias.float(), codes.order
        self.codes = codes.codes
        if bits == 4:  # (out, in / 2), the first in the low half
            self.codes = codes.codes[:, ::2] | codes.codes[:, 1::2] << 4
        # both are exact: files have float16 scales, and zeros are whole numbers
        self.scales, self.zeros = (x.half()[..., None] for x in (codes.scales, codes.zeros))

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As Linear."""
        if self.order is not None:
            x = x[:, self.order]
        y = x.new_empty((len(x), self.outputs), dtype=torch.float32)
        step = max(1, CHUNK_ELEMENTS // self.inputs)
        for start in range(0, self.outputs, step):
            stop = min(start + step, self.outputs)
            y[:, start:stop] = wide_product(x, self.expand(start, stop).T)
        return y + self.bias

    def expand(self, start: int, stop: int) -> torch.Tensor:
        """Weights of outputs start..stop-1, float16 (outputs, in)."""
        data = self.codes[start:stop]
        if self.bits == 4:
            data = torch.stack([data & 15, data >> 4], -1)
        steps = data.view(stop - start, self.zeros.shape[1], -1) - self.zeros[start:stop]
        return steps.mul_(self.scales[start:stop]).view(stop - start, self.inputs)
