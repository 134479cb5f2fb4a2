"""This machine as a device: an NVIDIA GPU by a stand-in for its driver, a CPU for real, briefly."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packager.cli.main import main
from packager.core.errors import DeviceError, UsageError
from packager.devices import cpu, nvidia
from packager.devices.cpu_benchmark import best_rate, float32_rate, read_rate, torch_rates
from packager.devices.database import list_devices, load_device
from packager.devices.detect import detect, write_device
from packager.devices.profile_file import check_profile
from runtimes.host import cpu as host_cpu
from tests.support import fake_nvml
from tests.support.fake_nvml import A100, GB10, GTX_1050_TI, RTX_3060, T4, Card, Driver

SPEED = {"read": 4e10, "numpy_float32": 9e10, "torch_float32": 1e11, "bfloat16": 2e11, "int8": 4e11}
NO_TORCH = SPEED | {"torch_float32": None, "bfloat16": None, "int8": None}

Cards = Callable[..., Driver]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    def put_in(*cards: Card, error: fake_nvml.NVMLError | None = None) -> Driver:
        module, driver = fake_nvml.fake_nvml(*cards, error=error)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return driver

    return put_in


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float | None]], None]:
    def set_to(figures: dict[str, float | None]) -> None:
        monkeypatch.setattr(cpu, "measure_speed", lambda *_: figures)

    return set_to


def value(data: dict[str, Any], key: str) -> Any:
    return data[key]["value"]


def test_a_gpu_of_the_database(cards: Cards) -> None:
    driver = cards(T4)
    data = detect()
    assert driver.open == 0, "the driver was left open"
    assert (data["kind"], data["title"]) == ("gpu", "Tesla T4")
    assert value(data, "memory_bytes") == T4.free  # free, not total
    assert data["memory_bytes"]["basis"] == "measured"
    assert value(data, "memory_total_bytes") == T4.total
    assert value(data, "bandwidth_bytes_per_s") == 2 * 5001e6 * 256 / 8
    assert "5001 MHz" in data["bandwidth_bytes_per_s"]["source"]
    assert value(data, "int8_ops_per_s") == load_device("t4").int8_ops_per_s.value
    assert data["int8_ops_per_s"]["source"].startswith("device database, tesla-t4: ")
    assert value(data, "ecc") is True
    assert data["driver"]["oldest"] == data["driver"]["newest"] == "570.86.15"
    assert (data["cuda"]["oldest"], data["cuda"]["newest"]) == ("10.0", "12.8")


def test_hbm_has_error_correction_for_nothing(cards: Cards) -> None:
    cards(A100)
    data = detect()
    assert value(data, "ecc") is False
    assert "HBM" in data["ecc"]["source"]
    assert value(data, "bandwidth_bytes_per_s") == pytest.approx(2039e9, rel=0.01)


def test_memory_shared_with_the_cpu(cards: Cards) -> None:
    cards(GB10)
    data = detect()
    assert data["kind"] == "soc"
    assert data["memory_total_bytes"] is None
    assert "MemAvailable" in data["memory_bytes"]["source"]
    assert value(data, "bandwidth_bytes_per_s") == 273e9  # the database's


def test_one_name_with_another_memory_is_another_card(cards: Cards) -> None:
    cards(dataclasses.replace(RTX_3060, total=8192 << 20))
    assert "not in the device database" in detect()["about"]


@pytest.mark.parametrize("card", [T4, A100, RTX_3060, GTX_1050_TI], ids=lambda card: card.name)
def test_rates_by_clock_are_those_of_the_specification(cards: Cards, card: Card) -> None:
    """The way of unknown cards, on known ones."""
    known = nvidia.find_known(card.name, card.total)
    assert known is not None
    new = f"NVIDIA {'GeForce ' if 'GeForce' in card.name else ''}RTX 9999"
    cards(dataclasses.replace(card, name=new))
    data = detect()
    assert "not in the device database" in data["about"]
    assert value(data, "multiprocessors") == value(known, "multiprocessors")
    for key in ("fp16_flops_per_s", "fp16_half_flops_per_s", "int8_ops_per_s", "fp32_flops_per_s"):
        assert data[key]["basis"] == "estimated"
        if card is not GTX_1050_TI or "fp16" not in key:  # the table has one digit there
            assert value(data, key) == pytest.approx(value(known, key), rel=0.03)


def test_generations_agree_with_the_database() -> None:
    for device in list_devices():
        if device.compute_capability:
            generation = nvidia.GENERATIONS[device.compute_capability]
            assert device.architecture == generation.architecture
            assert device.cuda[0] == generation.cuda
            assert device.kernels == tuple(nvidia.kernels_of(device.compute_capability))


def test_a_generation_to_come_counts_as_the_newest_below(cards: Cards) -> None:
    cards(dataclasses.replace(T4, name="NVIDIA Z1", capability=(13, 0)))
    assert value(detect(), "compute_capability") == "13.0"


@pytest.mark.parametrize(
    ("drivers", "options", "message"),
    [
        ({"error": fake_nvml.NVMLError_DriverNotLoaded("Driver Not Loaded")}, {}, "not answer"),
        ({"error": fake_nvml.NVMLError_LibraryNotFound()}, {"kind": "gpu"}, "no NVIDIA GPU"),
        ({"cards": []}, {"kind": "gpu"}, "no NVIDIA GPU"),
        ({"cards": [T4]}, {"index": 1}, "no GPU 1"),
        ({"cards": [dataclasses.replace(A100, mig=(1, 1))]}, {}, "split into instances"),
        ({"cards": [dataclasses.replace(T4, capability=(5, 2))]}, {}, "5.2 is too old"),
        (
            {"cards": [dataclasses.replace(T4, name="NVIDIA Z1", clock_mhz=None)]},
            {},
            "states no clock",
        ),
        (
            {"cards": [dataclasses.replace(T4, name="NVIDIA Z1", bus_bits=None)]},
            {},
            "no memory clock or bus",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_an_error_and_no_cpu(
    cards: Cards, drivers: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    driver = cards(*drivers.get("cards", ()), error=drivers.get("error"))
    with pytest.raises(DeviceError, match=message) as raised:
        detect(**options)
    assert raised.value.remedy
    assert driver.open == 0


def test_a_jetson_without_nvml_is_no_cpu(
    cards: Cards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "model"
    board.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    monkeypatch.setattr(nvidia, "BOARD", board)
    cards(error=fake_nvml.NVMLError_LibraryNotFound())
    with pytest.raises(DeviceError, match="Jetson Orin Nano"):
        detect()


def test_the_real_library_finds_no_driver_here() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert nvidia.read_gpu() is None
    else:
        pynvml.nvmlShutdown()
        gpu = nvidia.read_gpu()
        assert gpu is None or nvidia.describe_gpu(gpu)["title"] == gpu.name


def test_the_stand_in_has_the_real_librarys_names() -> None:
    pynvml = pytest.importorskip("pynvml")
    module, _ = fake_nvml.fake_nvml()
    made = {name for name in vars(module) if name.lower().startswith("nvml")}
    assert len(made) > 15
    assert made <= set(vars(pynvml))


def test_a_cpu_where_there_is_no_gpu(cards: Cards, speed: Callable[..., None]) -> None:
    cards(error=fake_nvml.NVMLError_LibraryNotFound())
    speed(SPEED)
    data = detect()
    assert data["kind"] == "cpu"
    assert value(data, "bandwidth_bytes_per_s") == 4e10
    assert value(data, "fp32_flops_per_s") == 1e11  # the faster one
    assert value(data, "int8_ops_per_s") == 4e11
    assert value(data, "memory_bytes") <= value(data, "memory_total_bytes")


def test_a_cpu_is_read_from_linuxs_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: Callable[..., None]
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Some(R) CPU @ 2GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    for number, shared in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        for level, size in ((1, "32K"), (3, "16384K")):
            index = tmp_path / "cpus" / f"cpu{number}" / "cache" / f"index{level}"
            index.mkdir(parents=True)
            (index / "level").write_text(f"{level}\n")
            (index / "size").write_text(f"{size}\n")
            (index / "shared_cpu_list").write_text(f"{shared}\n")
    monkeypatch.setattr(host_cpu, "CPUINFO", info)
    monkeypatch.setattr(cpu, "CPUS", tmp_path / "cpus")
    speed(NO_TORCH)
    data = detect("cpu")
    assert data["name"] == "cpu-some-r-cpu-2ghz"
    assert value(data, "l2_bytes") == 2 * 16384 * 1024  # two instances
    assert data["kernels"] == ["gguf-avx2", "gguf-avx512-vnni", "gptq-torch-int4", "onnx-mlas"]
    assert value(data, "bfloat16") is False
    assert (value(data, "fp16_flops_per_s"), value(data, "int8_ops_per_s")) == (9e10, 3.6e11)
    assert "torch is not there" in data["int8_ops_per_s"]["source"]


def test_memory_that_is_unknown_or_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, message in (((0, 0), "no memory is stated"), ((1 << 30, 5), "5 bytes of memory")):
        monkeypatch.setattr(cpu, "machine_memory_bytes", lambda memory=memory: memory)
        with pytest.raises(DeviceError, match=message):
            detect("cpu")


def test_the_measuring_process() -> None:
    told = []
    figures = cpu.measure_speed(
        1, 1 << 20, lambda what, done, total: told.append((what, done, total)), each_s=0, side=64
    )
    assert set(figures) == set(SPEED)
    assert all(rate is None or rate > 0 for rate in figures.values())
    assert [done for _, done, _ in told] == [0, 1, 2]


@pytest.mark.parametrize("program", ["/bin/false", "/bin/echo"])
def test_a_measuring_process_that_fails(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.sys, "executable", program)
    with pytest.raises(DeviceError, match="measuring process"):
        cpu.measure_speed(1, 1 << 20, lambda *_: None)


def test_rates_are_amounts_over_time() -> None:
    slept = best_rate(lambda: __import__("time").sleep(0.01), 1.0, each_s=0)
    assert 20 < slept <= 100
    assert read_rate(2, 1 << 20, 0) > 1e6
    assert float32_rate(64, 0) > 1e6
    pytest.importorskip("torch")
    assert all(rate and rate > 1e6 for rate in torch_rates(1, 64, 0).values())


def test_what_is_written_is_a_device_file(tmp_path: Path, cards: Cards) -> None:
    cards(T4)
    data = detect()
    file = tmp_path / "new" / "device.json"
    write_device(data, file)
    assert json.loads(file.read_text()) == data
    assert load_device(file).title == "Tesla T4"
    with pytest.raises(UsageError, match="folder"):
        write_device(data, tmp_path)
    with pytest.raises(UsageError, match="'ecc'"):
        write_device(data | {"ecc": None}, tmp_path / "bad.json")
    assert not (tmp_path / "bad.json").exists()
    check_profile("device", data, file)


def test_commands(tmp_path: Path, cards: Cards, capsys: pytest.CaptureFixture[str]) -> None:
    cards(RTX_3060)
    file = tmp_path / "device.json"
    assert main(["device", "detect", "--out", str(file)]) == 0
    assert f"written: {file}" in capsys.readouterr().out
    assert main(["device", "show", str(file)]) == 0
    out = capsys.readouterr().out
    assert "measured: free then, NVIDIA's driver 570.86.15" in out
    assert "360 GB/s" in out
    assert main(["device", "show", "l4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "l4-24gb"
    assert main(["device", "list"]) == 0
    assert "jetson-orin-nano-8gb" in capsys.readouterr().out
    assert main(["device", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["devices"]) == 56
    assert main(["device", "show", "l5"]) == UsageError.exit_code
    assert "no device is called 'l5'" in capsys.readouterr().err
    cards()
    assert main(["device", "detect", "--kind", "gpu"]) == DeviceError.exit_code
