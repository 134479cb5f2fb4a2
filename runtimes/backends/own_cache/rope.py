"""Rotary position embedding: the table of angles that every computation of the model shares."""

from __future__ import annotations

import numpy as np


def rope_tables(rows: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32 (rows, head_dim / 2), of positions 0 to rows - 1.

    Rounded step by step as transformers does it (modeling_starcoder2.py): inverse frequencies,
    then angles, both in float32.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(theta) ** exponents
    angles = np.arange(rows, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
