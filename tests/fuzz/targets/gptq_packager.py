"""A folder of GPTQ weights, as packing takes codes from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.formats.gptq.reader import open_gptq
from tests.fuzz import forms
from tests.fuzz.gptq_seed import WORDS, write_gptq
from tests.fuzz.target import Wrong, one_of, write_beside

FORM = forms.Files(
    {
        "quantize_config.json": forms.Json(WORDS),
        "config.json": forms.Json(WORDS),
        "model.safetensors": forms.Safetensors(),
    }
)
SHARE = 60
MODULES = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "mlp.c_fc": (32, 32)}
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """Settings and weights."""
    _seed[:] = [write_gptq(folder / "gptq")]
    return [one_of(name, (_seed[0] / name).read_bytes()) for name in FORM.forms]


def run(data: bytes, folder: Path) -> None:
    """Every code has a finite value."""
    write_beside(data, _seed[0], folder)
    weights = open_gptq(folder)
    for module, shape in MODULES.items():
        if not np.isfinite(weights.matrix(f"model.layers.0.{module}", shape)).all():
            raise Wrong("not finite", module)
