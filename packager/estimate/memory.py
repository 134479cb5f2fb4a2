"""Bytes that an open variant takes on a device, and in its files.

Each format counts its own (packager/formats/X/footprint.py); what the driver takes is added here.
Knows no time and reads no weight.
"""

from __future__ import annotations

from packager import formats
from packager.core.records import Device, Geometry, MemoryParts, Variant
from packager.formats import Footprint, Setting
from packager.formats.sizes import MIB
from runtimes.contract import Window

# CUDA keeps this for itself in each process: a line that others fitted to published figures of
# nvidia-smi; a planning constant here.
_CONTEXT_BYTES, _CONTEXT_BYTES_PER_MULTIPROCESSOR = 8 * MIB, round(2.91 * MIB)


def footprint(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> Footprint:
    """What the variant's format counts."""
    return formats.load(variant.format).footprint(geometry, variant, window, setting)


def memory_parts(found: Footprint, device: Device) -> MemoryParts:
    """All that a process with one open model takes: on the card, or of a machine without one."""
    return MemoryParts(
        found.weights_bytes,
        found.key_values_bytes,
        found.compute_bytes,
        context_bytes(device),
        found.library_bytes,
    )


def context_bytes(device: Device) -> int:
    """What the driver keeps for a process that uses the device."""
    if device.kind == "cpu":
        return 0
    return _CONTEXT_BYTES + device.multiprocessors * _CONTEXT_BYTES_PER_MULTIPROCESSOR


def file_bytes(geometry: Geometry, variant: Variant) -> int:
    """All tensors; headers, vocabulary and graphs, a few MB, come on top."""
    return sum(formats.load(variant.format).tensor_bytes(geometry, variant).values())
