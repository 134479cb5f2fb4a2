"""The figures of a measurement, one a line, as the model card and the bill of materials show them.

Takes what the manifest has under `measured`. What is not there is not shown; nothing is rounded
away but in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtimes.bundle.baseline import read_baseline


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; `part` names the text or the depth that it is of."""

    name: str
    value: float
    unit: str
    part: str = ""

    @property
    def text(self) -> str:
        """The value with its unit, in six digits."""
        return f"{self.value:.6g} {self.unit}".strip()


def figures(measured: Mapping[str, Any]) -> list[Figure]:
    """Quality first, then speed and memory."""
    return [*_proof(measured), *_quality(measured), *_speed(measured)]


def _proof(measured: Mapping[str, Any]) -> Iterator[Figure]:
    """The window proof: divergences from the float32 checkpoint."""
    inside, past = "positions inside the window", "positions past the window"
    for key, name, part in (
        ("inside_nats", "Kullback-Leibler divergence", inside),
        ("past_nats", "Kullback-Leibler divergence", past),
        ("from_full_nats", "divergence from full attention", past),
    ):
        yield from _one(measured, ("proof", key), name, "nats per position", part)
    for key, part in (("agree_inside", inside), ("agree_past", past)):
        yield from _one(measured, ("proof", key), "top-1 agreement with the checkpoint", "", part)
    yield from _one(
        measured,
        ("proof", "beyond_reach"),
        "change of a logit by a token out of the layers' reach",
        "",
    )


def _quality(measured: Mapping[str, Any]) -> Iterator[Figure]:
    for part, text in (("inside", "held-out text, inside the window"),
                          ("past", "held-out text, past the window")):  # fmt: skip
        for key, name, unit in (
            ("perplexity", "perplexity", ""),
            ("reference_perplexity", "perplexity of the checkpoint", ""),
            ("mean_nats", "mean divergence", "nats per token"),
            ("p99_nats", "99th percentile of the divergence", "nats per token"),
        ):
            yield from _one(measured, ("quality", part, key), name, unit, text)
    scores = _get(measured, "quality", "fim")
    for score in scores if isinstance(scores, list) else []:
        if isinstance(score, Mapping):
            part = f"{score.get('samples')} infilling samples of kind {score.get('kind')}"
            yield from _one(score, ("exact",), "filled in exactly", "", part)
            yield from _one(score, ("reference_exact",), "the same by the checkpoint", "", part)


def _speed(measured: Mapping[str, Any]) -> Iterator[Figure]:
    baseline = read_baseline(measured)
    if baseline.first_token_s is not None:
        part = f"prompt of {baseline.prompt_tokens} tokens, nothing in the cache"
        yield Figure("first token", baseline.first_token_s, "s", part)
    if baseline.per_token_s is not None:
        part = f"after {baseline.depth_tokens} tokens"
        yield Figure("each further token", baseline.per_token_s, "s", part)
    if baseline.memory_bytes is not None:
        yield Figure("memory at the most", baseline.memory_bytes, "bytes")


def _one(
    data: Mapping[str, Any], keys: tuple[str, ...], name: str, unit: str, part: str = ""
) -> Iterator[Figure]:
    value = _get(data, *keys)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield Figure(name, value, unit, part)


def _get(data: object, *keys: str) -> object:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data
