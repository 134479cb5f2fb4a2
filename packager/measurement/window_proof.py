"""Does an artifact compute what its checkpoint computes, before and past the window?

Compares the open backend with the float32 reference, position by position. Knows nothing of
formats: any backend is proved the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import runtimes
from packager.checkpoint.reference import Reference
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.package_data import profiles_folder
from packager.core.records import Checkpoint, Progress, no_progress
from packager.core.results import NOISE_NATS, CallFigures, CurvePoint, Verdict, WindowProof
from runtimes import backends
from runtimes.contract import Backend, Window
from runtimes.errors import LogitsError
from runtimes.prompts.tokenizer import Tokenizer

Doubles = NDArray[np.float64]

RUNTIME = Path(runtimes.__file__).parent
CURVE_POINTS = 64  # what a plot can show
BLOCK = 128  # positions whose logits are held at a time: 25 MB at 49,152 ids
MIN_PAST_TOKENS, MAX_PAST_TOKENS = 512, 2048  # positions looked at past the window
REACH_LIMIT_TOKENS = 8192  # a longer reach is not run: minutes to hours on a CPU
# A divergence past the window of more than this many times the one inside means that the window
# is not the model's own. Measured for losing it: 100 times and more.
PAST_OVER_INSIDE = 2.0
# How many standard errors nearer the artifact has to be to the window than to full attention, where
# the reach cannot be run. Guessed: neighbouring positions are not independent.
SURE = 5.0
# Ids per call, and how many calls; what generates comes in such calls, and engines have other
# kernels for them than for blocks.
SHORT_CALLS = {"1": (1,) * 24, "2 to 63": (2, 3, 7, 12)}
VERSION = 5  # of what a proof and the figures beside it are: part of the key of every measurement


@dataclass(frozen=True, slots=True)
class Sample:
    """Ids (T,) of the text that artifacts are compared on, and the window's length in it."""

    ids: np.ndarray
    inside: int


def proof_sample(checkpoint: Checkpoint, text: str) -> Sample:
    """The beginning of `text`, some way past the window, in the checkpoint's own ids."""
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_NAME, checkpoint.special_ids)
    window = checkpoint.window.size_tokens or checkpoint.context_tokens
    ids = np.array(tokenizer.encode(text))
    length = min(window + past_tokens(window), checkpoint.context_tokens)
    repeats = -(-length // len(ids))
    return Sample(np.tile(ids, repeats)[:length], min(window, length))


def past_tokens(window_tokens: int) -> int:
    """How many positions are looked at past a window."""
    return max(MIN_PAST_TOKENS, min(7 * window_tokens, MAX_PAST_TOKENS))


def builtin_text() -> str:
    """A text that is always at hand and never changes: 48 kB of Python, ASCII."""
    return (profiles_folder() / "texts" / "window-proof.txt").read_text("utf-8")


def computing_sha256(format: str) -> str:
    """Of the runtime's source code that computes the answers of an artifact of `format`.

    Its backend, what all backends share and the rooms above them. What shows answers is left out:
    a change there makes no proof out of date.
    """
    shared = [RUNTIME / "contract.py", *(RUNTIME / "backends").glob("*.py")]
    rooms = [RUNTIME / "generation", RUNTIME / "prompts", *backends.folders(format)]
    digest = hashlib.sha256()
    for file in [*sorted(shared), *(f for room in rooms for f in sorted(room.rglob("*.py")))]:
        digest.update(f"{file.parent.name}/{file.name}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def prove_window(
    reference: Reference, backend: Backend, sample: Sample, progress: Progress = no_progress
) -> WindowProof:
    """Compare `backend` with the reference on `sample`, then test how far a token reaches."""
    checkpoint = reference.checkpoint
    sequences, length = [sample.ids], len(sample.ids)
    past = length > sample.inside
    (kept,) = reference.states(sequences, progress=progress)
    if past:
        (lost,) = reference.states(sequences, window=Window(None), progress=progress)
    nats, full_nats, agree = np.empty(length), np.zeros(length), np.empty(length, bool)
    calls: list[CallFigures] = []
    for block, right, found in compare(reference, backend, sample.ids, kept):
        nats[block] = divergence(right, found)
        agree[block] = right.argmax(-1) == found.argmax(-1)
        if block.stop > sample.inside:
            wrong = log_softmax(reference.logits(lost[block]))
            full_nats[block] = divergence(wrong, found)
        if block.stop in (sample.inside - sample.inside % BLOCK, length):
            calls += short_calls(reference, backend, sample.ids, kept, nats)
        progress("compare", block.stop, length)
    at_reach, beyond_reach = reach(checkpoint, backend)
    inside, after = slice(sample.inside), slice(sample.inside, None)
    return WindowProof(
        window_tokens=checkpoint.window.size_tokens,
        engine_window=backend.describe()["window_applied"],
        positions=length,
        inside_nats=float(nats[inside].mean()),
        past_nats=float(nats[after].mean()) if past else None,
        from_full_nats=float(full_nats[after].mean()) if past else None,
        agree_inside=float(agree[inside].mean()),
        agree_past=float(agree[after].mean()) if past else None,
        reach_tokens=checkpoint.window.reach_tokens(checkpoint.geometry.layers),
        at_reach=at_reach,
        beyond_reach=beyond_reach,
        verdict=judge(nats[inside], nats[after], full_nats[after], beyond_reach, calls),
        curve=_curve(nats, full_nats, sample.inside),
        calls=tuple(calls),
    )


def compare(
    reference: Reference, backend: Backend, ids: np.ndarray, states: np.ndarray
) -> Iterator[tuple[slice, Doubles, Doubles]]:
    """Blocks of positions of `ids` (T,), with log-probabilities (block, vocab) after each.

    Those of the reference, from its final states (T, hidden), and those of the backend, which
    starts anew. Raises LogitsError where these are not numbers.
    """
    backend.rewind(0)
    step = min(BLOCK, backend.chunk_tokens)
    for start in range(0, len(ids), step):
        block = slice(start, min(start + step, len(ids)))
        right = log_softmax(reference.logits(states[block]))
        logits = backend.forward(ids[block].tolist(), last_only=False)
        if not np.isfinite(logits).all():
            raise LogitsError(
                f"its logits are not numbers after position {start}: values have left the range of "
                "the 16-bit floats that this recipe computes in",
                remedy="take a recipe with bfloat16, or a quantised one",
            )
        yield block, right, log_softmax(logits)


def short_calls(
    reference: Reference, backend: Backend, ids: np.ndarray, states: np.ndarray, nats: np.ndarray
) -> list[CallFigures]:
    """Take the last positions again in short calls; nats (T,) are those of blocks.

    The backend ends where it is. Positions that it cannot go back to exactly are left out.
    """
    end, found = backend.position, []
    for kind, counts in SHORT_CALLS.items():
        start = max(end - sum(counts), backend.min_rewind)
        if start == end:
            continue
        backend.rewind(start)
        again = []
        for count in counts:
            part = slice(backend.position, min(backend.position + count, end))
            if part.start == part.stop:
                break
            logits = backend.forward(ids[part].tolist(), last_only=False)
            again.append(
                divergence(log_softmax(reference.logits(states[part])), log_softmax(logits))
            )
        means = np.concatenate(again).mean(), nats[start : backend.position].mean()
        found.append(CallFigures(kind, end, *map(float, means)))
    return found


def _curve(nats: np.ndarray, full_nats: np.ndarray, inside: int) -> tuple[CurvePoint, ...]:
    """Means over blocks, none of which lies on both sides of the window's end."""
    step = -(-len(nats) // CURVE_POINTS)
    starts = [*range(0, inside, step), *range(inside, len(nats), step)]
    stops = [*starts[1:], len(nats)]
    return tuple(
        CurvePoint(
            start,
            float(nats[start:stop].mean()),
            float(full_nats[start:stop].mean()) if start >= inside else None,
        )
        for start, stop in zip(starts, stops, strict=True)
    )


def judge(
    inside: np.ndarray,
    past: np.ndarray,
    full: np.ndarray,
    beyond_reach: float | None,
    calls: Sequence[CallFigures] = (),
) -> Verdict:
    """The verdict: "holds", "fails" or "inconclusive", from divergences in nats per position.

    inside (W,) and past (P,) are from the checkpoint, full (P,) from full attention past the
    window; beyond_reach as in WindowProof. Where the reach was run it decides. Otherwise the
    artifact must be surely nearer to the window than to full attention: coarse quantisation can
    hide the difference, and a comparison that cannot see it proves nothing. Single tokens and short
    calls must be as near as blocks.
    """
    if not all(call.is_as_near for call in calls):
        return "fails"
    if not len(past):
        return "holds"  # every position sees every other: there is nothing to lose
    if beyond_reach or past.mean() > PAST_OVER_INSIDE * inside.mean() + NOISE_NATS:
        return "fails"
    if beyond_reach == 0:
        return "holds"
    nearer = full - past
    sure = nearer.mean() > SURE * nearer.std() / np.sqrt(len(nearer))
    return "holds" if sure else "inconclusive"


def reach(checkpoint: Checkpoint, backend: Backend) -> tuple[float | None, float | None]:
    """Largest logit change when the token L(W - 1) back is replaced, and the one before it.

    Needs no reference. (None, None) where the reach is beyond the backend's context or the limit.
    """
    distance = checkpoint.window.reach_tokens(checkpoint.geometry.layers)
    if distance is None or distance + 2 > min(backend.context_tokens, REACH_LIMIT_TOKENS):
        return None, None
    rng = np.random.default_rng(0)
    ids = rng.integers(40, checkpoint.geometry.vocab, distance + 2).tolist()

    def last_logits(changed: int | None) -> np.ndarray:
        variant = list(ids)
        if changed is not None:
            variant[changed] = 40 + (variant[changed] - 39) % (checkpoint.geometry.vocab - 40)
        backend.rewind(0)
        for start in range(0, len(variant), backend.chunk_tokens):
            logits = backend.forward(variant[start : start + backend.chunk_tokens])
        last: np.ndarray = logits[-1]
        return last

    base = last_logits(None)
    at, beyond = (float(np.abs(last_logits(i) - base).max()) for i in (1, 0))
    return at, beyond


def log_softmax(logits: np.ndarray) -> Doubles:
    """Natural logarithms of probabilities, (T, vocab)."""
    shifted: Doubles = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    total: Doubles = np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted - total


def divergence(reference: Doubles, found: Doubles) -> Doubles:
    """Kullback-Leibler divergence (T,) of log-probabilities (T, vocab), in nats."""
    nats: Doubles = (np.exp(reference) * (reference - found)).sum(-1)
    return nats
