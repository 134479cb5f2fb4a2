"""The device and the machine that a record is about. Opens no context on the GPU."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.child import versions
from packager.core.errors import DeviceError
from packager.devices.cpu import cpu_title
from packager.devices.database import read_device
from packager.devices.nvidia import Gpu, describe_gpu, read_gpu
from runtimes.host.limits import default_threads, machine_memory_bytes

ROOT = Path(__file__).parents[2]
DRY_DEVICE = "cpu-zen4-2-cores"  # whose figures a dry run takes for estimates
TORCH_FACTS = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "name": None}
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info(0)
    capability = "{}.{}".format(*torch.cuda.get_device_capability(0))
    found |= {"name": torch.cuda.get_device_name(0), "capability": capability,
              "total": total, "built_for": torch.cuda.get_arch_list()}
print("FACTS" + json.dumps(found))
"""
TORCH_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a record says of where it was made. device: a device file's content, for estimates.

    environment: what every part's process has, so that all engines see the one GPU.
    """

    name: str
    compute_capability: str | None
    memory_total_bytes: int | None
    driver: str | None
    driver_cuda: str | None
    torch_cuda: str | None
    torch_built_for: tuple[str, ...]
    cpu: str
    threads: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]
    code_sha256: str
    device: dict[str, Any] | None = None
    device_note: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes an outcome out of date when it changes."""
        return {
            "name": self.name, "capability": self.compute_capability, "driver": self.driver,
            "versions": self.versions, "environment": self.environment,
        }  # fmt: skip


def find_facts(index: int) -> Facts:
    """Those of GPU `index`, as NVIDIA's driver and torch state them.

    Raises DeviceError where neither knows of a GPU.
    """
    # CUDA counts from the fastest unless told otherwise, the driver by place
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(index)}
    gpu, device, note = _driver_facts(index)
    seen = _torch_facts(environment)
    if gpu is None and not seen.get("name"):
        raise DeviceError(
            f"there is no CUDA GPU here: {note}",
            expected="an NVIDIA GPU with its driver (nvidia-smi has to work)",
            remedy="run this on a machine that has one; --dry-run tries the parts on the CPU",
        )
    return Facts(
        name=gpu.name if gpu else seen["name"],
        compute_capability=gpu.capability if gpu else seen["capability"],
        memory_total_bytes=gpu.memory_total_bytes if gpu else seen["total"],
        driver=gpu and gpu.driver,
        driver_cuda=gpu and gpu.cuda,
        torch_cuda=seen.get("cuda"),
        torch_built_for=tuple(seen.get("built_for", ())),
        device=device,
        device_note=note,
        environment=environment,
        **_machine(),
    )


def dry_facts() -> Facts:
    """Those of a dry run on the CPU."""
    return Facts(
        name=f"dry run on {cpu_title()}", compute_capability=None, memory_total_bytes=None,
        driver=None, driver_cuda=None, torch_cuda=None, torch_built_for=(),
        device=read_device(DRY_DEVICE), device_note=f"estimates are those of {DRY_DEVICE}",
        **_machine(),
    )  # fmt: skip


def code_sha256() -> str:
    """Of the code that computes and of the code that measures it."""
    files = [*(ROOT / "runtimes").rglob("*.py"), *Path(__file__).parent.glob("*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def _machine() -> dict[str, Any]:
    return {
        "cpu": cpu_title(), "threads": default_threads(),
        "memory_bytes": machine_memory_bytes()[0], "system": platform.platform(),
        "python": platform.python_version(), "versions": versions(), "code_sha256": code_sha256(),
    }  # fmt: skip


def _driver_facts(index: int) -> tuple[Gpu | None, dict[str, Any] | None, str]:
    """(what the driver states, a device file of it, why there is none)."""
    try:
        gpu = read_gpu(index)
    except DeviceError as error:
        return None, None, error.what
    if gpu is None:
        return None, None, "NVIDIA's driver library finds none"
    try:
        return gpu, describe_gpu(gpu), ""
    except DeviceError as error:
        return gpu, None, error.what


def _torch_facts(environment: dict[str, str]) -> dict[str, Any]:
    """What torch states, in a process that ends; empty where it cannot be asked."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH_FACTS], capture_output=True, text=True, check=False,
            timeout=TORCH_LIMIT_S, env=os.environ | environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {}
    found = [line for line in done.stdout.splitlines() if line.startswith("FACTS")]
    return json.loads(found[0].removeprefix("FACTS")) if found else {}
