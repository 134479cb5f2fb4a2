"""From a prompt's texts to its ids, within the context: complete, trimmed and reported, or refused.

A prompt may have the context less the tokens that are reserved for the answer: those that the
request wants, at most a quarter of the context. A longer prompt may be trimmed. Then minimum
fractions are reserved for the suffix and for the repository's files, and the prefix has the rest.
What one part does not need goes to the others. Files go first, each as a whole, the farthest from
the cursor (the first of the list) before the others. The prefix loses its start, the suffix its
end. What cannot fit, whatever its tokens are, is refused or cut before it is tokenised. Knows
nothing of HTTP or of engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from runtimes.contract import IsCancelled, SpecialIds, never_cancelled
from runtimes.errors import ContextError
from runtimes.prompts.fim import (
    Context,
    Encode,
    RepoFile,
    generate_ids,
    infill_ids,
    with_path,
)
from runtimes.prompts.tokenizer import Tokenizer
from runtimes.server.prompt_cut import NOTHING, PartTokens, cut_far_ends, is_short, min_tokens
from runtimes.server.request import IdsPrompt, OverContext, PromptBudget, ServerDefaults, TextPrompt

MAX_ANSWER_DIVISOR = (
    4  # guessed: at most one in so many tokens of the context is kept for the answer
)
# Guessed. The start of a long prefix is cut in steps of so many tokens, so that it stays where it
# is while somebody types at its end, and what the engine holds of it can be used again.
CUT_STEP_TOKENS = 128
TRIES = 8  # guessed: a cut text may have a token or two more than the ids it was cut from


def fit_prompt(
    prompt: TextPrompt | IdsPrompt,
    tokenizer: Tokenizer,
    special_ids: SpecialIds,
    context_tokens: int,
    max_tokens: int,
    over_context: OverContext,
    defaults: ServerDefaults,
    cancelled: IsCancelled = never_cancelled,
) -> tuple[tuple[int, ...], PromptBudget]:
    """The ids of `prompt`, and where they went; an empty one is the start of a document.

    Raises ContextError where the prompt is longer than that and may not be trimmed, or
    where not even its control ids fit; UsageError for text that cannot be encoded; Cancelled.
    """
    available = context_tokens - min(max_tokens, context_tokens // MAX_ANSWER_DIVISOR)
    if isinstance(prompt, IdsPrompt):
        return _ids_as_given(prompt, special_ids, context_tokens, available, over_context)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, cancelled)

    layout = _Layout(cache(encode), tokenizer, special_ids)
    least = NOTHING if is_short(prompt) else min_tokens(prompt, tokenizer)
    cut, cut_tokens = prompt, NOTHING
    if least.total > available:
        fixed = TextPrompt("", None, replace(prompt.context, files=()))
        if over_context == "error" or min_tokens(fixed, tokenizer).total > available:
            raise _too_long_at_least(least, available, context_tokens)
        cut, cut_tokens = cut_far_ends(prompt, tokenizer, available)
    whole = layout.measure(cut, cut_tokens)
    whole = replace(whole, context_tokens=context_tokens, room_tokens=available)
    if whole.prompt_tokens <= available:
        return layout.ids(prompt), whole
    trimmed = layout.trim(cut, whole, available, defaults) if over_context == "trim" else None
    if trimmed is None:
        raise _too_long(whole)
    kept = replace(layout.measure(trimmed), context_tokens=context_tokens, room_tokens=available)
    return layout.ids(trimmed), replace(
        kept,
        # a cut may split a token: what is kept may then have one more than the part had there
        dropped_prefix_tokens=max(0, whole.prefix_tokens - kept.prefix_tokens),
        dropped_suffix_tokens=max(0, whole.suffix_tokens - kept.suffix_tokens),
        dropped_extras_tokens=whole.extras_tokens - kept.extras_tokens,
        dropped_files=len(prompt.context.files) - len(trimmed.context.files),
    )


def _ids_as_given(
    prompt: IdsPrompt,
    special_ids: SpecialIds,
    context_tokens: int,
    available: int,
    over_context: OverContext,
) -> tuple[tuple[int, ...], PromptBudget]:
    ids = prompt.ids or (special_ids.endoftext,)
    kept = ids[-available:]
    budget = PromptBudget(
        context_tokens, available, len(kept), len(kept), 0, 0, 0, len(ids) - len(kept)
    )
    if budget.dropped_tokens and over_context == "error":
        raise _too_long(replace(budget, prompt_tokens=len(ids), prefix_tokens=len(ids)))
    return kept, budget


def _too_long(whole: PromptBudget) -> ContextError:
    return _too_many(
        f"the prompt has {whole.prompt_tokens} tokens: {whole.prefix_tokens} before the gap, "
        f"{whole.suffix_tokens} after it, {whole.extras_tokens} of other files, "
        f"{whole.control_tokens} control tokens",
        whole.room_tokens,
        whole.context_tokens,
    )


def _too_long_at_least(least: PartTokens, available: int, context_tokens: int) -> ContextError:
    return _too_many(
        f"the prompt has at least {least.total} tokens, by its bytes alone: {least.prefix} before "
        f"the gap, {least.suffix} after it, {least.extras} of other files",
        available,
        context_tokens,
    )


def _too_many(what: str, available: int, context_tokens: int) -> ContextError:
    return ContextError(
        what,
        expected=f"at most {available}, in a context of {context_tokens} tokens",
        remedy='send less, or let the far ends be trimmed: {"starpack": {"over_context": "trim"}} '
        "in the request, or the server's flag --over-context trim",
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The parts of a prompt, counted and cut."""

    encode: Encode
    tokenizer: Tokenizer
    special_ids: SpecialIds

    def ids(self, prompt: TextPrompt) -> tuple[int, ...]:
        if prompt.suffix is None:
            ids = generate_ids(self.encode, self.special_ids, prompt.prefix, prompt.context)
        else:
            ids = infill_ids(
                self.encode, self.special_ids, prompt.prefix, prompt.suffix, prompt.context
            )
        return tuple(ids) or (self.special_ids.endoftext,)

    def measure(self, prompt: TextPrompt, besides: PartTokens = NOTHING) -> PromptBudget:
        """The parts are encoded apart in a prompt, so their counts add up.

        besides: tokens of the parts that were cut before; then the counts are lower bounds.
        """
        total = len(self.ids(prompt))
        prefix = self._count(with_path(prompt.context.path, prompt.prefix))
        suffix = self._count(prompt.suffix or "")
        extras = self._extras(prompt.context)
        return PromptBudget(
            context_tokens=0,
            room_tokens=0,
            prompt_tokens=total + besides.total,
            prefix_tokens=prefix + besides.prefix,
            suffix_tokens=suffix + besides.suffix,
            extras_tokens=extras + besides.extras,
            control_tokens=total - prefix - suffix - extras,
        )

    def trim(
        self, prompt: TextPrompt, whole: PromptBudget, available: int, defaults: ServerDefaults
    ) -> TextPrompt | None:
        """`prompt` with its far ends cut, in `available` ids; None where it cannot fit."""
        free = available - whole.control_tokens
        texts = whole.prefix_tokens + whole.suffix_tokens
        context = self._drop_files(
            prompt.context, max(int(free * defaults.extras_fraction), free - texts)
        )
        free -= self._extras(context)
        reserved = int(free * defaults.suffix_fraction)
        suffix_available = min(whole.suffix_tokens, max(reserved, free - whole.prefix_tokens))
        path = prompt.context.path
        prefix_available = (
            free - suffix_available - (0 if path is None else self._count(f"{path}\n"))
        )
        for _ in range(TRIES):
            suffix = prompt.suffix
            cut = TextPrompt(
                self._tail(prompt.prefix, prefix_available),
                None if suffix is None else self._head(suffix, suffix_available),
                context,
            )
            over = len(self.ids(cut)) - available
            if over <= 0:
                return cut
            prefix_available -= over
        return None

    def _drop_files(self, context: Context, available: int) -> Context:
        """Keep the last files that fit, and the repository's name."""
        available -= self._count(context.repo_name or "")
        first = len(context.files)
        while first and (available := available - self._count_file(context.files[first - 1])) >= 0:
            first -= 1
        return replace(context, files=context.files[first:])

    def _tail(self, text: str, available: int) -> str:
        ids = self.encode(text)
        if len(ids) <= available:
            return text
        step = CUT_STEP_TOKENS if available >= 2 * CUT_STEP_TOKENS else 1
        drop = math.ceil((len(ids) - max(available, 0)) / step) * step
        return self._text(ids[drop:])

    def _head(self, text: str, available: int) -> str:
        ids = self.encode(text)
        return text if len(ids) <= available else self._text(ids[: max(available, 0)])

    def _text(self, ids: Sequence[int]) -> str:
        """Without the parts of a character that the cut went through."""
        return b"".join(map(self.tokenizer.token_bytes, ids)).decode(errors="ignore")

    def _extras(self, context: Context) -> int:
        return self._count(context.repo_name or "") + sum(map(self._count_file, context.files))

    def _count_file(self, file: RepoFile) -> int:
        return self._count(with_path(file.path, file.text))

    def _count(self, text: str) -> int:
        return len(self.encode(text)) if text else 0
