"""Which kernel path a GPU gets, and what is said where there is none."""

from __future__ import annotations

import warnings

import pytest

from runtimes.errors import DeviceError

torch = pytest.importorskip("torch")
from runtimes.backends.gptq import device as gptq_device  # noqa: E402
from runtimes.backends.gptq.device import choose_kernel_path, find_gpu  # noqa: E402

GIB = 1 << 30


@pytest.mark.parametrize(
    ("capability", "free_gib", "half_gib", "kernel_path"),
    [
        ((12, 0), 16, 6, "tiled"),
        ((9, 0), 80, 30, "tiled"),
        ((8, 9), 2, 6, "tiled"),  # 4 bits are all it holds
        ((8, 0), 40, 6, "tiled"),
        ((7, 5), 15, 6, "half"),
        ((7, 5), 15, 12, "half"),
        ((7, 5), 15, 12.1, "expanded"),
        ((7, 0), 15, 30, "expanded"),
        ((6, 1), 24, 6, None),
        ((5, 2), 24, 6, None),
    ],
)
def test_the_way_follows_from_the_device(capability, free_gib, half_gib, kernel_path):
    given = (capability, int(free_gib * GIB), int(half_gib * GIB))
    if kernel_path is None:
        with pytest.raises(DeviceError, match="compute capability {}.{}".format(*capability)):
            choose_kernel_path(*given)
    else:
        assert choose_kernel_path(*given) == kernel_path


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch):
    def refused(match: str) -> None:
        with pytest.raises(DeviceError, match=match) as caught:
            find_gpu()
        assert "--provider cpu" in caught.value.remedy

    monkeypatch.setattr(torch.version, "cuda", None)
    refused("a build without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def old_driver() -> bool:
        warnings.warn("the driver is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    refused("no CUDA device: the driver is too old")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])

    def no_kernel(*shape: int, device: object) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(gptq_device.torch, "ones", no_kernel)
    refused("cannot use the GPU: no kernel image is available\n")
