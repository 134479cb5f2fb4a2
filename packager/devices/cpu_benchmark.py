"""How fast this CPU reads memory and multiplies. Run as a file, in a process of its own:

    python cpu_benchmark.py THREADS BUFFER_BYTES EACH_S SIDE

Prints JSON lines: {"doing", "done", "total"} as it goes, at last {"figures"}: bytes and operations
per second, the best of what was seen, since other programs can only slow it down; null where torch
is not installed. Imports nothing of starpack's, so that its threads and torch stay in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MIN_PASSES = 3
STEPS = ("reading memory", "float32 products", "torch's products")


def best_rate(work: Callable[[], object], amount: float, each_s: float) -> float:
    """The best rate of `amount` per second at which `work` ran, after one run to warm up."""
    work()
    best_s, until = float("inf"), time.perf_counter() + each_s
    passes = 0
    while passes < MIN_PASSES or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started)
        passes += 1
    return amount / best_s


def read_rate(threads: int, buffer_bytes: int, each_s: float) -> float:
    """Bytes per second that `threads` read together from memory.

    By the largest of 32-bit integers: of numpy's reductions the one nearest to the memory's rate,
    and it leaves the interpreter lock to others.
    """
    parts = [np.ones(buffer_bytes // threads // 4, np.int32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return best_rate(
            lambda: list(pool.map(np.max, parts)), sum(part.nbytes for part in parts), each_s
        )


def float32_rate(side: int, each_s: float) -> float:
    """Operations per second of numpy's float32 matrix product."""
    a = np.random.default_rng(0).random((side, side), np.float32)
    out = np.empty_like(a)
    return best_rate(lambda: np.matmul(a, a, out=out), 2 * side**3, each_s)


def torch_rates(threads: int, side: int, each_s: float) -> dict[str, float | None]:
    """Operations per second of torch's matrix products by type; None where it is missing."""
    try:
        import torch
    except ImportError:
        return {"torch_float32": None, "bfloat16": None, "int8": None}
    torch.set_num_threads(threads)
    wide = torch.rand(side, side)
    half = wide.bfloat16()
    integers = torch.randint(-128, 128, (side, side), dtype=torch.int8)
    work = 2 * side**3
    return {
        "torch_float32": best_rate(lambda: torch.mm(wide, wide), work, each_s),
        "bfloat16": best_rate(lambda: torch.mm(half, half), work, each_s),
        "int8": best_rate(lambda: torch._int_mm(integers, integers), work, each_s),
    }


def main(threads: int, buffer_bytes: int, each_s: float, side: int) -> None:
    """Measure everything, `each_s` for each figure; matrices are side x side."""

    def step(number: int) -> None:
        report({"doing": STEPS[number], "done": number, "total": len(STEPS)})

    step(0)
    figures = {"read": read_rate(threads, buffer_bytes, each_s)}
    step(1)
    figures |= {"numpy_float32": float32_rate(side, each_s)}
    step(2)
    report({"figures": figures | torch_rates(threads, side, each_s)})


def report(line: dict[str, object]) -> None:
    """One line for the parent, at once."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
