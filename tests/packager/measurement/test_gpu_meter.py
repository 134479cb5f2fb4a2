"""The driver's answers while something runs, from a stand-in: these tests ran on no NVIDIA GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from packager.measurement.gpu_meter import energy_j, process_bytes


@pytest.fixture
def nvml(monkeypatch):
    calls = []
    fake = SimpleNamespace(
        NVMLError=RuntimeError,
        calls=calls,
        nvmlInit=lambda: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=900),
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [
            SimpleNamespace(pid=7, usedGpuMemory=100),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ],
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    yield fake
    assert calls == ["init", "shutdown"] * (len(calls) // 2)


def test_memory_is_that_of_the_process_or_of_all_where_it_is_hidden(nvml):
    assert [process_bytes(pid) for pid in (7, 8, 9)] == [100, 900, 900]


@pytest.mark.parametrize(
    ("visible", "asked"),
    [(None, 0), ("1", 1), ("2,0", 2), ("GPU-5e1", 1), ("GPU-5e1a-77,0", 1), ("GPU-9", 0), ("", 0)],
)
def test_the_gpu_is_the_first_that_cuda_sees(nvml, monkeypatch, visible, asked):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = []
    nvml.nvmlDeviceGetCount = lambda: 3
    nvml.nvmlDeviceGetUUID = lambda gpu: ["GPU-0aa-10", "GPU-5e1a-77", "GPU-c0c-19"][gpu]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda gpu: seen.append(gpu) or 0
    energy_j()
    assert seen == [asked]


def test_energy_is_in_joules_and_none_where_the_driver_has_no_meter(nvml):
    assert energy_j() == 2.5

    def refuse(gpu):
        raise RuntimeError("not supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert energy_j() is None
