"""Sequences of ids to calibrate a quantiser on, drawn from a folder of sources.

Languages take turns, so that none dominates while others last. A fraction of the texts is arranged
for infilling (FIM), as the model was trained. Some sequences are longer than the window. Seeded:
equal text and settings give equal ids. Knows nothing of formats.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packager.calibration.sources import language_of, read_source_files, texts_sha256
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.errors import UsageError
from packager.core.records import Checkpoint
from runtimes.contract import SpecialIds
from runtimes.prompts.tokenizer import Tokenizer

MIN_TOKENS = 16  # guessed: anything shorter is not worth splitting into prefix, middle and suffix
CONTROL_IDS = 3  # that one text in the fill-in-the-middle arrangement has more


@dataclass(frozen=True, slots=True)
class SequenceOptions:
    """How sequences are drawn. Lengths are cut to the model's context.

    Guessed: about 60,000 tokens, five times what the widest matrix of StarCoder2-3B has columns;
    a long sequence is one and a half windows.
    """

    sequences: int = 24
    length_tokens: int = 2048
    long_sequences: int = 2
    infill_fraction: float = 0.5
    seed: int = 0

    def lengths(self, checkpoint: Checkpoint) -> list[int]:
        """Tokens of each sequence, the long ones first."""
        window = checkpoint.window.size_tokens
        long = self.length_tokens if window is None else window + window // 2
        lengths = [long] * self.long_sequences + [self.length_tokens] * self.sequences
        return [min(length, checkpoint.context_tokens) for length in lengths]


def sources_sha256(folder: Path) -> str:
    """What the texts of a folder are known by. Raises UsageError where there are none."""
    return texts_sha256(read_source_files(folder))


def draw_sequences(
    checkpoint: Checkpoint, folder: Path, sampling: SequenceOptions, min_tokens: int
) -> tuple[list[np.ndarray], str]:
    """Sequences of ids int64 (T,), and the SHA-256 of the texts.

    Fewer or shorter than asked for where the text ends; UsageError where that leaves less than
    `min_tokens` in all. A text with a character that the model has no token for is left out.
    """
    files = read_source_files(folder)
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_NAME, checkpoint.special_ids)
    drawer = _Drawer(files, tokenizer, checkpoint.special_ids, sampling)
    lengths = sampling.lengths(checkpoint)
    sequences = [drawer.sequence(length) for length in lengths]
    sequences = [sequence for sequence in sequences if len(sequence)]
    tokens = sum(map(len, sequences))
    if tokens < min_tokens:
        raise UsageError(
            f"only {tokens} tokens were drawn to calibrate on, of {sum(lengths)} asked for",
            where=folder,
            expected=f"at least {min_tokens}, as the widest matrix of the model has columns",
            remedy="name a folder with more source code with --sources DIR",
        )
    return sequences, texts_sha256(files)


class _Language:
    """The shuffled texts of one language, read on through."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer) -> None:
        self.texts, self.tokenizer = texts, tokenizer
        self.ids: list[int] = []

    def take(self, limit: int) -> list[int]:
        """The next ids of one text, at most `limit`; none where all texts are used up."""
        while not self.ids and self.texts:
            try:
                self.ids = self.tokenizer.encode(self.texts.pop())
            except UsageError:
                continue
        taken, self.ids = self.ids[:limit], self.ids[limit:]
        return taken


class _Drawer:
    """Draws one sequence after the other, each from the language whose turn it is."""

    def __init__(
        self,
        files: list[tuple[str, str]],
        tokenizer: Tokenizer,
        ids: SpecialIds,
        sampling: SequenceOptions,
    ) -> None:
        self.ids, self.fraction, self.drawn = ids, sampling.infill_fraction, 0
        self.random = random.Random(sampling.seed)
        by_language: defaultdict[str, list[str]] = defaultdict(list)
        for suffix, text in files:
            by_language[language_of(suffix)].append(text)
        self.languages = []
        for _, texts in sorted(by_language.items()):
            self.random.shuffle(texts)
            self.languages.append(_Language(texts, tokenizer))
        self.random.shuffle(self.languages)

    def sequence(self, length: int) -> np.ndarray:
        """Texts of one language with an end after each; of the next too where it runs out.

        At most `length` ids; up to MIN_TOKENS + CONTROL_IDS less where texts are arranged.
        """
        infill = int((self.drawn + 1) * self.fraction) > int(self.drawn * self.fraction)
        self.drawn += 1
        found: list[int] = []
        for ids, ended in self._texts(length, found, CONTROL_IDS if infill else 0):
            found += self._arranged(ids) if infill else ids
            if infill or ended:
                found.append(self.ids.endoftext)
        if self.languages:
            self.languages.append(self.languages.pop(0))
        return np.array(found[:length], np.int64)

    def _texts(
        self, length: int, found: list[int], control: int
    ) -> Iterator[tuple[list[int], bool]]:
        """Chunks of texts until `found`, which the caller fills, has no space for another.

        With each, whether its text ends there. control: the ids that the caller puts beside each.
        """
        shortest = 1 if control == 0 else MIN_TOKENS
        while self.languages:
            limit = length - len(found) - control
            if limit < shortest:
                return
            ids = self.languages[0].take(limit)
            if ids:
                yield ids, not self.languages[0].ids
            else:
                self.languages.pop(0)

    def _arranged(self, ids: list[int]) -> list[int]:
        """Prefix, suffix, middle, split between two tokens at random."""
        a, b = sorted(self.random.randint(0, len(ids)) for _ in range(2))
        special = self.ids
        return [
            special.fim_prefix, *ids[:a],
            special.fim_suffix, *ids[b:],
            special.fim_middle, *ids[a:b],
        ]  # fmt: skip
