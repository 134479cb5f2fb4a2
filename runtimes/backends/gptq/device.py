"""The GPU that torch has here, and which kernel path suits it. Knows nothing of models."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from runtimes.errors import DeviceError
from runtimes.host.gpu_memory import half_fits

KERNEL_CAPABILITY = (8, 0)  # specified: torch's int4 kernel and bfloat16 need it
MIN_CAPABILITY = (7, 0)  # specified: before it, products of float16 have no tensor cores


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device, and its memory before anything was loaded."""

    name: str
    capability: tuple[int, int]
    free_bytes: int
    device: torch.device

    def free_now_bytes(self) -> int:
        """Free memory of the device, whoever took it."""
        return torch.cuda.mem_get_info(self.device)[0]


def choose_kernel_path(capability: tuple[int, int], free_bytes: int, half_bytes: int) -> str:
    """One of model.KERNEL_PATHS for a GPU; half_bytes is what all weights take in float16.

    Raises DeviceError for one that is too old.
    """
    if capability >= KERNEL_CAPABILITY:
        return "tiled"
    if capability < MIN_CAPABILITY:
        raise DeviceError(
            "the GPU has compute capability {}.{}".format(*capability),
            expected="{}.{} or newer".format(*MIN_CAPABILITY),
            remedy="use --provider cpu, or a GGUF bundle with the CUDA engine",
        )
    return "half" if half_fits(half_bytes, free_bytes) else "expanded"


def find_gpu() -> Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves, tried out.

    Raises DeviceError where torch has no CUDA, or no device that works.
    """
    if torch.version.cuda is None:
        raise DeviceError(
            f"torch {torch.__version__} is a build without CUDA",
            expected="a CUDA build of the same version",
            remedy="install that build of torch from the index that its publisher names for CUDA, "
            "or use --provider cpu",
        )
    with warnings.catch_warnings(record=True) as said:  # it says there why it finds none
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        reason = f": {said[0].message}" if said else ""
        raise DeviceError(
            f"torch finds no CUDA device{reason}",
            expected=f"an NVIDIA GPU whose driver supports CUDA {torch.version.cuda}",
            remedy="see what nvidia-smi and CUDA_VISIBLE_DEVICES say, or use --provider cpu",
        )
    device = torch.device("cuda", 0)
    try:
        torch.ones(8, device=device).sum().item()
        free_bytes, _ = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        capability = torch.cuda.get_device_capability(device)
    except Exception as error:  # no kernels for this device, no memory; torch has many classes
        raise DeviceError(
            f"torch cannot use the GPU: {(str(error).splitlines() or [repr(error)])[0]}",
            expected=f"one of {torch.cuda.get_arch_list()} with memory to spare",
            remedy="install a build of torch for this GPU, or use --provider cpu",
        ) from None
    return Gpu(name, capability, free_bytes, device)
