"""The records that pass between the packager's stages: frozen, with units in their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtimes.contract import SpecialIds, Window
from runtimes.trust.entries import FileEntry
from runtimes.trust.verify import no_progress as no_progress

Basis = Literal["measured", "cited", "recalled", "estimated"]
"""Where a figure comes from; a recalled one is a specification, from memory."""

DeviceKind = Literal["gpu", "soc", "cpu"]
"""A card with memory of its own, a GPU that shares memory with the CPU, or a CPU."""

Evidence = Literal["measured here", "calibrated", "specification"]
"""What an artifact's memory and times follow from."""

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called often; the cli alone turns it into output."""


def named(progress: Progress, name: str) -> Progress:
    """Progress that says whose work it is: `convert gguf-Q4_K_M`."""
    return lambda what, done, total: progress(f"{what} {name}", done, total)


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

    def position_bytes(self, value_bytes: int) -> int:
        """Keys and values of one position in all layers, each number in `value_bytes`."""
        return 2 * self.layers * self.kv_heads * self.head_dim * value_bytes

    def key_value_bytes(self, window: Window, context_tokens: int, value_bytes: int) -> int:
        """Keys and values that the next token needs, at the end of a context.

        A window of W keeps W - 1 past tokens, the query's own being the W-th.
        """
        kept = context_tokens
        if window.size_tokens is not None:
            kept = min(context_tokens, window.size_tokens - 1)
        return kept * self.position_bytes(value_bytes)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT LoRA that is merged into the tensors as they stream."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A StarCoder2 folder that was read and is valid; tensors stay on disk.

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
    def size_bytes(self) -> int:
        """Of all its files together."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from: `source` names it, or says how it was estimated."""

    value: float
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured time over the time that the specification predicts, by what the time goes to."""

    memory: float
    arithmetic: float
    launch: float
    engine: str
    date: str


@dataclass(frozen=True, slots=True)
class Device:
    """A machine or card that a bundle may run on, as profiles/device.schema.json describes it.

    memory_bytes is what a process can use, memory_total_bytes what the driver reports.
    Arithmetic is dense; fp16_flops with float32 sums, fp16_half_flops with float16 sums. kernels
    are names that the estimate knows. multiprocessors are cores on a CPU.
    """

    name: str
    title: str
    kind: DeviceKind
    architecture: str
    compute_capability: str | None
    multiprocessors: int
    memory_total_bytes: Figure | None
    memory_bytes: Figure
    bandwidth_bytes_per_s: Figure
    fp16_flops_per_s: Figure
    fp16_half_flops_per_s: Figure
    int8_ops_per_s: Figure
    fp32_flops_per_s: Figure
    l2_bytes: int
    ecc: bool
    bfloat16: bool
    kernels: tuple[str, ...]
    cuda: tuple[str, ...]
    driver: str | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that half of the requests may take, and nine of ten; seconds."""

    p50: float
    p90: float

    @property
    def interval(self) -> Interval:
        """The median, with the slow tenth as its upper bound."""
        return Interval(self.p50, self.p50, self.p90)


@dataclass(frozen=True, slots=True)
class Workload:
    """A typical request: of its prompt, warm_prefix_tokens are in the cache already."""

    prompt_tokens: int = 1024
    output_tokens: int = 64
    warm_prefix_tokens: int = 0

    def within(self, context_tokens: int) -> Workload:
        """What of it fits a context: less output, then less prompt, at least one token of each."""
        output = min(self.output_tokens, max(1, context_tokens // 2))
        prompt = min(self.prompt_tokens, context_tokens - output)
        return Workload(prompt, output, min(self.warm_prefix_tokens, prompt - 1))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a request is like and what it may take; None means no limit.

    memory_bytes caps what the device has, memory_reserve_bytes is kept free of it.
    divergence_nats (mean, from the unquantised checkpoint) and agreement (top-1) are the
    quality floor.
    """

    name: str = "none"
    workload: Workload = field(default_factory=Workload)
    context_tokens: int | None = None
    memory_bytes: int | None = None
    memory_reserve_bytes: int = 0
    first_token_s: Limit | None = None
    completion_s: Limit | None = None
    per_token_s: Limit | None = None
    divergence_nats: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate, and the bounds between which nine of ten lie."""

    low: float
    middle: float
    high: float

    @property
    def limit(self) -> Limit:
        """The point estimate for the median, the upper bound for the slow tenth."""
        return Limit(self.middle, self.high)


def exactly(value: float) -> Interval:
    """The interval of what was measured, or needs no estimate."""
    return Interval(value, value, value)


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Bytes on the device (or of the process, on a CPU), by what they are for."""

    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int
    context_bytes: int
    library_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return (
            self.weights_bytes
            + self.key_values_bytes
            + self.compute_bytes
            + self.context_bytes
            + self.library_bytes
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a variant of a model is expected to take on a device, for a budget's workload.

    unsupported: why the device has no kernel for the variant. unreliable: why the estimate is not
    validated for the device.
    """

    model: str
    variant: Variant
    device: str
    context_tokens: int
    parts: MemoryParts
    memory_bytes: Interval
    first_token_s: Interval
    per_token_s: Interval
    completion_s: Interval
    evidence: Evidence
    unsupported: str | None = None
    unreliable: str | None = None
