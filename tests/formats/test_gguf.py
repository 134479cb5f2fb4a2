"""GGUF against the reference implementation, and against llama.cpp's own choices."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from packager.calibrate import (
    compute_importance,
    draw_batches,
    read_importance,
    write_importance,
)
from packager.checkpoint import read_checkpoint
from packager.errors import CheckpointError, UsageError, WindowError
from packager.formats import gguf
from packager.quality import proof_sample, prove_window, reach
from packager.quant import ggml
from packager.records import Checkpoint, Geometry
from runtimes.contract import BackendOptions, Window
from runtimes.errors import ContextError, DeviceError, RewindError
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
# Measured over these shapes at a logit deviation of 2: 0.0009 to 0.0012 without flash attention,
# up to 0.0025 with it. ggml looks GELU up in a half-precision table and keeps half-precision keys.
RMS_FLOOR = 0.0015
RMS_FLOOR_FLASH = 0.003
# Flash attention sums in half precision: more keys, more error. Measured 1.35 at the most.
PAST_OVER_INSIDE = 1.5


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


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("chunk", [1, 7, 16, 4096], ids=["by-token", "by-7", "by-16", "at-once"])
def test_logits_equal_the_reference_before_at_and_far_past_the_window(converted, chunk, flash):
    checkpoint, path, ids, reference = converted
    chunk = min(chunk, len(ids))
    backend = open_backend(path, checkpoint, chunk_tokens=chunk, flash_attention=flash)
    error = logits_of(backend, ids, chunk) - reference
    backend.close()
    window = checkpoint.window.size_tokens
    inside, past = rms(error[:window]), rms(error[window:])
    assert inside < (RMS_FLOOR_FLASH if flash else RMS_FLOOR)
    assert past < PAST_OVER_INSIDE * inside


def test_without_the_window_the_same_comparison_fails(converted):
    """A test of the test: the file as others write it, without the window's key.

    tests/test_demo.py asks an unmodified llama.cpp for the same.
    """
    checkpoint, path, ids, reference = converted
    unaware = path.with_name("no-window")
    without = replace_window(checkpoint, None)
    gguf.convert(without, gguf.variant("F32"), unaware)
    backend = open_backend(unaware, without, chunk_tokens=64)
    error = logits_of(backend, ids, 64) - reference
    backend.close()
    window = checkpoint.window.size_tokens
    assert rms(error[:window]) < RMS_FLOOR_FLASH
    assert rms(error[window:]) > 100 * rms(error[:window])


def replace_window(checkpoint: Checkpoint, size: int | None) -> Checkpoint:
    return dataclasses.replace(checkpoint, window=Window(size))


def test_an_engine_that_loses_the_window_is_held_to_contexts_inside_it(converted):
    checkpoint, path, *_ = converted
    without = path.with_name("lost")
    gguf.convert(replace_window(checkpoint, None), gguf.variant("F32"), without)
    with pytest.raises(WindowError, match="applies a window of None"):
        open_backend(without, checkpoint)
    inside = checkpoint.window.size_tokens
    open_backend(without, checkpoint, context=inside, chunk_tokens=16).close()


def test_a_token_reaches_layers_times_window_minus_one_back_and_no_further(tmp_path):
    shape = dict(window=8, layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, context=256)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **shape))
    path = gguf.convert(checkpoint, gguf.variant("F32"), tmp_path / "f32").path
    for chunk in (1, 5, 64):
        backend = open_backend(path, checkpoint, context=256, chunk_tokens=chunk)
        at_reach, beyond = reach(checkpoint, backend)
        backend.close()
        assert at_reach > 0
        assert beyond == 0


def test_random_rewinds_equal_a_fresh_run(converted):
    """Forward and rewind at random for many windows: the cache is a ring with little slack."""
    checkpoint, path, *_ = converted
    rng = np.random.default_rng(7)
    chunk = 24
    backend = open_backend(path, checkpoint, chunk_tokens=chunk, flash_attention=False)
    held: list[int] = []
    rewound = refused = 0
    while len(held) < 1200:
        new = rng.integers(40, checkpoint.geometry.vocab, rng.integers(1, chunk + 1)).tolist()
        logits = backend.forward(new)
        held += new
        if rewound and rng.random() < 0.05:  # what came since the last rewind, and before it
            expected = eager_logits(checkpoint.path, np.array(held))[-1]
            assert rms(logits[-1] - expected) < PAST_OVER_INSIDE * RMS_FLOOR
        if rng.random() < 0.4:
            far = rng.random() < 0.1  # mostly a few ids, at times more than the ring holds
            target = max(0, len(held) - int(rng.integers(1, 400 if far else 12)))
            try:
                backend.rewind(target)
                held = held[:target]
                rewound += 1
            except RewindError:
                refused += 1
    backend.close()
    assert rewound > 30
    assert refused > 0  # the ring did overwrite something, so the law was put to the test


def test_an_interrupted_call_leaves_a_backend_that_can_go_on(converted, monkeypatch):
    checkpoint, path, ids, reference = converted
    backend = open_backend(path, checkpoint, chunk_tokens=64, flash_attention=False)
    decode = backend._engine.api.llama_decode

    def interrupted(*arguments: object) -> None:
        decode(*arguments)
        raise KeyboardInterrupt  # the ids are in the cache, but nobody has counted them

    for held in (0, 50):
        backend.rewind(0)
        if held:
            backend.forward(ids[:held].tolist())
        with monkeypatch.context() as patch:
            patch.setattr(backend._engine.api, "llama_decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                backend.forward(ids[held : held + 20].tolist())
        assert backend.position == held
        logits = backend.forward(ids[held : held + 30].tolist())
        assert rms(logits[-1] - reference[held + 29]) < PAST_OVER_INSIDE * RMS_FLOOR
    backend.close()


def test_memory_stays_flat_to_100_000_positions(tmp_path):
    shape = dict(window=32, layers=1, hidden=64, heads=2, kv_heads=1, ffn=64, context=131_072)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **shape))
    path = gguf.convert(checkpoint, gguf.variant("F32"), tmp_path / "f32").path
    backend = open_backend(path, checkpoint, context=100_000, chunk_tokens=500)
    ids = np.random.default_rng(0).integers(40, 320, 500).tolist()
    for _ in range(4):
        backend.forward(ids)
    before = resident_bytes()
    while backend.position < 100_000:
        logits = backend.forward(ids)
    grown = resident_bytes() - before
    # 768 cells of 1 layer, 1 head of 32, keys and values in half precision
    assert backend.memory_bytes().key_values_bytes == pytest.approx(2 * 768 * 32 * 2, abs=6000)
    assert grown < 8 << 20
    backend.rewind(0)
    fresh = open_backend(path, checkpoint, context=2048, chunk_tokens=500)
    for _ in range(4):
        expected = fresh.forward(ids)
    fresh.close()
    backend.close()
    # far past the window, only what the window holds matters; RoPE is relative
    assert rms(logits - expected) < 0.01


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("recipe", gguf.RECIPES)
def test_every_recipe_diverges_past_the_window_as_it_does_inside(tmp_path, recipe):
    shape = SHAPES["window-divides-nothing"]
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **shape))
    folder = gguf.convert(checkpoint, gguf.variant(recipe), tmp_path / "out").path
    backend = open_backend(folder, checkpoint, context=1024, chunk_tokens=64)
    text = "def f(x):\n    return x + 1\n" * 200
    proof = prove_window(checkpoint, backend, proof_sample(checkpoint, text))
    backend.close()
    assert proof.holds
    assert proof.beyond_reach == 0
    assert proof.if_lost_nats > 5 * proof.past_nats


@pytest.mark.parametrize("recipe", [r for r in gguf.RECIPES if r != "F32"])
@pytest.mark.parametrize("shape", [*SHAPES, "no-super-blocks"])
def test_types_and_bytes_equal_llama_quantize(tmp_path, shape, recipe):
    shapes = SHAPES | {
        "no-super-blocks": dict(layers=9, hidden=96, heads=3, kv_heads=1, ffn=160, seed=4)
    }
    settings = {"layers": 9} | shapes[shape] | {"layers": 9}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **settings))
    source = gguf.convert(checkpoint, gguf.variant("F32"), tmp_path / "f32").path
    ours = gguf.convert(checkpoint, gguf.variant(recipe), tmp_path / "ours").path
    theirs = tmp_path / "theirs.gguf"
    assert llama_quantize(source / gguf.FILE_NAME, theirs, ggml.RECIPES[recipe].file_type) == 0
    expected = {t.name: t for t in GGUFReader(theirs).tensors}
    found = {t.name: t for t in GGUFReader(ours / gguf.FILE_NAME).tensors}
    assert {n: t.tensor_type.name for n, t in found.items()} == {
        n: t.tensor_type.name for n, t in expected.items()
    }
    for name, tensor in found.items():
        assert np.array_equal(tensor.data, expected[name].data), name


def llama_quantize(source: Path, target: Path, file_type: int) -> int:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    names = (str(path).encode() for path in (source, target))
    return llama_cpp.llama_model_quantize(*names, params)


@pytest.mark.parametrize("layers", [30, 32, 40])
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q5_K_M", "IQ4_XS"])
def test_the_mix_of_the_real_geometries_has_the_known_share_of_wide_types(layers, recipe):
    """`use_more_bits` of llama.cpp: the first and last eighth, and every third between."""
    heads = {30: (24, 2), 32: (36, 4), 40: (48, 4)}[layers]
    geometry = Geometry(layers, *heads, 128, heads[0] * 128, heads[0] * 512, 49152, 1e6, 1e-5, True)
    wide = [
        layer
        for layer in range(layers)
        if ggml.matrix_type(
            f"blk.{layer}.ffn_down.weight", geometry.ffn, ggml.RECIPES[recipe], geometry, False
        )
        != ggml.RECIPES[recipe].base
    ]
    first, last = layers // 8, 7 * layers // 8
    if recipe == "IQ4_XS":
        assert wide == list(range(first))
    else:
        middle = [i for i in range(first, last) if (i - first) % 3 == 2]
        assert wide == [*range(first), *middle, *range(last, layers)]


def test_the_engine_is_silent_and_says_what_it_holds(converted, capfd):
    checkpoint, path, *_ = converted
    backend = open_backend(path, checkpoint, chunk_tokens=64)
    backend.forward([41, 42, 43])
    memory, described = backend.memory_bytes(), backend.describe()
    backend.close()
    assert capfd.readouterr() == ("", "")
    geometry, window = checkpoint.geometry, checkpoint.window.size_tokens
    cells = -(-(window + 64) // 256) * 256
    per_cell = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * 2
    # the log gives MiB with two decimals
    assert memory.key_values_bytes == pytest.approx(cells * per_cell, abs=6000)
    assert memory.weights_bytes == pytest.approx((path / gguf.FILE_NAME).stat().st_size, rel=0.2)
    assert memory.compute_bytes > 0
    assert described["window_applied"] == str(window)


def test_metadata_names_the_window_the_ids_and_the_pre_tokenizer(converted):
    checkpoint, path, *_ = converted
    fields = GGUFReader(path / gguf.FILE_NAME).fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["starcoder2.attention.sliding_window"] == checkpoint.window.size_tokens
    assert found["starcoder2.rope.freq_base"] == pytest.approx(checkpoint.geometry.rope_theta)
    assert found["starcoder2.context_length"] == checkpoint.context_tokens
    assert found["tokenizer.ggml.pre"] == "starcoder"
    ids = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "eos", "bos")
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ids] == [1, 3, 2, 4, 5, 6, 0, 0]
    assert not any(found[f"tokenizer.ggml.{k}"] for k in ("add_bos_token", "add_space_prefix"))
    assert found["starpack.checkpoint.sha256"] == checkpoint.sha256


def test_the_engine_ends_generation_on_the_ids_we_stop_on(converted):
    checkpoint, path, *_ = converted
    backend = open_backend(path, checkpoint)
    vocabulary = llama_cpp.llama_model_get_vocab(backend._model)
    ends = {i for i in range(40) if llama_cpp.llama_vocab_is_eog(vocabulary, i)}
    backend.close()
    assert ends == {0, 4, 5, 6}


def test_the_engine_tokenises_as_starcoder2_does(tmp_path, real_tokenizer_folder):
    """With the real vocabulary, on llama.cpp's own cases: the pre-tokenizer's name is right."""
    model = write_checkpoint(tmp_path / "model", vocab=49_152, hidden=32, ffn=32, layers=1)
    shutil.copyfile(real_tokenizer_folder / "tokenizer.json", model / "tokenizer.json")
    checkpoint = read_checkpoint(model)
    artifact = gguf.convert(checkpoint, gguf.variant("Q8_0"), tmp_path / "out")
    backend = open_backend(artifact.path, checkpoint, context=64, chunk_tokens=16)
    vocabulary = llama_cpp.llama_model_get_vocab(backend._model)
    cases = (real_tokenizer_folder / "ggml-vocab-starcoder.gguf.inp").read_text("utf-8")
    texts = cases.split("\n__ggml_vocab_test__\n")
    answers = (real_tokenizer_folder / "ggml-vocab-starcoder.gguf.out").read_text().split("\n")
    room = (llama_cpp.llama_token * 1024)()
    checked = 0
    for text, answer in zip(texts, answers, strict=False):
        data = text.encode()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), room, 1024, True, False)
        assert room[:count] == [int(i) for i in answer.split()], text
        checked += 1
    backend.close()
    assert checked > 40


def test_importance_travels_to_llama_cpp_and_back(converted):
    """Computed with the window, written in llama.cpp's format, read back equal, and it matters."""
    checkpoint, path, *_ = converted
    text = "".join(f"def f{i}(x):\n    return x * {i}\n" for i in range(200))
    batches = draw_batches(checkpoint, [text], sequences=2, length_tokens=100)
    means = compute_importance(checkpoint, batches)
    named = {gguf.gguf_name(name): value for name, value in means.items()}
    file = path.with_name("importance.gguf")
    write_importance(file, named, batches)
    read = read_importance(file, gguf.matrix_columns(checkpoint))
    assert read.keys() == named.keys()
    assert all(np.allclose(read[name], named[name], rtol=1e-6) for name in named)
    plain = gguf.convert(checkpoint, gguf.variant("Q4_K_M"), path.with_name("plain"))
    weighted = gguf.convert(
        checkpoint, gguf.variant("Q4_K_M"), path.with_name("weighted"), importance=read
    )
    assert plain.files[0].sha256 != weighted.files[0].sha256
    columns = gguf.matrix_columns(checkpoint) | {"blk.99.attn_q.weight": 4}
    with pytest.raises(CheckpointError, match=r"no usable blk\.99"):
        read_importance(file, columns)
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="not an importance matrix"):
        read_importance(file, gguf.matrix_columns(checkpoint))


def put_first_weight(model: Path, value: float) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start : start + 4] = np.float32(value).tobytes()
    file.write_bytes(data)


def test_refusals_leave_nothing_behind(tmp_path):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model"))
    with pytest.raises(UsageError, match="unknown GGUF recipe 'Q9'"):
        gguf.variant("Q9")
    broken = read_checkpoint(write_checkpoint(tmp_path / "nan", seed=8))
    weights = tmp_path / "nan" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"(?i)nan"):
        gguf.convert(broken, gguf.variant("Q8_0"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    big = read_checkpoint(write_checkpoint(tmp_path / "big", seed=9))
    put_first_weight(big.path, 1e30)
    with pytest.raises(CheckpointError, match=r"weights of model\.\S+ do not fit in F16"):
        gguf.convert(big, gguf.variant("F16"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    artifact = gguf.convert(checkpoint, gguf.variant("Q8_0"), tmp_path / "ok")
    with pytest.raises(DeviceError, match="GPU"):
        open_backend(artifact.path, checkpoint, gpu_layers=4)
    backend = open_backend(artifact.path, checkpoint, context=64, chunk_tokens=64)
    backend.forward(list(range(60)))
    with pytest.raises(ContextError, match="beyond the context"):
        backend.forward(list(range(10)))
    backend.close()
    backend.close()
    (artifact.path / gguf.FILE_NAME).write_bytes(b"GGUF nonsense")
    with pytest.raises(DeviceError, match="cannot load the model"):
        open_backend(artifact.path, checkpoint)
