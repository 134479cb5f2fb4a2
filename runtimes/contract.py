"""The contract between packager and runtime: the window, the control ids and the backend.

The lowest layer: standard library only, and nothing of manifests, formats, engines or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

IsCancelled = Callable[[], bool]
"""Asked between slices of a text, chunks of a prompt and tokens; true ends the work there."""


def never_cancelled() -> bool:
    """The answer of a caller that never cancels."""
    return False


@dataclass(frozen=True, slots=True)
class Window:
    """How many keys each query sees, its own included; None means all of them.

    Key j is visible to query i if and only if 0 <= i - j < size_tokens
    (transformers, modeling_starcoder2.py).
    """

    size_tokens: int | None

    def reach_tokens(self, layers: int) -> int | None:
        """How many positions back one token can act through `layers` layers: L(W - 1)."""
        return None if self.size_tokens is None else layers * (self.size_tokens - 1)


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The control ids of StarCoder2. The names of the fields are the tokens' own."""

    endoftext: int = 0
    fim_prefix: int = 1
    fim_middle: int = 2
    fim_suffix: int = 3
    fim_pad: int = 4
    repo_name: int = 5
    file_sep: int = 6

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a completion: the end, and any control id the model may run on into."""
        return frozenset(asdict(self).values())

    @property
    def tokens(self) -> dict[str, int]:
        """Token text to id, as tokenizer.json must have them."""
        return {
            ("<|endoftext|>" if name == "endoftext" else f"<{name}>"): value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How to open a model. Nothing here is guessed by a backend.

    context_tokens: most positions that will be used. threads: CPU threads. provider: "cpu" or
    "cuda", the device that runs the model; one that is not there is an error. gpu_layers: with
    GGUF, how many layers to put on the GPU, where not all. chunk_tokens: most ids per forward call,
    which is also the slack of the key/value ring; the backend may have fewer. flash_attention: use
    the engine's fused attention, or its plain one; None: the one that is exact on the device.
    reproducible: let nothing be rewound or copied that the engine would go on from with another
    rounding; prompts then come in whole chunks, see PrefixCache.
    """

    context_tokens: int
    threads: int
    provider: str = "cpu"
    gpu_layers: int = 0
    chunk_tokens: int = 512
    flash_attention: bool | None = None
    reproducible: bool = False


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What an open backend holds, in bytes, as its engine reports it."""

    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int


Saved = Any
"""A sequence as a backend saved it: for that open backend alone, and nobody else's business."""


class Backend(Protocol):
    """Ids to logits over a rolling window; nothing of text, sampling or stopping.

    Memory for keys and values is bounded by window + slack at any position.
    """

    window: Window
    vocab_size: int
    context_tokens: int
    chunk_tokens: int

    @property
    def position(self) -> int:
        """How many ids have been taken in; the next id gets this position."""

    @property
    def min_rewind(self) -> int:
        """The least position above 0 that `rewind` can still return to exactly (0 is always)."""

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """Append at most `chunk_tokens` ids; float32 logits, (1 or T, vocab)."""

    def rewind(self, position: int) -> None:
        """Forget every id at `position` and after; RewindError where that cannot be exact."""

    def save(self) -> Saved | None:
        """A copy of what the ids so far have left; None where the backend cannot copy it."""

    def load(self, saved: Saved) -> None:
        """Law: after `load(saved)` everything is as it was when `save()` gave it, to the bit.

        But for what can be rewound past the window: that may be less. An error leaves the backend
        at position 0.
        """

    def memory_bytes(self) -> MemoryUse:
        """What this backend holds now."""

    def describe(self) -> dict[str, str]:
        """What runs it: engine, version, device, kernels; for `doctor`.

        window_applied: the window that the engine itself says it applies, in tokens, or "none".
        """

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
