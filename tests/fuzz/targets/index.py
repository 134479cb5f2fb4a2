"""model.safetensors.index.json: which shard holds which tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.checkpoint.safetensors_reader import INDEX_NAME, open_folder
from tests.fuzz import forms
from tests.fuzz.target import Wrong, one_of, write_beside
from tests.support.tiny import write_weights

_shards: list[Path] = []

FORM = forms.Files(
    {
        INDEX_NAME: forms.Json(
            ("weight_map", "a", "model-00001-of-00002.safetensors", "../model.safetensors")
        ),
        "model-00002-of-00002.safetensors": forms.Safetensors(),
    }
)
SHARE = 100


def seeds(folder: Path) -> list[bytes]:
    """Two shards and their index."""
    write_weights(folder, {n: np.ones((2, 2), np.float32) for n in "abcd"}, shards=2)
    _shards[:] = [folder]
    return [one_of(name, (folder / name).read_bytes()) for name in FORM.forms]


def run(data: bytes, folder: Path) -> None:
    """Every tensor that is told of can be read, and lies beside the index."""
    write_beside(data, _shards[0], folder)
    opened = open_folder(folder)
    if any(file.parent != folder for file in opened.files):
        raise Wrong("it leads elsewhere", opened.files)
    for name in opened.names():
        opened.read(name)
