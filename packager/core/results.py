"""What is found out about an artifact, and what is chosen: frozen, with units in their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from packager.core.records import Budget, Estimate, Evidence, Interval, Limit, Variant, Workload
from runtimes.backends.timing import Steps

Verdict = Literal["holds", "fails", "inconclusive"]
LimitName = Literal[
    "memory", "first token", "completion", "per token", "context", "kernel", "evidence", "quality",
    "proof", "order",
]  # fmt: skip
"""What stands against a candidate; "order": it fits, and another one is better."""

# Measured: 100 times and more where an engine sums in half precision (benchmarks/LOG.md).
CALLS_OVER_BLOCK = 2.0
NOISE_NATS = 1e-5  # below it, a ratio of two divergences says nothing


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Mean divergences, in nats, of a block of positions from `start` on."""

    start: int
    nats: float
    from_full_nats: float | None


@dataclass(frozen=True, slots=True)
class CallFigures:
    """Mean divergences (nats) at the same positions, taken in calls of `ids` and as one block.

    A generated token is a call of 1 id; a checked guess, or the end of a prompt, one of a few.
    """

    ids: str
    end: int
    nats: float
    block_nats: float

    @property
    def is_as_near(self) -> bool:
        """Whether the calls are as near to the checkpoint as a block is."""
        return self.nats <= CALLS_OVER_BLOCK * self.block_nats + NOISE_NATS


@dataclass(frozen=True, slots=True)
class WindowProof:
    """An artifact's logits against the float32 reference, before and past the window.

    Divergences are mean Kullback-Leibler divergences in nats per position; `from_full_nats` is that
    from full attention, past the window, where a lost window would bring it near nothing.
    `beyond_reach` is the largest change of any logit when the token just out of the layers' reach,
    L(W - 1) + 1 back, is replaced: exactly 0 where the window holds; None where the reach is longer
    than could be run. `curve` is the divergence against the position; `calls` is that of single
    tokens and of short calls, at the window's end and at the last position.
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
    verdict: Verdict
    curve: tuple[CurvePoint, ...] = ()
    calls: tuple[CallFigures, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the window is proved: what is inconclusive is not."""
        return self.verdict == "holds"


@dataclass(frozen=True, slots=True)
class TextScore:
    """How an artifact reads a text, beside the unquantised checkpoint, over `positions` tokens.

    Divergences are from the checkpoint, in nats; agreement is top-1 agreement, with
    the bounds of its 95 % interval (Wilson's).
    """

    positions: int
    perplexity: float
    reference_perplexity: float
    mean_nats: float
    p99_nats: float
    agreement: Interval


@dataclass(frozen=True, slots=True)
class FimScore:
    """How an artifact fills infilling (FIM) samples of one kind, greedily.

    All but `samples` are fractions. exact: equal to what was taken out. reference_exact: what the
    checkpoint reaches there. same_as_checkpoint: equal to what the checkpoint fills in. similarity:
    mean edit similarity to what was taken out.
    """

    kind: str
    samples: int
    exact: float
    reference_exact: float
    same_as_checkpoint: float
    similarity: float


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality gate's figures: text inside the window, past it, and infilling samples."""

    text_sha256: str
    inside: TextScore
    past: TextScore | None
    fim: tuple[FimScore, ...]

    @property
    def divergence_nats(self) -> float:
        """The worse of the two mean divergences."""
        return max(score.mean_nats for score in self._scores())

    @property
    def agreement(self) -> float:
        """The lower bound of the worse of the two agreements."""
        return min(score.agreement.low for score in self._scores())

    def _scores(self) -> list[TextScore]:
        return [score for score in (self.inside, self.past) if score is not None]


@dataclass(frozen=True, slots=True)
class Speed:
    """One run in a process of its own: seconds and bytes, times as they were timed.

    cold_s and warm_s are first tokens of the workload's prompt: with nothing in the cache, and
    with its warm prefix (none where the backend cannot go back to it). peak_memory_bytes is the
    process's, device_memory_bytes the most that the driver reported for it, energy_j what the
    device took per generated token; None where nothing reports them.
    """

    threads: int
    context_tokens: int
    workload: Workload
    load_s: float
    cold_s: tuple[float, ...]
    warm_s: tuple[float, ...]
    steps: tuple[Steps, ...]
    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int
    peak_memory_bytes: int
    device_memory_bytes: int | None = None
    energy_j: float | None = None

    @property
    def memory_bytes(self) -> int:
        """What counts against the device: its own memory where it has one."""
        return self.device_memory_bytes or self.peak_memory_bytes

    @property
    def first_token_s(self) -> Limit:
        """Of the workload's prompt, warm where it has a warm prefix."""
        warm = self.workload.warm_prefix_tokens and self.warm_s
        return percentiles(self.warm_s if warm else self.cold_s)

    @property
    def per_token_s(self) -> Limit:
        """At the least measured depth that is not below the prompt, or at the deepest."""
        deep = [s for s in self.steps if s.depth_tokens >= self.workload.prompt_tokens]
        return percentiles((deep[0] if deep else self.steps[-1]).seconds)

    @property
    def completion_s(self) -> Limit:
        """The first token and those after it; p90 takes the slow one of each."""
        first, step, more = self.first_token_s, self.per_token_s, self.workload.output_tokens - 1
        return Limit(first.p50 + more * step.p50, first.p90 + more * step.p90)


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """An artifact that ran out of memory: needed_bytes is what it had taken when it ended."""

    needed_bytes: int
    had_bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What an artifact does on a device: measured, but for `estimate`, what was expected of it.

    Either `speed` or `out_of_memory` is there, and `proof` and `quality`; or `failure`: why the
    artifact is of no use anywhere.
    """

    variant: Variant
    model: str
    artifact_sha256: str
    artifact_bytes: int
    device: str
    proof: WindowProof | None
    quality: Quality | None
    speed: Speed | None
    out_of_memory: OutOfMemory | None = None
    estimate: Estimate | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What selection compares, whether measured or estimated. None: not known.

    parameters is the model's size; blocked says why the artifact may never be chosen (its window
    is not proved, it does not fit), note what whoever chooses it should know. unsupported and
    unreliable: as in Estimate.
    """

    name: str
    model: str
    variant: Variant
    parameters: int
    evidence: Evidence
    context_tokens: int
    memory_bytes: Interval
    first_token_s: Limit | None
    per_token_s: Limit | None
    completion_s: Limit | None
    divergence_nats: float | None = None
    agreement: float | None = None
    blocked: str = ""
    unsupported: str | None = None
    unreliable: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a candidate was not chosen, and the least that would make it fit.

    limit is what binds; ratio is the value divided by the limit, 0 where no number binds; others
    are the further reasons.
    """

    candidate: Candidate
    limit: LimitName
    ratio: float
    reason: str
    remedy: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidate chosen for a budget, why not the others, and what was overridden for it."""

    budget: Budget
    device: str
    prefer: str
    chosen: Candidate
    rejected: tuple[Rejection, ...]
    overrides: tuple[str, ...] = field(default=())


def percentiles(seconds: tuple[float, ...]) -> Limit:
    """Median and 90th percentile."""
    return Limit(float(np.percentile(seconds, 50)), float(np.percentile(seconds, 90)))
