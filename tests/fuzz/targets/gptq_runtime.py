"""A folder of GPTQ weights, as a bundle's engine loads it and computes with it."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import forms
from tests.fuzz.gptq_seed import WORDS, write_gptq
from tests.fuzz.target import Wrong, one_of, write_beside

FORM = forms.Files(
    {
        "quantize_config.json": forms.Json(WORDS),
        "config.json": forms.Json((*WORDS, "sliding_window", "tie_word_embeddings")),
        "model.safetensors": forms.Safetensors(),
    }
)
SHARE = 20
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """Settings and weights."""
    _seed[:] = [write_gptq(folder / "gptq")]
    return [one_of(name, (_seed[0] / name).read_bytes()) for name in FORM.forms]


def run(data: bytes, folder: Path) -> None:
    """What loads can be computed with, and none of its numbers is infinite."""
    import numpy as np
    from safetensors.torch import load_file

    from runtimes.backends.gptq.backend import open_backend
    from runtimes.contract import BackendOptions, Window

    write_beside(data, _seed[0], folder)
    backend = open_backend(folder, Window(32), BackendOptions(64, 1), kernel_path="float32")
    try:
        backend.forward(np.array([40, 41]))
    finally:
        backend.close()
    for name, values in load_file(folder / "model.safetensors").items():
        if values.is_floating_point() and not values.isfinite().all():
            raise Wrong("not finite", name)
