"""GPTQ files: their exact layout, what they are worth, resuming, and what is refused."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from packager.calibration.sequences import SequenceOptions, draw_sequences
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import final_states
from packager.checkpoint.reference import windowed_attention as reference_attention
from packager.checkpoint.tensors import open_tensors
from packager.core.errors import CheckpointError, DeviceError, UsageError
from packager.core.records import Artifact, Checkpoint
from packager.formats.gptq import convert as gptq_writer
from packager.formats.gptq import format as gptq
from packager.formats.gptq.layer import rotate, windowed_attention
from packager.formats.quant import blocks
from packager.formats.quant.gptq_layout import Packed, unpack
from runtimes.contract import Window
from tests.support.tiny import set_config, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLING = SequenceOptions(sequences=4, length_tokens=160, long_sequences=2)
SHAPE = dict(window=128, layers=3, seed=1)
FILES = ["config.json", "model.safetensors", "quantize_config.json"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model"), **SHAPE))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, line in (("a.py", "def f{}(x):\n    return x * {}\n"), ("b.js", "let v{} = [{}];\n")):
        (folder / name).write_text("".join(line.format(i, 7 * i) for i in range(100)))
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint, sources, tmp_path_factory) -> Artifact:
    return convert(checkpoint, tmp_path_factory.mktemp("artifact") / "out", sources)


def convert(checkpoint: Checkpoint, out: Path, sources: Path, recipe="w4g32", **more) -> Artifact:
    return gptq.convert(
        checkpoint, gptq.variant(recipe), out, calibration=sources, sampling=SAMPLING, **more
    )


def matrices(checkpoint: Checkpoint) -> list[str]:
    tensors = open_tensors(checkpoint)
    return [n for n in tensors.names() if ".layers." in n and len(tensors.shape(n)) == 2]


def dequantized(artifact: Artifact, name: str, bits: int) -> np.ndarray:
    stored = load_file(artifact.path / "model.safetensors")
    prefix = name.removesuffix("weight")
    return unpack(Packed(*(stored[prefix + field] for field in Packed.__slots__)), bits).weights()


def test_the_file_holds_just_what_readers_ask_for(checkpoint, artifact):
    assert sorted(file.name for file in artifact.path.iterdir()) == FILES
    assert sorted(entry.path for entry in artifact.files) == FILES
    stored = load_file(artifact.path / "model.safetensors")
    tensors = open_tensors(checkpoint)
    packed = matrices(checkpoint)
    expected = {n: ("float16", tensors.shape(n)) for n in tensors.names() if n not in packed}
    for name in packed:
        outputs, inputs = tensors.shape(name)
        prefix = name.removesuffix("weight")
        expected[f"{prefix}qweight"] = ("int32", (inputs // 8, outputs))
        expected[f"{prefix}qzeros"] = ("int32", (inputs // 32, outputs // 8))
        expected[f"{prefix}scales"] = ("float16", (inputs // 32, outputs))
        expected[f"{prefix}g_idx"] = ("int32", (inputs,))
    assert {n: (t.dtype.name, t.shape) for n, t in stored.items()} == expected
    assert all((t == 0x77777777).all() for n, t in stored.items() if n.endswith("qzeros"))
    for name, values in stored.items():
        if name.endswith("g_idx"):
            np.testing.assert_array_equal(values, np.arange(len(values)) // 32)
        elif name in tensors.names():
            np.testing.assert_array_equal(values, tensors.read(name).astype(np.float16))


def test_the_configs_say_what_the_files_are(checkpoint, sources, artifact):
    config = json.loads((artifact.path / "config.json").read_bytes())
    settings = json.loads((artifact.path / "quantize_config.json").read_bytes())
    original = json.loads((checkpoint.path / "config.json").read_bytes())
    assert config.pop("quantization_config") == settings
    assert config == original | {"torch_dtype": "float16"}
    meta = settings.pop("meta")
    assert settings == {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
        "true_sequential": True,
        "lm_head": False,
        "damp_percent": 0.05,
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": settings["modules_in_block_to_quantize"],
    }
    calibrated = meta["calibration"]
    assert calibrated["sources_sha256"] == gptq.calibration_sha256(sources)
    assert calibrated["longest_tokens"] == 192
    assert meta["checkpoint_sha256"] == checkpoint.sha256
    assert "return" not in json.dumps(config | settings | meta)  # no text of the sources


def test_the_settings_name_every_packed_matrix_and_what_servers_join_them_to(checkpoint, artifact):
    settings = json.loads((artifact.path / "quantize_config.json").read_bytes())
    named = [name for part in settings["modules_in_block_to_quantize"] for name in part]
    packed = {name.split(".", 3)[3].removesuffix(".weight") for name in matrices(checkpoint)}
    assert set(named) - packed == {"self_attn.qkv_proj"}
    assert packed < set(named)
    assert not [name for name in named if name in "lm_head model.embed_tokens model.norm"]


@pytest.mark.parametrize("recipe", ["w4g32", "w4g64", "w8g32", "w4g64-asym", "w8g64-asym"])
def test_the_quantised_model_is_nearer_than_rounding_to_nearest(
    checkpoint, sources, tmp_path, recipe
):
    artifact = convert(checkpoint, tmp_path / "out", sources, recipe)
    wanted = gptq.parse(recipe)
    tensors = open_tensors(checkpoint)
    ids = draw_sequences(checkpoint, sources, SequenceOptions(1, 200, 0, seed=7), 1)[0][0]
    names = matrices(checkpoint)
    ours = {name: dequantized(artifact, name, wanted.bits) for name in names}
    nearest = {
        name: blocks.quantize(
            tensors.read(name), wanted.bits, wanted.group, symmetric=wanted.symmetric,
            search=True, scale_type=np.float16,
        ).weights()
        for name in names
    }  # fmt: skip
    (exact,) = final_states(checkpoint, tensors, [ids])
    errors = [
        np.square(final_states(checkpoint, Replaced(tensors, weights), [ids])[0] - exact).mean()
        for weights in (ours, nearest)
    ]
    assert errors[0] < 0.8 * errors[1]


class Replaced:
    """Tensors, some of them replaced."""

    def __init__(self, tensors, weights):
        self.tensors, self.weights = tensors, weights

    def __getattr__(self, name):
        return getattr(self.tensors, name)

    def read(self, name):
        return self.weights.get(name) if name in self.weights else self.tensors.read(name)


def test_the_layer_computes_what_the_reference_computes(checkpoint, sources, tmp_path):
    """With the quantised weights in the reference, the states after each layer are the same."""
    out = tmp_path / "out"
    seen = []

    def stop_at_layer_2(what: str, done: int, total: int) -> None:
        if done * 3 > total * 2:
            seen.extend(tmp_path.glob("out.*.work/states-2.f32"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, sources, progress=stop_at_layer_2)
    artifact_states = np.fromfile(seen[0], np.float32)
    work = seen[0].parent
    weights = {}
    for layer in range(2):
        with np.load(work / f"layer-{layer}.npz") as arrays:
            for name in matrices(checkpoint)[6 * layer : 6 * layer + 6]:
                module = name.split(".", 3)[3].removesuffix(".weight")
                fields = (arrays[f"{module}.{field}"] for field in Packed.__slots__)
                weights[name] = unpack(Packed(*fields), 4).weights()
    sequences, _ = draw_sequences(checkpoint, sources, SAMPLING, 1)
    inputs: list[np.ndarray] = []
    final_states(
        checkpoint, Replaced(open_tensors(checkpoint), weights), sequences,
        observe=lambda n, x: inputs.append(x) if n.endswith("2.self_attn.q_proj.weight") else None,
    )  # fmt: skip
    states = torch.from_numpy(artifact_states.reshape(-1, checkpoint.geometry.hidden))
    tensors = open_tensors(checkpoint)
    norm = (torch.from_numpy(tensors.read(f"model.layers.2.input_layernorm.{kind}"))
            for kind in ("weight", "bias"))  # fmt: skip
    found = torch.nn.functional.layer_norm(states, states.shape[-1:], *norm, 1e-5)
    np.testing.assert_allclose(found.numpy(), np.concatenate(inputs), atol=2e-4)


@pytest.mark.parametrize("window", [37, 200, None])
def test_attention_is_the_references_past_the_window(window):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((300, heads, 16)).astype(np.float32) for heads in (12, 2, 2))
    found = windowed_attention(*map(torch.from_numpy, (q, k, v)), Window(window))
    expected = reference_attention(q, k, v, Window(window))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert rotate(torch.from_numpy(q), 1e4).shape == q.shape


def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_bytes(
    checkpoint, sources, artifact, tmp_path
):
    """Killed in the middle of layer 1, with a half-written file of it lying about."""
    out = tmp_path / "out"

    def die(what: str, done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, sources, progress=die)
    assert not out.exists()
    (work,) = tmp_path.glob("out.*.work")
    assert sorted(file.name for file in work.iterdir()) == [
        "inputs.json", "layer-0.npz", "lock", "states-1.f32", "states-2.partial",
    ]  # fmt: skip
    seen: list[tuple[str, int, int]] = []
    resumed = convert(checkpoint, out, sources, progress=lambda *step: seen.append(step))
    assert resumed.files == artifact.files
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    steps = [(done, total) for what, done, total in seen if what == "quantise"]
    per_layer = 4 * 7
    assert steps == [(i, 3 * per_layer) for i in range(per_layer + 1, 3 * per_layer + 1)]
    assert seen[-1][1] == seen[-1][2]


def test_other_settings_do_not_go_on_from_there(checkpoint, sources, tmp_path):
    def die(*step: object) -> None:
        raise KeyboardInterrupt

    for recipe in ("w4g32", "w4g64"):
        with pytest.raises(KeyboardInterrupt):
            convert(checkpoint, tmp_path / "out", sources, recipe, progress=die)
    assert len(list(tmp_path.glob("out.*.work"))) == 2


def test_work_that_no_run_will_go_on_from_is_removed(checkpoint, sources, tmp_path, monkeypatch):
    def die(*step: object) -> None:
        raise KeyboardInterrupt

    def stop(name: str, recipe: str) -> Path:
        with pytest.raises(KeyboardInterrupt):
            convert(checkpoint, tmp_path / name, sources, recipe, progress=die)
        (work,) = (w for w in tmp_path.glob(f"{name}.*.work") if w not in kept)
        kept.append(work)
        return work

    kept: list[Path] = []
    old, running, foreign = stop("old", "w4g32"), stop("running", "w4g32"), stop("else", "w4g32")
    before = stop("before", "w4g64")  # as versions left it that wrote no inputs.json
    (before / "inputs.json").unlink()
    (foreign / "thesis.txt").write_text("somebody's")
    monkeypatch.setattr(gptq_writer, "VERSION", gptq.VERSION + 1)
    with (running / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = stop("new", "w4g32")
    assert {*tmp_path.glob("*.work")} == {running, foreign, new}
    assert stop("other", "w4g64").is_dir()
    assert {*tmp_path.glob("*.work")} == {foreign, new, kept[-1]}
    assert not old.exists()


def test_two_runs_for_one_artifact(checkpoint, sources, tmp_path):
    def begin_another(*step: object) -> None:
        with pytest.raises(UsageError, match="another run"):
            convert(checkpoint, tmp_path / "out", sources)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "out", sources, progress=begin_another)


def test_an_untied_head_and_bfloat16(sources, tmp_path):
    shape = dict(layers=1, tied=False, dtype="bfloat16", window=128, seed=3)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **shape))
    artifact = convert(checkpoint, tmp_path / "out", sources)
    stored = load_file(artifact.path / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        np.testing.assert_array_equal(stored[name], open_tensors(checkpoint).read(name))
    assert json.loads((artifact.path / "config.json").read_bytes())["torch_dtype"] == "float16"


def test_recipes():
    assert gptq.variant("w4g128").bits == 4 + 20 / 128
    assert gptq.variant("w8g32-asym").group_size == 32
    assert len(gptq.RECIPES) == 12
    with pytest.raises(UsageError, match="unknown GPTQ recipe 'w3g128'"):
        gptq.variant("w3g128")
    assert gptq.variant("w4g128", 8).name == "gptq-w4g128-head8"
    with pytest.raises(UsageError, match="head of 5 bits"):
        gptq.variant("w4g128", 5)


def test_sources_that_cannot_be_calibrated_on(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="needs source code") as caught:
        gptq.convert(checkpoint, gptq.variant("w4g32"), tmp_path / "out")
    assert "--sources DIR" in caught.value.remedy
    folder = tmp_path / "sources"
    folder.mkdir()
    with pytest.raises(UsageError, match="no source text"):
        convert(checkpoint, tmp_path / "out", folder)
    for binary in (b"\x80\x81", b"\0\1"):
        (folder / "a.py").write_bytes(binary * 9999)
        with pytest.raises(UsageError, match="no source text"):
            convert(checkpoint, tmp_path / "out", folder)
    (folder / "b.py").write_text("x = 1\n" * 12)
    with pytest.raises(UsageError, match=r"only \d+ tokens were drawn") as caught:
        convert(checkpoint, tmp_path / "out", folder)
    assert caught.value.expected.startswith("at least 128,")
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


def test_checkpoints_that_cannot_be_quantised(checkpoint, sources, artifact, tmp_path, monkeypatch):
    narrow = read_checkpoint(write_checkpoint(tmp_path / "narrow"))
    with pytest.raises(CheckpointError, match="64 is no whole number of groups"):
        convert(narrow, tmp_path / "out", sources, "w4g128")
    again = write_checkpoint(tmp_path / "again")
    settings = json.loads((artifact.path / "quantize_config.json").read_bytes())
    set_config(again, quantization_config=settings)
    with pytest.raises(CheckpointError, match="already quantised"):
        read_checkpoint(again)
    # as some tools leave it: the settings in their own file alone
    shutil.copytree(artifact.path, tmp_path / "alone")
    shutil.copyfile(checkpoint.path / "config.json", tmp_path / "alone" / "config.json")
    shutil.copyfile(checkpoint.path / "tokenizer.json", tmp_path / "alone" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="qweight has dtype 'I32'") as caught:
        read_checkpoint(tmp_path / "alone")
    assert "unquantised checkpoint" in caught.value.remedy
    big = write_checkpoint(tmp_path / "big", layers=1)
    data = bytearray((big / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start : start + 4] = np.float32(1e6).tobytes()
    (big / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight does not fit in half"):
        convert(read_checkpoint(big), tmp_path / "out", sources)
    monkeypatch.setattr("packager.formats.quant.gptq.DAMPINGS", (-2.0,))
    with pytest.raises(CheckpointError, match="Hessian is singular"):
        convert(checkpoint, tmp_path / "out", sources)
    assert not list(tmp_path.glob("out*"))


def test_without_torch_it_says_so(checkpoint, sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "packager.formats.gptq.layers")
    with pytest.raises(DeviceError, match="torch cannot be loaded") as caught:
        convert(checkpoint, tmp_path / "out", sources)
    assert "starpack[gptq]" in caught.value.remedy
