"""Source texts from a folder, by path, to calibrate and judge on. Knows nothing of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePath

from packager.core.errors import UsageError
from runtimes.trust.files import read_plain

SOURCE_SUFFIXES = frozenset(
    ".c .cc .cpp .cs .css .go .h .hpp .html .java .js .json .kt .lua .md .php .pl .py .r .rb .rs "
    ".scala .sh .sql .swift .ts .tsx .yaml".split()
)
MAX_SOURCE_BYTES = 1 << 20
# Suffixes of one language; the others are each their own.
ALIASES = {".cc": ".cpp", ".hpp": ".cpp", ".h": ".c", ".htm": ".html", ".tsx": ".ts"}


def read_sources(folder: Path) -> list[str]:
    """The source texts below `folder`, by path. Raises UsageError where there are none."""
    return [text for _, text in read_source_files(folder)]


def read_source_files(folder: Path) -> list[tuple[str, str]]:
    """(suffix in lower case, text) of the sources below `folder`, by path.

    Raises UsageError where there are none.
    """
    return [(PurePath(name).suffix.lower(), text) for name, text in read_named_sources(folder)]


def read_named_sources(folder: Path) -> list[tuple[str, str]]:
    """(path below `folder`, text) of the sources there, by path.

    Raises UsageError where there are none.
    """
    texts = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SOURCE_SUFFIXES or not file.is_file():
            continue
        try:
            text = read_plain(file, MAX_SOURCE_BYTES, follow=True).decode()
        except ValueError:
            continue  # too large, or not text, whatever its name says
        if text and "\0" not in text:  # as git tells text from other bytes
            plain = text.replace("\r\n", "\n").replace("\r", "\n")
            texts.append((file.relative_to(folder).as_posix(), plain))
    if not texts:
        raise UsageError(
            "no source text is there",
            where=folder,
            expected="a folder with source files in UTF-8 of at most 1 MiB each",
        )
    return texts


def language_of(suffix: str) -> str:
    """The suffix that a language goes by, of any suffix of it in lower case."""
    return ALIASES.get(suffix, suffix)


def texts_sha256(files: Iterable[tuple[str, str]]) -> str:
    """What (name, text) pairs are known by, in their order."""
    digest = hashlib.sha256()
    for name, text in files:
        digest.update(f"{name}\0{text}\0".encode(errors="surrogateescape"))  # odd names
    return digest.hexdigest()
