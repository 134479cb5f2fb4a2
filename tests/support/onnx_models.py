"""ONNX variants of seeded random models, opened in the same way by every test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, load, numpy_helper
from safetensors.numpy import save_file

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.shapes import HEAD
from packager.checkpoint.tensors import open_tensors
from packager.core.records import Checkpoint
from packager.formats.onnx import format as onnx
from packager.formats.onnx.convert import MODEL_NAME
from packager.formats.onnx.layout import _LINEARS as MODULES
from packager.formats.quant.blocks import Blocks, quantize
from packager.formats.quant.gptq_layout import pack
from runtimes.contract import BackendOptions
from tests.support.format_laws import SHAPES
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint, write_weights

ort = pytest.importorskip("onnxruntime")
backend_module = pytest.importorskip("runtimes.backends.onnx.backend")


def open_backend(path: Path, checkpoint: Checkpoint, context: int = 2048, **options):
    return backend_module.open_backend(
        path, checkpoint.window, BackendOptions(context, 1, **options)
    )


def open_fresh(checkpoint: Checkpoint, **options):
    """Convert to fp32 beside the checkpoint and open that."""
    path = checkpoint.path.with_name("fp32")
    if not path.is_dir():
        onnx.convert(checkpoint, onnx.variant("fp32"), path)
    return open_backend(path, checkpoint, **options)


@pytest.fixture(scope="module", params=SHAPES)
def exported(request, tmp_path_factory):
    """(checkpoint, fp32 artifact folder, ids to 8 windows, eager float32 logits)."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **SHAPES[request.param]))
    artifact = onnx.convert(checkpoint, onnx.variant("fp32"), folder / "fp32")
    length = 8 * checkpoint.window.size_tokens
    ids = np.random.default_rng(5).integers(40, checkpoint.geometry.vocab, length)
    return checkpoint, artifact.path, ids, eager_logits(checkpoint.path, ids)


def stored_weights(folder: Path) -> dict[str, np.ndarray]:
    """What each matrix of an artifact stands for, float32 (outputs, inputs), by its graph name.

    Read with the onnx library, from the nodes that use it: independent of how it was written.
    """
    graph = load(folder / MODEL_NAME, load_external_data=False).graph
    arrays = {t.name: numpy_helper.to_array(t, str(folder)) for t in graph.initializer}
    weights: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type == "FusedMatMul" and node.input[1] in arrays:
            weights[node.name.removesuffix(".y")] = arrays[node.input[1]].astype(np.float32)
        elif node.op_type == "MatMulNBits":
            settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            name, bits = node.name.removesuffix(".y"), settings["bits"]
            codes, scales, *rest = (arrays[i] for i in node.input[1:])
            rows, groups, _ = codes.shape
            steps = unpacked(codes.reshape(rows, -1), bits).reshape(rows, groups, -1)
            zeros = np.full(scales.shape, 1 << (bits - 1))
            if rest:
                zeros = unpacked(rest[0], bits)[:, :groups]
            steps = (steps.astype(np.float32) - zeros[..., None]) * scales[..., None]
            weights[name] = steps.reshape(rows, -1).astype(np.float32)
    return weights


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)


def dequantised(checkpoint: Checkpoint, folder: Path, out: Path) -> Path:
    """A float32 checkpoint whose weights are those of an artifact."""
    tensors = source_tensors(checkpoint)
    geometry = checkpoint.geometry
    sizes = np.cumsum([geometry.heads, geometry.kv_heads]) * geometry.head_dim
    for name, weight in stored_weights(folder).items():
        if name in ("embedding", "head"):
            tensors["model.embed_tokens.weight" if name == "embedding" else HEAD] = weight
            continue
        _, layer, linear = name.split(".")
        prefix = f"model.layers.{layer}."
        parts = np.split(weight, sizes) if linear == "qkv" else [weight]
        for module, part in zip(MODULES[linear], parts, strict=True):
            tensors[f"{prefix}{module}.weight"] = part
    shutil.copytree(checkpoint.path, out)
    for file in out.glob("*.safetensors*"):
        file.unlink()
    write_weights(out, tensors)
    return out


def source_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    source = open_tensors(checkpoint)
    return {name: source.read(name) for name in source.names()}


def write_gptq(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    ordered: bool = False,
    **settings: object,
) -> dict[str, np.ndarray]:
    """Linears rounded to nearest, in a GPTQ folder; returns what they stand for, by module."""
    arrays, weights = {}, {}
    rng = np.random.default_rng(9)
    orders: dict[tuple[str, int], np.ndarray] = {}
    for name, values in source_tensors(checkpoint).items():
        if values.ndim != 2 or not name.startswith("model.layers."):
            continue
        module = name.removesuffix(".weight")
        inputs = values.shape[1]
        # modules with the same inputs have the same order
        shared = (module.rsplit(".", 2)[0] + ("o" if "o_proj" in module else ""), inputs)
        order = orders.setdefault(shared, rng.permutation(inputs) if ordered else np.arange(inputs))
        blocks = quantize(
            values[:, order], bits, group, symmetric=symmetric, search=False, scale_type=np.float16
        )
        blocks.zeros[...] = np.maximum(blocks.zeros, 1)  # version 1 of the layout has no 0
        back = np.argsort(order)
        packed = pack(Blocks(blocks.codes[:, back], blocks.scales, blocks.zeros), bits)
        arrays |= {
            f"{module}.qweight": packed.qweight,
            f"{module}.qzeros": packed.qzeros,
            f"{module}.scales": packed.scales,
            f"{module}.g_idx": packed.g_idx[back],
        }
        weights[module] = blocks.weights()[:, back]
    folder.mkdir()
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "model.safetensors")
    text = dict(bits=bits, group_size=group, quant_method="gptq", checkpoint_format="gptq")
    (folder / "quantize_config.json").write_text(json.dumps(text | settings))
    return weights
