"""What a checkpoint is read as, and every contradiction refused with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from packager.checkpoint.reader import describe, read_checkpoint
from packager.checkpoint.tensors import open_tensors
from packager.core import hash_cache
from packager.core.errors import CheckpointError
from runtimes.contract import SpecialIds, Window
from tests.support.refusal import refusal
from tests.support.tiny import random_tensors, set_config, write_checkpoint, write_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hashes are remembered in the test's folder, not in the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "starpack" / "hashes.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def refused(folder: Path, message: str) -> CheckpointError:
    return refusal(lambda: read_checkpoint(folder, hash_files=False), message)


def test_reads_what_was_written(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", tied=False, dtype="bfloat16", shards=2, layers=3)
    checkpoint = read_checkpoint(folder)
    geometry = checkpoint.geometry
    assert (geometry.layers, geometry.heads, geometry.kv_heads, geometry.head_dim) == (3, 4, 2, 16)
    assert (geometry.hidden, geometry.ffn, geometry.vocab, geometry.tied) == (64, 128, 320, False)
    assert (geometry.rope_theta, geometry.norm_eps) == (10000.0, 1e-05)
    assert checkpoint.window == Window(32)
    assert checkpoint.context_tokens == 1024
    assert checkpoint.special_ids == SpecialIds()
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.revision is None
    tensors = open_tensors(checkpoint)
    assert sum(tensors.read(name).size for name in tensors.names()) == geometry.parameters


def test_window_null_is_full_attention(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", window=None)
    assert read_checkpoint(folder, hash_files=False).window == Window(None)


def test_describe(folder: Path) -> None:
    data = describe(read_checkpoint(folder, hash_files=False))
    assert data["sha256"] is None
    assert data["reach_tokens"] == 2 * 31
    per_token = 2 * 2 * 2 * 16 * 2  # keys and values, layers, kv heads, head_dim, fp16
    assert data["kv_fp16_bytes"] == {
        "per_token": per_token,
        "at_window": 31 * per_token,
        "at_context_without_window": 1024 * per_token,
    }
    assert data["weights_bytes"]["4-bit"] * 8 == data["weights_bytes"]["fp32"]
    json.dumps(data)


def test_saved_by_transformers(folder: Path, tmp_path: Path) -> None:
    """The library's own save_pretrained reads back as the same model."""
    transformers = pytest.importorskip("transformers")
    model = transformers.Starcoder2ForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    before, after = (read_checkpoint(f, hash_files=False) for f in (folder, tmp_path / "saved"))
    assert (after.geometry, after.window) == (before.geometry, before.window)


DISAGREE: dict[str, tuple[dict[str, object], str]] = {
    "vocab": ({"vocab_size": 299}, "the tokenizer has 300 entries, the model 299 rows"),
    "ffn": ({"intermediate_size": 64}, r"mlp.c_fc.weight has shape \(128, 64\)"),
    "more layers": ({"num_hidden_layers": 3}, r"model.layers.2.*is missing \(16 are\)"),
    "fewer layers": ({"num_hidden_layers": 1}, "model.layers.1.*is no tensor of this model"),
    "untied": ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_config_against_the_rest(folder: Path, case: str) -> None:
    values, message = DISAGREE[case]
    set_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, "no weights" if name == "model.safetensors" else f"{name} cannot be read")


def test_not_a_folder(folder: Path) -> None:
    refused(folder / "config.json", "not a folder")
    refused(folder / "absent", "not a folder")


def test_tied_head_may_be_stored(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", tied=True)
    tensors = random_tensors(np.random.default_rng(0), 2, 64, 32, 128, 320, True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_weights(folder, tensors)
    assert "lm_head.weight" not in open_tensors(read_checkpoint(folder)).names()
    tensors["lm_head.weight"][-1, -1] += 1
    write_weights(folder, tensors)
    refused(folder, "ties the head to the embedding, but lm_head.weight is stored and differs")


def test_mixed_dtypes(folder: Path) -> None:
    tensors = random_tensors(np.random.default_rng(0), 2, 64, 32, 128, 320, True)
    write_weights(folder, tensors, shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    half = {name: value for name, value in tensors.items() if "00001" in index[name]}
    write_weights(folder, half, "float16")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert read_checkpoint(folder).dtype == "mixed"


def test_sha256_names_the_content(tmp_path: Path, own_cache: Path) -> None:
    first, same = (write_checkpoint(tmp_path / name, seed=1) for name in "ab")
    seen: list[tuple[int, int]] = []
    sha256 = read_checkpoint(
        first, progress=lambda _, done, total: seen.append((done, total))
    ).sha256
    assert len(sha256) == 64
    assert seen[-1][0] == seen[-1][1] == sum(f.stat().st_size for f in first.iterdir())
    assert read_checkpoint(same).sha256 == sha256
    assert read_checkpoint(same, hash_files=False).sha256 == ""
    (same / "README.md").write_text("a card changes nothing")
    assert read_checkpoint(same).sha256 == sha256
    set_config(same, attention_dropout=0.2)
    assert read_checkpoint(same).sha256 != sha256
    assert read_checkpoint(write_checkpoint(tmp_path / "c", seed=2)).sha256 != sha256


def test_hashes_are_remembered(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = read_checkpoint(folder).sha256
    with monkeypatch.context() as patched:
        patched.setattr(hash_cache, "_sha256", lambda *_: pytest.fail("read again"))
        assert read_checkpoint(folder).sha256 == sha256
    for spoiled in (b"{", b"[]", b'{"x": 1}', b"\xff"):
        own_cache.write_bytes(spoiled)
        assert read_checkpoint(folder).sha256 == sha256
    own_cache.unlink()
    own_cache.mkdir()  # cannot be written: costs time alone
    assert read_checkpoint(folder).sha256 == sha256


def test_revision_from_the_fetch_record(folder: Path) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    names = ("config.json", "tokenizer.json", "model.safetensors")
    entries = hash_cache.hash_entries([folder / name for name in names])
    files = [{"path": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in entries]
    record = folder / "starpack-fetch.json"
    record.write_text(json.dumps({"commit": commit, "files": files}))
    assert read_checkpoint(folder).revision == commit
    set_config(folder, attention_dropout=0.5)
    assert read_checkpoint(folder).revision == f"{commit}+modified"
    record.write_text(json.dumps({"commit": "main", "files": []}))
    refused(folder, "commit is 'main'")
    for path in (None, ["a"], {}):
        record.write_text(json.dumps({"commit": commit, "files": [{"path": path}]}))
        refused(folder, "files is not a list of files")
