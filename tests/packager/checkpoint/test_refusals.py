"""What a user reads when a checkpoint is refused: every message in full, in one golden list."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.tensors import open_tensors
from tests.support.refusal import refusal
from tests.support.tiny import edit_json, set_config, write_checkpoint

GOLDEN = Path(__file__).parents[2] / "goldens" / "refusals.md"
HEAD = """\
# What is refused, and what the user is told

Written by `pytest tests/packager/checkpoint/test_refusals.py --regenerate-goldens`; MODEL stands
for the folder.
"""


def config(**values: object) -> Callable[[Path], object]:
    return lambda folder: set_config(folder, **values)


def index(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        write_checkpoint(folder, shards=2)
        (folder / "model.safetensors").unlink(missing_ok=True)
        file = folder / "model.safetensors.index.json"
        edit_json(file, lambda data: data["weight_map"].update({"model.norm.bias": name}))

    return change


def weights(change: Callable[[bytearray], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        change(data)
        file.write_bytes(data)

    return apply


def swap(old: bytes, new: bytes) -> Callable[[Path], object]:
    assert len(old) == len(new)

    def change(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(old)] = new

    return weights(change)


def put_at_end(value: float) -> Callable[[Path], object]:
    return weights(lambda data: data.__setitem__(slice(-4, None), np.float32(value).tobytes()))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def bad_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 49152}')


def other_pre_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda data: data.update(pre_tokenizer=None))


CASES: dict[str, Callable[[Path], object]] = {
    "another architecture": config(model_type="llama"),
    "another activation": config(hidden_act="silu"),
    "a rope scaling": config(rope_scaling={"type": "linear", "factor": 2.0}),
    "an unknown key": config(attention_logit_cap=30.0),
    "a head_dim that contradicts": config(head_dim=128),
    "an end id outside the vocabulary": config(eos_token_id=50256),
    "a generation config with the old end id": bad_generation_config,
    "a quantised checkpoint": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "full attention in some layers": config(layer_types=["full_attention", "sliding_attention"]),
    "another pre-tokenizer": other_pre_tokenizer,
    "a shape that contradicts the config": config(intermediate_size=64),
    "a missing tensor": config(num_hidden_layers=3),
    "an extra tensor": config(num_hidden_layers=1),
    "NaN": put_at_end(float("nan")),
    "infinity": put_at_end(float("inf")),
    "a truncated file": weights(lambda data: data.__delitem__(slice(-8, None))),
    "trailing bytes": weights(lambda data: data.extend(b"12345678")),
    "another dtype": swap(b'"F32"', b'"F64"'),
    "pickles": pickled,
    "an index that leaves the folder": index("../model-00001-of-00002.safetensors"),
    "an index that names a shard without the tensor": index("model-00001-of-00002.safetensors"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
}


def message_of(case: str, folder: Path) -> str:
    model = write_checkpoint(folder / "model")
    CASES[case](model)

    def read() -> None:
        tensors = open_tensors(read_checkpoint(model, hash_files=False))
        for name in tensors.names():
            tensors.read(name)

    error = refusal(read, ".")
    return str(error).replace(str(model) + os.sep, "MODEL/").replace(str(model), "MODEL")


def test_every_message_is_the_golden_one(tmp_path, regenerate_goldens):
    parts = [HEAD]
    for number, case in enumerate(CASES):
        message = message_of(case, tmp_path / str(number))
        parts.append(f"## {case}\n\n```\n{message}\n```\n")
    text = "\n".join(parts)
    if regenerate_goldens:
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text
