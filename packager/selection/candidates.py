"""What selection compares, from what was measured or estimated."""

from __future__ import annotations

from dataclasses import replace

from packager.core.records import Estimate, Evidence, exactly
from packager.core.results import Candidate, Measurement, WindowProof

MEASURED: Evidence = "measured here"


def of_measurement(
    measurement: Measurement, *, parameters: int, context_tokens: int, note: str = ""
) -> Candidate:
    """A candidate with the measured figures; the estimate's where the device is elsewhere."""
    quality = measurement.quality
    return replace(
        _measured_figures(measurement),
        name=measurement.variant.name,
        model=measurement.model,
        variant=measurement.variant,
        parameters=parameters,
        context_tokens=context_tokens,
        divergence_nats=None if quality is None else quality.divergence_nats,
        agreement=None if quality is None else quality.agreement,
        blocked=measurement.failure or _blocked(measurement.proof),
        note=note,
    )


def of_estimate(estimate: Estimate, *, parameters: int, note: str = "") -> Candidate:
    """A candidate of which nothing is known but the estimate."""
    return Candidate(
        name=f"{estimate.model} {estimate.variant.name}",
        model=estimate.model,
        variant=estimate.variant,
        parameters=parameters,
        evidence=estimate.evidence,
        context_tokens=estimate.context_tokens,
        memory_bytes=estimate.memory_bytes,
        first_token_s=estimate.first_token_s.limit,
        per_token_s=estimate.per_token_s.limit,
        completion_s=estimate.completion_s.limit,
        unsupported=estimate.unsupported,
        unreliable=estimate.unreliable,
        note=note,
    )


def _measured_figures(measurement: Measurement) -> Candidate:
    """Memory and times: as measured, what it needed before it was ended, or as estimated."""
    speed, failed = measurement.speed, measurement.out_of_memory
    if speed is not None:
        needed = float(speed.memory_bytes)
    elif failed is not None:
        needed = float(max(failed.needed_bytes, failed.had_bytes + 1))
    elif measurement.estimate is not None:
        return of_estimate(measurement.estimate, parameters=0)
    else:
        raise ValueError("a measurement without speed, memory or estimate")
    return Candidate(
        name=measurement.variant.name,
        model=measurement.model,
        variant=measurement.variant,
        parameters=0,
        evidence=MEASURED,
        context_tokens=0,
        memory_bytes=exactly(needed),
        first_token_s=None if speed is None else speed.first_token_s,
        per_token_s=None if speed is None else speed.per_token_s,
        completion_s=None if speed is None else speed.completion_s,
    )


def _blocked(proof: WindowProof | None) -> str:
    if proof is None or proof.holds:
        return ""
    if proof.verdict == "inconclusive":
        return (
            "it is too coarse to tell whether it keeps the window: "
            f"{proof.past_nats:.2e} nats from the checkpoint, {proof.from_full_nats:.2e} from full "
            "attention; choose a finer recipe, such as Q5_K_M or Q8_0"
        )
    for call in proof.calls:
        if not call.is_as_near:
            return (
                f"it generates less exactly than it reads: {call.nats:.2e} nats in calls of "
                f"{call.ids}, {call.block_nats:.2e} in a block; run `make setup` for the engine "
                "that belongs here"
            )
    return (
        f"it does not keep the window: the divergence past it should be near "
        f"{proof.inside_nats:.2e}; run `make setup` for the engine that belongs here"
    )
