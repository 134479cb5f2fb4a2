"""Budgets: what a request is like and what it may take, from data files by name or by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.core.errors import UsageError
from packager.core.records import Budget, Limit, Workload
from packager.devices.profile_file import (
    builtin_file,
    is_path,
    names,
    read_profile,
    slug,
    unknown_name,
)

TIMES = ("first_token_s", "completion_s", "per_token_s")


def load_budget(wanted: str | Path | None) -> Budget:
    """The budget of a name ("inline"), or of a file ("mine.json"); None: no limits.

    Raises UsageError: an unknown name or key, a value in another unit, values that contradict each
    other. It names the key and the remedy.
    """
    if wanted is None:
        return Budget()
    file = _find(wanted)
    data = read_profile("budget", file)
    budget = _budget_of(data, name=data.get("name", slug(file.stem)))
    _check(budget, file)
    return budget


def _find(wanted: str | Path) -> Path:
    if is_path(wanted):
        return Path(wanted)
    name = slug(str(wanted))
    if name not in names("budget"):
        raise unknown_name("budget", str(wanted), names("budget"))
    return builtin_file("budget", name)


def _budget_of(data: dict[str, Any], name: str) -> Budget:
    given = {key: value for key, value in data.items() if key not in ("schema", "about")}
    # JSON's 4096.0 is a whole number too
    given |= {key: int(given[key]) for key in given if key.endswith(("_bytes", "_tokens"))}
    given |= {key: Limit(**given[key]) for key in TIMES if key in given}
    workload = {key: int(value) for key, value in given.pop("workload", {}).items()}
    return Budget(**given | {"name": name, "workload": Workload(**workload)})


def _check(budget: Budget, file: Path) -> None:
    """What a schema cannot say: values that contradict each other."""

    def refuse(what: str, expected: str, remedy: str) -> None:
        raise UsageError(f"the budget's {what}", where=file, expected=expected, remedy=remedy)

    for key in TIMES:
        limit = getattr(budget, key)
        if limit and limit.p90 < limit.p50:
            refuse(
                f"{key!r} has p90 {limit.p90:g} below p50 {limit.p50:g}",
                "the time of nine of ten requests, not less than that of half of them",
                "swap them; both are seconds: 150 ms are 0.15",
            )
    first, all_s = budget.first_token_s, budget.completion_s
    if first and all_s and (all_s.p50 < first.p50 or all_s.p90 < first.p90):
        refuse(
            f"'completion_s' ({all_s.p50:g}, {all_s.p90:g}) is below its 'first_token_s' "
            f"({first.p50:g}, {first.p90:g})",
            "a completion takes at least as long as its first token",
            "both are seconds from the request on: raise completion_s or lower first_token_s",
        )
    work, context = budget.workload, budget.context_tokens
    if work.warm_prefix_tokens >= work.prompt_tokens:
        refuse(
            f"'workload.warm_prefix_tokens' is {work.warm_prefix_tokens}",
            f"less than prompt_tokens, {work.prompt_tokens}: at least one token is new",
            "warm_prefix_tokens are a part of prompt_tokens: lower them, or raise prompt_tokens",
        )
    if context is not None and work.prompt_tokens + work.output_tokens > context:
        refuse(
            f"'context_tokens' is {context}",
            f"at least the workload's {work.prompt_tokens} + {work.output_tokens} tokens",
            "raise context_tokens, or make the workload shorter",
        )
    if budget.memory_bytes is not None and budget.memory_reserve_bytes >= budget.memory_bytes:
        refuse(
            f"'memory_reserve_bytes' is {budget.memory_reserve_bytes}",
            f"less than memory_bytes, {budget.memory_bytes}",
            "memory_bytes is a cap on what is used; leave it out to use what the device has",
        )
