"""Seeded random models that differ in shape, opened and asked the same way by every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint
from packager.formats.gguf import format as gguf
from runtimes.contract import BackendOptions
from tests.support.format_laws import SHAPES
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint

llama_cpp = pytest.importorskip("llama_cpp.llama_cpp", reason="needs the engine: make wheels")
backend_module = pytest.importorskip("runtimes.backends.gguf.backend")


def open_backend(path: Path, checkpoint: Checkpoint, context: int = 2048, **options):
    return backend_module.open_backend(
        path / gguf.FILE_NAME, checkpoint.window, BackendOptions(context, 1, **options)
    )


def open_fresh(checkpoint: Checkpoint, **options):
    """Convert to F32 beside the checkpoint and open that."""
    path = checkpoint.path.with_name("f32")
    if not path.is_dir():
        gguf.convert(checkpoint, gguf.variant("F32"), path)
    return open_backend(path, checkpoint, **options)


@pytest.fixture(scope="module", params=SHAPES)
def converted(request, tmp_path_factory):
    """(checkpoint, F32 artifact folder, ids to 8 windows, eager float32 logits)."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **SHAPES[request.param]))
    artifact = gguf.convert(checkpoint, gguf.variant("F32"), folder / "f32")
    length = 8 * checkpoint.window.size_tokens
    ids = np.random.default_rng(5).integers(40, checkpoint.geometry.vocab, length)
    return checkpoint, artifact.path, ids, eager_logits(checkpoint.path, ids)
