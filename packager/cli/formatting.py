"""Measurements and selections in words, for a terminal."""

from __future__ import annotations

from packager.core.results import (
    Candidate,
    Measurement,
    Quality,
    Rejection,
    Selection,
    WindowProof,
    percentiles,
)
from packager.core.units import duration, durations, gib, gib_between, megabytes
from packager.measurement.assessment import Assessment
from packager.selection.candidates import of_measurement
from packager.selection.selector import ORDER

MAX_REJECTIONS = 12  # rejections shown without --explain


def measurement_text(measurement: Measurement) -> str:
    """Everything about one artifact."""
    lines = [
        f"{measurement.variant.name} for {measurement.device}",
        f"  file           {megabytes(measurement.artifact_bytes)}",
        *judged_lines(measurement),
        *_speed_lines(measurement),
    ]
    return "\n".join(lines)


def judged_lines(judged: Assessment | Measurement) -> list[str]:
    """The proof and the gate's figures, or why there are none."""
    if judged.proof is None or judged.quality is None:
        return [f"  of no use      {judged.failure}"]
    return [*proof_lines(judged.proof), *quality_lines(judged.quality)]


def selection_text(selection: Selection, *, explain: bool) -> str:
    """The chosen one, then the others with their reasons; all of each with `explain`."""
    chosen = selection.chosen
    lines = [
        f"chosen for {selection.device}, budget {selection.budget.name}, by {selection.prefer}: "
        f"{chosen.name}",
        f"  {figures(chosen)}",
    ]
    lines += [f"  note: {chosen.note}"] if chosen.note else []
    lines += [f"  overridden: {override}" for override in selection.overrides]
    shown = selection.rejected if explain else selection.rejected[:MAX_REJECTIONS]
    for rejection in shown:
        lines += _rejection_lines(rejection, explain)
    if len(shown) < len(selection.rejected):
        lines.append(f"{len(selection.rejected) - len(shown)} more: see --explain or --json")
    return "\n".join(lines)


def figures(candidate: Candidate) -> str:
    """Memory, times and quality on one line, with their evidence."""
    parts = [f"memory {gib_between(candidate.memory_bytes)}"]
    for name, limit in (
        ("first token", candidate.first_token_s),
        ("per token", candidate.per_token_s),
        ("completion", candidate.completion_s),
    ):
        if limit is not None:
            parts.append(f"{name} {durations(limit)}")
    if candidate.divergence_nats is not None:
        parts.append(f"divergence {candidate.divergence_nats:.3g} nats")
    return f"{', '.join(parts)} ({candidate.evidence})"


def _rejection_lines(rejection: Rejection, explain: bool) -> list[str]:
    lines = [f"not {rejection.candidate.name}: {rejection.reason}"]
    if explain:
        lines.append(f"    {figures(rejection.candidate)}")
        lines += [f"    also: {reason}" for reason in rejection.others]
    if rejection.limit != ORDER or explain:
        lines.append(f"    To make it fit: {rejection.remedy}")
    return lines


def proof_lines(proof: WindowProof) -> list[str]:
    """The window, and how it was proved."""
    lines = [
        f"  window         {proof.window_tokens} tokens; the engine applies {proof.engine_window}",
        f"  divergence     {proof.inside_nats:.2e} nats inside the window "
        f"(top-1 agreement {proof.agree_inside:.1%})",
    ]
    if proof.past_nats is not None:
        lines.append(
            f"                 {proof.past_nats:.2e} nats past it ({proof.agree_past:.1%}); "
            f"{proof.from_full_nats:.2e} from full attention"
        )
    lines += [
        f"                 {call.nats:.2e} nats in calls of {call.ids}, {call.block_nats:.2e} in a "
        f"block, before position {call.end}"
        for call in proof.calls
    ]
    if proof.beyond_reach is not None:
        lines.append(
            f"  reach          token {proof.reach_tokens} back changes a logit by "
            f"{proof.at_reach:.1e}, the one before it by {proof.beyond_reach:.1e}"
        )
    return [*lines, f"  window proof   {proof.verdict} over {proof.positions} positions"]


def quality_lines(quality: Quality) -> list[str]:
    """The gate's figures."""
    lines = []
    for name, score in (("held-out code", quality.inside), ("past it", quality.past)):
        if score is not None:
            lines.append(
                f"  {name:15}perplexity {score.perplexity:.2f} (checkpoint "
                f"{score.reference_perplexity:.2f}), divergence {score.mean_nats:.2e} nats, p99 "
                f"{score.p99_nats:.2e}; top-1 agreement {score.agreement.middle:.1%} "
                f"({score.agreement.low:.1%} to {score.agreement.high:.1%})"
            )
    lines += [
        f"  {score.kind:15}{score.exact:.0%} of {score.samples} exact (checkpoint "
        f"{score.reference_exact:.0%}), {score.same_as_checkpoint:.0%} as the checkpoint fills "
        f"them, similarity {score.similarity:.2f}"
        for score in quality.fim
    ]
    return lines


def _speed_lines(measurement: Measurement) -> list[str]:
    speed, estimate = measurement.speed, measurement.estimate
    lines: list[str] = []
    if measurement.out_of_memory is not None:
        failed = measurement.out_of_memory
        lines.append(
            f"  does not fit   needed more than {gib(failed.needed_bytes)}, had "
            f"{gib(failed.had_bytes)} ({failed.what})"
        )
    if speed is not None:
        work = speed.workload
        lines.append(
            f"  first token    {durations(speed.first_token_s)} for {work.prompt_tokens} "
            f"tokens, {work.warm_prefix_tokens} of them warm"
        )
        lines += [
            f"  per token      {durations(percentiles(steps.seconds))} "
            f"(p95 {duration(steps.p95_s)}) after {steps.depth_tokens} tokens, "
            f"{speed.threads} threads"
            for steps in speed.steps
        ]
        lines.append(
            f"  memory         weights {megabytes(speed.weights_bytes)}, keys and values "
            f"{megabytes(speed.key_values_bytes)}, peak {megabytes(speed.memory_bytes)}"
        )
    if estimate is not None:
        found = of_measurement(measurement, parameters=0, context_tokens=0)
        expected = [f"memory {gib_between(estimate.memory_bytes)}"]
        expected += [
            f"{name} {duration(i.low)} to {duration(i.high)}"
            for name, i in (
                ("first token", estimate.first_token_s),
                ("per token", estimate.per_token_s),
            )
        ]
        lines.append(f"  estimated      {', '.join(expected)} ({estimate.evidence})")
        if found.evidence != estimate.evidence and found.per_token_s is not None:
            ratio = estimate.per_token_s.middle / found.per_token_s.p50
            lines.append(f"                 {ratio - 1:+.0%} from the measured time per token")
        if doubt := estimate.unsupported or estimate.unreliable:
            lines.append(f"                 {doubt}")
    return lines
