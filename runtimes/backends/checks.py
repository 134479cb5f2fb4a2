"""What every backend asks of models, ids and positions before it touches its engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtimes.contract import Backend, BackendOptions, Window
from runtimes.errors import ContextError, IntegrityError, RewindError, UsageError


def check_window(found_tokens: int | None, window: Window, where: Path) -> None:
    """Raises IntegrityError where a model's own files say another window than its manifest."""
    if found_tokens != window.size_tokens:
        raise IntegrityError(
            f"the model has a window of {found_tokens} tokens",
            where=where,
            expected=f"{window.size_tokens}, as the manifest says",
            remedy="pack the bundle again",
        )


def check_one_device(options: BackendOptions) -> None:
    """Raises UsageError for gpu_layers, for engines that run all layers on one device."""
    if options.gpu_layers:
        raise UsageError(
            "gpu_layers is for GGUF: this format runs all layers on one device",
            remedy="choose the device with --provider",
        )


def checked_ids(backend: Backend, ids: Sequence[int]) -> np.ndarray:
    """`ids` as an array, fit for `backend.forward`.

    Raises ContextError where they go beyond the context; ValueError for too many, none, or one
    outside the vocabulary, which are bugs of the caller.
    """
    count = len(ids)
    if not 0 < count <= backend.chunk_tokens:
        raise ValueError(f"{count} ids in one call, 1 to {backend.chunk_tokens} are possible")
    if backend.position + count > backend.context_tokens:
        raise ContextError(
            f"position {backend.position + count} is beyond the context",
            expected=f"at most {backend.context_tokens} tokens",
            remedy="open the model with a larger --context, or send less",
        )
    new = np.asarray(ids)
    if new.min() < 0 or new.max() >= backend.vocab_size:
        raise ValueError(f"an id is outside 0..{backend.vocab_size - 1}")
    return new


def check_rewind(backend: Backend, position: int) -> None:
    """Raises RewindError where the window has dropped what `position` needs."""
    if not 0 <= position <= backend.position:
        raise ValueError(f"cannot rewind to {position} from {backend.position}")
    if position not in (0, backend.position) and position < backend.min_rewind:
        raise RewindError(
            f"position {position} needs keys that the window has already dropped",
            expected=f"0, or {backend.min_rewind} to {backend.position}",
            remedy="rewind to 0 and take the ids in again",
        )
