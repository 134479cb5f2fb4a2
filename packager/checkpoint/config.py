"""config.json and generation_config.json of StarCoder2, key by key.

A key that is in no table below may change arithmetic, so it is refused: nothing is ignored unless
it is known to have no effect on inference. Knows nothing of tensors or of the tokenizer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.checkpoint.json_files import is_number, read_object
from packager.core.errors import CheckpointError
from packager.core.records import Geometry
from packager.core.strict_json import same_value
from runtimes.contract import SpecialIds, Window

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
MAX_LAYERS = 1024  # guessed: the largest StarCoder2 has 40
MAX_COUNT = 2**31 - 1

# The only values whose arithmetic is implemented. First those that must be there.
REQUIRED = {
    "model_type": ("starcoder2",),
    "hidden_act": ("gelu_pytorch_tanh",),
    "use_bias": (True,),
}
FIXED = REQUIRED | {
    "norm_type": ("layer_norm",),
    "mlp_type": ("default",),
    "rope_scaling": (None,),
    "partial_rotary_factor": (1.0,),
    "scale_attn_weights": (True,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
    # Left over from GPTBigCode in some published files. StarCoder2 reads hidden_act.
    "activation_function": ("gelu", "gelu_pytorch_tanh"),
}
COUNTS = {
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
}
GEOMETRY = COUNTS | {"norm_epsilon", "sliding_window", "bos_token_id", "eos_token_id"}
OPTIONAL = {
    "head_dim",
    "layer_norm_epsilon",
    "layer_types",
    "pad_token_id",
    "rope_parameters",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
}
INERT = {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_softmax_in_fp32",  # what the reference always does
    "attn_pdrop",
    "dtype",
    "embd_pdrop",
    "embedding_dropout",
    "id2label",
    "initializer_range",
    "keys_to_ignore_at_inference",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "scale_attention_softmax_in_fp32",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
KNOWN = set(FIXED) | GEOMETRY | OPTIONAL | INERT


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says; the tensors and the tokenizer have yet to agree."""

    geometry: Geometry
    window: Window
    context_tokens: int


def read_config(folder: Path) -> Config:
    """Read config.json, and check the ids of generation_config.json where there is one.

    Raises CheckpointError naming the key, its value, what was expected and the repair.
    """
    file = folder / CONFIG_NAME
    config = read_object(file)
    _check_keys(config, file)
    counts = {key: _count(config, key, file) for key in sorted(COUNTS)}
    vocab, layers = counts["vocab_size"], counts["num_hidden_layers"]
    _check_token_ids(config, file, vocab, may_lack=False)
    generation = folder / GENERATION_CONFIG_NAME
    if generation.exists():
        ids = read_object(generation)
        _check_token_ids(ids, generation, vocab, may_lack=True)
    geometry, window = _geometry(config, counts, file), _window(config, layers, file)
    return Config(geometry, window, counts["max_position_embeddings"])


def _check_keys(config: dict[str, object], file: Path) -> None:
    """Every key known, the needed ones present, the fixed ones at the one implemented value."""
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            "the checkpoint is already quantised",
            where=f"{file}: quantization_config",
            expected="weights in float32, bfloat16 or float16",
            remedy="start from the checkpoint that this one was made from",
        )
    if config.get("model_type", "starcoder2") != "starcoder2":
        raise _bad(file, "model_type", config["model_type"], "'starcoder2'")
    missing = sorted((set(REQUIRED) | GEOMETRY) - set(config))
    if missing:
        raise CheckpointError(
            f"config.json lacks {missing[0]}",
            where=file,
            expected=f"a value: libraries differ in their defaults (missing: {', '.join(missing)})",
            remedy="take config.json from the model's own repository, or add what it was "
            "trained with (bos_token_id and eos_token_id are 0)",
        )
    unknown = sorted(set(config) - KNOWN)
    if unknown:
        raise CheckpointError(
            f"unknown key that may change arithmetic: {unknown[0]}",
            where=file,
            expected=f"only keys known to starpack (unknown: {', '.join(unknown)})",
            remedy="if the key has no effect on inference, remove it from a copy of the file",
        )
    for key, values in FIXED.items():
        if key in config and not any(same_value(config[key], value) for value in values):
            raise _bad(file, key, config[key], " or ".join(repr(value) for value in values))


def _check_token_ids(ids: dict[str, object], file: Path, vocab: int, *, may_lack: bool) -> None:
    """bos and eos are the end id, pad is inside the vocabulary; the library's default is 50256."""
    special = SpecialIds()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = ids.get(key)
        listed: list[Any] = [value]
        if key == "eos_token_id" and isinstance(value, list):
            listed = value
        if value is None and (may_lack or key != "eos_token_id"):
            continue
        if not listed or not all(type(v) is int and 0 <= v < vocab for v in listed):
            raise _bad(
                file,
                key,
                value,
                f"an id inside the vocabulary of {vocab}",
                f'set "{key}" to {special.endoftext} (<|endoftext|>) in {file.name}',
            )
        allowed = special.stops if key == "eos_token_id" else {special.endoftext}
        if key != "pad_token_id" and (special.endoftext not in listed or set(listed) - allowed):
            raise _bad(
                file,
                key,
                value,
                f"{special.endoftext}, the tokenizer's <|endoftext|>",
                f'set "{key}" to {special.endoftext} in {file.name}',
            )


def _geometry(config: dict[str, object], counts: dict[str, int], file: Path) -> Geometry:
    hidden, heads = counts["hidden_size"], counts["num_attention_heads"]
    kv_heads, layers = counts["num_key_value_heads"], counts["num_hidden_layers"]
    if hidden % heads or (hidden // heads) % 2:
        raise _bad(
            file,
            "num_attention_heads",
            heads,
            f"a divisor of hidden_size {hidden} that gives an even head_dim",
        )
    if heads % kv_heads:
        raise _bad(file, "num_key_value_heads", kv_heads, f"a divisor of the {heads} heads")
    if layers > MAX_LAYERS:
        raise _bad(file, "num_hidden_layers", layers, f"at most {MAX_LAYERS}")
    head_dim = hidden // heads
    if config.get("head_dim", head_dim) not in (head_dim, None):
        raise _bad(file, "head_dim", config["head_dim"], f"hidden_size / heads = {head_dim}")
    tied = config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise _bad(file, "tie_word_embeddings", tied, "true or false")
    norm_eps = _positive(config["norm_epsilon"], file, "norm_epsilon")
    if config.get("layer_norm_epsilon", norm_eps) != norm_eps:
        value = config["layer_norm_epsilon"]
        raise _bad(file, "layer_norm_epsilon", value, f"norm_epsilon, {norm_eps}")
    return Geometry(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        ffn=counts["intermediate_size"],
        vocab=counts["vocab_size"],
        rope_theta=_rope_theta(config, file),
        norm_eps=norm_eps,
        tied=tied,
    )


def _rope_theta(config: dict[str, object], file: Path) -> float:
    """From `rope_theta` or, as transformers 5 writes it, `rope_parameters`; both must agree."""
    found: dict[str, float] = {}
    if config.get("rope_theta") is not None:
        found["rope_theta"] = _positive(config["rope_theta"], file, "rope_theta")
    parameters = config.get("rope_parameters")
    if parameters is not None:
        key = "rope_parameters"
        plain = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if not isinstance(parameters, dict) or not set(parameters) <= plain:
            raise _bad(file, key, parameters, "rope_type and rope_theta alone")
        for name, default in (("rope_type", "default"), ("type", "default")):
            if parameters.get(name, default) != default:
                raise _bad(file, f"{key}.{name}", parameters[name], f"{default!r}: no scaling")
        if not same_value(parameters.get("partial_rotary_factor", 1.0), 1.0):
            raise _bad(file, key, parameters, "partial_rotary_factor 1.0")
        found[key] = _positive(parameters.get("rope_theta"), file, f"{key}.rope_theta")
    if not found:
        raise _bad(file, "rope_theta", None, "the base of the rotary embedding")
    if len(set(found.values())) > 1:
        raise _bad(file, "rope_theta", found["rope_theta"], f"as rope_parameters: {parameters}")
    return next(iter(found.values()))


def _window(config: dict[str, object], layers: int, file: Path) -> Window:
    """The sliding window; other keys that speak of it must say the same."""
    size = None
    if config["sliding_window"] is not None:
        size = _count(config, "sliding_window", file)
    switch = config.get("use_sliding_window")
    if switch is not None and switch is not (size is not None):
        raise _bad(file, "use_sliding_window", switch, f"agreement with sliding_window {size}")
    kinds = config.get("layer_types")
    kind = "full_attention" if size is None else "sliding_attention"
    if kinds is not None and kinds != [kind] * layers:
        raise _bad(
            file, "layer_types", kinds, f"{kind!r} for every layer, as sliding_window {size} says"
        )
    return Window(size)


def _count(config: dict[str, object], key: str, file: Path) -> int:
    value = config[key]
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise _bad(file, key, value, f"a whole number from 1 to {MAX_COUNT}")
    return value


def _positive(value: object, file: Path, key: str) -> float:
    if not is_number(value) or not 0 < value <= sys.float_info.max:
        raise _bad(file, key, value, "a number above 0")
    return float(value)


def _bad(
    file: Path, key: str, value: object, expected: str, remedy: str | None = None
) -> CheckpointError:
    return CheckpointError(
        f"{key} is {json.dumps(value)[:200]}",
        where=file,
        expected=expected,
        remedy=remedy
        or "starpack converts StarCoder2 alone, and exactly: take config.json from the model's "
        "own repository",
    )
