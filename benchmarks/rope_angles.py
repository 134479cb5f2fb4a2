"""How exact RoPE's angles are far out, where float32 has few bits left for them.

Against float64. Ours are the tables that the reference, ONNX and GPTQ read, rounded as transformers
rounds them. llama.cpp goes from each angle to the next by one product in float32 (ggml-cpu's
ggml_rope_cache_init); that is repeated here, since its tables cannot be read.
"""

from __future__ import annotations

import numpy as np

from runtimes.backends.own_cache.rope import rope_tables


def angle_errors(
    positions: list[int], window_tokens: int, head_dim: int, theta: float
) -> dict[str, object]:
    """Greatest errors in radians at each position, by name.

    "turned by": of the angle itself. "between": of the angle between a position and each that its
    window still sees, which is what a score depends on.
    """
    rows = max(positions) + 1
    tables = {
        "ours": _turns(*rope_tables(rows, head_dim, theta)),
        "llama.cpp": _turns(*_iterated(rows, head_dim, theta)),
    }
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    errors: dict[str, list[float]] = {}
    for name, turns in tables.items():
        alone, between = [], []
        for position in positions:
            alone.append(_error(turns[position], position * frequencies))
            distances = np.arange(min(window_tokens, position + 1))
            pairs = turns[position] * turns[position - distances].conj()
            between.append(_error(pairs, distances[:, None] * frequencies))
        errors |= {f"{name}, turned by": alone, f"{name}, between": between}
    return {"positions": positions, "errors": errors}


def _turns(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    return cos + 1j * sin.astype(np.float64)


def _error(turns: np.ndarray, angles: np.ndarray) -> float:
    return float(np.abs(np.angle(turns * np.exp(-1j * angles))).max())


def _iterated(rows: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines as in rope_tables, as llama.cpp rounds them."""
    scale = np.float32(theta) ** np.float32(-2.0 / head_dim)
    angles = np.empty((rows, head_dim // 2), np.float32)
    angles[:, 0] = np.arange(rows)
    for column in range(1, head_dim // 2):
        angles[:, column] = angles[:, column - 1] * scale
    return np.cos(angles), np.sin(angles)
