"""What a bundle's manifest says was measured where it was made: what `doctor` holds a device to.

`measured` is evidence, not part of the contract, so it may lack anything here. Standard library
only.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Baseline:
    """Figures of the manifest; None for what it does not have.

    first_token_s: for a prompt of prompt_tokens, with nothing in the cache; a median where several
    were timed, of which fastest_prompt_s is the fastest. per_token_s: median of the single-token
    steps after depth_tokens tokens. memory_bytes: the most that the measuring process held, or that
    its device reported.
    """

    device: str | None = None
    threads: int | None = None
    context_tokens: int | None = None
    prompt_tokens: int | None = None
    first_token_s: float | None = None
    depth_tokens: int | None = None
    per_token_s: float | None = None
    memory_bytes: int | None = None
    artifact_bytes: int | None = None
    fastest_prompt_s: float | None = None


def read_baseline(measured: Mapping[str, Any]) -> Baseline:
    """Whatever of it is there, in the words of any starpack so far."""
    speed = _mapping(measured.get("speed"))
    prompt_tokens = _number(_mapping(speed.get("workload")).get("prompt_tokens"))
    if prompt_tokens is None:
        prompt_tokens = _number(speed.get("prompt_tokens"))
    first_token_s = _median(speed.get("cold_s"))
    if first_token_s is None:
        first_token_s = _number(speed.get("first_token_s"))
    depth_tokens, per_token_s = _steps(speed, prompt_tokens)
    device = measured.get("device")
    return Baseline(
        device=device if isinstance(device, str) else None,
        threads=_count(speed.get("threads")),
        context_tokens=_count(speed.get("context_tokens")),
        prompt_tokens=_count(prompt_tokens),
        first_token_s=first_token_s,
        depth_tokens=_count(depth_tokens),
        per_token_s=per_token_s,
        memory_bytes=_count(speed.get("device_memory_bytes"))
        or _count(speed.get("peak_memory_bytes")),
        artifact_bytes=_count(measured.get("artifact_bytes")),
        fastest_prompt_s=min(_numbers(speed.get("cold_s")), default=first_token_s),
    )


def needed_bytes(memory_bytes: int | None, model_bytes: int) -> int:
    """Memory to have free: what the model held where it was measured, or its files at the least."""
    return max(memory_bytes or 0, model_bytes)


def fits(needed: int, available: int) -> bool:
    """Whether the memory is enough; what is not known (0) is taken to be."""
    return not available or needed <= available


def _steps(
    speed: Mapping[str, Any], prompt_tokens: float | None
) -> tuple[float | None, float | None]:
    """Depth and median time of the steps nearest to the end of the prompt."""
    found = []
    timed = speed.get("steps")
    for steps in timed if isinstance(timed, list) else []:
        depth = _number(_mapping(steps).get("depth_tokens"))
        median = _median(_mapping(steps).get("seconds"))
        if depth is not None and median is not None:
            found.append((depth, median))
    if found:
        return min(found, key=lambda step: (abs(step[0] - (prompt_tokens or 0)), step[0]))
    return prompt_tokens, _number(speed.get("per_token_p50_s"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    """A number above or equal to 0; anything else is not one that was measured."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return None
    return value


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None or number == float("inf") else int(number)


def _median(value: object) -> float | None:
    numbers = _numbers(value)
    return statistics.median(numbers) if numbers else None


def _numbers(value: object) -> list[float]:
    found = map(_number, value) if isinstance(value, list) else ()
    return [number for number in found if number is not None]
