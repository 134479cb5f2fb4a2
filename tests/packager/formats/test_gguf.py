"""The GGUF file: llama.cpp's own choices and bytes, the metadata, what is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

from packager.calibration.imatrix import (
    compute_importance,
    draw_batches,
    read_importance,
    write_importance,
)
from packager.checkpoint.reader import read_checkpoint
from packager.core.errors import CheckpointError, DataError, UsageError
from packager.core.records import Geometry
from packager.formats.gguf import format as gguf
from packager.formats.gguf.convert import matrix_columns
from packager.formats.gguf.recipe import gguf_name
from packager.formats.quant import ggml
from runtimes.errors import ContextError, DeviceError
from tests.support.format_laws import SHAPES
from tests.support.gguf_models import llama_cpp, open_backend
from tests.support.tiny import write_checkpoint


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


# SHA-256 of what ggml-quants.c as published writes for `awkward_rows`, compiled without our patch
PUBLISHED = {
    "Q4_K": "b01dbd50a83ce2b8f421ef688a017c11aa30fe07a1c9bcbc19ecc0a739880b34",
    "Q5_K": "4cefdf293c51935213b3ec37a69591a7e3daefa4c9aefbcd6cef2b01bd9291fb",
}


@pytest.mark.parametrize("type_name", PUBLISHED)
def test_bytes_are_those_of_the_quantiser_as_published(type_name):
    packed = ggml.row_quantizer(type_name, "rows")(awkward_rows())
    assert hashlib.sha256(packed).hexdigest() == PUBLISHED[type_name]


def awkward_rows() -> np.ndarray:
    """Float32 (64, 2048): plain rows, and blocks of one value, of zeros, of one sign, of ties."""
    raw = np.random.PCG64(0).random_raw(64 * 2048)
    rows = ((raw >> np.uint64(40)).astype(np.float32) / 2**23 - 1).reshape(-1, 32)
    rows[::7] = 0
    rows[1::7] = rows[1::7, :1]
    rows[2::7] = np.abs(rows[2::7])
    rows[3::7] = np.round(rows[3::7] * 8) / 16
    rows[4::7] **= 9
    return rows.reshape(64, 2048)


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
    named = {gguf_name(name): value for name, value in means.items()}
    file = path.with_name("importance.gguf")
    write_importance(file, named, batches)
    read = read_importance(file, matrix_columns(checkpoint))
    assert read.keys() == named.keys()
    assert all(np.allclose(read[name], named[name], rtol=1e-6) for name in named)
    plain = gguf.convert(checkpoint, gguf.variant("Q4_K_M"), path.with_name("plain"))
    weighted = gguf.convert(
        checkpoint, gguf.variant("Q4_K_M"), path.with_name("weighted"), calibration=file
    )
    assert plain.files[0].sha256 != weighted.files[0].sha256
    columns = matrix_columns(checkpoint) | {"blk.99.attn_q.weight": 4}
    with pytest.raises(DataError, match=r"no usable blk\.99"):
        read_importance(file, columns)
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(DataError, match="not an importance matrix"):
        read_importance(file, matrix_columns(checkpoint))


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
    with pytest.raises(CheckpointError, match=r"weights of model\.\S+ do not fit in F16") as caught:
        gguf.convert(big, gguf.variant("F16"), tmp_path / "out")
    assert "BF16" in str(caught.value.remedy)
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


def test_sizes_of_blocks_are_those_of_the_library() -> None:
    for name, block in ggml.BLOCKS.items():
        assert block == GGML_QUANT_SIZES[GGMLQuantizationType[name]], name
