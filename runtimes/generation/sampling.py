"""From logits to an id: the one place where a token is chosen.

Order of operations: repetition penalty, temperature, top-k, top-p, min-p, draw. It is the order
of transformers (generation/utils.py, `_get_logits_processor`), this model's reference. llama.cpp
filters first and applies the temperature last, so the same numbers there cut a little differently
when the temperature is not 1. Knows nothing of models, text or stopping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtimes.errors import LogitsError, UsageError

MAX_PENALTY = 100  # guessed: far beyond use, and dividing by it or 1/100 overflows nothing
OFF = -1  # clients (Cody, llama.cpp's own) send -1 for "off"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next id. The default is greedy: the most likely id, always.

    temperature: 0 is greedy, whatever the other fields say but the penalty; no upper bound.
    top_k: keep the k most likely ids, and any that tie with the last; 0 or -1 is off.
    top_p: keep the fewest most likely ids that reach this mass, at least one; 1 or -1 is off.
    min_p: keep ids at least this fraction as likely as the likeliest; 0 or -1 is off.
    repetition_penalty: logits of ids already in the prompt or the answer are divided by it where
    positive and multiplied where negative (arXiv 1909.05858); 1 is off.
    presence_penalty, frequency_penalty: subtracted from the logits of ids already in the answer,
    once and once for each time (OpenAI's reference of /v1/completions); 0 is off.
    seed: the same request with the same seed gives the same ids. 0 to 2**64 - 1.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Raise UsageError that names the first field out of range."""
        self._need("temperature", self.temperature >= 0, "0 (greedy) or more")
        self._need("top_k", _is_int(self.top_k) and self.top_k >= OFF, "an integer, -1 or more")
        self._need("top_p", self.top_p == OFF or 0 <= self.top_p <= 1, "0 to 1, or -1 for off")
        self._need("min_p", self.min_p == OFF or 0 <= self.min_p <= 1, "0 to 1, or -1 for off")
        in_range = 1 / MAX_PENALTY <= self.repetition_penalty <= MAX_PENALTY
        self._need("repetition_penalty", in_range, f"{1 / MAX_PENALTY} to {MAX_PENALTY}")
        self._need("seed", _is_int(self.seed) and 0 <= self.seed < 2**64, "0 to 2**64 - 1")
        self._need("presence_penalty", True, "a number")
        self._need("frequency_penalty", True, "a number")

    def _need(self, name: str, good: bool, expected: str) -> None:
        value = getattr(self, name)
        if not good or not math.isfinite(value):
            raise UsageError(f"{name} is {value!r}", where="sampling", expected=expected)


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, as the model gave them, before any sampling option.

    `top` holds the likeliest ids with theirs, best first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses ids one after the other. One sampler serves one request.

    Every `pick` that samples takes exactly one number from the seeded stream, so the n-th choice
    depends on the n-th logits and on what was chosen before, and on nothing else. This is what
    makes speculation exact.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._random = np.random.PCG64(sampling.seed)
        self._seen = np.zeros(vocab_size, dtype=bool)  # (vocab,)
        self._seen[np.asarray(prompt_ids, dtype=np.int64)] = True
        self._times = np.zeros(vocab_size, dtype=np.float32)  # (vocab,), in the answer alone

    def pick(self, logits: np.ndarray) -> int:
        """Choose an id from `logits` (vocab,), which is left as it was, and remember it.

        Raises LogitsError where the logits are not numbers.
        """
        if not np.isfinite(logits.max()):  # the maximum is NaN if any is
            raise LogitsError(
                "the engine returned logits that are not numbers",
                remedy="verify the bundle; if it is intact, try fewer GPU layers and report this",
            )
        scores = self._penalised(logits)
        token_id = int(scores.argmax()) if self._sampling.temperature == 0 else self._draw(scores)
        self._seen[token_id] = True
        self._times[token_id] += 1
        return token_id

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        options = self._sampling
        penalty = options.repetition_penalty
        if penalty != 1:
            harder = np.where(logits > 0, logits / penalty, logits * penalty)
            logits = np.where(self._seen, harder, logits)
        if options.presence_penalty or options.frequency_penalty:
            once, each = np.float32(options.presence_penalty), np.float32(options.frequency_penalty)
            logits = logits - (once * (self._times > 0) + each * self._times)
        return logits

    def _draw(self, scores: np.ndarray) -> int:
        options = self._sampling
        kept = np.arange(scores.size)
        if 0 < options.top_k < scores.size:
            # Dividing by the temperature keeps the order, so top-k may come before it.
            kept = np.flatnonzero(scores >= np.partition(scores, -options.top_k)[-options.top_k])
        # Subtract before dividing: a temperature near 0 must not overflow.
        scaled = (scores[kept].astype(np.float64) - scores.max()) / options.temperature
        weights = np.exp(scaled)  # (kept,), the likeliest is 1
        if options.top_p != OFF and options.top_p < 1:
            chosen = _nucleus(weights, options.top_p)
            kept, weights = kept[chosen], weights[chosen]
        if options.min_p > 0:
            chosen = weights >= options.min_p
            kept, weights = kept[chosen], weights[chosen]
        edges = np.cumsum(weights)
        place = int(np.searchsorted(edges, self._uniform() * edges[-1], side="right"))
        return int(kept[min(place, kept.size - 1)])

    def _uniform(self) -> float:
        """Next number in [0, 1), from raw bits: NumPy promises those for ever, not `random()`."""
        return (int(self._random.random_raw()) >> 11) * 2.0**-53


def _nucleus(weights: np.ndarray, mass: float) -> np.ndarray:
    """Places, in ascending order, of the fewest largest weights that reach `mass` of the sum."""
    goal = mass * weights.sum()
    # What is below this floor adds up to less than (1 - mass), so the nucleus lies above it:
    # sorting a few hundred ids, not the vocabulary.
    floor = (1 - mass) * weights.sum() / weights.size
    places = np.flatnonzero(weights >= floor)
    order = places[np.argsort(-weights[places], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order]), goal, side="left")) + 1
    return np.sort(order[:count])


def token_logprobs(logits: np.ndarray, token_id: int, top: int = 0) -> TokenLogprobs:
    """Log-probability of `token_id` and of the `top` likeliest ids, from raw logits (vocab,)."""
    wide = logits.astype(np.float64)
    total = log_sum_exp(wide)
    best: list[int] = []
    if top > 0:
        top = min(top, wide.size)
        candidates = np.flatnonzero(wide >= np.partition(wide, -top)[-top])
        best = candidates[np.argsort(-wide[candidates], kind="stable")][:top].tolist()
    return TokenLogprobs(
        id=token_id,
        logprob=float(wide[token_id] - total),
        top=tuple((other, float(wide[other] - total)) for other in best),
    )


def log_sum_exp(values: np.ndarray) -> float:
    """log(sum(exp(values))) without overflow."""
    most = values.max()
    return float(most + np.log(np.exp(values - most).sum()))
