"""The quality gate's figures: an artifact beside its unquantised checkpoint, on held-out code.

Reads text inside the window and past it, and fills holes. The checkpoint itself never generates:
a middle is its own greedy choice if and only if each id of it is its first choice after those
before, which one pass over all texts tells. Knows nothing of formats or of limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packager.calibration.sources import texts_sha256
from packager.checkpoint.reference import Reference
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.errors import UsageError
from packager.core.records import Checkpoint, Interval, Progress, no_progress
from packager.core.results import HolesScore, Quality, TextScore
from packager.core.settings import DEFAULT_EXTENT, Extent
from packager.measurement.infill_samples import Hole, draw_holes, edit_similarity, is_exact
from packager.measurement.window_proof import compare, divergence, past_tokens
from runtimes.contract import Backend
from runtimes.generation.completion import GenerateOptions, join
from runtimes.generation.runtime import Runtime
from runtimes.prompts.fim import infill_ids
from runtimes.prompts.tokenizer import Tokenizer

Z = 1.96  # of a 95 % interval
LINE_END = "\n"
VERSION = 1  # of what these figures are: part of the key of every measurement


@dataclass(frozen=True, slots=True)
class _Filled:
    """A hole, its prompt, what was filled in as text and as ids, and what was there, as ids."""

    hole: Hole
    prompt: list[int]
    text: str
    found: list[int]
    truth: list[int]
    stopped: bool


def assess(
    reference: Reference,
    backend: Backend,
    files: Sequence[tuple[str, str]],
    extent: Extent = DEFAULT_EXTENT,
    progress: Progress = no_progress,
) -> Quality:
    """Compare the open backend with the checkpoint on `files`, (name, text) each.

    Raises UsageError where they hold too little text.
    """
    checkpoint = reference.checkpoint
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_NAME, checkpoint.special_ids)
    texts = [ids for _, text in files if (ids := _encode(tokenizer, text))]
    if sum(map(len, texts)) < 2:
        raise UsageError(
            "there is no text to judge quality on",
            expected="source files with characters that the model has tokens for",
            remedy="name a folder with source code with --held-out DIR",
        )
    stretches = _stretches(texts, checkpoint, extent)
    kept = reference.states(stretches, progress=progress)
    inside = [
        _positions(reference, backend, ids, states)
        for ids, states in zip(stretches, kept, strict=True)
    ]
    past, long = None, _long_sequence(texts, checkpoint)
    if long is not None:
        (states,) = reference.states([long], progress=progress)
        past = _positions(reference, backend, long, states)[checkpoint.window.size_tokens :]
    filled = _fill(checkpoint, backend, tokenizer, files, extent, progress)
    return Quality(
        texts_sha256(files),
        _score(np.concatenate(inside)),
        None if past is None else _score(past),
        _holes_scores(filled, _Choices(reference, tokenizer, extent, progress)),
    )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except UsageError:
        return []  # a character that the model has no token for


def _stretches(
    texts: Sequence[list[int]], checkpoint: Checkpoint, extent: Extent
) -> list[np.ndarray]:
    """The beginnings of the texts, each begun as the model's documents are, inside the window."""
    longest = min(
        extent.stretch_tokens,
        checkpoint.window.size_tokens or extent.stretch_tokens,
        checkpoint.context_tokens,
    )
    found: list[np.ndarray] = []
    left = extent.text_tokens
    for ids in texts:
        stretch = [checkpoint.special_ids.endoftext, *ids][: min(longest, left)]
        if len(stretch) > 1:
            found.append(np.array(stretch))
            left -= len(stretch)
    return found


def _long_sequence(texts: Sequence[list[int]], checkpoint: Checkpoint) -> np.ndarray | None:
    """All texts, end to end and from the start again, some way past the window; None without."""
    window = checkpoint.window.size_tokens
    if window is None or window >= checkpoint.context_tokens:
        return None
    joined = [i for ids in texts for i in (*ids, checkpoint.special_ids.endoftext)]
    length = min(window + past_tokens(window), checkpoint.context_tokens)
    return np.tile(joined, -(-length // len(joined)))[:length]


def _fill(
    checkpoint: Checkpoint,
    backend: Backend,
    tokenizer: Tokenizer,
    files: Sequence[tuple[str, str]],
    extent: Extent,
    progress: Progress,
) -> list[_Filled]:
    """Fill the holes with the backend, greedily."""
    runtime = Runtime(backend, tokenizer, checkpoint.special_ids)  # its owner closes the backend
    holes = draw_holes(list(files), extent.holes_per_kind, extent.seed)
    filled: list[_Filled] = []
    for count, hole in enumerate(holes):
        progress("infill", count, len(holes))
        truth = _encode(tokenizer, hole.middle.rstrip(LINE_END))
        try:
            prefix = hole.prefix[-extent.prefix_characters :]
            suffix = hole.suffix[: extent.suffix_characters]
            prompt = infill_ids(tokenizer.encode, checkpoint.special_ids, prefix, suffix)
        except UsageError:
            continue
        room = backend.context_tokens - len(prompt)
        if not 0 < len(truth) <= extent.middle_tokens < room:
            continue
        options = GenerateOptions(
            max_tokens=extent.middle_tokens, stop=_stop(hole), speculate=False
        )
        done = join(runtime.run(prompt, options))
        stopped = done.finish.reason == "stop"
        filled.append(_Filled(hole, prompt, done.text, list(done.ids), truth, stopped))
    progress("infill", len(holes), len(holes))
    return filled


def _stop(hole: Hole) -> tuple[str, ...]:
    """A hole within a line ends where the line does."""
    return () if LINE_END in hole.middle.rstrip(LINE_END) else (LINE_END,)


def _positions(
    reference: Reference, backend: Backend, ids: np.ndarray, states: np.ndarray
) -> np.ndarray:
    """Per position: divergence, the losses of both for the next id, agreement; (positions, 4).

    But for the last one, after which no id comes.
    """
    rows = np.empty((len(ids) - 1, 4))
    for block, right, found in compare(reference, backend, ids, states):
        block = slice(block.start, min(block.stop, len(rows)))
        right, found = (x[: block.stop - block.start] for x in (right, found))
        following = ids[block.start + 1 : block.stop + 1]
        at = np.arange(len(following))
        rows[block, 0] = divergence(right, found)
        rows[block, 1] = -right[at, following]
        rows[block, 2] = -found[at, following]
        rows[block, 3] = right.argmax(-1) == found.argmax(-1)
    return rows


def _score(rows: np.ndarray) -> TextScore:
    nats, reference_loss, loss, agree = rows.T
    return TextScore(
        positions=len(nats),
        perplexity=float(np.exp(loss.mean())),
        reference_perplexity=float(np.exp(reference_loss.mean())),
        mean_nats=float(nats.mean()),
        p99_nats=float(np.percentile(nats, 99)),
        agreement=wilson(int(agree.sum()), len(agree)),
    )


def wilson(successes: int, trials: int) -> Interval:
    """A share and its 95 % interval, which stays within 0 to 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    share, spread = successes / trials, Z * Z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return Interval(max(0.0, middle - half), share, min(1.0, middle + half))


class _Choices:
    """Asks whether ids are what the checkpoint would choose itself."""

    def __init__(
        self, reference: Reference, tokenizer: Tokenizer, extent: Extent, progress: Progress
    ) -> None:
        self.reference, self.tokenizer, self.progress = reference, tokenizer, progress
        self.last = extent.middle_tokens + 1  # the state before the middle, and its own

    def own(self, asked: Sequence[tuple[list[int], list[int], str | None]]) -> list[bool]:
        """For (prompt, ids, end): whether ids are first choices after it, and then a stop id is.

        end: text that ends them just as well; None where they were cut off, so nothing has to.
        """
        sequences = [np.array(prompt + ids) for prompt, ids, _ in asked]
        states = self.reference.states(sequences, last=self.last, progress=self.progress)
        return [
            self._own(ids, end, state[-len(ids) - 1 :])
            for (_, ids, end), state in zip(asked, states, strict=True)
        ]

    def _own(self, ids: list[int], end: str | None, states: np.ndarray) -> bool:
        chosen = self.reference.logits(states).argmax(-1)
        if not np.array_equal(chosen[: len(ids)], ids):
            return False
        last = int(chosen[-1])
        if end is None or last in self.reference.checkpoint.special_ids.stops:
            return True
        return bool(end) and self.tokenizer.token_bytes(last).startswith(end.encode())


def _holes_scores(filled: Sequence[_Filled], choices: _Choices) -> tuple[HolesScore, ...]:
    of_truth = choices.own([(f.prompt, f.truth, "".join(_stop(f.hole))) for f in filled])
    of_found = choices.own([(f.prompt, f.found, "" if f.stopped else None) for f in filled])
    by_kind: dict[str, list[tuple[bool, bool, bool, float]]] = {}
    for f, reference_exact, same in zip(filled, of_truth, of_found, strict=True):
        wanted = f.hole.middle
        row = is_exact(f.text, wanted), reference_exact, same, edit_similarity(f.text, wanted)
        by_kind.setdefault(f.hole.kind, []).append(row)
    return tuple(
        HolesScore(kind, len(rows), *(float(np.mean(column)) for column in zip(*rows, strict=True)))
        for kind, rows in by_kind.items()
    )
