"""Every JSON file of a checkpoint or adapter has each key once, at any depth."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.checkpoint.lora_config import read_adapter_config
from packager.checkpoint.reader import read_checkpoint
from packager.formats.gptq.reader import open_gptq
from tests.support.refusal import refusal
from tests.support.tiny import write_checkpoint


def read_folder(folder: Path) -> object:
    return read_checkpoint(folder, hash_files=False)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_folder,
    "generation_config.json": read_folder,
    "tokenizer.json": read_folder,
    "model.safetensors.index.json": read_folder,
    "starpack-fetch.json": read_folder,
    "adapter_config.json": read_adapter_config,
    "quantize_config.json": open_gptq,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    others = {
        "generation_config.json": {"eos_token_id": 0},
        "starpack-fetch.json": {"commit": "ab" * 20, "files": []},
        "adapter_config.json": {"peft_type": "LORA", "r": 2, "lora_alpha": 3},
        "quantize_config.json": {"bits": 4, "group_size": 32},
    }
    for name, value in others.items():
        (tmp_path / name).write_text(json.dumps(value))
    return tmp_path


@pytest.mark.parametrize(
    "member", [r'"\ud800": 0', r'"x": "\udfff"', '"x": NaN', '"x": [-Infinity]', '"x": 1e999']
)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_text_and_no_number_is_refused(folder: Path, name: str, member: str) -> None:
    file = folder / name
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("{", f"{{{member}, ", 1), encoding="utf-8")
    error = refusal(lambda: READERS[name](folder), "half of a surrogate pair|number")
    assert error.where == str(file)


@pytest.mark.parametrize("name", READERS)
def test_a_key_that_is_given_twice_is_refused(folder: Path, name: str) -> None:
    READERS[name](folder) if name != "quantize_config.json" else None
    file = folder / name
    text = file.read_text(encoding="utf-8")
    key = re.match(r'\{\s*("\w+"):', text)[1]
    file.write_text(text.replace("{", f"{{{key}: 0, ", 1), encoding="utf-8")
    error = refusal(lambda: READERS[name](folder), f"the key '{key[1:-1]}' is given twice")
    assert error.where == str(file)
    assert "fetch the file again" in str(error.remedy)
