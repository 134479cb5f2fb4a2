"""torch's two int4 operations for CUDA, computed slowly on any device as their source has it.

aten/src/ATen/native/cuda/int4mm.cu of torch 2.13: what it checks is asserted, and the order of the
codes is written with its own indices (n0, ks, pack).
"""

from __future__ import annotations

import torch

N_TILE, K_TILE, LANES = 8, 16, 32


def convert(pairs: torch.Tensor, inner: int) -> torch.Tensor:
    """As _convert_weight_to_int4pack: uint8 (n, k / 2) to int32 (n / 8, k / (16 inner), 32, .)."""
    assert pairs.dim() == 2 and pairs.dtype == torch.uint8 and pairs.is_contiguous()
    assert inner in (2, 4, 8) and pairs.shape[1] * 2 % (inner * K_TILE) == 0
    n, k = pairs.shape[0], 2 * pairs.shape[1]
    n0, first = _places(n, k, inner)
    pack = torch.zeros_like(n0 + first)
    for i in range(4):
        v = pairs[n0, first + 4 * i].long()
        pack |= (v >> 4) << (4 * i) | (v & 15) << (16 + 4 * i)
    return pack.to(torch.int32)  # wraps, as there


def multiply(
    x: torch.Tensor, packed: torch.Tensor, group: int, scales_zeros: torch.Tensor
) -> torch.Tensor:
    """As _weight_int4pack_mm."""
    assert x.dim() == 2 and x.dtype == torch.bfloat16 and x.is_contiguous()
    assert packed.dim() == 4 and packed.dtype == torch.int32 and packed.is_contiguous()
    n, k, inner = N_TILE * packed.shape[0], x.shape[1], 2 * packed.shape[3]
    assert packed.shape[1:3] == (k // (inner * K_TILE), LANES)
    assert group in (32, 64, 128, 256) and k % group == 0
    assert scales_zeros.shape == (k // group, n, 2)
    assert scales_zeros.dtype == torch.bfloat16 and scales_zeros.is_contiguous()
    n0, first = _places(n, k, inner)
    codes = torch.empty(n, k)
    for i in range(4):
        codes[n0, 2 * (first + 4 * i)] = (packed >> 4 * i & 15).float()
        codes[n0, 2 * (first + 4 * i) + 1] = (packed >> (16 + 4 * i) & 15).float()
    scales, zeros = scales_zeros.float().repeat_interleave(group, 0).permute(2, 1, 0)
    weights = ((codes - 8) * scales + zeros).bfloat16()
    return (x.float() @ weights.float().T).bfloat16()


def _places(n: int, k: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each word its output, and its first pair of inputs."""
    tile = torch.arange((n + N_TILE - 1) // N_TILE)[:, None, None, None]
    block = torch.arange(k // (inner * K_TILE))[:, None, None]
    lane = torch.arange(LANES)[:, None]
    word = torch.arange(inner // 2)
    return tile * N_TILE + lane // 4, (block * inner + 2 * word) * K_TILE // 2 + lane % 4


def multiply_shapes(
    x: torch.Tensor, packed: torch.Tensor, group: int, scales_zeros: torch.Tensor
) -> torch.Tensor:
    """torch's own meta function of the product, which wants tensors of its own kind."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, packed, scales_zeros = (
            torch.empty(t.shape, dtype=t.dtype) for t in (x, packed, scales_zeros)
        )
        y = torch.ops.aten._weight_int4pack_mm(x, packed, group, scales_zeros)
    return torch.empty(y.shape, dtype=y.dtype, device="meta")
