"""report.html of measurements and a selection: gathers what packager/report/page.py lays out."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from packager.core.errors import SelectionError
from packager.core.records import Budget, Checkpoint, Estimate, Interval, Limit
from packager.core.results import (
    Candidate,
    CurvePoint,
    Measurement,
    Rejection,
    Selection,
    WindowProof,
)
from packager.core.settings import DeviceSettings
from packager.core.versions import tool_versions
from packager.report.data import (
    BudgetLimit,
    Comparison,
    ProofCurve,
    Reason,
    ReportData,
    ReportRow,
    key_value_curves,
)
from packager.report.page import write_report
from packager.selection.candidates import of_measurement
from packager.selection.selector import ORDER, available_bytes

TIMES = ("first_token_s", "per_token_s", "completion_s")


def write_selection_report(
    file: Path,
    checkpoint: Checkpoint,
    measurements: Sequence[Measurement],
    settings: DeviceSettings,
    outcome: Selection | SelectionError,
    *,
    dated: bool = True,
) -> None:
    """Write the report of a selection, or of the error that there is none.

    dated: with the day it is written; that of SOURCE_DATE_EPOCH is there in any case.
    """
    device, budget, work = settings.device, settings.budget, settings.budget.workload
    data = ReportData(
        title=f"{checkpoint.path.name} on {device.title}",
        date=_date(dated),
        model=checkpoint.path.name,
        device_title=device.title,
        budget_name=budget.name,
        workload=f"{work.prompt_tokens} tokens of prompt, {work.warm_prefix_tokens} of them in the "
        f"cache; {work.output_tokens} tokens of output",
        limits=tuple(_limits(budget, int(device.memory_bytes.value))),
        candidates=tuple(_rows(outcome)),
        proofs=tuple(_curve(m.variant.name, m.proof) for m in measurements if m.proof is not None),
        memory_curves=key_value_curves(
            checkpoint.path.name,
            checkpoint.geometry,
            checkpoint.window,
            _contexts(checkpoint),
        ),
        comparisons=tuple(c for m in measurements for c in _comparisons(m, settings)),
        notes=_notes(settings),
        warnings=outcome.overrides if isinstance(outcome, Selection) else (),
        versions=tuple(tool_versions().items()),
        provenance=(
            ("checkpoint", checkpoint.sha256),
            *((m.variant.name, m.artifact_sha256) for m in measurements),
        ),
    )
    write_report(file, data)


def _rows(outcome: Selection | SelectionError) -> Iterable[ReportRow]:
    if isinstance(outcome, Selection):
        yield _row(outcome.chosen, chosen=True)
    for rejection in outcome.rejected:
        yield _row(rejection.candidate, rejection=rejection)


def _row(
    candidate: Candidate, *, chosen: bool = False, rejection: Rejection | None = None
) -> ReportRow:
    rejected = rejection is not None and rejection.limit != ORDER
    return ReportRow(
        variant=candidate.name,
        chosen=chosen,
        feasible=not rejected,
        evidence=candidate.evidence,
        memory_bytes=candidate.memory_bytes,
        first_token_s=_interval(candidate.first_token_s),
        per_token_s=_interval(candidate.per_token_s),
        completion_s=_interval(candidate.completion_s),
        divergence_nats=candidate.divergence_nats,
        agreement=candidate.agreement,
        reasons=_reasons(rejection) if rejection is not None and rejected else (),
        quality_evidence="measured here" if candidate.divergence_nats is not None else "",
    )


def _reasons(rejection: Rejection) -> tuple[Reason, ...]:
    first = Reason(rejection.limit, rejection.reason, rejection.remedy)
    return (first, *(Reason("", reason, "") for reason in rejection.others))


def _interval(limit: Limit | None) -> Interval | None:
    return None if limit is None else limit.interval


def _limits(budget: Budget, memory_bytes: int) -> Iterable[BudgetLimit]:
    yield BudgetLimit("memory_bytes", float(available_bytes(budget, memory_bytes)), "room")
    for quantity in TIMES:
        limit = getattr(budget, quantity)
        if limit is not None:
            yield BudgetLimit(quantity, limit.p50, "p50")
            yield BudgetLimit(quantity, limit.p90, "p90")
    for quantity in ("divergence_nats", "agreement"):
        value = getattr(budget, quantity)
        if value is not None:
            yield BudgetLimit(quantity, value, "floor")


def _curve(name: str, proof: WindowProof) -> ProofCurve:
    points: Sequence[CurvePoint] = proof.curve
    return ProofCurve(
        name=name,
        window_tokens=proof.window_tokens,
        positions=tuple(point.start for point in points),
        from_checkpoint_nats=tuple(point.nats for point in points),
        from_full_nats=tuple(point.from_full_nats for point in points),
        verdict=proof.verdict,
    )


def _contexts(checkpoint: Checkpoint) -> list[int]:
    """Powers of two up to what the model was trained to, and that."""
    longest = checkpoint.context_tokens
    return [2**i for i in range(6, longest.bit_length()) if 2**i < longest] + [longest]


def _comparisons(measurement: Measurement, settings: DeviceSettings) -> Iterable[Comparison]:
    estimate: Estimate | None = measurement.estimate
    if estimate is None or measurement.speed is None:
        return
    found = of_measurement(measurement, parameters=0, context_tokens=settings.context_tokens)
    name = measurement.variant.name
    yield Comparison(name, "memory_bytes", estimate.memory_bytes, found.memory_bytes.middle)
    for quantity in TIMES:
        expected, measured = getattr(estimate, quantity), getattr(found, quantity)
        yield Comparison(name, quantity, expected, measured.p50)


def _notes(settings: DeviceSettings) -> tuple[str, ...]:
    notes = [
        "Quality and the window were measured on the machine that wrote this report, against the "
        "unquantised checkpoint in float32.",
        "Estimates: the middle stands for the median, the upper bound for the slow tenth.",
    ]
    if settings.device.calibration is None:
        notes.append("The device is not calibrated: estimates rest on its specification.")
    if not settings.timed_here:
        notes.append("The device is not this machine: its memory and times are estimates.")
    return tuple(notes)


def _date(dated: bool) -> str:
    """In UTC: of SOURCE_DATE_EPOCH (reproducible-builds.org) if it is set, or today if `dated`."""
    stamp = os.environ.get("SOURCE_DATE_EPOCH", "")
    if stamp.isdecimal():
        return datetime.datetime.fromtimestamp(int(stamp), datetime.UTC).date().isoformat()
    return datetime.datetime.now(datetime.UTC).date().isoformat() if dated else ""
