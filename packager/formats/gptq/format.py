"""GPTQ as a Format: files that many readers know, run by torch. Converting is convert.py's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from packager.core.records import Artifact, Checkpoint, Device, Progress, Variant, no_progress
from packager.formats import Calibration, Engine
from packager.formats.gptq.footprint import footprint, has_kernel
from packager.formats.gptq.recipe import (
    NAME,
    RECIPES,
    VERSION,
    WORK_FILES,
    parse,
    tensor_bytes,
    variant,
)

if TYPE_CHECKING:
    from packager.calibration.sequences import SequenceOptions

__all__ = [
    "CALIBRATION", "DEFAULT_RECIPES", "DEPLOY_FILES", "ENGINE", "HEAD_BITS_HELP", "METHOD", "NAME",
    "RECIPES", "RECIPE_HELP", "VERSION", "WORK_FILES", "WORTH", "calibration_sha256", "convert",
    "engine_wheels", "footprint", "parse", "tensor_bytes", "unsupported", "variant",
]  # fmt: skip

METHOD = "GPTQ: weights rounded one by one, each error made good by those still to come"
RECIPE_HELP = "w4g128, w4g64, w4g32, w8g128, ..., each also with -asym"
HEAD_BITS_HELP = "of the head as it runs: 4, 8 or 16 (default)"
DEFAULT_RECIPES: tuple[str, ...] = ("w4g128",)
WORTH: tuple[str, ...] = ("w8g128", "w4g128", "w4g32")
DEPLOY_FILES: frozenset[str] = frozenset()
CALIBRATION: Calibration | None = Calibration("sources", "folder of source code to calibrate on")
# Tried with PR_SET_MDWE, the kernel's own form of MemoryDenyWriteExecute: GGUF and ONNX answer,
# torch cannot "create a primitive".
ENGINE = Engine("torch", None, "decode-other", None, makes_code=True)


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
    sampling: SequenceOptions | None = None,
) -> Artifact:
    """As in convert.py."""
    from packager.formats.gptq.convert import convert

    return convert(
        checkpoint, variant, out, calibration=calibration, progress=progress, sampling=sampling
    )


def calibration_sha256(folder: Path) -> str:
    """What a folder of sources is known by."""
    from packager.calibration.sequences import sources_sha256

    return sources_sha256(folder)


def unsupported(variant: Variant, device: Device) -> str | None:
    """As in Format."""
    if has_kernel(device):
        return None
    return "torch has no kernel for 4-bit weights below compute capability 8.0"


def engine_wheels(out: Path, progress: Progress) -> list[Path]:
    """None: torch is published."""
    return []
