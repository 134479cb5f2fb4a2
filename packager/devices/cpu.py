"""This machine's CPU as a device: Linux's files read, its speed measured in a child process."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from typing import Any

from packager.core import blas
from packager.core.errors import DeviceError
from packager.core.records import Progress
from packager.devices.profile_file import slug
from runtimes.host.cpu import read_processor
from runtimes.host.limits import default_threads, machine_memory_bytes

BENCHMARK = Path(__file__).with_name("cpu_benchmark.py")
CPUS = Path("/sys/devices/system/cpu")
TIME_LIMIT_S = 120  # it takes about 10 s alone; a guess for a machine that is busy
EACH_S = 1.0  # for each of five figures; a guess: leaves ten passes or more to take the best of
SIDE = 2048  # of the matrices: a guess, 16 MiB in float32, well past small ones' overhead
MIN_BUFFER_BYTES = 256 << 20
CACHES_OVER = 8  # read this many times the last-level cache: a guess, a few passes evict all of it
MEMORY_DIVISOR = 4  # never read more than a quarter of what is available
OLD_CACHE_BYTES = 1 << 20  # where Linux hides the caches: a guess on the safe side
MIN_MEMORY_BYTES = 64 << 20  # less is an error: neither this measures anything, nor a model runs
# Where torch is missing, from float32's rate: an AVX-512 instruction does 16 multiply-adds of
# float32, 32 of bfloat16, 64 of int8 (VNNI); AVX2 does 8, and 32 of int8 in two steps.
BFLOAT16_OVER_FLOAT32, INT8_VNNI_OVER_FLOAT32, INT8_OVER_FLOAT32 = 2, 4, 2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def describe_cpu(progress: Progress) -> dict[str, Any]:
    """A device file's content for this machine's CPU; takes about 10 s.

    Raises DeviceError where Linux does not say how much memory there is, or the child fails.
    """
    title, flags = cpu_title(), read_processor().flags
    threads = default_threads()
    total, available = machine_memory_bytes()
    if available < MIN_MEMORY_BYTES:
        raise DeviceError(
            f"{available} bytes of memory are available" if total else "no memory is stated here",
            where="/proc/meminfo and the cgroup's limits",
            expected=f"MemTotal and MemAvailable, {MIN_MEMORY_BYTES} bytes or more",
            remedy="free some, or describe the machine in a device file (see profiles/devices)",
        )
    cache = _last_cache_bytes()
    buffer = max(MIN_BUFFER_BYTES, CACHES_OVER * (cache or OLD_CACHE_BYTES))
    speed = measure_speed(threads, min(buffer, available // MEMORY_DIVISOR), progress)
    return {
        "schema": 1,
        "name": slug(f"cpu {title}")[:60].strip("-"),
        "title": f"CPU, {title}, {threads} cores",
        "about": f"Measured by `starpack device detect` on {date.today()}.",
        "kind": "cpu",
        "architecture": " ".join([platform.machine(), *_extensions(flags)]),
        "compute_capability": None,
        "multiprocessors": _figure(threads, "physical cores that this process may use"),
        "memory_total_bytes": _figure(total, "MemTotal, no more than the cgroup's limit"),
        "memory_bytes": _figure(available, "MemAvailable at the time, within the cgroup's limit"),
        "bandwidth_bytes_per_s": _figure(
            speed["read"], f"{threads} threads that read, the best pass"
        ),
        **_arithmetic(speed, flags, threads),
        "l2_bytes": _figure(cache, "the last-level cache, as Linux states it")
        if cache
        else _estimate(OLD_CACHE_BYTES, "Linux hides the caches; a guess on the safe side"),
        "ecc": {
            "value": False, "basis": "recalled",
            "source": "what a CPU's memory may have of it takes neither memory nor bandwidth",
        },
        "bfloat16": _figure(bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}), "/proc/cpuinfo"),
        "kernels": _kernels(flags),
        "cuda": None,
        "driver": None,
        "calibration": None,
    }  # fmt: skip


def measure_speed(
    threads: int, buffer_bytes: int, progress: Progress, *, each_s: float = EACH_S, side: int = SIDE
) -> dict[str, float | None]:
    """What cpu_benchmark.py measures in its own process. Raises DeviceError where it fails."""
    command = [sys.executable, "-P", str(BENCHMARK)]
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    # the model of time is held against what OpenBLAS does by itself
    environment.pop(blas.VARIABLE, None)
    figures: dict[str, float | None] | None = None
    with subprocess.Popen(
        [*command, *map(str, (threads, buffer_bytes, each_s, side))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as child:  # fmt: skip
        alarm = threading.Timer(TIME_LIMIT_S, child.kill)
        alarm.start()
        try:
            for line in child.stdout or ():
                if not line.startswith("{"):  # a library's own message
                    continue
                message = json.loads(line)
                figures = message.get("figures")
                if "doing" in message:
                    progress(message["doing"], message["done"], message["total"])
            errors = child.stderr.read() if child.stderr else ""
        finally:
            alarm.cancel()
            if figures is None:
                child.kill()
    if figures is None or child.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(
            f"the measuring process ended with code {child.returncode}: {last}",
            expected=f"figures within {TIME_LIMIT_S} s",
            remedy="a negative code is a signal: -9 is a machine too busy, or out of memory",
        )
    return figures


def cpu_title() -> str:
    """The processor's name, or that of its kind."""
    return read_processor().name or platform.processor() or platform.machine()


def _extensions(flags: frozenset[str]) -> list[str]:
    """Those that matter to the kernels."""
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return [flag for flag in (*wanted, "asimddp", "i8mm", "bf16", "sve") if flag in flags]


def _kernels(flags: frozenset[str]) -> list[str]:
    found = ["gguf-avx2"] if "avx2" in flags else []
    found += ["gguf-avx512-vnni"] if "avx512_vnni" in flags else []
    found += ["gptq-torch-int4"] if "avx2" in flags else []
    return [*found, "onnx-mlas"]


def _last_cache_bytes() -> int:
    """Size of the largest level of cache, all its instances together; 0 where Linux hides it.

    Instances are counted as in the topology: CPUs that share one have it in the same list.
    """
    levels: dict[int, dict[str, int]] = {}
    for index in CPUS.glob("cpu[0-9]*/cache/index[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            shared = (index / "shared_cpu_list").read_text().strip()
            levels.setdefault(level, {})[shared] = int(size.removesuffix("K")) * 1024
    return sum(levels[max(levels)].values()) if levels else 0


def _arithmetic(
    speed: dict[str, float | None], flags: frozenset[str], threads: int
) -> dict[str, dict[str, Any]]:
    """The four rates: measured; where torch is missing, estimated from float32's."""
    float32 = max(speed["numpy_float32"] or 0, speed["torch_float32"] or 0)
    if speed["bfloat16"] is not None and speed["int8"] is not None:
        half = _figure(speed["bfloat16"], f"torch's bfloat16 matrix product, {threads} threads")
        int8 = _figure(speed["int8"], f"torch's int8 matrix product, {threads} threads")
    else:
        over = BFLOAT16_OVER_FLOAT32 if flags & {"avx512_bf16", "amx_bf16"} else 1
        half = _estimate(over * float32, f"{over} times float32; torch is not there to measure it")
        vnni = flags & {"avx512_vnni", "avx_vnni", "amx_int8"}
        over = INT8_VNNI_OVER_FLOAT32 if vnni else INT8_OVER_FLOAT32
        int8 = _estimate(over * float32, f"{over} times float32; torch is not there to measure it")
    return {
        "fp16_flops_per_s": half,
        "fp16_half_flops_per_s": half,
        "int8_ops_per_s": int8,
        "fp32_flops_per_s": _figure(
            float32, f"matrix product, {threads} threads, the faster of numpy and torch"
        ),
    }


def _figure(value: object, how: str) -> dict[str, Any]:
    rounded = round(value) if isinstance(value, float) else value
    return {"value": rounded, "basis": "measured", "source": how}


def _estimate(value: float, how: str) -> dict[str, Any]:
    return {"value": round(value), "basis": "estimated", "source": how}
