"""Prompts as StarCoder2 was trained on them, as ids.

Control ids come from here and from nowhere else: user text is always encoded as plain text, so
characters that spell a control token stay characters. Prefix and suffix are encoded apart and
never trimmed. Source of the layouts: StarCoder2 paper, sections 3.2 and 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtimes.contract import SpecialIds

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of the repository that gives context: its path there, where it is known; its text."""

    path: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Context:
    """What surrounds a request: the repository's name, other files, the edited file's path."""

    repo_name: str | None = None
    files: tuple[RepoFile, ...] = ()
    path: str | None = None


NO_CONTEXT = Context()


def generate_ids(
    encode: Encode, ids: SpecialIds, prompt: str, context: Context = NO_CONTEXT
) -> list[int]:
    """Ids of a left-to-right prompt.

    Alone: PROMPT. With a context:
    `<repo_name>NAME <file_sep>PATH0\\nTEXT0 ... <file_sep>PATH\\nPROMPT`.
    """
    if context == NO_CONTEXT:
        return encode(prompt)
    head = _repository_ids(encode, ids, context)
    return [*head, ids.file_sep, *encode(with_path(context.path, prompt))]


def infill_ids(
    encode: Encode, ids: SpecialIds, prefix: str, suffix: str, context: Context = NO_CONTEXT
) -> list[int]:
    """Ids of a fill-in-the-middle prompt, prefix-suffix-middle order.

    Alone: `<fim_prefix>PREFIX<fim_suffix>SUFFIX<fim_middle>`. With a context the repository goes
    before it and the path inside the prefix:
    `... <file_sep><fim_prefix>PATH\\nPREFIX<fim_suffix>SUFFIX<fim_middle>`.
    """
    head: Sequence[int] = ()
    if context != NO_CONTEXT:
        head = [*_repository_ids(encode, ids, context), ids.file_sep]
    return [
        *head,
        ids.fim_prefix,
        *encode(with_path(context.path, prefix)),
        ids.fim_suffix,
        *encode(suffix),
        ids.fim_middle,
    ]


def _repository_ids(encode: Encode, ids: SpecialIds, context: Context) -> list[int]:
    head = [] if context.repo_name is None else [ids.repo_name, *encode(context.repo_name)]
    for file in context.files:
        head += [ids.file_sep, *encode(with_path(file.path, file.text))]
    return head


def with_path(path: str | None, text: str) -> str:
    """A file, or the text before the gap, as it stands in a prompt."""
    return text if path is None else f"{path}\n{text}"
