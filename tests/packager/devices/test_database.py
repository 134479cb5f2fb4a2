"""The device database: every file as its schema has it, plausible, found by name, alias or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packager.core.package_data import profiles_folder
from packager.core.records import Device, Figure
from packager.devices.database import list_devices, load_device, read_device
from packager.devices.profile_file import names
from tests.support.profile_files import refused, written

GIB = 1 << 30
EXAMPLES = ("tesla-t4", "rtx-3060-12gb", "jetson-orin-nano-8gb", "l4-24gb")  # the issue's own
FIGURES = ("memory_bytes", "bandwidth_bytes_per_s", "fp16_flops_per_s", "fp16_half_flops_per_s")
FIGURES += ("int8_ops_per_s", "fp32_flops_per_s")


def plain(device: str = "tesla-t4") -> dict[str, Any]:
    return read_device(device)


def test_all_of_the_table_is_there_and_accepted() -> None:
    devices = list_devices()
    assert len(devices) == 56
    assert {*EXAMPLES} <= {device.name for device in devices}
    assert {device.kind for device in devices} == {"gpu", "soc", "cpu"}
    files = {file.stem for file in (profiles_folder() / "devices").iterdir()}
    assert files == {device.name for device in devices}


@pytest.mark.parametrize("device", list_devices(), ids=lambda device: device.name)
def test_figures_are_plausible(device: Device) -> None:
    """Laws of the hardware: a slip of units or columns breaks one of them."""
    assert 1 * GIB < device.memory_bytes.value < 256 * GIB
    if device.memory_total_bytes is not None:
        assert 0.95 < device.memory_bytes.value / device.memory_total_bytes.value < 1
    assert 4e10 < device.bandwidth_bytes_per_s.value < 1e13
    assert device.fp16_flops_per_s.value <= device.fp16_half_flops_per_s.value
    assert device.fp32_flops_per_s.value <= device.int8_ops_per_s.value
    # operations for each byte read: between a small CPU's and a large GPU's
    assert 2 < device.int8_ops_per_s.value / device.bandwidth_bytes_per_s.value < 1000
    assert 1 <= device.multiprocessors <= 200
    assert (device.compute_capability is None) == (device.kind == "cpu") == (device.cuda == ())
    if device.compute_capability:
        capability = float(device.compute_capability)
        assert device.bfloat16 == (capability >= 8.0)
        assert ("gguf-mma" in device.kernels) == (capability >= 7.5)
        assert ("gptq-marlin" in device.kernels) == (capability >= 8.0)
        # each multiprocessor has 64 or 128 units that do two operations at 0.6 to 3 GHz
        each = device.fp32_flops_per_s.value / device.multiprocessors
        assert 64 * 2 * 0.6e9 < each < 128 * 2 * 3e9


def test_error_correction_where_a_sixteenth_is_missing() -> None:
    on = {device.name for device in list_devices() if device.ecc}
    assert {"tesla-t4", "l4-24gb", "a10-24gb", "a40-48gb"} <= on
    assert not on & {"a100-80gb-sxm", "rtx-a6000", "rtx-3090", "jetson-orin-nano-8gb"}


def test_every_figure_has_a_source() -> None:
    for device in list_devices():
        for name in FIGURES:
            figure: Figure = getattr(device, name)
            assert figure.basis in ("measured", "cited", "recalled", "estimated")
            assert len(figure.source) > 3


def test_names_are_the_files_and_every_alias_means_one_device() -> None:
    meant = {}
    for name in names("device"):
        data = read_device(name)
        assert data["name"] == name
        for alias in [name, *data["aliases"]]:
            assert alias not in meant, f"{alias}: {name} or {meant[alias]}"
            meant[alias] = name
            assert load_device(alias).name == name
    drivers = [text for name in meant for text in read_device(name)["driver_names"]]
    assert all(text.strip() == text for text in drivers)


def test_a_name_is_taken_in_any_spelling() -> None:
    assert load_device("Tesla T4") == load_device("t4") == load_device("tesla-t4")
    assert load_device("RTX 3060 12GB").memory_bytes.value == 12042 << 20


def test_what_is_read_is_what_the_file_says() -> None:
    device = load_device("tesla-t4")
    assert device.compute_capability == "7.5"
    assert (device.multiprocessors, device.l2_bytes) == (40, 4 << 20)
    assert device.bandwidth_bytes_per_s.value == 320e9
    assert device.cuda == ("10.0", "13")
    assert device.driver == "410.48 or newer"
    assert load_device("v100-32gb").driver == "384.81 to 580"
    assert device.calibration is None


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    data = plain()
    data["name"] = "my-card"
    data["calibration"] = {
        "memory": 1.1, "arithmetic": 0.9, "launch": 1, "engine": "llama.cpp", "date": "2026-01-31"
    }  # fmt: skip
    device = load_device(written(tmp_path, data))
    assert device.name == "my-card"
    assert device.calibration is not None
    assert device.calibration.memory == 1.1
    assert load_device(str(tmp_path / "mine.json")) == device


def test_an_unknown_name_shows_what_is_like_it() -> None:
    error = refused(lambda: load_device("rtx-3060-12g"), "no device is called 'rtx-3060-12g'")
    assert "rtx-3060-12gb" in str(error.expected)
    refused(lambda: load_device("abacus"), "no device is called 'abacus'")
    refused(lambda: load_device("absent.json"), "no such device file")


@pytest.mark.parametrize(
    ("key", "value", "message", "hint"),
    [
        ("memory_gb", 8, "unknown key 'memory_gb'", "memory_bytes"),
        ("colour", "green", "unknown key 'colour'", "leave it out"),
        ("bandwidth_bytes_per_s", 320, "'bandwidth_bytes_per_s' is 320", "320000000000"),
        ("kind", "tpu", "'kind' is 'tpu'", "description"),
        ("l2_bytes", {"value": -1, "basis": "cited", "source": "me"}, "-1", "bytes"),
        ("ecc", {"value": 1, "basis": "cited", "source": "me"}, "'ecc.value' is 1", "description"),
        ("ecc", {"value": True, "basis": "guessed", "source": "me"}, "guessed", "description"),
        ("ecc", {"value": True, "basis": "cited"}, "lacks 'ecc.source'", "shows"),
        ("kernels", ["warp-drive"], "warp-drive", "description"),
        ("schema", 2, "'schema' is 2", "description"),
        ("name", "My Card", "'name' is 'My Card'", "description"),
    ],
)
def test_a_wrong_file_is_explained(
    tmp_path: Path, key: str, value: object, message: str, hint: str
) -> None:
    error = refused(lambda: load_device(written(tmp_path, plain() | {key: value})), message)
    assert hint in str(error.remedy)
    assert error.where == str(tmp_path / "mine.json")


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for text in ("", "[]", '{"schema": 1, "schema": 1}', '{"schema": NaN}', "{" * 100_000):
        file.write_text(text)
        refused(lambda: load_device(file), "the device file cannot be used")
    file.write_text(" " * (2 << 20))
    refused(lambda: load_device(file), "has more than 1048576 bytes")
