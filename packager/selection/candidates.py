"""What selection compares, from what was measured or estimated."""

from __future__ import annotations

from packager.core.records import Estimate, Evidence, exactly
from packager.core.results import Candidate, Measurement, WindowProof

MEASURED: Evidence = "measured here"


def of_measurement(
    measurement: Measurement, *, parameters: int, context_tokens: int, note: str = ""
) -> Candidate:
    """A candidate with the measured figures; the estimate's where the device is elsewhere."""
    quality, speed = measurement.quality, measurement.speed
    facts = dict(
        name=measurement.variant.name,
        model=measurement.model,
        variant=measurement.variant,
        parameters=parameters,
        context_tokens=context_tokens,
        divergence_nats=quality.divergence_nats,
        agreement=quality.agreement,
        blocked=_blocked(measurement.proof),
        note=note,
    )
    if speed is not None:
        memory = float(speed.memory_bytes)
        return Candidate(
            **facts,
            evidence=MEASURED,
            memory_bytes=exactly(memory),
            first_token_s=speed.first_token_s,
            per_token_s=speed.per_token_s,
            completion_s=speed.completion_s,
        )
    failed = measurement.out_of_memory
    if failed is not None:
        needed = float(max(failed.needed_bytes, failed.had_bytes + 1))
        return Candidate(
            **facts,
            evidence=MEASURED,
            memory_bytes=exactly(needed),
            first_token_s=None,
            per_token_s=None,
            completion_s=None,
        )
    if measurement.estimate is None:
        raise ValueError("a measurement without speed, memory or estimate")
    return Candidate(**facts, **_estimated(measurement.estimate))


def of_estimate(estimate: Estimate, *, parameters: int, note: str = "") -> Candidate:
    """A candidate of which nothing is known but the estimate."""
    return Candidate(
        name=f"{estimate.model} {estimate.variant.name}",
        model=estimate.model,
        variant=estimate.variant,
        parameters=parameters,
        context_tokens=estimate.context_tokens,
        note=note,
        **_estimated(estimate),
    )


def _estimated(estimate: Estimate) -> dict[str, object]:
    return dict(
        evidence=estimate.evidence,
        memory_bytes=estimate.memory_bytes,
        first_token_s=estimate.first_token_s.limit,
        per_token_s=estimate.per_token_s.limit,
        completion_s=estimate.completion_s.limit,
        unsupported=estimate.unsupported,
        unreliable=estimate.unreliable,
    )


def _blocked(proof: WindowProof) -> str:
    if proof.holds:
        return ""
    if proof.verdict == "inconclusive":
        return (
            "it is too coarse to tell whether it keeps the window: "
            f"{proof.past_nats:.2e} nats from the checkpoint, {proof.from_full_nats:.2e} from full "
            "attention; choose a finer recipe, such as Q5_K_M or Q8_0"
        )
    return (
        f"it does not keep the window: the divergence past it should be near "
        f"{proof.inside_nats:.2e}; run `make setup` for the engine that belongs here"
    )
