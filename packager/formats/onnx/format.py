"""ONNX as a Format: a graph of ONNX Runtime's own operators. Converting is convert.py's."""

from __future__ import annotations

from pathlib import Path

from packager.core.records import Artifact, Checkpoint, Device, Progress, Variant, no_progress
from packager.formats import Calibration, Engine
from packager.formats.gptq.reader import gptq_sha256
from packager.formats.onnx.footprint import footprint
from packager.formats.onnx.recipe import (
    NAME,
    VERSION,
    WORK_FILES,
    parse,
    tensor_bytes,
    variant,
)

__all__ = [
    "CALIBRATION", "DEFAULT_RECIPES", "DEPLOY_FILES", "ENGINE", "HEAD_BITS_HELP", "METHOD", "NAME",
    "RECIPE_HELP", "VERSION", "WORK_FILES", "WORTH", "calibration_sha256", "convert",
    "engine_wheels", "footprint", "tensor_bytes", "unsupported", "variant",
]  # fmt: skip

METHOD = "a graph of ONNX Runtime's own operators, weights quantised in groups"
RECIPE_HELP = "fp32, fp16, int8, int4-g32, int4-g64, int4-g128, or int4 with --gptq"
HEAD_BITS_HELP = (
    "bits of the head and the embedding: 4, 8 (default), or 16 or 32, the same as the other layers"
)
DEFAULT_RECIPES: tuple[str, ...] = ("int4-g32",)
WORTH: tuple[str, ...] = ("fp16", "int8", "int4-g32", "int4-g32-fp16")
DEPLOY_FILES: frozenset[str] = frozenset()
CALIBRATION: Calibration | None = Calibration(
    "gptq", "for the recipe int4: folder of GPTQ weights of this model"
)
# 75 us: it starts each kernel from C++, as llama.cpp did before graphs
ENGINE = Engine("onnx", 75.0, "decode-all", None, makes_code=False)
KERNEL = "onnx-matmulnbits"  # as profiles/device.schema.json names it


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """As in convert.py."""
    from packager.formats.onnx.convert import convert

    return convert(checkpoint, variant, out, calibration=calibration, progress=progress)


def calibration_sha256(folder: Path) -> str:
    """What a folder of GPTQ weights is known by."""
    return gptq_sha256(folder)


def unsupported(variant: Variant, device: Device) -> str | None:
    """As in Format."""
    if device.kind == "cpu":
        return None
    recipe = parse(variant.recipe)
    if recipe.activations != "float16":
        return "ONNX Runtime attends in float16 alone on GPUs"
    if recipe.bits is not None and KERNEL not in device.kernels:
        return "ONNX Runtime has no kernel for 4- and 8-bit weights there"
    return None


def engine_wheels(out: Path, progress: Progress) -> list[Path]:
    """None: ONNX Runtime is published."""
    return []
