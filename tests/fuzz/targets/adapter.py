"""A PEFT adapter: its configuration, its tensors, and their merge with a base."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.checkpoint.lora import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    PREFIX,
    merge_adapter,
)
from packager.checkpoint.lora_config import FIXED, INERT, MERGED
from packager.checkpoint.safetensors_reader import Shards, open_folder
from tests.fuzz import forms
from tests.fuzz.target import Wrong, json_bytes, one_of, write_beside
from tests.support.tiny import write_checkpoint, write_safetensors

WORDS = (
    *FIXED, *INERT, *MERGED, "lm_head", "embed_tokens", "q_proj", "all", "lora_only", "none",
    r".*\.\d+\.q_proj", ".*.*.*x", "[0-9]+",
)  # fmt: skip
FORM = forms.Files(
    {ADAPTER_CONFIG_NAME: forms.Json(WORDS), ADAPTER_WEIGHTS_NAME: forms.Safetensors()}
)
SHARE = 60
_base: list[Shards] = []
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """Factors of two kinds of linear, a bias, patterns."""
    base = open_folder(write_checkpoint(folder / "base", layers=1, hidden=16, heads=2, ffn=16))
    made = folder / "adapter"
    made.mkdir()
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": False,
        "use_dora": False, "fan_in_fan_out": False, "lora_bias": False, "init_lora_weights": True,
        "target_modules": ["q_proj", "c_fc"], "modules_to_save": None, "task_type": "CAUSAL_LM",
        "rank_pattern": {r".*\.c_fc": 1}, "alpha_pattern": {r"^model\.layers\.\d+\.mlp.*": 2.0},
    }  # fmt: skip
    (made / ADAPTER_CONFIG_NAME).write_bytes(json_bytes(config))
    tensors = {}
    for module, rank in (("self_attn.q_proj", 2), ("mlp.c_fc", 1)):
        for letter, shape in (("A", (rank, 16)), ("B", (16, rank))):
            name = f"{PREFIX}model.layers.0.{module}.lora_{letter}.weight"
            tensors[name] = np.full(shape, 0.01, np.float32)
    write_safetensors(made / ADAPTER_WEIGHTS_NAME, tensors, "float32")
    _base[:], _seed[:] = [base], [made]
    return [one_of(name, (made / name).read_bytes()) for name in FORM.forms]


def run(data: bytes, folder: Path) -> None:
    """Every merged tensor is finite."""
    write_beside(data, _seed[0], folder)
    merged = merge_adapter(_base[0], folder)
    for name in merged.names():
        if not np.isfinite(merged.read(name)).all():
            raise Wrong("not finite", name)
