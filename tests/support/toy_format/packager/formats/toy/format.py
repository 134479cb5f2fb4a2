"""The toy as a Format: every tensor in float32 in one numpy archive, and a few sizes beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from packager.checkpoint.shapes import tensor_shapes
from packager.checkpoint.tensors import open_tensors
from packager.core.atomic import atomic_folder, file_entry, write_json
from packager.core.errors import UsageError
from packager.core.records import (
    Artifact,
    Checkpoint,
    Device,
    Geometry,
    Progress,
    Variant,
    no_progress,
)
from packager.core.versions import tool_versions
from packager.formats import Calibration, Engine, Footprint, Setting
from runtimes.contract import Window

NAME = "toy"
VERSION = 1
METHOD = "every number of the checkpoint in float32"
RECIPE_HELP = "fp32"
HEAD_BITS_HELP = ""
DEFAULT_RECIPES: tuple[str, ...] = ("fp32",)
WORTH: tuple[str, ...] = ("fp32",)
WORK_FILES = re.compile(r"model\.npz")
DEPLOY_FILES: frozenset[str] = frozenset()
CALIBRATION: Calibration | None = None
ENGINE = Engine("toy", 100.0, "decode-all", None, makes_code=False)
LIBRARY_BYTES = 30 << 20  # guessed


def variant(recipe: str, head_bits: int | None = None) -> Variant:
    """The only one."""
    if recipe != "fp32" or head_bits is not None:
        raise UsageError(f"unknown toy recipe {recipe!r}", expected="fp32, without --head-bits")
    return Variant(NAME, recipe, 32.0, None)


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """Write model.npz and config.json."""
    source, geometry = open_tensors(checkpoint), checkpoint.geometry
    config = {
        "window_tokens": checkpoint.window.size_tokens,
        "layers": geometry.layers,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "rope_theta": geometry.rope_theta,
        "norm_eps": geometry.norm_eps,
    }
    with atomic_folder(out) as folder:
        np.savez(folder / "model.npz", **{name: source.read(name) for name in source.names()})
        write_json(folder / "config.json", config)
        entries = tuple(file_entry(folder, name) for name in ("config.json", "model.npz"))
    progress("convert", 1, 1)
    return Artifact(variant, checkpoint.sha256, out, entries, tool_versions("numpy"))


def calibration_sha256(path: Path) -> str:
    """Never asked for."""
    raise NotImplementedError


def tensor_bytes(geometry: Geometry, variant: Variant) -> Mapping[str, int]:
    """As in Format."""
    return {name: 4 * int(np.prod(shape)) for name, shape in tensor_shapes(geometry).items()}


def footprint(geometry: Geometry, variant: Variant, window: Window, setting: Setting) -> Footprint:
    """As in Format."""
    weights = sum(tensor_bytes(geometry, variant).values())
    kept = (window.size_tokens or setting.context_tokens) + 2 * setting.chunk_tokens
    return Footprint(
        weights_bytes=weights,
        key_values_bytes=min(kept, setting.context_tokens) * geometry.position_bytes(4),
        compute_bytes=8 * setting.chunk_tokens * geometry.ffn,
        library_bytes=LIBRARY_BYTES,
        streamed_bytes=weights,
        value_bytes=4,
        attended_cells=window.size_tokens or setting.context_tokens,
        family="float",
        product="float",
    )


def unsupported(variant: Variant, device: Device) -> str | None:
    """As in Format."""
    return None if device.kind == "cpu" else "numpy has no kernels for GPUs"


def engine_wheels(out: Path, progress: Progress) -> list[Path]:
    """None: numpy is published."""
    return []
