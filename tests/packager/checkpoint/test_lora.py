"""A LoRA merged while it streams equals PEFT's own merge; what cannot be merged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packager.checkpoint.reader import describe, read_checkpoint
from packager.checkpoint.shapes import EMBEDDING, HEAD
from packager.checkpoint.tensors import open_tensors
from packager.core.errors import CheckpointError
from tests.support.tiny import write_checkpoint, write_safetensors

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"]
RANK = 3

pytestmark = [
    # PEFT asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT on adapting a tied embedding, and on storing it whole: the cases tested here.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are remembered in the test's folder, not in the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.Starcoder2ForCausalLM.from_pretrained(folder).eval()


def train(base: Path, out: Path, seed: int = 1, **options: object) -> None:
    """Save a PEFT LoRA whose every trainable parameter has moved from its start."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    config = peft.LoraConfig(r=RANK, lora_alpha=7, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(load(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(out)


MERGES: dict[str, dict[str, object]] = {
    "plain": {"target_modules": ["q_proj", "c_fc"]},
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 5, "layers.1.mlp.c_fc": 2, r"model\.layers\.\d+\.mlp.c_proj": 4},
        "alpha_pattern": {"k_proj": 1, "^model.layers.0.self_attn.o_proj": 20, "c_fc": 2.5},
    },
    "patterns, rslora": {"target_modules": ALL, "use_rslora": True, "rank_pattern": {".*_proj": 9}},
    "first pattern": {"target_modules": ALL, "rank_pattern": {".*_proj": 2, "q_proj": 9}},
    "one layer": {"target_modules": ALL, "layers_to_transform": [1]},
    "lora biases": {"target_modules": ["q_proj", "c_proj"], "bias": "lora_only"},
    "all biases": {"target_modules": ["q_proj", "c_proj"], "bias": "all"},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "model.norm"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 6}},
    "both": {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("case", MERGES)
def test_equals_peft(tmp_path: Path, case: str) -> None:
    peft = pytest.importorskip("peft")
    base = write_checkpoint(tmp_path / "base", tied=False, shards=2)
    train(base, tmp_path / "lora", **MERGES[case])
    merged = peft.PeftModel.from_pretrained(load(base), tmp_path / "lora").merge_and_unload()
    state, before = merged.state_dict(), load(base).state_dict()
    tensors = open_tensors(read_checkpoint(base, adapter=tmp_path / "lora"))
    changed = 0
    assert sorted(tensors.names()) == sorted(state)
    for name in tensors.names():
        wanted = state[name].numpy()
        values = tensors.read(name)
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(tensors.read_rows(name, 1, 3), values[1:3], err_msg=name)
        changed += not np.array_equal(wanted, before[name].numpy())
    assert changed


TIED = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("case", TIED)
def test_tied_model_comes_apart(tmp_path: Path, case: str) -> None:
    """The reference is what was trained: the model with its adapter, not merged."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    base = write_checkpoint(tmp_path / "base", tied=True)
    train(base, tmp_path / "lora", **TIED[case])
    checkpoint = read_checkpoint(base, adapter=tmp_path / "lora")
    assert not checkpoint.geometry.tied
    tensors = open_tensors(checkpoint)
    config = load(base).config
    config.tie_word_embeddings = False
    ours = type(load(base))(config).eval()
    ours.load_state_dict({name: torch.from_numpy(tensors.read(name)) for name in tensors.names()})
    adapted = peft.PeftModel.from_pretrained(load(base), tmp_path / "lora").eval()
    ids = torch.arange(100, 148)[None]
    with torch.no_grad():
        wanted, logits = adapted(ids).logits, ours(ids).logits
        plain = load(base)(ids).logits
    assert (wanted - logits).abs().max() < 1e-4
    assert (wanted - plain).abs().max() > 0.1


def test_tied_model_stays_tied(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tied=True, dtype="bfloat16")
    train(base, tmp_path / "lora", target_modules=["q_proj"])
    plain = read_checkpoint(base)
    checkpoint = read_checkpoint(base, adapter=tmp_path / "lora")
    assert checkpoint.geometry == plain.geometry
    assert checkpoint.adapter is not None
    assert len(checkpoint.adapter.sha256) == 64
    assert checkpoint.sha256 != plain.sha256
    assert describe(checkpoint)["adapter"] == str(tmp_path / "lora")
    tensors = open_tensors(checkpoint)
    assert HEAD not in tensors.names()
    assert tensors.dtype("model.layers.0.self_attn.q_proj.weight") == "float32"
    assert tensors.dtype(EMBEDDING) == "bfloat16"


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def lora(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: object) -> Path:
    """A LoRA on one projection, without PEFT; `tensors` are added, or replace."""
    folder.mkdir(exist_ok=True)
    own = {
        f"{Q}.lora_A.weight": np.ones((RANK, 64), np.float32),
        f"{Q}.lora_B.weight": np.ones((64, RANK), np.float32),
    }
    all_tensors = {k: v for k, v in (own | (tensors or {})).items() if v.size}
    write_safetensors(folder / "adapter_model.safetensors", all_tensors, "float32")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def test_by_hand(tmp_path: Path) -> None:
    """scale * B A with ones is alpha, whatever the rank."""
    base = write_checkpoint(tmp_path / "base")
    name = "model.layers.0.self_attn.q_proj.weight"
    before = open_tensors(read_checkpoint(base)).read(name)
    after = open_tensors(read_checkpoint(base, adapter=lora(tmp_path / "lora"))).read(name)
    np.testing.assert_allclose(after - before, 6, atol=1e-5)


OFF: tuple[object, ...] = (None, False, {}, [])


def test_new_option_that_is_off(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    for value in OFF:
        read_checkpoint(base, adapter=lora(tmp_path / "lora", use_next_idea=value))


BROKEN_CONFIG: dict[str, tuple[dict[str, object], str]] = {
    "method": ({"peft_type": "LOHA"}, 'peft_type is "LOHA"'),
    "dora": ({"use_dora": True}, "use_dora is true"),
    "lora_bias": ({"lora_bias": True}, "lora_bias is true"),
    "replication": ({"layer_replication": [[0, 2]]}, "layer_replication is"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    "pissa": ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa"'),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
    "parameters": ({"target_parameters": ["a"]}, "target_parameters is"),
    "unknown": ({"use_next_idea": True}, "use_next_idea is true"),
    "rank": ({"r": 0}, "r is 0"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is null"),
    "rslora": ({"use_rslora": "yes"}, 'use_rslora is "yes"'),
    "bias": ({"bias": "some"}, 'bias is "some"'),
    "saved": ({"modules_to_save": "lm_head"}, 'modules_to_save is "lm_head"'),
    "patterns": ({"rank_pattern": [1]}, "rank_pattern is"),
    "pattern value": ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern.q_proj is 2.5"),
    "hostile pattern": ({"rank_pattern": {"(a+)+b": 2}}, r'rank_pattern is "\(a\+\)\+b"'),
    "many stars": ({"alpha_pattern": {".*.*.*.*q": 2}}, "alpha_pattern is"),
    "long pattern": ({"alpha_pattern": {"q" * 300: 2}}, "alpha_pattern is"),
    "other rank": ({"r": 4}, r"lora_A.weight has shape \(3, 64\)"),
    "pattern rank": ({"rank_pattern": {"q_proj": 5}}, r"lora_A.weight has shape \(3, 64\)"),
    "biases not stored": ({"bias": "lora_only"}, "q_proj.bias was trained but is not stored"),
    "module not stored": ({"modules_to_save": ["lm_head"]}, "no tensor of modules_to_save"),
}


@pytest.mark.parametrize("case", BROKEN_CONFIG)
def test_broken_config(tmp_path: Path, case: str) -> None:
    options, message = BROKEN_CONFIG[case]
    refused(tmp_path, lora(tmp_path / "lora", **options), message)


ONES = np.ones
BROKEN_TENSORS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "one factor": ({f"{Q}.lora_B.weight": ONES(0)}, "has .'a'., *|has"),
    "other module": (
        {f"{Q}x.lora_A.weight": ONES((3, 64)), f"{Q}x.lora_B.weight": ONES((64, 3))},
        "the base has no model.layers.0.self_attn.q_projx.weight",
    ),
    "foreign name": ({"q_proj.lora_A.weight": ONES((3, 64))}, "is not a PEFT name"),
    "misshapen": ({f"{Q}.lora_B.weight": ONES((32, 3))}, r"lora_B.weight has shape \(32, 3\)"),
    "dora": ({f"{Q}.lora_magnitude_vector": ONES(64)}, "lora_magnitude_vector is not announced"),
    "silent bias": ({f"{Q}.base_layer.bias": ONES(64)}, "base_layer.bias is not announced"),
    "on a norm": (
        {
            "base_model.model.model.norm.lora_A.weight": ONES((3, 64)),
            "base_model.model.model.norm.lora_B.weight": ONES((64, 3)),
        },
        "model.norm is adapted by",
    ),
    "linear on embedding": (
        {
            "base_model.model.model.embed_tokens.lora_A.weight": ONES((3, 64)),
            "base_model.model.model.embed_tokens.lora_B.weight": ONES((320, 3)),
        },
        "model.embed_tokens is adapted by",
    ),
    "other base": (
        {"base_model.model.model.embed_tokens.weight": ONES((320, 64))},
        "differs from the base's model.embed_tokens.weight",
    ),
    "resized": (
        {"base_model.model.model.embed_tokens.base_layer.weight": ONES((321, 64))},
        r"has shape \(321, 64\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_broken_tensors(tmp_path: Path, case: str) -> None:
    tensors, message = BROKEN_TENSORS[case]
    refused(tmp_path, lora(tmp_path / "lora", tensors), message)


def test_tying_is_not_guessed(tmp_path: Path) -> None:
    head = {"base_model.model.lm_head.weight": np.ones((320, 64), np.float32)}
    folder = lora(tmp_path / "lora", head, ensure_weight_tying=True, modules_to_save=["lm_head"])
    refused(tmp_path, folder, "ensure_weight_tying is set")


def test_pickled_adapter(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(tmp_path, folder, "the adapter's weights are a pickle")
    (folder / "adapter_model.bin").unlink()
    refused(tmp_path, folder, "the adapter has no weights")


def test_not_finite(tmp_path: Path) -> None:
    a = np.ones((RANK, 64), np.float32)
    a[1, 2] = np.nan
    folder = lora(tmp_path / "lora", {f"{Q}.lora_A.weight": a})
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "base"), adapter=folder)
    with pytest.raises(CheckpointError, match=r"lora_A.weight holds nan at index \(1, 2\)"):
        open_tensors(checkpoint).read("model.layers.0.self_attn.q_proj.weight")


def test_overflow_in_the_sum(tmp_path: Path) -> None:
    huge = {
        f"{Q}.lora_{x}.weight": np.full(s, 1e30, np.float32)
        for x, s in (("A", (3, 64)), ("B", (64, 3)))
    }
    checkpoint = read_checkpoint(
        write_checkpoint(tmp_path / "base"), adapter=lora(tmp_path / "lora", huge)
    )
    with pytest.raises(CheckpointError, match="overflows when merged"):
        open_tensors(checkpoint).read("model.layers.0.self_attn.q_proj.weight")


def refused(tmp_path: Path, adapter: Path, message: str) -> None:
    base = write_checkpoint(tmp_path / "base")
    with pytest.raises(CheckpointError, match=message) as raised:
        read_checkpoint(base, adapter=adapter, hash_files=False)
    assert raised.value.where
    assert raised.value.expected
    assert raised.value.remedy
