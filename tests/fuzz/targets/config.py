"""config.json and generation_config.json of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from packager.checkpoint.config import KNOWN, read_config
from tests.fuzz import forms
from tests.fuzz.target import Wrong, json_bytes, one_of, write_beside
from tests.support.tiny import set_config, write_checkpoint

WORDS = (*sorted(KNOWN), "default", "full_attention", "sliding_attention")
FORM = forms.Files({name: forms.Json(WORDS) for name in ("config.json", "generation_config.json")})
SHARE = 100
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """As older and as newer transformers write them."""
    made = write_checkpoint(folder / "model", layers=1, window=32)
    (made / "model.safetensors").unlink()
    (made / "tokenizer.json").unlink()
    old = (made / "config.json").read_bytes()
    set_config(
        made,
        head_dim=16,
        layer_types=["sliding_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=0,
        layer_norm_epsilon=1e-5,
    )
    new = (made / "config.json").read_bytes()
    generation = json_bytes({"bos_token_id": 0, "eos_token_id": [0], "pad_token_id": 0})
    (made / "generation_config.json").write_bytes(generation)
    _seed[:] = [made]
    return [
        one_of("config.json", old),
        one_of("config.json", new),
        one_of("generation_config.json", generation),
    ]


def run(data: bytes, folder: Path) -> None:
    """What is accepted says what the file says, as the standard library reads it."""
    write_beside(data, _seed[0], folder)
    config = read_config(folder)
    said = json.loads((folder / "config.json").read_bytes())
    geometry = config.geometry
    read = geometry.hidden, geometry.layers, geometry.vocab, config.window.size_tokens
    keys = ("hidden_size", "num_hidden_layers", "vocab_size", "sliding_window")
    if read != tuple(said[key] for key in keys) or geometry.heads * geometry.head_dim != read[0]:
        raise Wrong("not what the file says", read)
