"""The stand-in for real weights: published shapes, and a checkpoint that is read as any other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from examples import synthesise as module
from examples.synthesise import synthesise, tensors_of, tokenizer_of
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.tensors import open_tensors
from packager.core.errors import UsageError
from packager.estimate.models import load_model

PARAMETERS = {"3b": 3_030_371_328, "7b": 7_173_923_840, "15b": 15_957_889_024}


@pytest.mark.parametrize("size", PARAMETERS)
def test_tensors_are_the_published_ones(size):
    geometry = load_model(size).geometry
    tensors = tensors_of(geometry)
    assert sum(math.prod(t.shape) for t in tensors) == geometry.parameters == PARAMETERS[size]
    assert any(t.name == "lm_head.weight" for t in tensors) == (size == "15b")


@pytest.fixture
def small():
    model = load_model("3b")
    geometry = replace(
        model.geometry, layers=2, heads=4, kv_heads=2, head_dim=16, hidden=64, ffn=128, vocab=400
    )
    return replace(model, geometry=geometry)


@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 3)])
def test_what_is_written_is_read(tmp_path, small, dtype, shards, monkeypatch):
    monkeypatch.setattr(module, "STRETCH_BYTES", 1 << 10)  # many stretches to a tensor
    for name in ("a", "b"):
        synthesise(tmp_path / name, small, dtype, shards)
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint.geometry == small.geometry
    assert (checkpoint.dtype, checkpoint.window) == (dtype, small.window)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == shards
    weights = open_tensors(checkpoint).read("model.layers.1.mlp.c_fc.weight")
    assert weights.std() == pytest.approx(0.018, rel=0.05)
    assert np.unique(weights).size > 1000
    files = [sorted(f.name for f in (tmp_path / n).iterdir()) for n in "ab"]
    assert files[0] == files[1]
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files[0]
    )


def test_the_tokenizer_has_every_id_and_gives_text_back():
    tokenizer = tokenizer_of(49_152)
    assert tokenizer.get_vocab_size() == 49_152
    assert tokenizer.token_to_id("<fim_prefix>") == 1
    text = "def f(x):\n    return x + 42  # naïve\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text) * 0.75


def test_refusals(tmp_path, small, monkeypatch):
    with pytest.raises(UsageError, match="something at this place"):
        synthesise(tmp_path, small, "float32", 1)
    monkeypatch.setattr(module, "ROOM_BYTES", 1 << 60)
    with pytest.raises(UsageError, match="are free"):
        synthesise(tmp_path / "new", small, "float32", 1)
    assert not list(tmp_path.iterdir())
