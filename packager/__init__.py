"""starpack's build side: from a StarCoder2 checkpoint to a bundle, from Python.

These names are the stages and what they are asked for; docs/python-api.md has an example. They are
loaded when first used, so importing the package is quick and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.bundle.smoke_test import try_bundle
    from packager.checkpoint.reader import read_checkpoint
    from packager.core.settings import DeviceSettings
    from packager.devices.budget import load_budget
    from packager.devices.choice import target_device
    from packager.pipeline import convert, measure, pack, plan, select

_MODULES = {
    "DeviceSettings": "packager.core.settings",
    "convert": "packager.pipeline",
    "load_budget": "packager.devices.budget",
    "measure": "packager.pipeline",
    "pack": "packager.pipeline",
    "plan": "packager.pipeline",
    "read_checkpoint": "packager.checkpoint.reader",
    "select": "packager.pipeline",
    "target_device": "packager.devices.choice",
    "try_bundle": "packager.bundle.smoke_test",
}

__all__ = [
    "DeviceSettings",
    "convert",
    "load_budget",
    "measure",
    "pack",
    "plan",
    "read_checkpoint",
    "select",
    "target_device",
    "try_bundle",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
