"""What a report shows: plain facts, gathered by whoever measured, planned and selected.

Knows nothing of how a report looks. A quantity is named as the fields of the records are, its unit
at the end of its name: `memory_bytes`, `first_token_s`, `divergence_nats`, `agreement` (a share).
Numbers that are not finite are shown as unknown, like None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packager.core.records import Geometry, Interval
from runtimes.contract import Window

FP16_BYTES = 2  # specified: a key or value in half precision


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """A limit of the budget. label tells apart several on one quantity: "p50", "the card's"."""

    quantity: str
    value: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a candidate does not fit: the limit, by how much, and the smallest change that helps."""

    limit: str
    by_how_much: str
    remedy: str


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A candidate. evidence, of memory and times: "measured here", "calibrated", "specification".

    A quantity is None where it is not known: a variant that ran out of memory has no times.
    agreement is top-1 agreement. quality_evidence is that of divergence and
    agreement, empty where it is the same. reasons: the binding limit first; none where it fits.
    """

    variant: str
    chosen: bool
    feasible: bool
    evidence: str
    memory_bytes: Interval | None = None
    first_token_s: Interval | None = None
    per_token_s: Interval | None = None
    completion_s: Interval | None = None
    divergence_nats: float | None = None
    agreement: float | None = None
    reasons: tuple[Reason, ...] = ()
    quality_evidence: str = ""


@dataclass(frozen=True, slots=True)
class ProofCurve:
    """An artifact's divergence at each position (nats), from the checkpoint and full attention.

    from_full_nats is as long as positions, None where it was not computed (inside the window the
    two are the same); or empty, where there is no window. verdict is WindowProof's.
    """

    name: str
    window_tokens: int | None
    positions: tuple[int, ...]
    from_checkpoint_nats: tuple[float, ...]
    from_full_nats: tuple[float | None, ...] = ()
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """Bytes against context. A model has two: one windowed, one not, of the same name."""

    name: str
    windowed: bool
    contexts_tokens: tuple[int, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was estimated for an artifact, and what was measured then."""

    artifact: str
    quantity: str
    estimated: Interval
    measured: float


@dataclass(frozen=True, slots=True)
class ReportData:
    """A whole report. candidates are in the order of preference, the best first.

    model may be empty where candidates name theirs. workload says what a request is like.
    memory_what says what the bytes of memory_curves are of. notes tell how numbers were obtained;
    warnings are what must not be overlooked, such as an override. versions are (name, version),
    provenance (what, sha256).
    """

    title: str
    date: str
    model: str
    device_title: str
    budget_name: str = "none"
    workload: str = ""
    limits: tuple[BudgetLimit, ...] = ()
    candidates: tuple[ReportRow, ...] = ()
    proofs: tuple[ProofCurve, ...] = ()
    memory_curves: tuple[MemoryCurve, ...] = ()
    memory_what: str = "keys and values in half precision"
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def chosen(self) -> ReportRow | None:
        """The candidate that was chosen, if one was."""
        return next((row for row in self.candidates if row.chosen), None)

    def limits_on(self, quantity: str) -> tuple[BudgetLimit, ...]:
        """The budget's limits on one quantity."""
        return tuple(limit for limit in self.limits if limit.quantity == quantity)


def key_value_curves(
    name: str,
    geometry: Geometry,
    window: Window,
    contexts_tokens: Sequence[int],
    value_bytes: int = FP16_BYTES,
) -> tuple[MemoryCurve, ...]:
    """Memory of keys and values, with the window and without; one curve for a model without one."""
    contexts = tuple(contexts_tokens)

    def curve(windowed: bool, of: Window) -> MemoryCurve:
        held = (geometry.key_value_bytes(of, n, value_bytes) for n in contexts)
        return MemoryCurve(name, windowed, contexts, tuple(held))

    full = curve(False, Window(None))
    return (full,) if window.size_tokens is None else (curve(True, window), full)
