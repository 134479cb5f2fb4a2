"""The numpy reference against the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import final_states, head_logits
from packager.checkpoint.tensors import open_tensors
from runtimes.contract import Window
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint


@pytest.mark.parametrize(
    "shape",
    [
        dict(window=37, layers=3, seed=1),
        dict(window=24, hidden=96, heads=12, kv_heads=1, seed=2, tied=False, rope_theta=1e5),
        dict(window=None, seed=3, dtype="float16", shards=2),
    ],
    ids=["odd-window", "untied-12-heads-per-kv", "full-attention"],
)
def test_logits_equal_eager_transformers_to_8_windows(tmp_path, shape):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, **shape))
    tensors = open_tensors(checkpoint)
    length = 8 * (shape["window"] or 40)
    ids = np.random.default_rng(0).integers(0, checkpoint.geometry.vocab, length)
    states = final_states(checkpoint, tensors, [ids, ids[:50]])
    found = head_logits(checkpoint, tensors, states[0])
    assert np.abs(found - eager_logits(checkpoint.path, ids)).max() < 1e-4
    # sequences do not see each other
    assert np.allclose(states[1], states[0][:50], atol=1e-5)


def test_the_window_can_be_taken_away_and_is_then_missed_only_past_it(tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, window=32))
    tensors = open_tensors(checkpoint)
    ids = np.random.default_rng(0).integers(0, checkpoint.geometry.vocab, 128)
    (kept,) = final_states(checkpoint, tensors, [ids])
    (lost,) = final_states(checkpoint, tensors, [ids], window=Window(None))
    assert np.allclose(kept[:32], lost[:32], atol=1e-5)
    assert np.abs(kept[32:] - lost[32:]).max() > 0.5


def test_observe_sees_the_input_of_every_matrix_once_per_sequence(tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path, layers=2))
    tensors = open_tensors(checkpoint)
    seen: list[tuple[str, tuple[int, ...]]] = []
    ids = [np.arange(40, 60), np.arange(60, 90)]
    final_states(checkpoint, tensors, ids, observe=lambda n, x: seen.append((n, x.shape)))
    matrices = [
        n for n in tensors.names() if n.startswith("model.layers") and len(tensors.shape(n)) == 2
    ]
    assert sorted(name for name, _ in seen) == sorted(matrices * 2)
    assert all(shape[1] == tensors.shape(name)[1] for name, shape in seen)
    assert {shape[0] for _, shape in seen} == {20, 30}
