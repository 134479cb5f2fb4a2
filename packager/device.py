"""The machine that measurements are made on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from packager.errors import DeviceError


def device_name(wanted: str | None = None) -> str:
    """This machine's processor, by name. Raises DeviceError for any other `wanted` device.

    Nothing is estimated: what is not here cannot be measured.
    """
    if wanted not in (None, "", "cpu"):
        raise DeviceError(
            f"{wanted!r} cannot be measured here",
            expected="cpu, the only device this version measures",
            remedy="run `make profile` on a machine that has it, with its engine",
        )
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"cpu: {found[1].strip() if found else platform.processor() or platform.machine()}"
