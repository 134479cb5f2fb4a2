"""The nouns of a request: what is asked for, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from runtimes.errors import UsageError
from runtimes.generation.sampling import GREEDY, Sampling, TokenLogprobs

FinishReason = Literal["stop", "stop_string", "length", "indent", "time", "cancelled"]
"""stop: a control id. length: max_tokens, or the end of the context. indent: min_indent.
time: max_time_s, max_prompt_s or max_decode_s."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What to do after the prompt.

    max_tokens: most ids to generate; 0 takes the prompt in and stops, which warms a prefix up.
    stop: texts that end the completion; they are not part of it.
    logprobs: None for none; n for those of the chosen id and of the n likeliest.
    max_time_s: for the whole request, prompt included; looked at between chunks and tokens.
    speculate: guess by prompt lookup. It changes the time, never the sampling.
    min_indent: the completion ends before its first line, after the one at the cursor, that
    starts with fewer blanks and tabs than this, an empty line included; 0 is off.
    max_prompt_s: for taking the prompt in; looked at after each chunk, so that a request which is
    sent again gets on. max_decode_s: from the first id on, but not before the completion has a
    line break (both after llama.cpp's t_max_prompt_ms and t_max_predict_ms).
    """

    max_tokens: int = 128
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    max_time_s: float | None = None
    speculate: bool = True
    min_indent: int = 0
    max_prompt_s: float | None = None
    max_decode_s: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError that names the first field out of range."""
        if self.max_tokens < 0:
            raise _bad("max_tokens", self.max_tokens, "0 or more")
        if isinstance(self.stop, str) or not all(self.stop):
            raise _bad("stop", self.stop, "texts of one character or more")
        if self.logprobs is not None and self.logprobs < 0:
            raise _bad("logprobs", self.logprobs, "0 or more, or None")
        if self.min_indent < 0:
            raise _bad("min_indent", self.min_indent, "0 or more")
        for name in ("max_time_s", "max_prompt_s", "max_decode_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise _bad(name, value, "seconds above 0, or None")


DEFAULTS = GenerateOptions()


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, measured by its own clock.

    reused_tokens of the prompt's were already in the backend. prompt_s covers the others.
    first_token_s runs from the request to the first id, None if there was none; decode_s from the
    first id to the end.
    """

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    prompt_s: float
    first_token_s: float | None
    decode_s: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a completion. The last one of a stream has finish_reason and timings.

    `ids` are what the model chose since the last chunk, without the control id that ended it;
    `logprobs` has one entry for each, if asked for. `text` may lag behind them: it is what can no
    longer change. `stop` is the stop string that ended the completion.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; the fields are those of Chunk."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason
    stop: str | None
    timings: Timings


def join(chunks: Iterable[Chunk]) -> Completion:
    """The completion that a whole stream of chunks makes."""
    pieces = list(chunks)
    last = pieces[-1]
    assert last.finish_reason is not None and last.timings is not None, "the stream was cut short"
    return Completion(
        text="".join(piece.text for piece in pieces),
        ids=tuple(token_id for piece in pieces for token_id in piece.ids),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
        finish_reason=last.finish_reason,
        stop=last.stop,
        timings=last.timings,
    )


def _bad(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{name} is {value!r}", where="options", expected=expected)
