"""GGUF as a Format: llama.cpp's own files. Converting is convert.py's."""

from __future__ import annotations

from pathlib import Path

from packager.core.atomic import sha256_file
from packager.core.records import Artifact, Checkpoint, Device, Progress, Variant, no_progress
from packager.formats import Calibration, Engine
from packager.formats.gguf.footprint import footprint
from packager.formats.gguf.recipe import (
    FILE_NAME,
    NAME,
    RECIPES,
    VERSION,
    WORK_FILES,
    tensor_bytes,
    variant,
)

__all__ = [
    "CALIBRATION", "DEFAULT_RECIPES", "DEPLOY_FILES", "ENGINE", "FILE_NAME", "HEAD_BITS_HELP",
    "METHOD", "NAME", "RECIPES", "RECIPE_HELP", "VERSION", "WORK_FILES", "WORTH",
    "calibration_sha256", "convert", "engine_wheels", "footprint", "tensor_bytes", "unsupported",
    "variant",
]  # fmt: skip

METHOD = "blocks of weights with shared scales, the same bytes as llama-quantize writes"
RECIPE_HELP = f"{', '.join(RECIPES[:-1])} or {RECIPES[-1]}"
HEAD_BITS_HELP = ""
DEFAULT_RECIPES: tuple[str, ...] = ("Q4_K_M",)
WORTH: tuple[str, ...] = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS")
DEPLOY_FILES = frozenset({"tabby/tabby.json"})  # for Tabby's own llama.cpp
CALIBRATION: Calibration | None = Calibration(
    "imatrix", "importance matrix; see `starpack calibrate`"
)
ENGINE = Engine("llama", None, "decode-llama", "llama-cpp-python", makes_code=False)


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """As in convert.py."""
    from packager.formats.gguf.convert import convert

    return convert(checkpoint, variant, out, calibration=calibration, progress=progress)


def calibration_sha256(file: Path) -> str:
    """What an importance file is known by."""
    return sha256_file(file)


def unsupported(variant: Variant, device: Device) -> str | None:
    """As in Format."""
    if device.kind != "cpu" and variant.recipe == "BF16" and not device.bfloat16:
        return "the device has no bfloat16"
    return None


def engine_wheels(out: Path, progress: Progress) -> list[Path]:
    """llama.cpp as packager/engine builds it: no index has it as the window needs it."""
    from packager.engine.build import build_engine

    return [build_engine(out, progress=progress)]
