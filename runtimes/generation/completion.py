"""The nouns of a request: what is asked for, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
    max_time_s: for the request, prompt included; checked between chunks and tokens.
    speculate: guess by prompt lookup. It changes the time, never the sampling.
    min_indent: the completion ends before its first line, after the one at the cursor, that
    starts with fewer blanks and tabs than this, an empty line included; 0 is off.
    max_prompt_s: for taking the prompt in; checked after each chunk, so that a request which is
    sent again advances. max_decode_s: from the first id on, but not before the completion has a
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
        if not isinstance(self.stop, tuple) or not all(self.stop):
            raise _bad("stop", self.stop, "a tuple of texts of one character or more")
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
    """A piece of a completion.

    `ids` are what the model chose since the last chunk, without the control id that ended it;
    `logprobs` has one entry for each, if asked for. `text` may lag behind them: it is what can no
    longer change.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """How a completion ended: the last item of its stream, and of no other place in it.

    `text` was held back until the end was certain. `stop` is the stop string that ended it.
    """

    reason: FinishReason
    timings: Timings
    stop: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete answer: what its chunks have together, all text included, and how it ended."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: Finish

    def to_json(self) -> dict[str, object]:
        """A plain structure."""
        return {
            "text": self.text,
            "ids": self.ids,
            "logprobs": [asdict(entry) for entry in self.logprobs],
            "finish_reason": self.finish.reason,
            "stop": self.finish.stop,
            "timings": asdict(self.finish.timings),
        }


def join(stream: Iterable[Chunk | Finish]) -> Completion:
    """The completion that a complete stream makes."""
    *items, finish = stream
    assert isinstance(finish, Finish), "the stream was cut short"
    chunks = [item for item in items if isinstance(item, Chunk)]
    return Completion(
        text="".join(chunk.text for chunk in chunks) + finish.text,
        ids=tuple(token_id for chunk in chunks for token_id in chunk.ids),
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        finish=finish,
    )


def _bad(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{name} is {value!r}", where="options", expected=expected)
