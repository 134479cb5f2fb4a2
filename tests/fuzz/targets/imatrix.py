"""llama.cpp's importance file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.calibration.imatrix import Batches, read_importance, write_importance
from tests.fuzz import forms
from tests.fuzz.target import Wrong

COLUMNS = {"blk.0.attn_q.weight": 4, "blk.0.ffn_up.weight": 6}
FORM = forms.Raw(
    [b"GGUF", b"general.alignment", b".in_sum2", b".counts", *(n.encode() for n in COLUMNS)]
)
SHARE = 60


def seeds(folder: Path) -> list[bytes]:
    """As ours writes it."""
    file = folder / "imatrix.gguf"
    importance = {name: np.arange(1, n + 1, dtype=np.float32) for name, n in COLUMNS.items()}
    write_importance(file, importance, Batches([np.arange(3)], "0" * 64))
    return [file.read_bytes()]


def run(data: bytes, folder: Path) -> None:
    """Each matrix is there, of its width, finite and not negative."""
    file = folder / "imatrix.gguf"
    file.write_bytes(data)
    for name, values in read_importance(file, COLUMNS).items():
        if values.shape != (COLUMNS[name],) or not (np.isfinite(values) & (values >= 0)).all():
            raise Wrong("not an importance", (name, values))
