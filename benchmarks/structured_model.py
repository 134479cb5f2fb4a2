"""A random StarCoder2 checkpoint that is structured as trained ones are: seeded, no training.

What makes quantisation of a trained model unlike that of white noise, each guessed from what is
known of trained transformers, none fitted to a quantiser:

- Matrices: half of their energy in a spectrum that falls as 1/i, half in Student-t noise with 4
  degrees of freedom, so that single weights stand out; rows of log-normal size.
- Channels: one in 64 of the residual stream is 12 times as large as the others (what writes to it
  and the embedding are), and the gains of the norms are log-normal.
- Embedding and head: tokens in 64 clusters that overlap; the final norm's bias gives each
  token an offset, falling with its rank by Zipf's law.
- The head is scaled until the mean entropy of the next token on `text` is ENTROPY_NATS, that of the
  demo checkpoint, so distributions are not flat.

Its text has no meaning, but it depends on what comes before, near and far.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import final_states
from packager.checkpoint.tensors import open_tensors
from packager.measurement.window_proof import log_softmax
from tests.support.tiny import write_weights

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 384, 3, 6, 2, 1536
CLUSTERS, OUTLIER_EVERY, OUTLIER_SIZE = 64, 64, 12.0
DEGREES_OF_FREEDOM, ROW_SPREAD, GAIN_SPREAD = 4, 0.3, 0.4
ENTROPY_NATS = 2.1  # measured: the demo's held-out loss
SEED = 0


def write_structured(folder: Path, like: Path, text: str) -> Path:
    """Write the checkpoint in bfloat16, with the tokenizer and vocabulary of `like`."""
    folder.mkdir(parents=True)
    shutil.copyfile(like / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((like / "config.json").read_bytes()) | dict(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, intermediate_size=FFN, tie_word_embeddings=False,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = _tensors(np.random.default_rng(SEED), config["vocab_size"])
    write_weights(folder, tensors, "bfloat16")
    tensors["lm_head.weight"] *= np.float32(_head_scale(folder, text))
    write_weights(folder, tensors, "bfloat16")
    return folder


def _tensors(rng: np.random.Generator, vocab: int) -> dict[str, np.ndarray]:
    """float32 tensors by Hugging Face name."""
    large = np.ones(HIDDEN)
    large[rng.choice(HIDDEN, HIDDEN // OUTLIER_EVERY, replace=False)] = OUTLIER_SIZE
    centres = rng.standard_normal((CLUSTERS, HIDDEN))
    tensors = {"model.embed_tokens.weight": _tokens(rng, vocab, centres) * large}

    def linear(name: str, outputs: int, inputs: int, gain: float, to: np.ndarray | float) -> None:
        tensors[f"{name}.weight"] = (_matrix(rng, outputs, inputs, gain).T * to).T
        tensors[f"{name}.bias"] = 0.1 * rng.standard_normal(outputs) * to

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.exp(GAIN_SPREAD * rng.standard_normal(HIDDEN))
        tensors[f"{name}.bias"] = 0.1 * rng.standard_normal(HIDDEN)

    narrow = HIDDEN * KV_HEADS // HEADS
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm")
        linear(f"{prefix}.self_attn.q_proj", HIDDEN, HIDDEN, 1.5, 1.0)
        linear(f"{prefix}.self_attn.k_proj", narrow, HIDDEN, 1.5, 1.0)
        linear(f"{prefix}.self_attn.v_proj", narrow, HIDDEN, 1.0, 1.0)
        linear(f"{prefix}.self_attn.o_proj", HIDDEN, HIDDEN, 1.0, large)
        norm(f"{prefix}.post_attention_layernorm")
        linear(f"{prefix}.mlp.c_fc", FFN, HIDDEN, 1.0, 1.0)
        linear(f"{prefix}.mlp.c_proj", HIDDEN, FFN, 1.0, large)
    norm("model.norm")
    # the large channels are there to be held down before the head, as in trained models
    tensors["model.norm.weight"] /= large
    head = _tokens(rng, vocab, centres @ rng.standard_normal((HIDDEN, HIDDEN)) / HIDDEN**0.5)
    offset = tensors["model.norm.bias"]
    zipf = -np.log(1 + rng.permutation(vocab))
    zipf = (zipf - zipf.mean()) / zipf.std()
    tensors["lm_head.weight"] = head + np.outer(zipf, offset) * HIDDEN**0.5 / (offset @ offset)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _matrix(rng: np.random.Generator, outputs: int, inputs: int, gain: float) -> np.ndarray:
    """(outputs, inputs) that gives unit inputs a deviation of about `gain`."""
    rank = min(outputs, inputs)
    left, right = (rng.standard_normal((size, rank)) / size**0.5 for size in (outputs, inputs))
    smooth = (left / np.arange(1, rank + 1)) @ right.T
    noise = rng.standard_t(DEGREES_OF_FREEDOM, (outputs, inputs))
    rows = np.exp(ROW_SPREAD * rng.standard_normal((outputs, 1)))
    mixed = rows * (smooth / smooth.std() + noise / noise.std())
    return gain * mixed / (mixed.std() * inputs**0.5)


def _tokens(rng: np.random.Generator, vocab: int, centres: np.ndarray) -> np.ndarray:
    """Rows of unit variance: a mixture of some clusters and the token's own part."""
    weights = rng.standard_normal((vocab, CLUSTERS)) * (rng.random((vocab, CLUSTERS)) < 0.05)
    shared = weights @ centres
    return shared / shared.std() + rng.standard_normal((vocab, centres.shape[1]))


def _head_scale(folder: Path, text: str) -> float:
    """By what the head is multiplied for a mean entropy of ENTROPY_NATS on the ids of `text`."""
    from runtimes.prompts.tokenizer import Tokenizer

    checkpoint = read_checkpoint(folder)
    tensors = open_tensors(checkpoint)
    ids = np.array(Tokenizer(folder / "tokenizer.json", checkpoint.special_ids).encode(text))
    (states,) = final_states(checkpoint, tensors, [ids])
    logits = states @ tensors.read("lm_head.weight").T
    low, high = 1e-3, 1e3
    while high / low > 1.001:
        scale = (low * high) ** 0.5
        logs = log_softmax(logits * np.float32(scale))
        entropy = float(-(np.exp(logs) * logs).sum(-1).mean())
        low, high = (scale, high) if entropy > ENTROPY_NATS else (low, scale)
    return low
