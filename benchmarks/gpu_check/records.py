"""What the check's processes tell each other and write down: frozen, units in names.

A finding is what one measurement says; its `kind` says which it is in JSON. The form of the whole
record is profiles/measured.schema.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.core.records import Interval

TOY = "toy"  # the name of the model of a dry run
# States of a part. Those that are measured are not measured again.
MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"
OUT_OF_TIME, INTERRUPTED = "out of time", "interrupted"


@dataclass(frozen=True, slots=True)
class Job:
    """What a part is told: the rest it finds out itself.

    provider: "cuda", or "cpu" for a dry run. toy: with models that say nothing of a real one's
    time. work: a folder for its models, emptied after it. limit_s: when its process will be ended.
    device: a device file's content, or None where the driver states too little for one. peer: the
    Python that has GPTQModel. held_bytes: as held_bytes() says before anything is loaded.
    """

    part: str
    provider: str
    work: Path
    threads: int
    limit_s: float
    device: dict[str, Any] | None
    peer: str | None = None
    toy: bool = False
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a part, or a kernel of it, cannot run here, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Exactness:
    """Logits against the float32 reference on the CPU, by position; root mean squares.

    inside: before the window's end. at: the two positions before it and as many after it as there
    are layers. past: up to eight windows. far: the last windows. full_attention: how far the
    reference would be from itself, past the window, if the window were lost. beyond_reach: the
    largest change of any logit when the token just out of the layers' reach is replaced.
    """

    engine: str
    recipe: str
    path: str
    mode: str
    ids_per_call: int
    window_tokens: int
    positions: int
    inside_rms: float
    at_rms: float
    past_rms: float
    far_rms: float
    largest: float
    full_attention_rms: float
    beyond_reach: float | None
    exact: bool
    kind: str = "exactness"


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Single-token steps in one mode, with their median and 90th percentile."""

    mode: str
    steps: int
    p50_s: float
    p90_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """A prompt with nothing in the cache, and single tokens after it.

    layers: that were run, of whole_layers. Estimates are for the layers that were run, from the
    specification alone; None where the device is not known well enough.
    """

    engine: str
    recipe: str
    path: str
    model: str
    layers: int
    whole_layers: int
    prompt_tokens: int
    prompt_s: tuple[float, ...]
    steps: tuple[StepTimes, ...]
    prompt_estimated_s: Interval | None
    token_estimated_s: Interval | None
    kind: str = "speed"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process with one open model took of the device, beside the estimate.

    measured_bytes: free memory lost since before the model, as the driver says it, other
    processes' share included; 0 where it does not say. weights, key_values and compute: what the
    backend says itself.
    """

    engine: str
    recipe: str
    model: str
    layers: int
    whole_layers: int
    context_tokens: int
    measured_bytes: int
    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int
    estimated_bytes: Interval | None
    kind: str = "memory"


@dataclass(frozen=True, slots=True)
class KernelTime:
    """All matrices of one layer, `rows` rows each, through one kernel; weights not in any cache.

    error: norm of the difference from the float32 product over its norm. captured: timed as a CUDA
    graph, so without the cost of starting kernels.
    """

    kernel: str
    model: str
    rows: int
    layer_s: float
    captured: bool
    error: float
    kind: str = "kernel"


@dataclass(frozen=True, slots=True)
class NotRun:
    """Something of a part that was not run, or failed, and why."""

    name: str
    what: str
    remedy: str
    failed: bool
    kind: str = "not run"


Finding = Exactness | Speed | Memory | KernelTime | NotRun
Keep = Callable[[Finding], None]
"""keep(finding): writes it down at once, so that what ends the process later does not lose it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part. findings: as JSON. versions: of its interpreter's packages."""

    part: str
    status: str
    seconds: float = 0.0
    what: str = ""
    remedy: str = ""
    versions: dict[str, str] | None = None
    findings: tuple[dict[str, Any], ...] = ()
