"""What tests of the GPU check share: a card that computes on the CPU, jobs, facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import runner
from benchmarks.gpu_check.child import Keeper
from benchmarks.gpu_check.facts import Facts
from benchmarks.gpu_check.records import MEASURED, Finding, Job, KernelTime, NotRun
from packager.core.record_store import from_plain
from packager.devices.database import read_device

GIB = 1 << 30
FACTS = Facts(
    name="NVIDIA A card", compute_capability="8.6", memory_total_bytes=12 * GIB, driver="570.86",
    driver_cuda="12.8", torch_cuda="13.0", torch_built_for=("sm_86",), cpu="a processor",
    threads=1, memory_bytes=16 * GIB, system="Linux", python="3.11", versions={"torch": "2.13.0"},
    code_sha256="a" * 64,
)  # fmt: skip

FINDING = KernelTime("torch-int4", "3b", 1, 1e-4, True, 0.003)
ABSENT = NotRun("GPTQ_MARLIN", "no nvcc", "install it", failed=False)
Act = Callable[[Job, Keeper], int]


def job(part: str, work: Path, provider: str = "cpu", **more: Any) -> Job:
    """A toy job; estimates are those of a card or of a CPU."""
    device = read_device("cpu-zen4-2-cores" if provider == "cpu" else "rtx-3060-12gb")
    work.mkdir(parents=True, exist_ok=True)
    return Job(part, provider, work, 1, 60.0, device, toy=True, **more)


def findings(run: Callable[[Job, Any], None], asked: Job) -> list[Finding]:
    """What a part keeps."""
    found: list[Finding] = []
    run(asked, found.append)
    return found


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], free_gib: float = 8) -> None:
    """From now on torch finds this card, which computes on the CPU."""
    torch = pytest.importorskip("torch")
    from benchmarks.gpu_check import kernels
    from runtimes.backends.gptq import backend as gptq
    from runtimes.backends.gptq.device import Gpu

    found = Gpu("A card", capability, int(free_gib * GIB), torch.device("cpu"))
    for module in (gptq, kernels):
        monkeypatch.setattr(module, "find_gpu", lambda: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB // 2)


def processes(monkeypatch: pytest.MonkeyPatch, act: Act) -> list[str]:
    """Parts' processes become calls of `act`, which returns the exit code; lists what was run."""
    started: list[str] = []

    def wait(command: list[str], log: Path, environment: Any, limit_s: float) -> int:
        asked = from_plain(Job, json.loads(command[-2]))
        started.append(asked.part)
        assert asked.work.is_dir() and not list(asked.work.iterdir())
        (asked.work / "model").write_text("large")
        log.write_text("line one\nthe last line\n")
        return act(asked, Keeper(Path(command[-1]), asked.part))

    monkeypatch.setattr(runner, "_wait", wait)
    return started


def measure(asked: Job, keeper: Keeper) -> int:
    keeper(FINDING)
    keeper.write(status=MEASURED)
    return 0


def small_case(folder: Path) -> tuple[Path, Any]:
    """(artifact, case) of the toy, in GPTQ."""
    from benchmarks.gpu_check import exact
    from benchmarks.gpu_check.engines import ENGINES

    source = exact.write_checkpoint(folder / "model", **exact.TOY_SHAPE)
    checkpoint = exact.read_checkpoint(source, hash_files=False)
    path, stands_for = ENGINES["gptq"].convert(checkpoint, "w4g128", folder / "gptq")
    return path, exact.make_case(checkpoint, stands_for, 9)
