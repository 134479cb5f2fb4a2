"""The ONNX backend against the reference implementation: the window, rewinding, memory."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint
from packager.formats.onnx import format as onnx
from packager.formats.onnx import graph
from packager.formats.onnx.convert import PROBE_NAME
from runtimes.backends.onnx import bindings as bindings_module
from runtimes.backends.onnx import session as engine_module
from runtimes.backends.onnx.graph import rows_at_once
from runtimes.contract import Window
from runtimes.errors import RewindError, WindowError
from tests.support.format_laws import (
    REAL_IDS,
    REAL_WINDOW,
    SHAPES,
    check_flat_memory,
    check_interrupts,
    check_proof,
    check_reach,
    check_rewinds,
    check_same_bits,
    check_saves,
    errors_at_a_real_window,
    largest,
    logits_of,
    rms,
)
from tests.support.onnx_models import backend_module, open_backend, open_fresh, ort
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint

# Measured: 1.5e-5 at the most at a logit deviation of 2, inside the window and past it.
MOST_ERROR = 1e-4
MOST_RMS = 2e-5


@pytest.mark.parametrize("chunk", [1, 7, 16, 4096], ids=["by-token", "by-7", "by-16", "at-once"])
def test_logits_equal_the_reference_at_every_position(exported, chunk):
    checkpoint, path, ids, reference = exported
    backend = open_backend(path, checkpoint, chunk_tokens=min(chunk, len(ids)))
    error = np.abs(logits_of(backend, ids, min(chunk, len(ids))) - reference)
    backend.close()
    assert error.max() < MOST_ERROR


def test_tokens_and_short_calls_are_as_near_as_blocks_at_a_real_window(tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **REAL_WINDOW))
    reference = eager_logits(checkpoint.path, REAL_IDS)
    backend = open_fresh(checkpoint, context=8192)
    for kind, errors in errors_at_a_real_window(backend, reference).items():
        assert max(errors) < MOST_RMS, kind
    backend.close()


def test_chunks_of_changing_size_give_the_same(exported):
    checkpoint, path, ids, reference = exported
    backend = open_backend(path, checkpoint, chunk_tokens=40)
    rng, at = np.random.default_rng(3), 0
    while at < len(ids):
        part = ids[at : at + int(rng.integers(1, 41))].tolist()
        logits = backend.forward(part)
        at += len(part)
        assert logits.shape == (1, checkpoint.geometry.vocab)
        assert np.abs(logits[0] - reference[at - 1]).max() < MOST_ERROR
    backend.close()


def test_a_call_that_runs_in_parts_gives_the_same(exported, monkeypatch):
    """As long calls do at the real shape: scores of all their rows would take too much memory."""
    checkpoint, path, ids, reference = exported
    monkeypatch.setattr(backend_module, "rows_at_once", lambda heads, slots: 5)
    backend = open_backend(path, checkpoint, chunk_tokens=64)
    error = np.abs(logits_of(backend, ids, 64) - reference)
    assert error.max() < MOST_ERROR
    backend.rewind(0)
    for at in range(0, len(ids), 64):
        last = backend.forward(ids[at : at + 64].tolist())
    assert np.abs(last[0] - reference[-1]).max() < MOST_ERROR
    run = (backend._session, "run_with_iobinding")
    check_interrupts(backend, ids, reference, run, largest, MOST_ERROR)


def test_scores_that_are_kept_are_bounded():
    assert rows_at_once(heads=24, slots=512) == 128  # all that other products gain by
    for heads, slots in ((24, 4096 + 512), (48, 4096 + 512), (24, 16_384)):
        assert 16 <= rows_at_once(heads, slots) < 128
        assert 4 * heads * slots * rows_at_once(heads, slots) <= 27 << 20


def replace_window(checkpoint: Checkpoint, size: int | None) -> Checkpoint:
    return dataclasses.replace(checkpoint, window=Window(size))


@pytest.mark.parametrize("wrong", [None, -1, 1], ids=["none", "one-less", "one-more"])
def test_with_another_window_the_same_comparison_fails(exported, tmp_path, wrong):
    """A test of the test: full attention, and a window that is off by one."""
    checkpoint, _, ids, reference = exported
    size = checkpoint.window.size_tokens
    other = replace_window(checkpoint, None if wrong is None else size + wrong)
    onnx.convert(other, onnx.variant("fp32"), tmp_path / "other")
    backend = open_backend(tmp_path / "other", other, chunk_tokens=64)
    error = np.abs(logits_of(backend, ids, 64) - reference).max(-1)
    backend.close()
    assert error[: size - 1].max() < MOST_ERROR
    assert error[size + 1 :].max() > 100 * MOST_ERROR


@pytest.mark.parametrize("wrong", [-1, 1])
def test_an_engine_that_is_off_by_one_is_refused(exported, tmp_path, wrong):
    """As onnxruntime up to 1.23 would be: the probe, but not the graph, has another window."""
    checkpoint, path, *_ = exported
    folder = shutil.copytree(path, tmp_path / "model")
    other = replace_window(checkpoint, checkpoint.window.size_tokens + wrong)
    graph.write_probe(folder / PROBE_NAME, other, "float32", {})
    with pytest.raises(WindowError, match="does not see the last"):
        open_backend(folder, checkpoint)


def test_full_attention_where_the_checkpoint_has_it(tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", window=None))
    ids = np.random.default_rng(1).integers(40, 320, 200)
    backend = open_fresh(checkpoint, chunk_tokens=32)
    error = np.abs(logits_of(backend, ids, 32) - eager_logits(checkpoint.path, ids))
    backend.rewind(5)
    assert (backend.min_rewind, backend.describe()["window_applied"]) == (0, "none")
    backend.close()
    assert error.max() < MOST_ERROR


def test_a_token_reaches_layers_times_window_minus_one_back_and_no_further(tmp_path):
    check_reach(tmp_path, open_fresh)


def test_a_saved_sequence_goes_on_to_the_bit(exported):
    checkpoint, path, *_ = exported
    check_saves(checkpoint, open_backend(path, checkpoint, chunk_tokens=24))


def test_reproducible_answers_do_not_depend_on_what_came_before(exported):
    checkpoint, path, *_ = exported
    check_same_bits(path, checkpoint, open_backend)


def test_half_precision_on_a_cpu_keeps_to_the_laws_in_its_own_way(exported, tmp_path):
    """The engine's own node, over slots that start anywhere."""
    checkpoint, _, ids, reference = exported
    folder = onnx.convert(checkpoint, onnx.variant("fp16"), tmp_path / "half").path
    backend = open_backend(folder, checkpoint, chunk_tokens=24)
    window = checkpoint.window.size_tokens
    for chunk in (1, 7, 24):
        backend.rewind(0)
        error = logits_of(backend, ids, chunk) - reference
        assert rms(error[window:]) < 1.5 * rms(error[:window]) < 0.01
    check_saves(checkpoint, backend)


def test_random_rewinds_equal_a_fresh_run(exported):
    checkpoint, path, *_ = exported
    check_rewinds(checkpoint, open_backend(path, checkpoint, chunk_tokens=24), MOST_RMS)


def test_at_least_a_chunk_can_be_rewound_at_any_time(exported):
    checkpoint, path, *_ = exported
    backend = open_backend(path, checkpoint, chunk_tokens=24)
    rng = np.random.default_rng(2)
    for _ in range(100):
        backend.forward(rng.integers(40, 320, rng.integers(1, 25)).tolist())
        assert backend.min_rewind <= max(0, backend.position - 24)
    backend.close()


def test_an_interrupted_call_leaves_a_backend_that_can_go_on(exported):
    checkpoint, path, ids, reference = exported
    backend = open_backend(path, checkpoint, chunk_tokens=64)
    run = (backend._session, "run_with_iobinding")
    check_interrupts(backend, ids, reference, run, largest, MOST_ERROR)


def test_cells_that_were_moving_when_the_user_interrupted_are_not_used(exported):
    checkpoint, path, ids, reference = exported
    backend = open_backend(path, checkpoint, chunk_tokens=16)
    for start in range(0, 96, 16):
        backend.forward(ids[start : start + 16].tolist())

    class Interrupted(dict):
        def values(self):
            yield next(iter(super().values()))
            raise KeyboardInterrupt

    backend._cache = Interrupted(backend._cache)
    with pytest.raises(KeyboardInterrupt):
        for start in range(96, 160, 16):
            backend.forward(ids[start : start + 16].tolist())
    assert backend.position == 0
    backend._cache = dict(backend._cache.items())
    backend.rewind(0)
    assert np.abs(backend.forward(ids[:16].tolist())[-1] - reference[15]).max() < MOST_ERROR
    backend.close()


def test_memory_stays_flat_to_100_000_positions(tmp_path):
    # 32 - 1 + 2 chunks of 250 slots, in whole steps; 1 head of 32, keys and values in float32
    check_flat_memory(tmp_path, open_fresh, key_value_bytes=2 * 576 * 32 * 4)


def test_the_ring_of_the_engine_which_a_gpu_uses_is_exact_too(exported, tmp_path, monkeypatch):
    """On the CPU, as if it were a GPU: all but the device itself."""
    checkpoint, _, ids, reference = exported
    onnx.convert(checkpoint, onnx.variant("fp16"), tmp_path / "half")
    values = SimpleNamespace(ortvalue_from_numpy=lambda a, *_: ort.OrtValue.ortvalue_from_numpy(a))
    monkeypatch.setitem(engine_module.PROVIDERS, "cuda", "CPUExecutionProvider")
    monkeypatch.setattr(bindings_module, "engine", lambda: SimpleNamespace(OrtValue=values))
    backend = open_backend(tmp_path / "half", checkpoint, chunk_tokens=16, provider="cuda")
    window = checkpoint.window.size_tokens
    error = logits_of(backend, ids, 16) - reference
    assert rms(error[window:]) < 1.5 * rms(error[:window]) < 0.01
    slot = 2 * checkpoint.geometry.kv_heads * checkpoint.geometry.head_dim * 2
    held = backend.memory_bytes().key_values_bytes
    assert held == checkpoint.geometry.layers * window * slot
    with pytest.raises(RewindError):
        backend.rewind(len(ids) - 1)
    backend.rewind(0)
    again = logits_of(backend, ids[:40], 7) - reference[:40]
    backend.close()
    assert rms(again) < 0.01


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8", "int4-g32", "int4-g64-rtn-fp16"])
def test_every_recipe_diverges_past_the_window_as_it_does_inside(tmp_path, recipe):
    shape = SHAPES["window-divides-nothing"]
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **shape))
    folder = onnx.convert(checkpoint, onnx.variant(recipe), tmp_path / "out").path
    backend = open_backend(folder, checkpoint, context=1024, chunk_tokens=64)
    check_proof(checkpoint, backend)
