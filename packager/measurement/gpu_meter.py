"""What NVIDIA's driver says of the GPU in use while something runs on it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runtimes.host.gpu_memory import first_visible


def process_bytes(pid: int) -> int:
    """Memory of the GPU that process `pid` has.

    In a container the driver knows processes by other numbers: where it does not know this one,
    what is in use in all is the answer.
    """
    with _gpu() as (nvml, gpu):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
            if process.pid == pid and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        return int(nvml.nvmlDeviceGetMemoryInfo(gpu).used)


def energy_j() -> float | None:
    """What the GPU has taken since its driver was loaded, in joules; None where it does not say."""
    with _gpu() as (nvml, gpu):
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1000  # millijoules
        except nvml.NVMLError:
            return None


@contextmanager
def _gpu() -> Iterator[tuple[Any, Any]]:
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    try:
        yield nvml, _first(nvml)
    finally:
        nvml.nvmlShutdown()


def _first(nvml: Any) -> Any:
    """The GPU that CUDA sees first; CUDA takes the beginning of a UUID for the whole."""
    first = first_visible()
    if isinstance(first, int):
        return nvml.nvmlDeviceGetHandleByIndex(first)
    gpus = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    return next((gpu for gpu in gpus if nvml.nvmlDeviceGetUUID(gpu).startswith(first)), gpus[0])
