"""Products of large float32 matrices by oneDNN, also on AMD's processors.

For dense matrices torch takes MKL, which leaves AMD's AVX-512 unused: half the speed
(benchmarks/LOG.md). oneDNN does not, and where torch lacks it these are torch's own products.
"""

from __future__ import annotations

import torch
from torch.nn import functional

BLOCK_ROWS = 512  # rows that are copied at a time; measured: 1,024 and 2,048 are slower


def prepared(matrix: torch.Tensor) -> torch.Tensor:
    """A copy of float32 `matrix` (N, K) as `product` takes it."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return matrix.to_mkldnn() if available else matrix


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T of float32 `a` (M, K), which is copied, and `b` (N, K), prepared."""
    return functional.linear(prepared(a), b).to_dense()


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, sign: int = 1) -> None:
    """Add sign * a @ b.T, of float32 (M, K) and (N, K), to `out` (M, N).

    Copies b, and BLOCK_ROWS rows of a and of the product at a time.
    """
    if not a.shape[1]:
        return
    b = prepared(b)
    for start in range(0, len(a), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        out[rows].add_(product(a[rows], b), alpha=sign)
