"""The header of a safetensors file, and every value behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from packager.checkpoint.safetensors_reader import open_file
from tests.fuzz import forms
from tests.fuzz.target import Wrong
from tests.support.tiny import write_safetensors

FORM = forms.Safetensors()
SHARE = 100


def seeds(folder: Path) -> list[bytes]:
    """A file of each dtype, one without tensors' metadata."""
    tensors = {
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.ones(5, np.float32),
        "c": np.zeros((1, 1), np.float32),
    }
    made = []
    for dtype in ("float32", "float16", "bfloat16"):
        write_safetensors(folder / "file", tensors, dtype)
        made.append((folder / "file").read_bytes())
    return made


def run(data: bytes, folder: Path) -> None:
    """Refused by ours or opened by the library too, with the same tensors."""
    file = folder / "model.safetensors"
    file.write_bytes(data)
    opened = open_file(file, codes=True)
    try:
        found = {name: tuple(entry["shape"]) for name, entry in deserialize(data)}
    except SafetensorError as error:
        raise Wrong("the library refuses it", error) from None
    ours = {name: opened.shape(name) for name in opened.names()}
    if found != ours:
        raise Wrong("the library reads others", found)
    for name in ours:
        if not np.isfinite(opened.read(name)).all():
            raise Wrong("not finite", name)
