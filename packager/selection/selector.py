"""The best candidate within a budget on a device, and for every other one why not.

Feasible is what keeps every limit with the upper bound of what is known of it. Among those the
best quality wins, then the shorter completion, then the smaller memory. Knows nothing of how
figures were obtained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from packager.core.errors import NothingFits, QualityError, UsageError
from packager.core.records import Budget, Limit
from packager.core.results import Candidate, LimitName, Rejection, Selection
from packager.core.units import duration, gib

PREFERENCES = ("quality", "latency", "memory", "throughput")
UNCALIBRATED, QUALITY = "uncalibrated", "quality"
ORDER: LimitName = "order"
# Guessed: differences below it are those of two roundings of the same weights, such as F16 and
# BF16, and no reader of the text could tell them apart.
SAME_NATS = 1e-3
UNKNOWN = float("inf")
VALIDATE = (
    "run `starpack device calibrate` on the device (it runs GGUF), `starpack profile` there, "
    "or --accept-uncalibrated"
)
VERSION = 3  # of how the choice is made: part of the key of every selection

AtContext = Callable[[Candidate, int], Candidate | None]
"""at_context(candidate, tokens): the same in a context of so many tokens; None if not known."""


@dataclass(frozen=True, slots=True)
class LimitViolation:
    """A limit that is not kept: value over limit (0 if no number binds), and the remedy."""

    limit: LimitName
    ratio: float
    reason: str
    remedy: str


def select(
    candidates: Sequence[Candidate],
    budget: Budget,
    device: str,
    memory_bytes: int,
    *,
    prefer: str = "quality",
    accept: Iterable[str] = (),
    at_context: AtContext | None = None,
) -> Selection:
    """Choose for a device with `memory_bytes` for a process.

    accept: UNCALIBRATED and QUALITY may be overridden; what was is in the selection. Raises
    QualityError where only the quality floor or the window stands against every candidate,
    NothingFits where more does; both list all reasons.
    """
    if prefer not in PREFERENCES:
        raise UsageError(f"unknown preference {prefer!r}", expected=", ".join(PREFERENCES))
    judge = _Judge(budget, memory_bytes, frozenset(accept), at_context)
    feasible, rejected = [], []
    for candidate in candidates:
        violations = judge.violations(candidate)
        if violations:
            rejected.append((candidate, violations))
        else:
            feasible.append(candidate)
    feasible.sort(key=lambda candidate: _rank(candidate, prefer))
    explained = tuple(_rejection(*pair, feasible) for pair in rejected)
    if not feasible:
        raise _nothing(explained, budget, device, memory_bytes)
    chosen, others = feasible[0], feasible[1:]
    behind = tuple(_behind(other, chosen, prefer, judge.overridden(other)) for other in others)
    return Selection(budget, device, prefer, chosen, behind + explained, judge.overridden(chosen))


def available_bytes(budget: Budget, memory_bytes: int) -> int:
    """What a candidate may take of a device that has `memory_bytes` for a process."""
    available = memory_bytes - budget.memory_reserve_bytes
    return available if budget.memory_bytes is None else min(available, budget.memory_bytes)


class _Judge:
    """Holds candidates against the limits."""

    def __init__(
        self,
        budget: Budget,
        memory_bytes: int,
        accept: frozenset[str],
        at_context: AtContext | None,
    ) -> None:
        self.budget, self.available = budget, available_bytes(budget, memory_bytes)
        self.accept, self.at_context = accept, at_context

    def violations(self, candidate: Candidate) -> list[LimitViolation]:
        """Every limit that the candidate breaks, the worst first; quality and proof at the end."""
        if candidate.blocked:
            return [
                LimitViolation("proof", 0.0, candidate.blocked, "its window has to be proved first")
            ]
        found = [*self._memory(candidate), *self._times(candidate), *self._context(candidate)]
        found.sort(key=lambda violation: -violation.ratio)
        if candidate.unsupported:
            remedy = "another recipe or device"
            found.append(LimitViolation("kernel", 0.0, candidate.unsupported, remedy))
        elif candidate.unreliable and UNCALIBRATED not in self.accept:
            reason = f"estimate not validated for this device: {candidate.unreliable}"
            found.append(LimitViolation("evidence", 0.0, reason, VALIDATE))
        if QUALITY not in self.accept:
            found += self._quality(candidate)
        return found

    def overridden(self, candidate: Candidate) -> tuple[str, ...]:
        """What had to be accepted for this candidate to be feasible."""
        found = []
        if candidate.unreliable:
            found.append(f"{UNCALIBRATED}: {candidate.unreliable}")
        found += [f"{QUALITY}: {violation.reason}" for violation in self._quality(candidate)]
        return tuple(found)

    def _memory(self, candidate: Candidate) -> list[LimitViolation]:
        needed = candidate.memory_bytes.high
        if needed <= self.available:
            return []
        remedy = f"add {gib(needed - self.available)} of memory"
        shorter = self._context_that_fits(candidate)
        if shorter is not None:
            remedy = f"reduce the context to {shorter} tokens, or {remedy}"
        reason = (
            f"it takes up to {gib(needed)} of memory, and {gib(max(self.available, 0))} is there"
        )
        return [LimitViolation("memory", needed / max(self.available, 1), reason, remedy)]

    def _context_that_fits(self, candidate: Candidate) -> int | None:
        """The longest context, halving the wanted one, at which the memory is enough."""
        tokens = candidate.context_tokens // 2
        least = self.budget.workload.prompt_tokens + self.budget.workload.output_tokens
        while self.at_context is not None and tokens >= least:
            smaller = self.at_context(candidate, tokens)
            if smaller is None:
                return None
            if smaller.memory_bytes.high <= self.available:
                return tokens
            tokens //= 2
        return None

    def _times(self, candidate: Candidate) -> list[LimitViolation]:
        budget, work = self.budget, self.budget.workload
        new = work.prompt_tokens - work.warm_prefix_tokens
        rows: list[tuple[LimitName, Limit | None, Limit | None, int, str]] = [
            ("first token", candidate.first_token_s, budget.first_token_s, new,
             "new tokens of prompt"),
            ("completion", candidate.completion_s, budget.completion_s, work.output_tokens,
             "tokens of output"),
            ("per token", candidate.per_token_s, budget.per_token_s, 0, ""),
        ]  # fmt: skip
        found = []
        for what, value, limit, count, unit in rows:
            if value is None or limit is None:
                continue
            ratio = max(value.p50 / limit.p50, value.p90 / limit.p90)
            if ratio <= 1:
                continue
            fewer = int(count / ratio)
            change = f"reduce the {unit} from {count} to about {fewer}, or " if fewer else ""
            remedy = f"{change}use a device or recipe {ratio:.3g} times as fast"
            found.append(LimitViolation(what, ratio, _too_slow(what, value, limit), remedy))
        return found

    def _context(self, candidate: Candidate) -> list[LimitViolation]:
        wanted = self.budget.context_tokens
        if wanted is None or candidate.context_tokens >= wanted:
            return []
        return [LimitViolation(
            "context", wanted / candidate.context_tokens,
            f"it opens {candidate.context_tokens} tokens, and {wanted} are wanted",
            f"use --context {wanted}, if the model has them",
        )]  # fmt: skip

    def _quality(self, candidate: Candidate) -> list[LimitViolation]:
        found = []
        nats, most = candidate.divergence_nats, self.budget.divergence_nats
        if nats is not None and most is not None and nats > most:
            reason = (
                f"it diverges by {nats:.3g} nats from the checkpoint, and the floor is {most:g}"
            )
            found.append(LimitViolation("quality", nats / most, reason, "use a finer recipe"))
        agreement, least = candidate.agreement, self.budget.agreement
        if agreement is not None and least is not None and agreement < least:
            reason = (
                f"its top-1 agreement is at least {agreement:.1%}, and the floor is {least:.1%}"
            )
            ratio = (1 - agreement) / max(1 - least, 1e-9)
            found.append(LimitViolation("quality", ratio, reason, "use a finer recipe"))
        return found


def _rank(candidate: Candidate, prefer: str) -> tuple[float, ...]:
    """The least is the best. Bits stand for quality where nothing was measured."""
    nats = candidate.divergence_nats
    coarse = -candidate.variant.bits if nats is None else max(nats, SAME_NATS)
    quality = (-candidate.parameters, coarse)
    completion = UNKNOWN if candidate.completion_s is None else candidate.completion_s.p50
    step = UNKNOWN if candidate.per_token_s is None else candidate.per_token_s.p50
    memory = candidate.memory_bytes.middle
    first = {"quality": (), "latency": (completion,), "memory": (memory,), "throughput": (step,)}
    return (*first[prefer], *quality, completion, memory)


def _rejection(
    candidate: Candidate, violations: list[LimitViolation], feasible: Sequence[Candidate]
) -> Rejection:
    first = violations[0]
    remedy = "; and ".join(dict.fromkeys(violation.remedy for violation in violations))
    instead = _instead(candidate, feasible)
    if instead and first.limit != "proof":
        remedy = f"{instead}; or {remedy}"
    others = tuple(violation.reason for violation in violations[1:])
    return Rejection(candidate, first.limit, first.ratio, first.reason, remedy, others)


def _instead(candidate: Candidate, feasible: Sequence[Candidate]) -> str:
    """The nearest feasible candidate: another recipe of this model, or a smaller model."""
    same = [f for f in feasible if f.model == candidate.model]
    if same:
        alike = [f for f in same if f.variant.format == candidate.variant.format]
        return f"use {(alike or same)[0].variant.name}"
    smaller = [f for f in feasible if f.parameters < candidate.parameters]
    return f"use the smaller {smaller[0].name}" if smaller else ""


def _behind(
    other: Candidate, chosen: Candidate, prefer: str, overridden: tuple[str, ...]
) -> Rejection:
    """Why a feasible candidate comes after the chosen one."""
    names = ["the preferred figure"] * (len(_rank(chosen, prefer)) - 4)
    names += ["the size of the model", "quality", "the completion time", "memory"]
    pairs = zip(names, _rank(other, prefer), _rank(chosen, prefer), strict=True)
    what = next((name for name, theirs, ours in pairs if theirs != ours), "nothing")
    return Rejection(
        other, ORDER, 0.0, f"it fits, and {chosen.name} is better in {what}",
        "tighten the budget, or change --prefer", overridden,
    )  # fmt: skip


def _nothing(
    rejected: tuple[Rejection, ...], budget: Budget, device: str, memory_bytes: int
) -> NothingFits | QualityError:
    """The error for this list: every candidate with its reason and the least change."""
    floor_only: set[LimitName] = {"quality", "proof"}
    kind = QualityError if rejected and {r.limit for r in rejected} <= floor_only else NothingFits
    # those that miss by least come first; what no number binds comes last
    ordered = sorted(rejected, key=lambda r: r.ratio or UNKNOWN)
    lines = [f"{r.candidate.name}: {r.reason}. To make it fit: {r.remedy}" for r in ordered]
    what = f"nothing fits {device} ({gib(memory_bytes)}) within the budget {budget.name!r}"
    if kind is QualityError:
        what = "no artifact passes the quality gate"
    return kind(
        what,
        expected="\n    ".join(["one that keeps every limit", *lines]),
        remedy="the smallest changes are in the list, the nearest miss first"
        if kind is NothingFits
        else "use a finer recipe; or --accept-quality if only the floor is missed: it is recorded",
        rejected=ordered,
    )


def _too_slow(what: str, value: Limit, limit: Limit) -> str:
    if value.p50 > limit.p50:
        return f"{what} takes {duration(value.p50)} (p50), the limit is {duration(limit.p50)}"
    return f"{what} takes {duration(value.p90)} (p90), the limit is {duration(limit.p90)}"
