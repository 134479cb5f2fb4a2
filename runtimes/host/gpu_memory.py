"""Free memory of the GPU, as NVIDIA's driver library says it. Standard library only.

Signatures and structures are those of nvml.h, which NVIDIA keeps stable. Tested on a stand-in for
the library, never on a GPU.
"""

from __future__ import annotations

import ctypes
import os

LIBRARY = "libnvidia-ml.so.1"  # specified: it comes with the driver
HALF_FRACTION = 0.8  # guessed: of the free memory for weights; the cache and the sums need the rest


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def half_fits(half_bytes: int, free_bytes: int) -> bool:
    """Whether quantised weights are kept in float16 on a GPU that has no kernel for them.

    To expand them for each token costs several times as much as to read float16.
    """
    return half_bytes <= HALF_FRACTION * free_bytes


def gpu_free_bytes() -> int:
    """Of the first GPU that CUDA_VISIBLE_DEVICES leaves; 0 where nobody can say."""
    try:
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        return 0
    if nvml.nvmlInit_v2():
        return 0
    try:
        device, memory = ctypes.c_void_p(), Memory()
        failed = _find(nvml, device) or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        return 0 if failed else memory.free
    finally:
        nvml.nvmlShutdown()


def first_visible() -> int | str:
    """The number or the UUID of the first GPU that CUDA_VISIBLE_DEVICES leaves.

    The driver counts GPUs by their place on the bus, CUDA by default from the fastest: where they
    differ, CUDA_VISIBLE_DEVICES with the GPU's UUID says which.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return int(first) if first.isdecimal() else first


def _find(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> int:
    """Set `device`; returns NVML's error code, 0 for none."""
    first = first_visible()
    if isinstance(first, int):
        code = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(first), ctypes.byref(device))
    else:
        code = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(device))
    return int(code)
