"""The best measured variant within a budget, and for every other one the reason why not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from packager.errors import NothingFits, QualityError, UsageError
from packager.records import Budget, Measurement, Rejection, Selection

MAX_BUDGET_BYTES = 1 << 20


def read_budget(file: Path | None) -> Budget:
    """Read a budget file: a JSON object with some of Budget's fields. None: no limits."""
    if file is None:
        return Budget()
    try:
        if file.stat().st_size > MAX_BUDGET_BYTES:
            raise UsageError("the budget file is too large", where=file)
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the budget: {error}", where=file) from None
    names = [field.name for field in fields(Budget)]
    if not isinstance(data, dict):
        raise UsageError("the budget is not a JSON object", where=file, expected=names)
    for key, value in data.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key not in names or not number or not 0 < value < math.inf:
            raise UsageError(
                f"the budget's {key!r} is {value!r}",
                where=file,
                expected=f"a number above 0 for one of {', '.join(names)}",
                remedy="units are in the names: bytes, seconds, nats",
            )
    return Budget(**data)


def select(measurements: Sequence[Measurement], budget: Budget) -> Selection:
    """The measurement with the least divergence that meets the budget; ties go to the faster.

    Raises QualityError where an artifact's window is not exact, NothingFits where none is left.
    """
    fitting: list[Measurement] = []
    rejected: list[Rejection] = []
    for measurement in measurements:
        if not measurement.proof.holds:
            raise _unproved(measurement)
        reasons = _excesses(measurement, budget)
        rejected += reasons
        if not reasons:
            fitting.append(measurement)
    if not fitting:
        raise NothingFits(
            "no variant meets the budget",
            expected="; ".join(f"{r.variant}: {r.reason}" for r in rejected) or "a variant",
            remedy="convert a smaller recipe (--formats gguf:Q4_K_M) or raise the limit",
        )
    fitting.sort(key=lambda m: (_divergence(m), m.speed.per_token_p50_s))
    chosen, others = fitting[0], fitting[1:]
    for other in others:
        why = f"diverges more: {_divergence(other):.2e} nats, not {_divergence(chosen):.2e}"
        rejected.append(Rejection(other.variant.name, why, "a tighter budget would choose it"))
    return Selection(budget, chosen, tuple(rejected))


def _unproved(measurement: Measurement) -> QualityError:
    proof, name = measurement.proof, measurement.variant.name
    if proof.verdict == "inconclusive":
        return QualityError(
            f"{name} is too coarse to tell whether it keeps the window",
            expected=f"divergences that differ: {proof.past_nats:.2e} nats from the checkpoint, "
            f"{proof.from_full_nats:.2e} from full attention",
            remedy="choose a finer recipe, such as Q5_K_M or Q8_0",
        )
    return QualityError(
        f"{name} does not keep the window",
        expected=f"a divergence past the window near {proof.inside_nats:.2e}",
        remedy="install the engine that `make wheels` builds (`make setup`) and run again",
    )


def _divergence(measurement: Measurement) -> float:
    proof = measurement.proof
    return max(proof.inside_nats, proof.past_nats or 0.0)


def _excesses(measurement: Measurement, budget: Budget) -> list[Rejection]:
    speed = measurement.speed
    limits = (
        ("memory", "bytes", speed.peak_memory_bytes, budget.memory_bytes),
        ("first token", "s", speed.first_token_s, budget.first_token_s),
        ("time per token", "s", speed.per_token_p95_s, budget.per_token_s),
        ("divergence", "nats", _divergence(measurement), budget.divergence_nats),
    )
    return [
        Rejection(
            measurement.variant.name,
            f"{what} is {value:.4g} {unit}, the limit {limit:.4g}",
            f"allow {value:.4g} {unit} for {what}",
        )
        for what, unit, value, limit in limits
        if limit is not None and value > limit
    ]
