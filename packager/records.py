"""The nouns that pass between the packager's hops: frozen, with their units in their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtimes.contract import FileEntry, SpecialIds, Window

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called often; the cli alone turns it into output."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress of a caller that shows none."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of a StarCoder2 model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    rope_theta: float
    norm_eps: float
    tied: bool

    @property
    def parameters(self) -> int:
        """Stored parameters, a tied head counted once."""
        kv = self.kv_heads * self.head_dim
        q = self.heads * self.head_dim
        attention = self.hidden * q + q + 2 * (self.hidden * kv + kv) + q * self.hidden
        mlp = 2 * self.hidden * self.ffn + self.ffn + self.hidden
        norms = 4 * self.hidden
        head = 0 if self.tied else self.vocab * self.hidden
        layer = attention + self.hidden + mlp + norms
        return self.vocab * self.hidden + head + self.layers * layer + 2 * self.hidden


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT LoRA that is merged into the tensors as they stream."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A StarCoder2 folder that was read and found sound; tensors stay on disk.

    sha256 covers config, tokenizer and weights (and the adapter); empty if hashing was not asked
    for. dtype is "float32", "bfloat16", "float16" or "mixed".
    """

    path: Path
    revision: str | None
    sha256: str
    window: Window
    context_tokens: int
    special_ids: SpecialIds
    geometry: Geometry
    dtype: str
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """What is wanted: a format and one of its recipes, by the format's own name for it."""

    format: str
    recipe: str
    bits: float
    group_size: int | None

    @property
    def name(self) -> str:
        """As shown and as used in file names: `gguf-Q4_K_M`."""
        return f"{self.format}-{self.recipe}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was made: files below `path`, from which checkpoint, with which tools."""

    variant: Variant
    checkpoint_sha256: str
    path: Path
    files: tuple[FileEntry, ...]
    versions: dict[str, str] = field(default_factory=dict)
