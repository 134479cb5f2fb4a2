"""Seeded random models that differ in shape, opened and asked the same way by every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packager.checkpoint import read_checkpoint
from packager.formats import gguf
from packager.records import Checkpoint
from runtimes.contract import BackendOptions
from tests.reference import eager_logits
from tests.tiny import write_checkpoint

llama_cpp = pytest.importorskip("llama_cpp.llama_cpp", reason="needs the engine: make wheels")
backend_module = pytest.importorskip("runtimes.backends.gguf")

SHAPES = {
    "window-divides-nothing": dict(
        window=37, layers=3, hidden=256, heads=4, kv_heads=2, ffn=512, seed=1
    ),
    "12-heads-per-kv": dict(
        window=24, layers=2, hidden=384, heads=12, kv_heads=1, ffn=256, seed=2, rope_theta=1e5
    ),
    "untied-bf16": dict(
        window=64, layers=2, hidden=256, heads=8, kv_heads=4, ffn=512, seed=3, tied=False,
        dtype="bfloat16", shards=3,
    ),
}  # fmt: skip


def open_backend(path: Path, checkpoint: Checkpoint, context: int = 2048, **options):
    return backend_module.open_backend(
        path / gguf.FILE_NAME, checkpoint.window, BackendOptions(context, 1, **options)
    )


def logits_of(backend, ids: np.ndarray, chunk: int) -> np.ndarray:
    parts = [ids[i : i + chunk].tolist() for i in range(0, len(ids), chunk)]
    return np.concatenate([backend.forward(part, last_only=False) for part in parts])


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


@pytest.fixture(scope="module", params=SHAPES)
def converted(request, tmp_path_factory):
    """(checkpoint, F32 artifact folder, ids to 8 windows, eager float32 logits)."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **SHAPES[request.param]))
    artifact = gguf.convert(checkpoint, gguf.variant("F32"), folder / "f32")
    length = 8 * checkpoint.window.size_tokens
    ids = np.random.default_rng(5).integers(40, checkpoint.geometry.vocab, length)
    return checkpoint, artifact.path, ids, eager_logits(checkpoint.path, ids)
