"""The reference implementation: transformers, eager attention, float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def eager_logits(checkpoint: Path, ids: np.ndarray) -> np.ndarray:
    """Float32 logits (T, vocab) of ids (T,), all positions at once."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.Starcoder2ForCausalLM.from_pretrained(
        checkpoint, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(ids)[None]).logits[0].numpy()
