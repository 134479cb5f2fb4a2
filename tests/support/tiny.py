"""A StarCoder2 checkpoint small enough to build in a test: seeded, and every parameter matters.

Weights are scaled so that logits have a standard deviation of about 2 and attention is peaked:
a lost bias, a wrong head or a wrong window then shows plainly. Needs numpy and tokenizers alone.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from examples.special_tokens import SPECIAL_TOKENS, byte_level_bpe

MERGES = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("e", "r"), ("i", "n"), ("r", "e"), ("d", "e")]
TOKENS = len(SPECIAL_TOKENS) + 256 + len(MERGES)
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    vocab: int = 320,
    window: int | None = 32,
    context: int = 1024,
    tied: bool = True,
    dtype: str = "float32",
    shards: int = 1,
    rope_theta: float = 10000.0,
) -> Path:
    """Write config.json, tokenizer.json and the weights into `folder`; returns `folder`.

    `vocab` may exceed the tokenizer's TOKENS entries but not be less. Equal arguments give equal
    bytes.
    """
    if vocab < TOKENS:
        raise ValueError(f"vocab must be at least {TOKENS}, the size of the tiny tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Starcoder2ForCausalLM"],
        "attention_dropout": 0.1,
        "bos_token_id": 0,
        "embedding_dropout": 0.1,
        "eos_token_id": 0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": hidden,
        "initializer_range": 0.018042,
        "intermediate_size": ffn,
        "max_position_embeddings": context,
        "mlp_type": "default",
        "model_type": "starcoder2",
        "norm_epsilon": 1e-05,
        "norm_type": "layer_norm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "residual_dropout": 0.1,
        "rope_theta": rope_theta,
        "sliding_window": window,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_bias": True,
        "use_cache": True,
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    head_dim = hidden // heads
    tensors = random_tensors(
        np.random.default_rng(seed), layers, hidden, kv_heads * head_dim, ffn, vocab, tied
    )
    write_weights(folder, tensors, dtype, shards)
    return folder


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE built like StarCoder2's: its 38 special ids, then bytes, then merges."""
    return byte_level_bpe(sorted(pre_tokenizers.ByteLevel.alphabet()), MERGES)


def random_tensors(
    rng: np.random.Generator,
    layers: int,
    hidden: int,
    kv: int,
    ffn: int,
    vocab: int,
    tied: bool,
) -> dict[str, np.ndarray]:
    """float32 tensors by Hugging Face name; linear weights are (outputs, inputs)."""
    tensors: dict[str, np.ndarray] = {}

    def normal(*shape: int, std: float) -> np.ndarray:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    def linear(name: str, outputs: int, inputs: int, gain: float) -> None:
        tensors[f"{name}.weight"] = normal(outputs, inputs, std=gain / math.sqrt(inputs))
        tensors[f"{name}.bias"] = normal(outputs, std=0.2)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + normal(hidden, std=0.2)
        tensors[f"{name}.bias"] = normal(hidden, std=0.1)

    # A unit-variance final norm times these rows gives logits of standard deviation 2.
    tensors["model.embed_tokens.weight"] = normal(vocab, hidden, std=2 / math.sqrt(hidden))
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm")
        linear(f"{prefix}.self_attn.q_proj", hidden, hidden, gain=1.5)
        linear(f"{prefix}.self_attn.k_proj", kv, hidden, gain=1.5)
        linear(f"{prefix}.self_attn.v_proj", kv, hidden, gain=1.0)
        linear(f"{prefix}.self_attn.o_proj", hidden, hidden, gain=1.0)
        norm(f"{prefix}.post_attention_layernorm")
        linear(f"{prefix}.mlp.c_fc", ffn, hidden, gain=1.0)
        linear(f"{prefix}.mlp.c_proj", hidden, ffn, gain=1.0)
    norm("model.norm")
    if not tied:
        tensors["lm_head.weight"] = normal(vocab, hidden, std=2 / math.sqrt(hidden))
    return tensors


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the object in `file`, to break it on purpose."""
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def set_config(folder: Path, **values: object) -> None:
    """Set keys of config.json."""
    edit_json(folder / "config.json", lambda config: config.update(values))


def write_weights(
    folder: Path, tensors: Mapping[str, np.ndarray], dtype: str = "float32", shards: int = 1
) -> None:
    """Write model.safetensors, or `shards` files and their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = names[shard::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in own}, dtype)
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write one safetensors file, all tensors as `dtype`; bfloat16 too, which numpy lacks."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    at = 0
    for name, tensor in tensors.items():
        blob = encode(tensor, dtype)
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def encode(tensor: np.ndarray, dtype: str) -> bytes:
    """The tensor's little-endian bytes as `dtype`, rounded to nearest even."""
    if dtype == "float32":
        return tensor.astype("<f4").tobytes()
    if dtype == "float16":
        return tensor.astype("<f2").tobytes()
    bits = np.ascontiguousarray(tensor, dtype="<f4").view("<u4")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype("<u2").tobytes()
