"""A stand-in for the real weights: `python -m examples.synthesise --size 3b --out DIR`.

Writes a checkpoint with the exact shapes, tensor names, dtypes and shards of a published StarCoder2
and random weights of a trained model's scale. It says nothing sensible; it is as large, as slow and
as hard to convert as the real one. One stretch of one tensor is in memory at a time. Seeded: equal
arguments give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from examples.special_tokens import SPECIAL_TOKENS, byte_level_bpe
from packager.checkpoint.safetensors_writer import TensorSpec, write_safetensors
from packager.cli.progress import shown_progress
from packager.core.atomic import atomic_folder, write_json
from packager.core.errors import UsageError
from packager.core.records import Geometry
from packager.estimate.models import Model, load_model

STRETCH_BYTES = 64 << 20
# Specified: the published initializer_range. Trained matrices stay near it; biases and norms are
# guessed.
WEIGHT_SCALE, BIAS_SCALE, NORM_SCALE = 0.018042, 0.02, 0.1
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
# As published (files on the hub): dtype and number of shards.
PUBLISHED = {"3b": ("float32", 1), "7b": ("bfloat16", 3), "15b": ("float32", 14)}
ROOM_BYTES = 1 << 30  # left free on the disk


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to come, and the mean and deviation of its values."""

    name: str
    shape: tuple[int, ...]
    mean: float
    scale: float


def tensors_of(geometry: Geometry) -> list[Tensor]:
    """Every tensor of a model of this shape, by its published name, in the order of the layers."""
    hidden, wide = geometry.hidden, geometry.kv_heads * geometry.head_dim
    found = [_matrix("model.embed_tokens.weight", geometry.vocab, hidden)]
    for layer in range(geometry.layers):
        at = f"model.layers.{layer}"
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (wide, hidden),
            "self_attn.v_proj": (wide, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.c_fc": (geometry.ffn, hidden),
            "mlp.c_proj": (hidden, geometry.ffn),
        }
        for name, (outputs, inputs) in shapes.items():
            found.append(_matrix(f"{at}.{name}.weight", outputs, inputs))
            found.append(Tensor(f"{at}.{name}.bias", (outputs,), 0.0, BIAS_SCALE))
        for name in ("input_layernorm", "post_attention_layernorm"):
            found += _norm(f"{at}.{name}", hidden)
    found += _norm("model.norm", hidden)
    if not geometry.tied:
        found.append(_matrix("lm_head.weight", geometry.vocab, hidden))
    return found


def synthesise(out: Path, model: Model, dtype: str, shards: int, seed: int = 0) -> None:
    """Write the checkpoint to the folder `out`, whole or not at all.

    dtype: "float32" or "bfloat16". Raises UsageError where the disk has no room for it, or `out`
    is there.
    """
    tensors = tensors_of(model.geometry)
    size = (4 if dtype == "float32" else 2) * model.geometry.parameters
    _check_place(out, size)
    with atomic_folder(out) as folder:
        write_json(folder / "config.json", config_of(model, dtype))
        tokenizer_of(model.geometry.vocab).save(str(folder / "tokenizer.json"))
        with shown_progress(quiet=False) as progress:
            written = 0

            def count(more: int) -> None:
                nonlocal written
                written += more
                progress(f"write {out.name}", written, size)

            _write_shards(folder, _split(tensors, shards), dtype, seed, size, count)


def tokenizer_of(vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` entries: StarCoder2's special ids, bytes, and pairs of bytes.

    Pairs of letters come first, so that code takes about one id for two characters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_rareness)
    pairs = [(a, b) for a in alphabet for b in alphabet]
    pairs.sort(key=lambda pair: max(_rareness(part) for part in pair))
    return byte_level_bpe(alphabet, pairs[: vocab - len(SPECIAL_TOKENS) - len(alphabet)])


def _rareness(character: str) -> tuple[int, str]:
    """Letters, the space (Ġ) and signs of code before what code seldom has."""
    common = character.isascii() or character == "Ġ"
    return (0 if character.isascii() and character.isalpha() else 1 if common else 2, character)


def _matrix(name: str, outputs: int, inputs: int) -> Tensor:
    return Tensor(name, (outputs, inputs), 0.0, WEIGHT_SCALE)


def _norm(name: str, hidden: int) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (hidden,), 1.0, NORM_SCALE),
        Tensor(f"{name}.bias", (hidden,), 0.0, BIAS_SCALE),
    ]


def _check_place(out: Path, size: int) -> None:
    if out.exists():
        raise UsageError("there is something at this place", where=out, remedy="name another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size + ROOM_BYTES:
        raise UsageError(
            f"the weights take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            where=out.parent,
            remedy="free some, name another disk, or give --dtype bfloat16",
        )


def _split(tensors: list[Tensor], shards: int) -> list[list[Tensor]]:
    """Neighbours together, each shard about as large as the others."""
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    parts: list[list[Tensor]] = [[] for _ in range(shards)]
    done = 0
    for tensor in tensors:
        count = math.prod(tensor.shape)
        parts[min(shards - 1, (done + count // 2) * shards // total)].append(tensor)
        done += count
    return parts


def _write_shards(
    folder: Path,
    parts: list[list[Tensor]],
    dtype: str,
    seed: int,
    size: int,
    count: Callable[[int], None],
) -> None:
    files = ["model.safetensors"]
    if len(parts) > 1:
        total = len(parts)
        files = [f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
        places = {
            tensor.name: file for file, part in zip(files, parts, strict=True) for tensor in part
        }
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)
    rng = np.random.default_rng(seed)
    for file, part in zip(files, parts, strict=True):
        specs = [TensorSpec(t.name, DTYPES[dtype], t.shape) for t in part]
        write_safetensors(folder / file, specs, _values(part, dtype, rng, count), {"format": "pt"})


def _values(
    tensors: list[Tensor], dtype: str, rng: np.random.Generator, count: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray]]:
    for tensor in tensors:
        rows, *rest = tensor.shape
        step = max(1, STRETCH_BYTES // (4 * math.prod(rest)))
        for start in range(0, rows, step):
            shape = (min(step, rows - start), *rest)
            values = rng.standard_normal(shape, np.float32)
            values *= np.float32(tensor.scale)
            values += np.float32(tensor.mean)
            encoded = values if dtype == "float32" else _bfloat16(values)
            yield tensor.name, encoded
            count(encoded.nbytes)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Their upper 16 bits, rounded to nearest even, as uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def config_of(model: Model, dtype: str) -> dict[str, object]:
    """The config.json of a checkpoint of this shape, as the published ones have it."""
    geometry = model.geometry
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "attention_dropout": 0.1,
        "bos_token_id": 0,
        "embedding_dropout": 0.1,
        "eos_token_id": 0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": geometry.hidden,
        "initializer_range": WEIGHT_SCALE,
        "intermediate_size": geometry.ffn,
        "max_position_embeddings": model.context_tokens,
        "mlp_type": "default",
        "model_type": "starcoder2",
        "norm_epsilon": geometry.norm_eps,
        "norm_type": "layer_norm",
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": geometry.layers,
        "num_key_value_heads": geometry.kv_heads,
        "residual_dropout": 0.1,
        "rope_theta": geometry.rope_theta,
        "sliding_window": model.window.size_tokens,
        "tie_word_embeddings": geometry.tied,
        "torch_dtype": dtype,
        "use_bias": True,
        "use_cache": True,
        "vocab_size": geometry.vocab,
    }


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(PUBLISHED), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="as published unless given")
    parser.add_argument("--layers", type=int, help="only so many, to try things out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = load_model(arguments.size)
    if arguments.layers:
        model = cut(model, arguments.layers)
    dtype, shards = PUBLISHED[arguments.size]
    try:
        synthesise(arguments.out, model, arguments.dtype or dtype, shards, arguments.seed)
    except UsageError as error:
        parser.exit(UsageError.exit_code, f"{error}\n")
    print(json.dumps({"out": str(arguments.out), "parameters": model.geometry.parameters}))


def cut(model: Model, layers: int) -> Model:
    """The same with so many layers."""
    return replace(model, geometry=replace(model.geometry, layers=layers))


if __name__ == "__main__":
    main()
