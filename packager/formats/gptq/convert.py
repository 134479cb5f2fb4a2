"""A StarCoder2 checkpoint to GPTQ files, calibrated on source code, one layer in memory at a time.

    model.safetensors      packed matrices of the layers; all else in half precision
    config.json            the checkpoint's own, and what the files are
    quantize_config.json   the same, where other readers look for it

Layers are quantised in order, each on the hidden states that the quantised layers before it give.
Finished layers and the states lie in a folder beside the result until it is complete. An
interrupted run resumes. Layout: packager/formats/quant/gptq_layout.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np

from packager.calibration.sequences import SequenceOptions, draw_sequences
from packager.checkpoint.config import CONFIG_NAME
from packager.checkpoint.json_files import read_object
from packager.checkpoint.safetensors_reader import SINGLE_NAME
from packager.checkpoint.safetensors_writer import write_safetensors
from packager.checkpoint.shapes import tensor_shapes
from packager.checkpoint.tensors import TensorSource, open_tensors
from packager.core.atomic import atomic_folder, file_entry, write_json
from packager.core.errors import CheckpointError, DeviceError, UsageError
from packager.core.records import Artifact, Checkpoint, Progress, Variant, no_progress
from packager.core.versions import tool_versions
from packager.core.workdir import work_folder
from packager.formats.gptq.recipe import (
    ARRAYS,
    NAME,
    VERSION,
    WORK_FILES,
    is_packed,
    parse,
    tensor_specs,
)
from packager.formats.quant.gptq_layout import WORD_BITS, Recipe

QUANTIZE_CONFIG_NAME = "quantize_config.json"
BLOCK_ROWS = 1024  # of the embedding per step: 25 MB in float32 for StarCoder2-15B
# The packed matrices, in the order in which they are. vLLM looks its own name for three of them up
# here (get_linear_quant_method), and takes what it does not find for unquantised.
MODULES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    ("self_attn.o_proj",),
    ("mlp.c_fc",),
    ("mlp.c_proj",),
)


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
    sampling: SequenceOptions | None = None,
) -> Artifact:
    """Write the artifact's files; the folder appears when they are whole.

    `calibration` is a folder of sources. Raises UsageError where there is none or too little in
    it, CheckpointError for weights that cannot be quantised, DeviceError without torch.
    """
    if calibration is None:
        raise UsageError(
            "GPTQ needs source code to calibrate on",
            expected="a folder of the kind of code that the model is to write",
            remedy="name one with --sources DIR",
        )
    recipe, sampling = parse(variant.recipe), sampling or SequenceOptions()
    run, tensors, geometry = _run_module(), open_tensors(checkpoint), checkpoint.geometry
    _check_shapes(checkpoint, recipe)
    for name in tensors.names():  # now, not after hours
        if not is_packed(name, tensors.shape(name)):
            for _ in _half_rows(tensors, name):
                pass
    sequences, sources = draw_sequences(
        checkpoint, calibration, sampling, min_tokens=max(geometry.hidden, geometry.ffn)
    )
    calibrated = {
        "sources_sha256": sources,
        "sequences": len(sequences),
        "tokens": sum(map(len, sequences)),
        "longest_tokens": max(map(len, sequences)),
        "infill_share": sampling.infill_fraction,
        "seed": sampling.seed,
    }
    inputs = {
        "checkpoint": checkpoint.sha256,
        "variant": variant.name,
        "calibration": [sources, asdict(sampling)],
    }
    with work_folder(out, (NAME, VERSION), WORK_FILES, inputs) as work:
        layers = run.quantize_layers(checkpoint, tensors, recipe, sequences, work, progress)
        damping = max(float(np.load(file)[run.DAMPING]) for file in layers)
        with atomic_folder(out) as folder:
            head_bits = variant.head_bits or 16
            settings = quantize_config(checkpoint, recipe, damping, calibrated, head_bits)
            write_weights(folder / SINGLE_NAME, tensors, recipe, layers, progress)
            write_json(folder / CONFIG_NAME, model_config(checkpoint, settings))
            write_json(folder / QUANTIZE_CONFIG_NAME, settings)
            names = (SINGLE_NAME, CONFIG_NAME, QUANTIZE_CONFIG_NAME)
            entries = tuple(file_entry(folder, name) for name in names)
    return Artifact(variant, checkpoint.sha256, out, entries, tool_versions("torch"))


def quantize_config(
    checkpoint: Checkpoint,
    recipe: Recipe,
    damping: float,
    calibrated: dict[str, object],
    head_bits: int = 16,
) -> dict[str, object]:
    """What readers of GPTQ files ask for; ours, which they ignore, is in `meta`.

    damping: the largest fraction of the mean diagonal that a matrix needed.
    """
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": recipe.bits,
        "group_size": recipe.group,
        "sym": recipe.symmetric,
        "desc_act": False,
        "true_sequential": True,
        "lm_head": False,
        "damp_percent": damping,
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": [list(modules) for modules in MODULES],
        "meta": {
            "quantizer": [f"starpack:{tool_versions().get('starpack', 'unknown')}"],
            "static_groups": True,
            "head_bits": head_bits,
            "checkpoint_sha256": checkpoint.sha256,
            "checkpoint_revision": checkpoint.revision,
            "calibration": calibrated,
        },
    }


def model_config(checkpoint: Checkpoint, settings: dict[str, object]) -> dict[str, object]:
    """The checkpoint's own config.json, its type as stored here, with `quantization_config`."""
    config = read_object(checkpoint.path / CONFIG_NAME)
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float16"
    config.setdefault("torch_dtype", "float16")
    # an adapter can untie the head
    return config | {
        "tie_word_embeddings": checkpoint.geometry.tied,
        "quantization_config": settings,
    }


def write_weights(
    file: Path,
    tensors: TensorSource,
    recipe: Recipe,
    layers: list[Path],
    progress: Progress,
) -> None:
    """Write all tensors: the packed arrays from the files of finished layers."""
    specs = tensor_specs(tensors, recipe)
    total, done = sum(spec.nbytes for spec in specs), 0

    def parts() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal done
        for name, values in _parts(tensors, layers):
            yield name, values
            done += values.nbytes
            progress("write", done, total)

    write_safetensors(file, specs, parts(), {"format": "pt"})


def _parts(tensors: TensorSource, layers: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, rows) in the order of tensor_specs."""
    for name in tensors.names():
        shape = tensors.shape(name)
        if is_packed(name, shape):
            _, _, layer, module = name.removesuffix(".weight").split(".", 3)
            with np.load(layers[int(layer)]) as arrays:
                for array in ARRAYS:
                    yield f"{name.removesuffix('weight')}{array}", arrays[f"{module}.{array}"]
        else:
            yield from ((name, rows) for rows in _half_rows(tensors, name))


def _half_rows(tensors: TensorSource, name: str) -> Iterator[np.ndarray]:
    """A tensor in half precision, some rows at a time; CheckpointError where it does not fit."""
    rows = tensors.shape(name)[0]
    for start in range(0, rows, BLOCK_ROWS):
        values = tensors.read_rows(name, start, min(start + BLOCK_ROWS, rows))
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise CheckpointError(
                f"{name} does not fit in half precision",
                where=name,
                expected=f"values of at most {np.finfo(np.float16).max}",
                remedy="use another format: gguf:BF16, or onnx:fp32",
            )
        yield half


def _check_shapes(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Whole groups of inputs, and whole words of outputs for their zero points."""
    words = WORD_BITS // recipe.bits
    for name, shape in tensor_shapes(checkpoint.geometry).items():
        if not is_packed(name, shape):
            continue
        for size, unit, of in ((shape[1], recipe.group, "group"), (shape[0], words, "word")):
            if size % unit:
                raise CheckpointError(
                    f"{name} has the shape {shape}, and {size} is no whole number of {of}s",
                    where=name,
                    expected=f"a multiple of {unit}, a {of} of the recipe",
                    remedy="choose a recipe with a smaller group, or the format gguf or onnx",
                )


def _run_module() -> ModuleType:
    """packager/formats/gptq/layers.py, which needs torch; recipes are known without it."""
    try:
        return importlib.import_module("packager.formats.gptq.layers")
    except ImportError as error:
        raise DeviceError(
            f"torch cannot be loaded: {error}",
            expected="torch, with which GPTQ is computed",
            remedy="install it with: pip install 'starpack[gptq]'",
        ) from None
