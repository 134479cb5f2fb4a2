"""Three variants to choose from, one better and slower than the next."""

from __future__ import annotations

from packager.core.records import Budget, Interval, Limit, Variant
from packager.core.results import Candidate
from packager.selection.selector import select

GIB = 1 << 30


def candidate(recipe: str, nats: float | None, gib: float, step: float = 0.01, **more) -> Candidate:
    memory = gib * GIB
    facts = dict(
        name=f"gguf-{recipe}",
        model="3b",
        variant=Variant("gguf", recipe, 4.5, None),
        parameters=3,
        evidence="measured here",
        context_tokens=16_384,
        memory_bytes=Interval(memory, memory, memory),
        first_token_s=Limit(20 * step, 30 * step),
        per_token_s=Limit(step, 1.2 * step),
        completion_s=Limit(40 * step, 60 * step),
        divergence_nats=nats,
        agreement=None if nats is None else 1 - nats,
    )
    return Candidate(**facts | more)


FINE = candidate("F16", 0.0, 6.0, 0.04)


MIDDLE = candidate("Q8_0", 2e-3, 3.0, 0.02)


SMALL = candidate("Q4_K_M", 4e-2, 2.0, 0.01)


ALL = (SMALL, FINE, MIDDLE)


NO_LIMITS = Budget()


def choose(candidates=ALL, budget=NO_LIMITS, memory=24 * GIB, **more):
    return select(candidates, budget, "card", memory, **more)
