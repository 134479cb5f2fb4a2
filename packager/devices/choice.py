"""Which device a run is for, and whether that is the machine it runs on."""

from __future__ import annotations

from pathlib import Path

from packager.core.records import Device, Progress, no_progress
from packager.devices.database import load_device
from packager.devices.detect import detect, write_device

HERE = ("", "cpu", "here")
FILE_NAME = "device.json"
KINDS = {"cpu": "cpu", "cuda": "gpu"}  # by provider


def target_device(
    wanted: str | None, provider: str, out: Path, progress: Progress = no_progress
) -> tuple[Device, bool]:
    """The device `wanted` (a name, a file, or none for this machine), and whether it is here.

    This machine is measured once and kept in `out`/device.json, which holds its calibration too.
    """
    if wanted and wanted not in HERE and not _is_this_machine(wanted, out):
        return load_device(wanted), False
    file = out / FILE_NAME
    if not file.is_file():
        write_device(detect(KINDS[provider], progress=progress), file)
    return load_device(file), True


def _is_this_machine(wanted: str, out: Path) -> bool:
    file = out / FILE_NAME
    if not file.is_file():
        return False
    return Path(wanted).resolve() == file.resolve() or load_device(file).name == wanted
