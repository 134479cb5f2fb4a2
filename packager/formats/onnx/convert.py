"""A StarCoder2 checkpoint to ONNX: a graph, and its weights streamed into one file beside it.

    model.onnx          the graph (packager/formats/onnx/graph.py)
    model.onnx.data     the weights, each where the graph says
    probe.onnx          one attention node, with which the runtime tests its engine
    genai.onnx          the graph as onnxruntime-genai wants it, over the same weights
    genai_config.json   what onnxruntime-genai reads first

Query, key and value share one matrix; a tied head and the embedding share one tensor.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from packager.checkpoint.tensors import TensorSource, open_tensors
from packager.core.atomic import file_entry, write_json
from packager.core.errors import CheckpointError, UsageError
from packager.core.records import Artifact, Checkpoint, Progress, Variant, no_progress
from packager.core.versions import tool_versions
from packager.core.workdir import Ledger, publish, work_folder
from packager.formats.gptq.reader import gptq_sha256, open_gptq
from packager.formats.onnx import graph
from packager.formats.onnx.genai_config import genai_config
from packager.formats.onnx.layout import DATA_NAME, Recipe, Stored, Weights, linears, place_tensors
from packager.formats.onnx.recipe import NAME, VERSION, WORK_FILES, head_recipe, parse
from packager.formats.onnx.weights_file import (
    BLOCK_BYTES,
    PrecomputedCodes,
    precomputed_codes,
    write_tensors,
)

MODEL_NAME, PROBE_NAME = "model.onnx", "probe.onnx"
GENAI_MODEL_NAME, GENAI_NAME = "genai.onnx", "genai_config.json"


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """Write the artifact's files; the folder appears when they are whole.

    An interrupted run resumes (packager/core/workdir.py).
    `calibration` is the folder of GPTQ weights that the recipe int4 takes its codes from. Raises
    CheckpointError for weights that cannot be converted, UsageError where the folder is missing.
    """
    inputs = {
        "checkpoint": checkpoint.sha256,
        "variant": variant.name,
        "calibration": calibration and gptq_sha256(calibration),
        "block_bytes": BLOCK_BYTES,
    }
    with work_folder(out, (NAME, VERSION), WORK_FILES, inputs) as work:
        names = write_files(
            work, checkpoint, variant, open_tensors(checkpoint), calibration, progress
        )
        entries = tuple(file_entry(work, name) for name in names)
        publish(work, names, out)
    return Artifact(variant, checkpoint.sha256, out, entries, tool_versions("onnx"))


def write_files(
    folder: Path,
    checkpoint: Checkpoint,
    variant: Variant,
    source: TensorSource,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Write the files of `convert` with the weights of `source`; returns their names.

    The weights resume where a ledger in `folder` says that some are there.
    """
    recipe = parse(variant.recipe)
    head = head_recipe(recipe, variant.head_bits)
    codes: PrecomputedCodes | None = None
    if recipe.calibrated:
        codes = _precomputed_codes(calibration, checkpoint, recipe, source)
        recipe = replace(recipe, group=codes.weights.group, zeros=codes.zeros)
    placed = place_tensors(checkpoint.geometry, source, recipe, head, codes.orders if codes else {})
    stored = {name: tensor.stored for name, tensor in placed.items()}
    weights = Weights(
        {name: found for name, found in stored.items() if not isinstance(found, Stored)},
        {name: found for name, found in stored.items() if isinstance(found, Stored)},
    )
    metadata = {"starpack": json.dumps(describe(checkpoint, variant, recipe))}
    data = folder / DATA_NAME
    write_tensors(data, source, list(placed.values()), codes, Ledger(data), progress)
    settings = (checkpoint, weights, recipe.activations, metadata)
    graph.write_model(folder / MODEL_NAME, *settings)
    graph.write_model(folder / GENAI_MODEL_NAME, *settings, genai=True)
    graph.write_probe(folder / PROBE_NAME, checkpoint, recipe.activations, metadata)
    write_json(folder / GENAI_NAME, genai_config(checkpoint, GENAI_MODEL_NAME))
    return (MODEL_NAME, DATA_NAME, PROBE_NAME, GENAI_MODEL_NAME, GENAI_NAME)


def _precomputed_codes(
    folder: Path | None, checkpoint: Checkpoint, recipe: Recipe, source: TensorSource
) -> PrecomputedCodes:
    if folder is None:
        raise UsageError(
            "the recipe int4 takes calibrated codes, and none are given",
            expected="--gptq DIR, a folder of GPTQ weights of this model",
            remedy="use int4-g32, which needs none",
        )
    weights = open_gptq(folder)
    if weights.bits != recipe.bits:
        raise CheckpointError(
            f"the GPTQ weights have {weights.bits} bits",
            where=folder,
            expected=f"{recipe.bits}",
            remedy="quantise to 4 bits, or use the recipe int8, which needs no calibration",
        )
    return precomputed_codes(weights, source, linears(checkpoint.geometry.layers))


def describe(checkpoint: Checkpoint, variant: Variant, recipe: Recipe) -> dict[str, object]:
    """What the runtime has to know of the graph, as its metadata."""
    geometry = checkpoint.geometry
    return {
        "recipe": variant.recipe,
        "activations": recipe.activations,
        "window_tokens": checkpoint.window.size_tokens,
        "context_tokens": checkpoint.context_tokens,
        "layers": geometry.layers,
        "heads": geometry.heads,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "vocab": geometry.vocab,
        "rope_theta": geometry.rope_theta,
        "checkpoint_sha256": checkpoint.sha256,
    }
