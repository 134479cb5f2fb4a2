"""Texts to judge a model on, samples of infilling (FIM) from them, and how near an answer comes.

Seeded: equal texts and settings give equal samples. Knows nothing of models or tokens.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from rapidfuzz.distance import Levenshtein

from packager.calibration.sources import language_of, read_named_sources
from packager.core.errors import UsageError
from packager.core.package_data import profiles_folder

Kind = Literal["single-line", "multi-line", "random-span"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Guessed, all of them: what an editor sends for an inline completion is of this order.
MAX_PREFIX_CHARACTERS = 3000
MAX_SUFFIX_CHARACTERS = 1000
MULTI_LINES = (2, 5)
SPAN_CHARACTERS = (8, 80)
TRIES = 50  # guessed: draws of one language in a row that find nothing new before it is left out


@dataclass(frozen=True, slots=True)
class FimSample:
    """A span of a text that a model is to fill in again.

    Law: prefix + middle + suffix is a span of the text called `path`. A middle of complete lines
    begins at the start of the first, indent included. It ends with the line break of the last,
    where the text has one there. No middle is blank.
    """

    kind: Kind
    path: str
    prefix: str
    middle: str
    suffix: str


def builtin_texts() -> list[tuple[str, str]]:
    """(name, text) of ten source files in ten languages, written for starpack to judge models on.

    Nothing was trained or calibrated on them. Each is a complete file of 65 to 105 lines of ASCII
    that its language's compiler or interpreter accepts.
    """
    return read_named_sources(profiles_folder() / "texts" / "held-out")


def draw_fim_samples(
    files: list[tuple[str, str]], count_per_kind: int, seed: int = 0
) -> list[FimSample]:
    """`count_per_kind` different samples of each kind in `files`, (name, text); languages in turn.

    Single-line: one line that is not blank, as in HumanEval's single-line infilling. Multi-line: 2
    to 5 lines, the first not blank. Random-span: 8 to 80 characters that begin and end anywhere.
    The samples of one kind do not depend on those of another. Raises UsageError where the texts
    have no more to give.
    """
    if count_per_kind < 1:
        raise UsageError(f"{count_per_kind} samples of each kind", expected="1 or more")
    return [sample for kind in KINDS for sample in _draw(files, kind, count_per_kind, seed)]


def is_exact(answer: str, middle: str) -> bool:
    """Whether `answer` is `middle`, white space at the end of either aside.

    At the end only: what the last line break is, is a matter of where the model was stopped; an
    indent is part of the code.
    """
    return answer.rstrip() == middle.rstrip()


def edit_similarity(answer: str, middle: str) -> float:
    """1 - Levenshtein distance / length of the longer, in characters; 1.0 where both are empty.

    White space at the end of either is set aside, so that
    `(edit_similarity(a, b) == 1) == is_exact(a, b)`.
    """
    return Levenshtein.normalized_similarity(answer.rstrip(), middle.rstrip())


def _draw(files: list[tuple[str, str]], kind: Kind, count: int, seed: int) -> list[FimSample]:
    rng = random.Random(f"{seed} {kind}")
    by_language: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, text in sorted(files):
        by_language[language_of(PurePath(path).suffix.lower())].append((path, text))
    languages = [_samples_of(texts, kind, rng) for _, texts in sorted(by_language.items())]
    rng.shuffle(languages)
    samples: list[FimSample] = []
    while len(samples) < count:
        if not languages:
            raise UsageError(
                f"the texts have only {len(samples)} different {kind} samples",
                expected=count,
                remedy="give more source files, or ask for fewer samples",
            )
        language = languages.pop(0)
        sample = next(language, None)
        if sample is not None:
            samples.append(sample)
            languages.append(language)
    return samples


def _samples_of(
    files: list[tuple[str, str]], kind: Kind, rng: random.Random
) -> Iterator[FimSample]:
    """Samples of one language, each once, until nothing new is found."""
    places = [_Places(text) for _, text in files]
    seen: set[tuple[int, int, int]] = set()
    tries = TRIES
    while tries:
        tries -= 1
        number = rng.randrange(len(files))
        path, text = files[number]
        start, end = places[number].draw(kind, rng)
        if (number, start, end) in seen or not text[start:end].strip():
            continue
        seen.add((number, start, end))
        tries = TRIES
        prefix = text[max(0, start - MAX_PREFIX_CHARACTERS) : start]
        suffix = text[end : end + MAX_SUFFIX_CHARACTERS]
        yield FimSample(kind, path, prefix, text[start:end], suffix)


class _Places:
    """Where samples of one text can be: offsets (start, end); an empty span where none is."""

    def __init__(self, text: str) -> None:
        self.length = len(text)
        # A line ends with its line break; the end of the text is the start of no line.
        breaks = [i + 1 for i, character in enumerate(text) if character == "\n"]
        self.bounds = [0, *breaks] if breaks[-1:] == [len(text)] else [0, *breaks, len(text)]
        self.code_lines = [
            line
            for line, (start, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False))
            if text[start:end].strip()
        ]

    def draw(self, kind: Kind, rng: random.Random) -> tuple[int, int]:
        if kind == "random-span":
            length = rng.randint(*SPAN_CHARACTERS)
            if length > self.length:
                return 0, 0
            start = rng.randint(0, self.length - length)
            return start, start + length
        lines = 1 if kind == "single-line" else rng.randint(*MULTI_LINES)
        first = rng.choice(self.code_lines) if self.code_lines else 0
        if first + lines >= len(self.bounds):
            return 0, 0
        return self.bounds[first], self.bounds[first + lines]
