"""The devices that a bundle may run on: data files, by name or by path. Measures nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from packager.core.package_data import read_data
from packager.core.records import Calibration, Device, Figure
from packager.devices.profile_file import (
    builtin_file,
    is_path,
    names,
    read_profile,
    slug,
    unknown_name,
)


def load_device(wanted: str | Path) -> Device:
    """The device of a name or alias ("tesla-t4", "t4"), or of a file ("mine.json").

    Raises UsageError: an unknown name, with those like it; a file that the schema does not accept.
    """
    return device_of(read_device(wanted))


def read_device(wanted: str | Path) -> dict[str, Any]:
    """The checked content of a device's file, as profiles/device.schema.json describes it."""
    return read_profile("device", find_device(wanted))


def find_device(wanted: str | Path) -> Path:
    """The file of a device by name, alias or path. Raises UsageError for an unknown name."""
    if is_path(wanted):
        return Path(wanted)
    name = slug(str(wanted))
    if not builtin_file("device", name).is_file():
        aliases = _aliases()
        if name not in aliases:
            raise unknown_name("device", str(wanted), [*names("device"), *aliases])
        name = aliases[name]
    return builtin_file("device", name)


def list_devices() -> list[Device]:
    """Every device that starpack brings, by name."""
    return [load_device(name) for name in names("device")]


def device_of(data: dict[str, Any]) -> Device:
    """The record of a device file's checked content."""
    total, capability = data["memory_total_bytes"], data["compute_capability"]
    cuda, driver, calibration = data["cuda"], data["driver"], data.get("calibration")
    return Device(
        name=data["name"],
        title=data["title"],
        kind=data["kind"],
        architecture=data["architecture"],
        compute_capability=capability and capability["value"],
        multiprocessors=int(data["multiprocessors"]["value"]),
        memory_total_bytes=total and Figure(**total),
        memory_bytes=Figure(**data["memory_bytes"]),
        bandwidth_bytes_per_s=Figure(**data["bandwidth_bytes_per_s"]),
        fp16_flops_per_s=Figure(**data["fp16_flops_per_s"]),
        fp16_half_flops_per_s=Figure(**data["fp16_half_flops_per_s"]),
        int8_ops_per_s=Figure(**data["int8_ops_per_s"]),
        fp32_flops_per_s=Figure(**data["fp32_flops_per_s"]),
        l2_bytes=int(data["l2_bytes"]["value"]),
        ecc=data["ecc"]["value"],
        bfloat16=data["bfloat16"]["value"],
        kernels=tuple(data["kernels"]),
        cuda=tuple(filter(None, (cuda["oldest"], cuda["newest"]))) if cuda else (),
        driver=_range(driver) if driver else None,
        calibration=calibration and Calibration(**calibration),
    )


@cache
def _aliases() -> dict[str, str]:
    """The name that each alias stands for."""
    found: dict[str, str] = {}
    for name in names("device"):
        data = read_data(f"devices/{name}.json")
        found |= {alias: name for alias in data.get("aliases", ())}
    return found


def _range(versions: dict[str, Any]) -> str:
    oldest, newest = versions["oldest"], versions["newest"]
    if newest is None:
        return f"{oldest} or newer"
    return oldest if oldest == newest else f"{oldest} to {newest}"
