"""config.json key by key: what is accepted, and each refusal by its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from packager.checkpoint.config import read_config
from packager.core.errors import CheckpointError
from tests.support.refusal import refusal
from tests.support.tiny import edit_json, set_config, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def refused(folder: Path, message: str) -> CheckpointError:
    return refusal(lambda: read_config(folder), message)


def test_transformers_five_style(folder: Path) -> None:
    """As save_pretrained of transformers 5 writes it."""

    def change(config: dict[str, Any]) -> None:
        theta = config.pop("rope_theta")
        for key in ("norm_type", "mlp_type", "torch_dtype"):
            del config[key]
        config |= {
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "dtype": "float32",
            "pad_token_id": None,
            "transformers_version": "5.23.0",
        }

    before = read_config(folder)
    edit_json(folder / "config.json", change)
    assert read_config(folder) == before


SOUND = {
    "agreeing rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "switch": {"use_sliding_window": True},
    "layer types": {"layer_types": ["sliding_attention"] * 2},
    "full layers": {
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * 2,
    },
    "head_dim": {"head_dim": 16},
    "no scaling": {"rope_scaling": None, "quantization_config": None},
    "end list": {"eos_token_id": [0, 6]},
    "pad": {"pad_token_id": 4},
    "no bos": {"bos_token_id": None},
    "leftovers": {"attention_softmax_in_fp32": True, "layer_norm_epsilon": 1e-05},
}


@pytest.mark.parametrize("case", SOUND)
def test_sound_config(folder: Path, case: str) -> None:
    set_config(folder, **SOUND[case])
    read_config(folder)


BROKEN_CONFIG: dict[str, tuple[dict[str, object], str]] = {
    "model": ({"model_type": "llama"}, 'model_type is "llama"'),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
    "norm": ({"norm_type": "rms_norm"}, "norm_type is"),
    "mlp": ({"mlp_type": "gated"}, "mlp_type is"),
    "bias": ({"use_bias": False}, "use_bias is false"),
    "bias as number": ({"use_bias": 1}, "use_bias is 1"),
    "scaling": ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is"),
    "unknown": ({"logit_scale": 2.0}, "unknown key that may change arithmetic: logit_scale"),
    "remote code": ({"auto_map": {"AutoModel": "m.M"}}, "unknown key .* auto_map"),
    "quantised": ({"quantization_config": {"bits": 4}}, "already quantised"),
    "heads": ({"num_attention_heads": 5}, "num_attention_heads is 5"),
    "odd head_dim": ({"num_attention_heads": 64, "num_key_value_heads": 2}, "heads is 64"),
    "kv heads": ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
    "head_dim": ({"head_dim": 32}, "head_dim is 32"),
    "layers": ({"num_hidden_layers": 1 << 30}, "num_hidden_layers is 1073741824"),
    "zero": ({"hidden_size": 0}, "hidden_size is 0"),
    "text": ({"vocab_size": "320"}, 'vocab_size is "320"'),
    "bool": ({"num_key_value_heads": True}, "num_key_value_heads is true"),
    "epsilon": ({"norm_epsilon": 0}, "norm_epsilon is 0"),
    "epsilons": ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    "theta": ({"rope_theta": -1}, "rope_theta is -1"),
    "huge theta": ({"rope_theta": 10**400}, "rope_theta is 1000"),
    "no theta": ({"rope_theta": None}, "rope_theta is null"),
    "two thetas": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        "rope_theta is 10000.0",
    ),
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
        'rope_parameters.rope_type is "yarn"',
    ),
    "rope factor": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}},
        "rope_parameters is",
    ),
    "partial rope": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rope_parameters is",
    ),
    "window": ({"sliding_window": 0}, "sliding_window is 0"),
    "switch off": ({"use_sliding_window": False}, "use_sliding_window is false"),
    "switch on": ({"sliding_window": None, "use_sliding_window": True}, "use_sliding_window is"),
    "mixed layers": ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
    "few layers": ({"layer_types": ["sliding_attention"]}, "layer_types is"),
    "tied": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is"),
    "default end": ({"eos_token_id": 50256}, "eos_token_id is 50256"),
    "default begin": ({"bos_token_id": 50256}, "bos_token_id is 50256"),
    "other end": ({"eos_token_id": 1}, "eos_token_id is 1"),
    "no end": ({"eos_token_id": None}, "eos_token_id is null"),
    "end list": ({"eos_token_id": [0, 50]}, r"eos_token_id is \[0, 50\]"),
    "empty end": ({"eos_token_id": []}, r"eos_token_id is \[\]"),
    "pad": ({"pad_token_id": 49152}, "pad_token_id is 49152"),
}


@pytest.mark.parametrize("case", BROKEN_CONFIG)
def test_broken_config(folder: Path, case: str) -> None:
    values, message = BROKEN_CONFIG[case]
    set_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize(
    "key", ["sliding_window", "eos_token_id", "use_bias", "vocab_size", "norm_epsilon"]
)
def test_missing_key(folder: Path, key: str) -> None:
    edit_json(folder / "config.json", lambda config: config.pop(key))
    refused(folder, f"config.json lacks {key}")


@pytest.mark.parametrize("ids", [{"eos_token_id": 49152}, {"bos_token_id": 50256}])
def test_generation_config(folder: Path, ids: dict[str, int]) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"_from_model_config": True, "eos_token_id": 0}))
    read_config(folder)
    file.write_text(json.dumps(ids))
    error = refused(folder, f"{next(iter(ids))} is {next(iter(ids.values()))}")
    assert "in generation_config.json" in str(error.remedy)


def test_config_is_strict_json(folder: Path) -> None:
    file = folder / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"use_cache": true', '"use_cache": true, "hidden_size": 64'))
    refused(folder, "'hidden_size' is given twice")
    file.write_text(text.replace('"use_cache": true', '"use_cache": NaN'))
    refused(folder, "NaN is not a JSON number")
    file.write_bytes(b"[" * 100_000)
    refused(folder, "not valid JSON")
    file.write_bytes(b" " * (2 << 20))
    refused(folder, "config.json cannot be read: it has more than")
