"""The demo checkpoint's training text: Python's own standard library, cut into samples.

Knows where the text is, which files are held out, and how a stretch of a file becomes a plain or a
fill-in-the-middle (FIM) sample. Knows nothing of tokens, models or training.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MIN_FILE_CHARS = 400
MAX_FILE_CHARS = 250_000  # above it the standard library has generated tables, not code
HELD_OUT_PER_MILLE = 30
LIBRARY_WEIGHT = 4  # a library file is drawn this much more often, per character, than a test file
SKIPPED_FOLDERS = {"site-packages", "__pycache__", "encodings", "pydoc_data", "data", "tclib"}

FIM_SHARE = 0.5
PATH_SHARE = 0.25  # share of the samples that name their file, as StarCoder2's training data did
SINGLE_LINE_SHARE = 0.7  # of the FIM samples: the middle is a line or the rest of one


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus: its path below the library and its text."""

    path: str
    text: str

    @property
    def weight(self) -> int:
        """How often the file is drawn, in characters."""
        is_test = any(part in ("test", "tests", "idle_test") for part in self.path.split("/")[:-1])
        return len(self.text) * (1 if is_test else LIBRARY_WEIGHT)


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample. `suffix` is None for plain text; then `middle` is empty."""

    prefix: str
    middle: str
    suffix: str | None
    path: str | None
    ends_file: bool


def load_corpus() -> tuple[list[SourceFile], list[SourceFile], str]:
    """Read the standard library: (training files, held-out files, SHA-256 of both)."""
    root = Path(sysconfig.get_path("stdlib"))
    train: list[SourceFile] = []
    held_out: list[SourceFile] = []
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if SKIPPED_FOLDERS & set(path.split("/")):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # some of CPython's tests are files in other encodings, on purpose
        if not MIN_FILE_CHARS <= len(text) <= MAX_FILE_CHARS:
            continue
        digest.update(path.encode() + b"\0" + text.encode() + b"\0")
        bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 1000
        (held_out if bucket < HELD_OUT_PER_MILLE else train).append(SourceFile(path, text))
    return train, held_out, digest.hexdigest()


def draw_sample(files: list[SourceFile], cumulative: list[int], rng: random.Random) -> Sample:
    """Draw a file by weight, a stretch of it, and turn the stretch into a sample."""
    file = rng.choices(files, cum_weights=cumulative)[0]
    start = 0
    if rng.random() > 0.25:
        start = file.text.rfind("\n", 0, rng.randrange(len(file.text))) + 1
    stretch = file.text[start : start + rng.randint(200, 3600)]
    path = file.path if rng.random() < PATH_SHARE else None
    ends_file = start + len(stretch) == len(file.text)
    if rng.random() < FIM_SHARE:
        begin, end = cut_middle(stretch, rng)
        return Sample(stretch[:begin], stretch[begin:end], stretch[end:], path, ends_file)
    return Sample(stretch, "", None, path, ends_file)


def cut_middle(text: str, rng: random.Random) -> tuple[int, int]:
    """Choose the middle of a FIM sample: mostly a line or the rest of one, else any span."""
    if rng.random() < SINGLE_LINE_SHARE:
        begin = rng.randrange(len(text))
        if rng.random() < 0.6:
            begin = text.rfind("\n", 0, begin) + 1
        end = text.find("\n", begin)
        return begin, len(text) if end < 0 else end
    begin, end = sorted((rng.randrange(len(text)), rng.randrange(len(text))))
    return begin, min(end, begin + 600)
