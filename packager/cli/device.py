"""What `starpack device ...` does: arguments in, a result out."""

from __future__ import annotations

import argparse
from typing import Any

from packager.cli.result import CommandResult, columns
from packager.core.record_store import to_plain
from packager.core.records import Device, Progress
from packager.core.units import GB, GIB, MIB, TERA
from packager.devices.database import device_of, list_devices, read_device
from packager.devices.detect import detect as detect_device
from packager.devices.detect import write_device

HEADINGS = ("name", "cc", "memory GiB", "bandwidth GB/s", "fp16 TFLOPS", "int8 TOPS", "title")
UNITS = {
    "memory_total_bytes": (GIB, "GiB"),
    "memory_bytes": (GIB, "GiB"),
    "bandwidth_bytes_per_s": (GB, "GB/s"),
    "fp16_flops_per_s": (TERA, "TFLOPS"),
    "fp16_half_flops_per_s": (TERA, "TFLOPS"),
    "int8_ops_per_s": (TERA, "TOPS"),
    "fp32_flops_per_s": (TERA, "TFLOPS"),
    "l2_bytes": (MIB, "MiB"),
}


def list_all(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """List the devices that starpack knows."""
    devices = list_devices()
    rows = [HEADINGS, *map(_row, devices)]
    lines = columns(rows, numbers_right=True)
    return CommandResult({"devices": to_plain(devices)}, "\n".join(lines))


def show(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Show what is known of a device, and where each figure comes from."""
    data = read_device(arguments.device)
    return CommandResult(data, _shown(data))


def detect(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Describe this machine's GPU, or else its CPU, in a device file; a CPU is measured (10 s)."""
    data = detect_device(arguments.kind, arguments.index, progress)
    write_device(data, arguments.out)
    return CommandResult(
        {"file": str(arguments.out), "device": data}, f"{_shown(data)}\nwritten: {arguments.out}"
    )


def _row(device: Device) -> tuple[str, ...]:
    return (
        device.name,
        device.compute_capability or "-",
        f"{device.memory_bytes.value / GIB:.1f}",
        f"{device.bandwidth_bytes_per_s.value / GB:.0f}",
        f"{device.fp16_flops_per_s.value / TERA:.3g}",
        f"{device.int8_ops_per_s.value / TERA:.3g}",
        device.title,
    )


def _shown(data: dict[str, Any]) -> str:
    device = device_of(data)
    lines = [f"{device.name}: {device.title} ({device.kind}, {device.architecture})"]
    if "about" in data:
        lines.append(f"  {data['about']}")
    for key, figure in data.items():
        if isinstance(figure, dict) and "value" in figure:
            over, unit = UNITS.get(key, (1, ""))
            value = figure["value"]
            text = str(value) if over == 1 else f"{value / over:.4g} {unit}"
            lines.append(f"  {key:22} {text:>14}  {figure['basis']}: {figure['source']}")
    lines.append(f"  {'kernels':22} {' '.join(device.kernels)}")
    for key, text in (("cuda", " to ".join(device.cuda)), ("driver", device.driver or "")):
        if text:
            lines.append(f"  {key:22} {text}  {data[key]['basis']}: {data[key]['source']}")
    if device.calibration:
        lines.append(f"  {'calibration':22} {to_plain(device.calibration)}")
    else:
        lines.append(f"  {'calibration':22} none: what is estimated rests on specifications")
    return "\n".join(lines)
