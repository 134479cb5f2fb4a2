"""Which files of a folder the model is shown beside the one that is edited.

By the files' paths and the edited text alone, so the same folder always gives the same choice; the
time of a file's last change would differ from one checkout to the next. Nothing outside of the
folder is read, symbolic links are ignored, and there is a bound on all that is looked at.
Standard library only.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath, PurePosixPath

from runtimes.errors import UsageError
from runtimes.prompts.fim import RepoFile
from runtimes.prompts.languages import LANGUAGES

# Guessed, all of them: above what a project of one's own has, below what takes seconds.
MAX_NAMES = 50_000  # files and folders that are looked at
MAX_FILE_BYTES = 128 * 1024  # larger ones are data, or generated
MAX_TRIED_FILES = 200  # that are read
MIN_TOKENS = 16  # fewer hold no file
# What belongs to tools; names that begin with a dot are ignored as well.
TOOLS_FOLDERS = frozenset(
    "__pycache__ build dist node_modules out site-packages target vendor venv".split()
)
SUFFIXES = frozenset(s for language in LANGUAGES.values() for s in language.suffixes)
FOLDERS_OWN = frozenset({"__init__", "index", "lib", "main", "mod"})  # named by their folder
TEST_WORDS = frozenset({"spec", "test", "tests"})
IMPORT = re.compile(r"^\s*(?:from|import|#\s*include|use|using|mod|require\w*)\b|\brequire\s*\(")
MAX_IMPORT_LINES = 50  # guessed: of one import that spans several lines
WORD = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Files for the prompt, the most relevant last, which is next to the edited one.

    tokens: of all of them, their paths and separators included. budget_tokens: how many they might
    have. left_out: how many files of source code were not taken. is_complete: no bound was reached.
    """

    files: tuple[RepoFile, ...]
    tokens: int
    budget_tokens: int
    left_out: int
    is_complete: bool


def path_in(folder: Path, file: str) -> str:
    """`file`, a path in `folder` or an absolute one to it, as the repository's; raises UsageError.

    As written: links are not resolved, and none will be followed when it is read.
    """
    path = PurePath(file)
    if path.is_absolute():
        try:
            path = path.relative_to(folder.absolute())
        except ValueError:
            path = PurePath("..")
    if not path.parts or ".." in path.parts:
        raise UsageError(
            "the file is not in the repository's folder", where=file, expected=f"a path in {folder}"
        )
    return path.as_posix()


def read_in(folder: Path, path: str) -> str:
    """Text of a file of the folder; raises UsageError for one that is not there or no text."""
    with _opened(folder) as root:
        try:
            data = _read(root, path, None)
        except OSError as error:
            raise UsageError(
                f"cannot be read in the repository's folder: {error.strerror}",
                where=folder / path,
                expected="a file, and no symbolic link on the way to it",
            ) from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"byte {error.start} is not UTF-8 text", where=folder / path, remedy="convert it"
        ) from None


def choose(
    folder: Path, edited: str, text: str, count: Callable[[str], int], budget_tokens: int
) -> Chosen:
    """Complete files in the order of `rank`, as many as fit; one that is too long is skipped.

    count(text): how many tokens it has. Raises UsageError for a folder that cannot be read.
    """
    taken: list[RepoFile] = []
    tokens = tried = 0
    with _opened(folder) as root:
        paths, is_complete = _source_files(root, PurePosixPath(edited).suffix)
        ranked = rank(paths, edited, text)
        for path in ranked:
            if budget_tokens - tokens < MIN_TOKENS:
                break
            if tried == MAX_TRIED_FILES:
                is_complete = False
                break
            tried += 1
            content = _text(root, path)
            if content is None:
                continue
            needed = 1 + count(f"{path}\n{content}")  # with its <file_sep>
            if tokens + needed <= budget_tokens:
                taken.append(RepoFile(path, content))
                tokens += needed
    left_out = len(ranked) - len(taken)
    return Chosen(tuple(reversed(taken)), tokens, budget_tokens, left_out, is_complete)


def rank(paths: Sequence[str], edited: str, text: str) -> list[str]:
    """The most relevant first: `paths` without `edited`, in an order that depends on nothing else.

    First what the edited text imports, the more parts of the path it names the better; then files
    of the same name (a test, a header); of the same language; near in the tree; of a name that has
    words in common; and in the order of the alphabet.
    """
    imported = _imported_words(text)
    own = PurePosixPath(edited)

    def key(path: str) -> tuple[int, bool, bool, int, float, str]:
        other = PurePosixPath(path)
        alike = _likeness(own.stem, other.stem)
        return (
            -_mentions(other, imported),
            alike < 1,
            other.suffix != own.suffix,
            _distance(own, other),
            -alike,
            path,
        )

    return sorted((path for path in paths if path != edited), key=key)


def _imported_words(text: str) -> frozenset[str]:
    """Words on the lines that import something, and on its continuation lines."""
    words: set[str] = set()
    depth = lines = 0
    goes_on = False
    for line in text.splitlines():
        if not goes_on:
            if IMPORT.search(line) is None:
                continue
            depth = lines = 0
        words |= set(WORD.findall(line))
        depth += sum(map(line.count, "({")) - sum(map(line.count, ")}"))
        lines += 1
        goes_on = (depth > 0 or line.endswith("\\")) and lines < MAX_IMPORT_LINES
    return frozenset(words)


def _mentions(path: PurePosixPath, words: frozenset[str]) -> int:
    """How many parts of a path are among `words`, if its own name is one of them; else 0."""
    folders = [part for part in path.parent.parts if part in words]
    if path.stem in FOLDERS_OWN:
        return len(folders) if path.parent.name in words else 0
    return 1 + len(folders) if path.stem in words else 0


def _likeness(a: str, b: str) -> float:
    """Words that two names share, as a part of all their words; 1.0 for `text` and `test_text`."""
    one, other = (
        frozenset(re.findall(r"[a-z]+|[0-9]+", re.sub(r"([A-Z])", r"_\1", name).lower()))
        - TEST_WORDS
        for name in (a, b)
    )
    return len(one & other) / max(1, len(one | other))


def _distance(a: PurePosixPath, b: PurePosixPath) -> int:
    """Steps between two files' folders, up and down."""
    ours, theirs = a.parent.parts, b.parent.parts
    pairs = zip(ours, theirs, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(ours) + len(theirs) - 2 * shared


def _source_files(root: int, suffix: str) -> tuple[list[str], bool]:
    """Paths of the files of source code below `root`, and whether those are all of them."""
    paths: list[str] = []
    seen = 0
    for folder, folders, files, handle in os.fwalk(".", dir_fd=root, follow_symlinks=False):
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in TOOLS_FOLDERS)
        seen += len(folders) + len(files)
        if seen > MAX_NAMES:
            return paths, False
        for name in sorted(files):
            known = PurePosixPath(name).suffix in SUFFIXES | {suffix} and name[0] != "."
            if known and _is_small_file(name, handle):
                paths.append(PurePosixPath(folder, name).as_posix())
    return paths, True


def _is_small_file(name: str, handle: int) -> bool:
    try:
        status = os.stat(name, dir_fd=handle, follow_symlinks=False)
        name.encode()  # a name that is no UTF-8 cannot be put into a prompt
    except (OSError, UnicodeEncodeError):
        return False
    return stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_FILE_BYTES


def _text(root: int, path: str) -> str | None:
    """None for what has gone, has grown, or is no text."""
    try:
        data = _read(root, path, MAX_FILE_BYTES)
        return None if len(data) > MAX_FILE_BYTES or b"\0" in data else data.decode()
    except (OSError, UnicodeDecodeError):
        return None


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder as a handle: what is opened below it stays below it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(
            f"the repository's folder cannot be read: {error.strerror}", where=folder
        ) from None
    try:
        yield handle
    finally:
        os.close(handle)


def _read(root: int, path: str, most_bytes: int | None) -> bytes:
    """Up to one byte more than `most_bytes`; no link is followed, no pipe waited for."""
    *folders, name = PurePosixPath(path).parts
    handle = os.dup(root)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
    finally:
        os.close(handle)
    with open(file, "rb") as stream:
        return stream.read() if most_bytes is None else stream.read(most_bytes + 1)
