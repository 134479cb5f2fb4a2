"""How long a series of products takes on a device. torch alone, so that other environments run it.

On a GPU the series is recorded as a CUDA graph and replayed where that works, which is how our
backend runs single tokens: then starting kernels costs nothing. Where it does not work (a kernel
that allocates, or asks the device) the series is timed as it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

# A token, guesses, around where our backend changes its way, a prompt's chunk.
ROWS = (1, 5, 17, 64, 128, 256, 512)
MARK = "RESULT"  # begins the line that a process for one kernel answers with
Call = Callable[[], torch.Tensor]
WARM_UPS = 3
REPEATS, LIMIT_S = 15, 2.0  # the series is repeated, within this time


def series_s(calls: Sequence[Call], device: torch.device) -> tuple[float, bool]:
    """(median seconds of all calls once, whether as a CUDA graph)."""
    for _ in range(WARM_UPS):
        for call in calls:
            call()
    if device.type != "cuda":
        return _median_s(lambda: [call() for call in calls], lambda: None), False
    torch.cuda.synchronize(device)
    graph = _captured(calls, device)
    again = graph.replay if graph is not None else lambda: [call() for call in calls]
    return _median_s(again, lambda: torch.cuda.synchronize(device)), graph is not None


def _captured(calls: Sequence[Call], device: torch.device) -> torch.cuda.CUDAGraph | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        torch.cuda.synchronize(device)
    except RuntimeError:  # torch has no class of its own for what cannot be recorded
        torch.cuda.synchronize(device)
        return None
    return graph


def _median_s(run: Callable[[], object], wait: Callable[[], None]) -> float:
    seconds: list[float] = []
    wait()
    while len(seconds) < REPEATS and sum(seconds) < LIMIT_S:
        started = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted, on the CPU."""
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return float((found - wanted).norm() / wanted.norm())
