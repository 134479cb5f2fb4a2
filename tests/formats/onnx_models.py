"""ONNX variants of seeded random models, opened in the same way by every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packager.checkpoint import read_checkpoint
from packager.formats import onnx
from packager.records import Checkpoint
from runtimes.contract import BackendOptions
from tests.formats.laws import SHAPES
from tests.reference import eager_logits
from tests.tiny import write_checkpoint

ort = pytest.importorskip("onnxruntime")
backend_module = pytest.importorskip("runtimes.backends.onnx")


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
