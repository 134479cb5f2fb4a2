"""An NVIDIA GPU of this machine as a device: what NVIDIA's driver states, by nvidia-ml-py.

The driver states no rates of arithmetic and no cache: those come from the device database where
the GPU is in it, and from its clock and compute capability where it is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from packager.core.errors import DeviceError
from packager.devices.database import read_device
from packager.devices.profile_file import names, slug
from runtimes.host.limits import machine_memory_bytes

BOARD = Path("/proc/device-tree/model")  # where a Jetson says that it is one
HBM_BUS_BITS = 1024  # specified: one stack of HBM has 1024 bits, a GDDR card at most 512
DATA_RATE = 2  # specified: NVML's memory clock counts one of the two transfers of a cycle
LIKE = 0.1  # two cards of one name are told apart by their memory; a guess
BASE_FIGURES = (
    "multiprocessors", "fp16_flops_per_s", "fp16_half_flops_per_s", "int8_ops_per_s",
    "fp32_flops_per_s", "l2_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the driver states; None where it does not support the question."""

    name: str
    capability: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    memory_clock_hz: float | None
    bus_bits: int | None
    clock_hz: float | None
    cores: int | None
    ecc: bool | None
    driver: str
    cuda: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What a compute capability fixes, recalled from NVIDIA's architecture papers.

    cores: float32 units of a multiprocessor. tensor_flops: dense float16 operations a cycle of its
    tensor cores, 0 where it has none. integer: int8 over float16 on them. l2_bytes: what is usual.
    cuda: the first toolkit.
    """

    architecture: str
    cores: int
    tensor_flops: int
    integer: int
    l2_bytes: int
    cuda: str


MIB = 1 << 20
GENERATIONS = {
    "6.1": Generation("Pascal", 128, 0, 0, 2 * MIB, "8.0"),
    "7.0": Generation("Volta", 64, 1024, 0, 6 * MIB, "9.0"),
    "7.2": Generation("Volta", 64, 1024, 2, MIB // 2, "10.0"),
    "7.5": Generation("Turing", 64, 1024, 2, 4 * MIB, "10.0"),
    "8.0": Generation("Ampere", 64, 2048, 2, 40 * MIB, "11.0"),
    "8.6": Generation("Ampere", 128, 1024, 2, 4 * MIB, "11.1"),
    "8.7": Generation("Ampere", 128, 2048, 2, 4 * MIB, "11.4"),
    "8.9": Generation("Ada", 128, 1024, 2, 32 * MIB, "11.8"),
    "9.0": Generation("Hopper", 128, 4096, 2, 50 * MIB, "11.8"),
    "10.0": Generation("Blackwell", 128, 8192, 2, 100 * MIB, "12.8"),
    "12.0": Generation("Blackwell", 128, 1024, 2, 32 * MIB, "12.8"),
    "12.1": Generation("Blackwell", 128, 1024, 2, 24 * MIB, "12.9"),
}
UNKNOWN = "It is not in the device database: arithmetic and cache follow from its highest clock."
DP4A_OVER_FLOAT32 = 4  # specified: one dot product of four int8 pairs where one float32 pair was
PASCAL_HALF = 64  # specified: 6.1 does float16 at a 64th of float32


def kernels_of(capability: str) -> list[str]:
    """The kernels that run at a compute capability, as profiles/device.schema.json names them."""
    number = float(capability)
    found = ["gguf-mma" if number >= 7.5 else "gguf-dp4a"]
    found += ["gptq-exllama"] if number < 7.0 else []
    found += ["gptq-exllama2"]
    found += ["gptq-marlin", "gptq-torch-int4"] if number >= 8.0 else []
    return found + (["onnx-matmulnbits"] if number >= 7.5 else [])


def read_gpu(index: int = 0) -> Gpu | None:
    """What the driver states of GPU `index`; None where there is no NVIDIA library or no GPU.

    Raises DeviceError where there is one that cannot be used: no driver, no such index, a GPU that
    is split (MIG), a Jetson without the library.
    """
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        _refuse_jetson()
        return None
    except nvml.NVMLError as error:
        raise DeviceError(
            f"NVIDIA's driver does not answer: {error}",
            remedy="load the driver (nvidia-smi has to work), or describe the CPU: --kind cpu",
        ) from None
    try:
        count = nvml.nvmlDeviceGetCount()
        if count == 0:
            return None
        if index >= count:
            raise DeviceError(
                f"there is no GPU {index}",
                expected=f"0 to {count - 1}",
                remedy="see `nvidia-smi -L`; CUDA_VISIBLE_DEVICES does not count here",
            )
        return _ask_all(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    finally:
        nvml.nvmlShutdown()


def describe_gpu(gpu: Gpu) -> dict[str, Any]:
    """A device file's content: the driver's figures, the rest from the database or the clock."""
    known = find_known(gpu.name, gpu.memory_total_bytes)
    generation = _generation(gpu.capability)
    shared = gpu.memory_total_bytes is None
    base = _known_figures(known) if known else _figures_by_clock(gpu, generation)
    stated = f"NVIDIA's driver {gpu.driver}"
    free = machine_memory_bytes()[1] if gpu.memory_free_bytes is None else gpu.memory_free_bytes
    return {
        "schema": 1,
        "name": slug(gpu.name)[:60].strip("-"),
        "title": gpu.name,
        "about": f"Read by `starpack device detect` on {date.today()}. "
        + (f"Arithmetic and cache are those of {known['name']}." if known else UNKNOWN),
        "driver_names": [gpu.name],
        "kind": "soc" if shared else "gpu",
        "architecture": generation.architecture,
        "compute_capability": _figure(gpu.capability, "cited", stated),
        "memory_total_bytes": None
        if shared
        else _figure(gpu.memory_total_bytes, "cited", stated),
        "memory_bytes": _figure(
            free, "measured", "MemAvailable at the time" if shared else f"free then, {stated}"
        ),
        "bandwidth_bytes_per_s": _bandwidth(gpu, known),
        **base,
        "ecc": _ecc(gpu, stated),
        "bfloat16": _figure(float(gpu.capability) >= 8.0, "recalled", "8.0 and above have it"),
        "kernels": kernels_of(gpu.capability),
        "cuda": {
            "oldest": generation.cuda, "newest": gpu.cuda, "basis": "cited",
            "source": f"{stated}, which has CUDA {gpu.cuda}; the oldest for {gpu.capability}",
        },
        "driver": {
            "oldest": gpu.driver, "newest": gpu.driver, "basis": "cited", "source": stated
        },
        "calibration": None,
    }  # fmt: skip


def find_known(name: str, memory_bytes: int | None) -> dict[str, Any] | None:
    """The database's file for what the driver calls `name`, if its memory is alike as well."""
    for known in map(read_device, names("device")):
        if _plain(name) not in map(_plain, known.get("driver_names", ())):
            continue
        total = known["memory_total_bytes"]
        if total is None or memory_bytes is None:
            return known
        if abs(total["value"] / memory_bytes - 1) < LIKE:
            return known
    return None


def _plain(name: str) -> str:
    """Drivers call one card "Tesla T4", "NVIDIA T4" or "T4"."""
    words = slug(name).split("-")
    return "-".join(word for word in words if word not in ("nvidia", "tesla", "geforce"))


def _ask_all(nvml: ModuleType, handle: object) -> Gpu:
    def ask(question: Callable[..., Any], *arguments: object) -> Any:
        try:
            return question(handle, *arguments)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
            return None

    name = nvml.nvmlDeviceGetName(handle)
    if (ask(nvml.nvmlDeviceGetMigMode) or (0, 0))[0]:
        raise DeviceError(
            f"{name} is split into instances (MIG)",
            expected="an undivided GPU: the driver does not state an instance's own figures",
            remedy="describe the instance in a device file of your own (see profiles/devices)",
        )
    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    memory_mhz = ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM)
    clock_mhz = ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM)
    ecc = ask(nvml.nvmlDeviceGetEccMode)
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return Gpu(
        name=name,
        capability="{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        memory_total_bytes=memory and int(memory.total),
        memory_free_bytes=memory and int(memory.free),
        memory_clock_hz=memory_mhz and memory_mhz * 1e6,
        bus_bits=ask(nvml.nvmlDeviceGetMemoryBusWidth),
        clock_hz=clock_mhz and clock_mhz * 1e6,
        cores=ask(nvml.nvmlDeviceGetNumGpuCores),
        ecc=None if ecc is None else bool(ecc[0]),
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",  # NVML: 1000 x major + 10 x minor
    )


def _refuse_jetson() -> None:
    try:
        board = BOARD.read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return
    if "jetson" in board.lower() or "nvidia" in board.lower():
        raise DeviceError(
            f"this is a {board}, whose system has no NVML to ask",
            remedy="name it (`starpack device list`), or describe its CPU: --kind cpu",
        )


def _generation(capability: str) -> Generation:
    """That of the compute capability, or of the nearest one below: newer ones add to it."""
    below = [known for known in GENERATIONS if float(known) <= float(capability)]
    if not below:
        raise DeviceError(
            f"the GPU's compute capability {capability} is too old",
            expected=f"{min(GENERATIONS, key=float)} or more: 8-bit dot products",
            remedy="describe the CPU: --kind cpu",
        )
    return GENERATIONS[max(below, key=float)]


def _known_figures(known: dict[str, Any]) -> dict[str, Any]:
    return {
        key: known[key] | {"source": f"device database, {known['name']}: {known[key]['source']}"}
        for key in BASE_FIGURES
    }


def _figures_by_clock(gpu: Gpu, generation: Generation) -> dict[str, Any]:
    """Rates from units x operations a cycle x clock. Raises DeviceError without a clock."""
    if gpu.clock_hz is None or gpu.cores is None:
        raise DeviceError(
            f"{gpu.name} is not in the device database, and its driver states no clock or cores",
            remedy="describe it in a device file of your own (see profiles/devices)",
        )
    units = max(1, gpu.cores // generation.cores)
    float32 = 2 * gpu.cores * gpu.clock_hz
    half = units * generation.tensor_flops * gpu.clock_hz or float32 / PASCAL_HALF
    # specified: GeForce cards add up in float32 at half the rate of float16
    full = half / 2 if "geforce" in gpu.name.lower() and generation.tensor_flops else half
    int8 = half * generation.integer or float32 * DP4A_OVER_FLOAT32
    how = f"at most: {units} multiprocessors of {gpu.capability} at their highest clock"
    return {
        "multiprocessors": _figure(units, "estimated", f"{gpu.cores} cores / {generation.cores}"),
        "fp16_flops_per_s": _figure(round(full), "estimated", how),
        "fp16_half_flops_per_s": _figure(round(half), "estimated", how),
        "int8_ops_per_s": _figure(round(int8), "estimated", how),
        "fp32_flops_per_s": _figure(round(float32), "estimated", how),
        "l2_bytes": _figure(
            generation.l2_bytes, "estimated", f"usual for compute capability {gpu.capability}"
        ),
    }


def _bandwidth(gpu: Gpu, known: dict[str, Any] | None) -> dict[str, Any]:
    if gpu.memory_clock_hz and gpu.bus_bits:
        value = DATA_RATE * gpu.memory_clock_hz * gpu.bus_bits / 8
        how = f"{DATA_RATE} x {gpu.memory_clock_hz / 1e6:.0f} MHz x {gpu.bus_bits} bits / 8"
        return _figure(round(value), "estimated", f"{how}, both stated by NVIDIA's driver")
    if known:
        figure: dict[str, Any] = known["bandwidth_bytes_per_s"]
        return figure | {"source": f"device database, {known['name']}: {figure['source']}"}
    raise DeviceError(
        f"{gpu.name} is not in the device database, and its driver states no memory clock or bus",
        remedy="describe it in a device file of your own (see profiles/devices)",
    )


def _ecc(gpu: Gpu, stated: str) -> dict[str, Any]:
    if gpu.ecc and gpu.bus_bits and gpu.bus_bits >= HBM_BUS_BITS:
        return _figure(False, "cited", f"on, {stated}, but HBM has bits of its own for it")
    return _figure(bool(gpu.ecc), "cited", stated)


def _figure(value: object, basis: str, source: str) -> dict[str, Any]:
    return {"value": value, "basis": basis, "source": source}
