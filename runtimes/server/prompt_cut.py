"""What of a prompt cannot fit, whatever its tokens are: found and cut without tokenising it.

A part whose bytes alone are more than the whole prompt may have loses its far end: the prefix its
start, the suffix its end, the files the first ones. All that could be kept is still there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtimes.prompts.fim import Context, RepoFile, with_path
from runtimes.prompts.tokenizer import Tokenizer, utf8
from runtimes.server.request import TextPrompt

# Guessed. The start of a long prefix is cut in steps of so many bytes, so that it stays where it
# is while somebody types at its end.
CUT_STEP_BYTES = 64 * 1024
# Guessed: a tenth of a second of tokenising at most. So short a prompt is tokenised whole, and an
# error can tell how many tokens each of its parts has.
WHOLE_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True)
class PartTokens:
    """A lower bound of the tokens of each part; extras are the repository's name and files."""

    prefix: int
    suffix: int
    extras: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return self.prefix + self.suffix + self.extras


NOTHING = PartTokens(0, 0, 0)


def is_short(prompt: TextPrompt) -> bool:
    """Whether to tokenise `prompt` whatever it holds."""
    context = prompt.context
    texts = [prompt.prefix, prompt.suffix, context.repo_name, context.path]
    texts += [text for file in context.files for text in (file.path, file.text)]
    return sum(len(text or "") for text in texts) <= WHOLE_CHARACTERS


def min_tokens(prompt: TextPrompt, tokenizer: Tokenizer) -> PartTokens:
    """The least that `prompt` can have; raises UsageError for a text that is none."""
    context = prompt.context
    return PartTokens(
        _least(with_path(context.path, prompt.prefix), tokenizer),
        _least(prompt.suffix or "", tokenizer),
        _least(context.repo_name or "", tokenizer)
        + sum(_least(with_path(f.path, f.text), tokenizer) for f in context.files),
    )


def cut_far_ends(
    prompt: TextPrompt, tokenizer: Tokenizer, available: int
) -> tuple[TextPrompt, PartTokens]:
    """`prompt` without what cannot be among `available` tokens, and the least that was cut."""
    prefix, suffix = utf8(prompt.prefix), utf8(prompt.suffix or "")
    bound = tokenizer.bound
    start = len(prefix) - bound.tail_bytes(prefix, available)
    start -= start % CUT_STEP_BYTES
    end = bound.head_bytes(suffix, available)
    files = _last_files(prompt.context.files, tokenizer, available)
    dropped = prompt.context.files[: len(prompt.context.files) - len(files)]
    cut = TextPrompt(
        prefix[start:].decode(errors="ignore"),
        None if prompt.suffix is None else suffix[:end].decode(errors="ignore"),
        replace(prompt.context, files=files),
    )
    return cut, PartTokens(
        bound.min_tokens(prefix[:start]),
        bound.min_tokens(suffix[end:]),
        min_tokens(TextPrompt("", None, Context(files=dropped)), tokenizer).extras,
    )


def _last_files(
    files: tuple[RepoFile, ...], tokenizer: Tokenizer, available: int
) -> tuple[RepoFile, ...]:
    first = len(files)
    while first:
        file = files[first - 1]
        available -= 1 + _least(with_path(file.path, file.text), tokenizer)  # with its <file_sep>
        if available < 0:
            break
        first -= 1
    return files[first:]


def _least(text: str, tokenizer: Tokenizer) -> int:
    return tokenizer.bound.min_tokens(utf8(text))
