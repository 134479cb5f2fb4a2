"""GPTQ artifacts of seeded random models, and the float models that they stand for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from packager.calibration.sequences import SequenceOptions
from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint
from packager.formats.gptq import format as gptq
from packager.formats.quant.gptq_layout import Packed, unpack
from runtimes.contract import BackendOptions
from tests.support.format_laws import SHAPES
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint, write_weights

torch = pytest.importorskip("torch")
backend_module = pytest.importorskip("runtimes.backends.gptq.backend")

SAMPLING = SequenceOptions(sequences=4, length_tokens=160, long_sequences=1)
ARRAYS = ("qweight", "qzeros", "scales", "g_idx")


def write_sources(folder: Path) -> Path:
    """A folder of source code that is large enough for the tiny models."""
    folder.mkdir(exist_ok=True)
    for name, line in (("a.py", "def f{}(x):\n    return x * {}\n"), ("b.js", "let v{} = [{}];\n")):
        (folder / name).write_text("".join(line.format(i, 7 * i) for i in range(200)))
    return folder


def quantise(checkpoint: Checkpoint, out: Path, recipe: str = "w4g32", head_bits=None) -> Path:
    """Convert with little calibration; returns the artifact's folder."""
    sources = write_sources(out.with_name("sources"))
    variant = gptq.variant(recipe, head_bits)
    return gptq.convert(checkpoint, variant, out, calibration=sources, sampling=SAMPLING).path


def open_backend(
    path: Path, checkpoint: Checkpoint, context: int = 2048, kernel_path="float32", **options
):
    return backend_module.open_backend(
        path, checkpoint.window, BackendOptions(context, 1, **options), kernel_path=kernel_path
    )


def open_fresh(checkpoint: Checkpoint, **options):
    """Quantise beside the checkpoint and open that, computed in float32."""
    path = checkpoint.path.with_name("w4g32")
    if not path.is_dir():
        quantise(checkpoint, path)
    return open_backend(path, checkpoint, **options)


def dequantised(checkpoint: Checkpoint, folder: Path, bits: int, out: Path) -> Path:
    """A float32 checkpoint of what an artifact's files stand for, read by the library."""
    found = load_file(folder / "model.safetensors")
    tensors = {
        n: v.astype(np.float32) for n, v in found.items() if n.rsplit(".", 1)[1] not in ARRAYS
    }
    for name in [name for name in found if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        packed = Packed(*(found[f"{module}.{array}"] for array in ARRAYS))
        tensors[f"{module}.weight"] = unpack(packed, bits).weights()
    shutil.copytree(checkpoint.path, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    write_weights(out, tensors)
    return out


@pytest.fixture(scope="module", params=SHAPES)
def quantised(request, tmp_path_factory):
    """(checkpoint of the weights as quantised, artifact folder, ids to 8 windows, their logits)."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **SHAPES[request.param]))
    artifact = quantise(checkpoint, folder / "w4g32")
    floats = read_checkpoint(dequantised(checkpoint, artifact, 4, folder / "float"))
    ids = np.random.default_rng(5).integers(
        40, checkpoint.geometry.vocab, 8 * checkpoint.window.size_tokens
    )
    return floats, artifact, ids, eager_logits(floats.path, ids)
