"""The quality gate's figures: an artifact beside its unquantised checkpoint, on held-out code.

Reads text inside the window and past it, and fills infilling (FIM) samples. A completion counts as
the checkpoint's own if every token is its argmax (teacher forcing): the checkpoint never generates.
Knows nothing of formats or of limits.
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
from packager.core.results import FimScore, Quality, TextScore
from packager.core.settings import DEFAULT_SAMPLE_SIZE, SampleSize
from packager.measurement.infill_samples import (
    FimSample,
    draw_fim_samples,
    edit_similarity,
    is_exact,
)
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
    """A sample, its prompt, what was filled in as text and as ids, and what was there, as ids."""

    sample: FimSample
    prompt: list[int]
    text: str
    found: list[int]
    truth: list[int]
    stopped: bool


def assess(
    reference: Reference,
    backend: Backend,
    files: Sequence[tuple[str, str]],
    size: SampleSize = DEFAULT_SAMPLE_SIZE,
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
    blocks = _blocks(texts, checkpoint, size)
    kept = reference.states(blocks, progress=progress)
    inside = [
        _positions(reference, backend, ids, states)
        for ids, states in zip(blocks, kept, strict=True)
    ]
    past, long = None, _long_sequence(texts, checkpoint)
    if long is not None:
        (states,) = reference.states([long], progress=progress)
        past = _positions(reference, backend, long, states)[checkpoint.window.size_tokens :]
    filled = _fill(checkpoint, backend, tokenizer, files, size, progress)
    return Quality(
        texts_sha256(files),
        _score(np.concatenate(inside)),
        None if past is None else _score(past),
        _fim_scores(filled, _GreedyCheck(reference, tokenizer, size, progress)),
    )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except UsageError:
        return []  # a character that the model has no token for


def _blocks(
    texts: Sequence[list[int]], checkpoint: Checkpoint, size: SampleSize
) -> list[np.ndarray]:
    """The beginnings of the texts, each begun as the model's documents are, inside the window."""
    longest = min(
        size.block_tokens,
        checkpoint.window.size_tokens or size.block_tokens,
        checkpoint.context_tokens,
    )
    found: list[np.ndarray] = []
    remaining = size.text_tokens
    for ids in texts:
        block = [checkpoint.special_ids.endoftext, *ids][: min(longest, remaining)]
        if len(block) > 1:
            found.append(np.array(block))
            remaining -= len(block)
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
    size: SampleSize,
    progress: Progress,
) -> list[_Filled]:
    """Fill the samples with the backend, greedily."""
    runtime = Runtime(backend, tokenizer, checkpoint.special_ids)  # its owner closes the backend
    samples = draw_fim_samples(list(files), size.samples_per_kind, size.seed)
    filled: list[_Filled] = []
    for count, sample in enumerate(samples):
        progress("infill", count, len(samples))
        truth = _encode(tokenizer, sample.middle.rstrip(LINE_END))
        try:
            prefix = sample.prefix[-size.prefix_characters :]
            suffix = sample.suffix[: size.suffix_characters]
            prompt = infill_ids(tokenizer.encode, checkpoint.special_ids, prefix, suffix)
        except UsageError:
            continue
        available = backend.context_tokens - len(prompt)
        if not 0 < len(truth) <= size.middle_tokens < available:
            continue
        options = GenerateOptions(
            max_tokens=size.middle_tokens, stop=_stop(sample), speculate=False
        )
        done = join(runtime.run(prompt, options))
        stopped = done.finish.reason == "stop"
        filled.append(_Filled(sample, prompt, done.text, list(done.ids), truth, stopped))
    progress("infill", len(samples), len(samples))
    return filled


def _stop(sample: FimSample) -> tuple[str, ...]:
    """A sample within a line ends where the line does."""
    return () if LINE_END in sample.middle.rstrip(LINE_END) else (LINE_END,)


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
    """A fraction and its 95 % interval, which stays within 0 to 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    fraction, spread = successes / trials, Z * Z / trials
    middle = (fraction + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(fraction * (1 - fraction) / trials + spread / (4 * trials))
    return Interval(max(0.0, middle - half), fraction, min(1.0, middle + half))


class _GreedyCheck:
    """Tells whether completions are the checkpoint's own greedy ones, by teacher forcing."""

    def __init__(
        self, reference: Reference, tokenizer: Tokenizer, size: SampleSize, progress: Progress
    ) -> None:
        self.reference, self.tokenizer, self.progress = reference, tokenizer, progress
        self.last = size.middle_tokens + 1  # the state before the middle, and its own

    def are_greedy(
        self, completions: Sequence[tuple[list[int], list[int], str | None]]
    ) -> list[bool]:
        """For (prompt, ids, end): whether each of `ids`, and then a stop id, is the argmax.

        end: text that ends them just as well; None where they were cut off, so nothing has to.
        """
        sequences = [np.array(prompt + ids) for prompt, ids, _ in completions]
        states = self.reference.states(sequences, last=self.last, progress=self.progress)
        return [
            self._is_greedy(ids, end, state[-len(ids) - 1 :])
            for (_, ids, end), state in zip(completions, states, strict=True)
        ]

    def _is_greedy(self, ids: list[int], end: str | None, states: np.ndarray) -> bool:
        chosen = self.reference.logits(states).argmax(-1)
        if not np.array_equal(chosen[: len(ids)], ids):
            return False
        last = int(chosen[-1])
        if end is None or last in self.reference.checkpoint.special_ids.stops:
            return True
        return bool(end) and self.tokenizer.token_bytes(last).startswith(end.encode())


def _fim_scores(filled: Sequence[_Filled], check: _GreedyCheck) -> tuple[FimScore, ...]:
    of_truth = check.are_greedy([(f.prompt, f.truth, "".join(_stop(f.sample))) for f in filled])
    of_found = check.are_greedy([(f.prompt, f.found, "" if f.stopped else None) for f in filled])
    by_kind: dict[str, list[tuple[bool, bool, bool, float]]] = {}
    for f, reference_exact, same in zip(filled, of_truth, of_found, strict=True):
        wanted = f.sample.middle
        row = is_exact(f.text, wanted), reference_exact, same, edit_similarity(f.text, wanted)
        by_kind.setdefault(f.sample.kind, []).append(row)
    return tuple(
        FimScore(kind, len(rows), *(float(np.mean(column)) for column in zip(*rows, strict=True)))
        for kind, rows in by_kind.items()
    )
