"""The device file of the machine this runs on: its NVIDIA GPU, or its CPU. Knows neither's ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.core.atomic import write_json
from packager.core.errors import DeviceError, UsageError
from packager.core.records import Progress, no_progress
from packager.devices.cpu import describe_cpu
from packager.devices.nvidia import describe_gpu, read_gpu
from packager.devices.profile_file import check_profile

KINDS = ("gpu", "cpu")


def detect(
    kind: str | None = None, index: int = 0, progress: Progress = no_progress
) -> dict[str, Any]:
    """A checked device file's content. kind None: the GPU where there is one, else the CPU.

    A GPU that is there and cannot be used is an error, never a reason to take the CPU. Raises
    DeviceError, also where kind is "gpu" and there is none; UsageError for another kind.
    """
    if kind not in (None, *KINDS):
        raise UsageError(
            f"{kind!r} is no kind of device", expected=" or ".join(KINDS), remedy="leave it out"
        )
    gpu = None if kind == "cpu" else read_gpu(index)
    if gpu is None and kind == "gpu":
        raise DeviceError(
            "there is no NVIDIA GPU here",
            expected="NVIDIA's driver and its library, libnvidia-ml.so.1",
            remedy="install the driver (in a container: hand the GPU in), or use --kind cpu",
        )
    data = describe_cpu(progress) if gpu is None else describe_gpu(gpu)
    check_profile("device", data, "what was detected")
    return data


def write_device(data: dict[str, Any], out: Path) -> None:
    """Write a device file, all of it or nothing. Raises UsageError where `out` is a folder."""
    if out.is_dir():
        raise UsageError(
            "a folder is no place for a device file",
            where=out,
            expected="the path of a file, such as artifacts/device.json",
            remedy=f"give --out {out / 'device.json'}",
        )
    check_profile("device", data, out)
    write_json(out, data)
