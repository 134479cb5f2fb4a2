"""Arithmetic that the footprints of several formats share."""

from __future__ import annotations

from packager.core.records import Geometry

HALF_BYTES = 2  # of float16 and of bfloat16
MIB = 1 << 20


def padded(count: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-count // step) * step


def activation_bytes(geometry: Geometry, tokens: int) -> tuple[int, int]:
    """Float32 bytes of the hidden values of `tokens`, and of those inside the feed-forward."""
    return 4 * tokens * geometry.hidden, 4 * tokens * geometry.ffn
