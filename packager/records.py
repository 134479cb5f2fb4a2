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
    """What is wanted: a format and one of its recipes, by the format's own name for it.

    head_bits is set where the head and the embedding are to differ from what the recipe gives them.
    """

    format: str
    recipe: str
    bits: float
    group_size: int | None
    head_bits: int | None = None

    @property
    def name(self) -> str:
        """As shown and as used in file names: `gguf-Q4_K_M`, `onnx-int4-g32-head4`."""
        head = "" if self.head_bits is None else f"-head{self.head_bits}"
        return f"{self.format}-{self.recipe}{head}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was made: files below `path`, from which checkpoint, with which tools."""

    variant: Variant
    checkpoint_sha256: str
    path: Path
    files: tuple[FileEntry, ...]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """What a backend opens, below `path`: the file, or "" for the folder of several."""
        return self.files[0].path if len(self.files) == 1 else ""

    @property
    def bytes(self) -> int:
        """All its files together."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class WindowProof:
    """An artifact's logits against the float32 reference, before and past the window.

    Divergences are mean Kullback-Leibler divergences in nats per position; `from_full_nats` is that
    from full attention, past the window, where a lost window would bring it near nothing.
    `beyond_reach` is the largest change of any logit when the token just out of the layers' reach,
    L(W - 1) + 1 back, is replaced: exactly 0 where the window holds; None where the reach is longer
    than could be run. `verdict` is "holds", "fails" or "inconclusive".
    """

    window_tokens: int | None
    engine_window: str
    positions: int
    inside_nats: float
    past_nats: float | None
    from_full_nats: float | None
    agree_inside: float
    agree_past: float | None
    reach_tokens: int | None
    at_reach: float | None
    beyond_reach: float | None
    verdict: str

    @property
    def holds(self) -> bool:
        """Whether the window is proved: what is inconclusive is not."""
        return self.verdict == "holds"


@dataclass(frozen=True, slots=True)
class Speed:
    """One run in a process of its own: seconds and bytes."""

    threads: int
    prompt_tokens: int
    context_tokens: int
    load_s: float
    first_token_s: float
    per_token_p50_s: float
    per_token_p95_s: float
    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What an artifact does on a device. `evidence` is "measured here" for all of it."""

    variant: Variant
    artifact_sha256: str
    artifact_bytes: int
    device: str
    evidence: str
    proof: WindowProof
    speed: Speed


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None means no limit."""

    memory_bytes: int | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None
    divergence_nats: float | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a variant was not chosen, and what would make it fit."""

    variant: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The variant chosen for a budget, and why not the others."""

    budget: Budget
    chosen: Measurement
    rejected: tuple[Rejection, ...]
