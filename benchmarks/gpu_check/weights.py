"""Models to measure with: the published shapes with random weights, written in seconds.

What the weights are does not matter to time or memory. Codes of GPTQ are drawn as they are, GGUF's
blocks are quantised once and repeated, ONNX's come from our own converter; no checkpoint is written
on the way. Quantised by rounding to nearest: nothing here says anything of quality.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.dequantised import Dequantised
from benchmarks.gpu_check.records import TOY
from examples.synthesise import Tensor, config_of, cut, tensors_of, tokenizer_of
from packager.checkpoint.config import CONFIG_NAME
from packager.checkpoint.safetensors_reader import SINGLE_NAME
from packager.checkpoint.safetensors_writer import TensorSpec, write_safetensors
from packager.checkpoint.shapes import GeometryShapes, tensor_shapes
from packager.checkpoint.tensors import TensorSource
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.atomic import atomic_folder, write_json
from packager.core.records import Checkpoint, Geometry
from packager.estimate.models import Model, load_model
from packager.formats.gguf import convert as gguf_writer
from packager.formats.gguf import format as gguf
from packager.formats.gptq import convert as gptq_writer
from packager.formats.gptq import format as gptq
from packager.formats.onnx import convert as onnx_writer
from packager.formats.onnx import format as onnx
from packager.formats.quant import ggml
from packager.formats.quant.blocks import quantize
from packager.formats.quant.gptq_layout import Packed, Recipe, pack
from runtimes.contract import SpecialIds, Window

TOY_MODEL = Model(
    TOY,
    Geometry(
        layers=2, heads=4, kv_heads=2, head_dim=64, hidden=256, ffn=512, vocab=512,
        rope_theta=1e4, norm_eps=1e-5, tied=True,
    ),
    Window(64), 1024, (),
)  # fmt: skip
BLOCK = 1 << 22  # random numbers that RandomTensors repeats: 16 MB
SLAB_ROWS = 64  # rows of a GGUF matrix that are quantised, and then repeated
DAMPING = 0.05  # nothing was damped, but GPTQModel takes no file that says 0
SYMMETRIC_ZEROS = 0x77777777  # specified: version 1 stores a zero point of 8 less one, eight times
# 16 codes that are equally likely have a deviation of 4.6 steps: weights of a trained one's, .018.
SCALE = 0.018 / 4.6


def model_of(name: str, layers: int | None = None) -> Model:
    """A published model by name, or the toy, with so many layers where that is given."""
    model = TOY_MODEL if name == TOY else load_model(name)
    return model if layers is None else cut(model, layers)


def checkpoint_of(model: Model, folder: Path) -> Checkpoint:
    """What the converters ask of a checkpoint besides weights: its record and its small files."""
    write_json(folder / CONFIG_NAME, config_of(model, "float16"))
    tokenizer_of(model.geometry.vocab).save(str(folder / TOKENIZER_NAME))
    return Checkpoint(
        path=folder, revision=None, sha256="0" * 64, window=model.window,
        context_tokens=model.context_tokens, special_ids=SpecialIds(), geometry=model.geometry,
        dtype="float16",
    )  # fmt: skip


class RandomTensors:
    """A TensorSource of any geometry that reads no file: seeded, of a trained model's scale."""

    def __init__(self, geometry: Geometry) -> None:
        self._shapes = tensor_shapes(geometry)
        self.tensors = {tensor.name: tensor for tensor in tensors_of(geometry)}
        self._block = np.random.default_rng(0).standard_normal(BLOCK, np.float32)

    def names(self) -> list[str]:
        """As in TensorSource."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """As in TensorSource."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """As in TensorSource."""
        return "float32"

    def read(self, name: str) -> np.ndarray:
        """As in TensorSource."""
        return self.read_rows(name, 0, self.shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """As in TensorSource. The same rows at each call, and others in another tensor."""
        tensor, width = self.tensors[name], int(np.prod(self.shape(name)[1:]))
        first = start * width + len(name) * 4099  # a prime, so that tensors begin elsewhere
        at = np.arange(first, first + (stop - start) * width) % BLOCK
        values = self._block[at] * np.float32(tensor.scale) + np.float32(tensor.mean)
        return values.reshape(stop - start, *self.shape(name)[1:])


def write_gptq(model: Model, recipe_name: str, out: Path) -> Path:
    """A folder of GPTQ weights with random codes; the tokenizer is there for other readers."""
    recipe, shapes = gptq.parse(recipe_name), GeometryShapes(model.geometry)
    specs = gptq_writer.tensor_specs(shapes, recipe)
    floats = {tensor.name: tensor for tensor in tensors_of(model.geometry)}
    with atomic_folder(out) as folder:
        _write_gptq(folder, checkpoint_of(model, folder), recipe, specs, _random(specs, floats))
    return out


def round_gptq(
    checkpoint: Checkpoint, tensors: TensorSource, recipe_name: str, out: Path
) -> Dequantised:
    """The checkpoint's own weights rounded to nearest; returns what the files stand for."""
    recipe = gptq.parse(recipe_name)
    with atomic_folder(out) as folder:
        specs = gptq_writer.tensor_specs(tensors, recipe)
        _write_gptq(folder, checkpoint, recipe, specs, _rounded(tensors, recipe))
    return Dequantised(out, checkpoint.geometry)


def write_gguf(model: Model, recipe_name: str, out: Path) -> Path:
    """A GGUF file of random weights; returns its path. Asks the installed engine to quantise."""
    geometry, variant = model.geometry, gguf.variant(recipe_name)
    recipe = ggml.RECIPES[recipe_name]
    plans = gguf_writer.list_tensors(geometry, GeometryShapes(geometry), recipe, imatrix=False)
    source, slabs = RandomTensors(geometry), {}
    with atomic_folder(out) as folder:
        file = folder / gguf.FILE_NAME
        gguf_writer.write_header(file, checkpoint_of(model, folder), variant, plans)
        with open(file, "ab") as stream:
            for plan in plans:
                rows = min(SLAB_ROWS, plan.rows)
                key = (plan.type_name, plan.shape[-1], rows)
                if len(plan.shape) == 1 or key not in slabs:
                    quantise = ggml.row_quantizer(plan.type_name, plan.source)
                    values = source.read_rows(plan.source, 0, plan.shape[0] if rows == 1 else rows)
                    slabs[key] = quantise(values.reshape(rows, -1), None).tobytes()
                whole, rest = divmod(plan.nbytes, len(slabs[key]))
                for _ in range(whole):
                    stream.write(slabs[key])
                stream.write(slabs[key][:rest] + bytes(-plan.nbytes % gguf_writer.ALIGNMENT))
    return out / gguf.FILE_NAME


def write_onnx(model: Model, recipe_name: str, out: Path) -> Path:
    """A folder of an ONNX variant of random weights."""
    with atomic_folder(out) as folder:
        checkpoint = checkpoint_of(model, folder)
        variant = onnx.variant(recipe_name)
        onnx_writer.write_files(folder, checkpoint, variant, RandomTensors(model.geometry))
    return out


def _write_gptq(
    folder: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    specs: list[TensorSpec],
    parts: Iterator[tuple[str, np.ndarray]],
) -> None:
    settings = gptq_writer.quantize_config(checkpoint, recipe, DAMPING, {})
    write_safetensors(folder / SINGLE_NAME, specs, parts, {"format": "pt"})
    write_json(folder / CONFIG_NAME, gptq_writer.model_config(checkpoint, settings))
    write_json(folder / gptq_writer.QUANTIZE_CONFIG_NAME, settings)


def _random(specs: list[TensorSpec], floats: dict[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for spec in specs:
        match spec.name.rsplit(".", 1)[1]:
            case "qweight":
                yield spec.name, rng.integers(-(2**31), 2**31, spec.shape, np.int32)
            case "qzeros":
                yield spec.name, np.full(spec.shape, SYMMETRIC_ZEROS, np.int32)
            case "scales":
                yield spec.name, (SCALE * rng.uniform(0.5, 1.5, spec.shape)).astype(np.float16)
                group = (
                    floats[f"{spec.name.removesuffix('scales')}weight"].shape[1] // spec.shape[0]
                )
            case "g_idx":
                yield spec.name, (np.arange(spec.shape[0]) // group).astype(np.int32)
            case _:
                values = rng.standard_normal(spec.shape, np.float32)
                values *= np.float32(floats[spec.name].scale)
                values += np.float32(floats[spec.name].mean)
                yield spec.name, values.astype(np.float16)


def _rounded(tensors: TensorSource, recipe: Recipe) -> Iterator[tuple[str, np.ndarray]]:
    for name in tensors.names():
        values = tensors.read(name)
        if values.ndim == 2 and name.startswith("model.layers."):
            blocks = quantize(
                values, recipe.bits, recipe.group, symmetric=True, search=False,
                scale_type=np.float16,
            )  # fmt: skip
            packed: Packed = pack(blocks, recipe.bits)
            for array in gptq_writer.ARRAYS:
                yield f"{name.removesuffix('weight')}{array}", getattr(packed, array)
        else:
            yield name, values.astype(np.float16)
