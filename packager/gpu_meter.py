"""What an NVIDIA driver says of its first visible GPU while something runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def process_bytes(pid: int) -> int:
    """Memory of the GPU that process `pid` has; that of all processes where the driver hides it."""
    with _gpu() as (nvml, gpu):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
            if process.pid == pid and process.usedGpuMemory is not None:
                return process.usedGpuMemory
        return 0


def energy_j() -> float | None:
    """What the GPU has taken since its driver was loaded, in joules; None where it does not say."""
    with _gpu() as (nvml, gpu):
        try:
            return nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000  # millijoules
        except nvml.NVMLError:
            return None


@contextmanager
def _gpu() -> Iterator[tuple[Any, Any]]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    finally:
        pynvml.nvmlShutdown()
