"""A StarCoder2 checkpoint to ONNX: a graph, and its weights streamed into one file beside it.

    model.onnx          the graph (packager/onnx_graph.py)
    model.onnx.data     the weights, each where the graph says
    probe.onnx          one attention node, with which the runtime tests its engine
    genai.onnx          the graph as onnxruntime-genai wants it, over the same weights
    genai_config.json   what onnxruntime-genai reads first

Rows are read from the memory-mapped shards, quantised on every core and written to their places;
no more than two slabs a core are in memory. Query, key and value share one matrix; a tied head and
the embedding share one tensor.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from packager import onnx_graph
from packager.errors import CheckpointError, UsageError
from packager.files import atomic_folder, file_entry, write_json
from packager.genai import genai_config
from packager.onnx_layout import DATA_NAME, Matrix, Plan, Recipe, Stored, Weights, plan_tensors
from packager.quant.blocks import Blocks, pack, quantize
from packager.records import Artifact, Checkpoint, Progress, Variant, no_progress
from packager.tensors import TensorSource, open_tensors
from packager.versions import tool_versions

DEFAULT_RECIPES = ("int4-g32",)
VERSION = 1  # of what this module writes: part of the key of its artifacts
MODEL_NAME, PROBE_NAME = "model.onnx", "probe.onnx"
GENAI_MODEL_NAME, GENAI_NAME = "genai.onnx", "genai_config.json"
SLAB_BYTES = 8 * 1024 * 1024  # float32 rows per job: enough to keep a core busy, small in memory
HEAD_GROUP = 32  # the head decides between ids: the finest blocks there are kernels for

_GRAMMAR = re.compile(r"(fp32|fp16|(int8)|(int4)(?:-g(32|64|128))?)(-rtn)?(-fp16)?")
EXPECTED = (
    "fp32, fp16, int8, int4-g32, int4-g64, int4-g128, or int4 (calibrated codes, see --gptq); "
    "after an integer one -rtn (round to nearest, no search) and -fp16 (for GPUs: activations in "
    "half precision, symmetric codes)"
)


def variant(name: str, head_bits: int | None = None) -> Variant:
    """The variant of a recipe; head_bits for the head and embedding, where not the default 8."""
    recipe = parse(name)
    _head_recipe(recipe, head_bits)
    return Variant("onnx", name, recipe.bits_per_weight, recipe.group, head_bits)


def parse(name: str) -> Recipe:
    """The recipe of a name such as int4-g32, int8-rtn or int4-g128-fp16; UsageError for others."""
    found = _GRAMMAR.fullmatch(name)
    if found is None or (found[1].startswith("fp") and (found[5] or found[6])):
        raise UsageError(f"unknown ONNX recipe {name!r}", expected=EXPECTED)
    if found[1].startswith("fp"):
        return Recipe(None, None, {"fp32": "float32", "fp16": "float16"}[found[1]])
    bits = 8 if found[2] else 4
    group = int(found[4]) if found[4] else 128
    # eight bits err little enough for nothing to be gained by searching
    search = bits == 4 and not found[5]
    return Recipe(bits, group, "float16" if found[6] else "float32", search)


def _head_recipe(recipe: Recipe, head_bits: int | None) -> Recipe:
    """How the head and the embedding are stored; floats where the rest is floats."""
    width = 8 * np.dtype(recipe.activations).itemsize
    bits = (width if recipe.bits is None else 8) if head_bits is None else head_bits
    if bits == width:
        return Recipe(None, None, recipe.activations)
    if bits not in (4, 8):
        raise UsageError(f"a head of {bits} bits", expected=f"--head-bits 4, 8 or {width}")
    return Recipe(bits, HEAD_GROUP, recipe.activations, search=bits == 4 and recipe.search)


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """Write the artifact's files; the folder appears when they are whole.

    Raises CheckpointError for weights that cannot be converted.
    """
    recipe = parse(variant.recipe)
    source = open_tensors(checkpoint)
    plans = plan_tensors(checkpoint, source, recipe, _head_recipe(recipe, variant.head_bits))
    weights = Weights(
        {name: plan.matrix for name, plan in plans.items() if plan.matrix is not None},
        {name: plan.vector for name, plan in plans.items() if plan.vector is not None},
    )
    metadata = {"starpack": json.dumps(describe(checkpoint, variant, recipe))}
    with atomic_folder(out) as folder:
        write_tensors(folder / DATA_NAME, source, list(plans.values()), progress)
        settings = (checkpoint, weights, recipe.activations, metadata)
        onnx_graph.write_model(folder / MODEL_NAME, *settings)
        onnx_graph.write_model(folder / GENAI_MODEL_NAME, *settings, genai=True)
        onnx_graph.write_probe(folder / PROBE_NAME, checkpoint, recipe.activations, metadata)
        write_json(folder / GENAI_NAME, genai_config(checkpoint, GENAI_MODEL_NAME))
        names = (MODEL_NAME, DATA_NAME, PROBE_NAME, GENAI_MODEL_NAME, GENAI_NAME)
        entries = tuple(file_entry(folder, name) for name in names)
    return Artifact(variant, checkpoint.sha256, out, entries, tool_versions("onnx"))


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


def write_tensors(file: Path, source: TensorSource, plans: list[Plan], progress: Progress) -> None:
    """Write every tensor to its place, on every core."""
    total = sum(part.nbytes for plan in plans for part in _parts(plan))
    workers = len(os.sched_getaffinity(0))
    done = 0
    with open(file, "wb") as stream, ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[int]] = deque()
        try:
            for job in _jobs(stream.fileno(), source, plans):
                waiting.append(pool.submit(job))
                if len(waiting) >= 2 * workers:
                    done += waiting.popleft().result()
                    progress("convert", done, total)
            while waiting:
                done += waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        os.fsync(stream.fileno())
    assert done == total, f"{done} bytes written of {total}"
    progress("convert", total, total)


def _parts(plan: Plan) -> list[Stored]:
    return [plan.vector] if plan.matrix is None else plan.matrix.parts


def _jobs(descriptor: int, source: TensorSource, plans: list[Plan]) -> Iterator[Callable[[], int]]:
    """One job per stretch of rows; each writes what it makes and returns the bytes."""
    for plan in plans:
        row = 0
        for name in plan.sources:
            count = source.shape(name)[0]
            width = 1 if plan.matrix is None else plan.matrix.shape[1]
            step = max(1, SLAB_BYTES // (4 * width))
            for start in range(0, count, step):
                stop = min(start + step, count)
                yield functools.partial(
                    _write_rows, descriptor, source, plan, name, (start, stop), row + start
                )
            row += count


def _write_rows(
    descriptor: int,
    source: TensorSource,
    plan: Plan,
    name: str,
    rows: tuple[int, int],
    target: int,
) -> int:
    """Read, quantise and write rows of the tensor `name`, to rows from `target` on."""
    values, recipe = source.read_rows(name, *rows), plan.recipe
    if plan.matrix is None or plan.matrix.bits is None:
        stored = _parts(plan)[0]
        return _put(descriptor, stored, target, _narrowed(values, stored.type, name))
    blocks = quantize(
        values, recipe.bits, recipe.group, symmetric=recipe.symmetric, search=recipe.search,
        scale_type=np.dtype(recipe.activations).type,
    )  # fmt: skip
    return _put_blocks(descriptor, plan.matrix, target, blocks, name)


def _put_blocks(descriptor: int, matrix: Matrix, target: int, blocks: Blocks, name: str) -> int:
    count = _put(descriptor, matrix.weights, target, pack(blocks.codes, matrix.bits))
    scales = _narrowed(blocks.scales, matrix.scales.type, name)
    count += _put(descriptor, matrix.scales, target, scales)
    if matrix.zeros is not None:
        count += _put(descriptor, matrix.zeros, target, pack(blocks.zeros, matrix.bits))
    return count


def _narrowed(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """As the stored type; CheckpointError where a value is beyond it."""
    with np.errstate(over="ignore"):
        narrowed = values.astype(kind)
    if not np.isfinite(narrowed).all():
        raise CheckpointError(
            f"the weights of {name} do not fit in {kind}",
            where=name,
            expected="finite values within the range of the type",
            remedy="use a recipe without -fp16",
        )
    return narrowed


def _put(descriptor: int, stored: Stored, row: int, values: np.ndarray) -> int:
    """Write rows to their place in the file."""
    data = memoryview(np.ascontiguousarray(values)).cast("B")
    at = stored.offset_bytes + row * (stored.nbytes // stored.shape[0])
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], at + written)
    return written
