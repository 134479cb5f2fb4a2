"""The fields that the dialects share, under whatever names: their types, and how they are read.

null is the same as absent. -1, and any negative number, means off. A request that does not say is
greedy and may have 128 tokens (unless the server's flags say otherwise), in every dialect: the
same request has the same answer, whichever dialect it comes in.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct

from runtimes.generation.sampling import OFF, Sampling
from runtimes.prompts.fim import NO_CONTEXT, Context, RepoFile
from runtimes.server.dialects.raw_fim import read_raw
from runtimes.server.http.body import LARGEST
from runtimes.server.request import OverContext, ServerDefaults, TextPrompt

MAX_STOPS = 64  # guessed: Continue sends the file's next line and a dozen more
MAX_STOP_CHARACTERS = 4096  # guessed: Continue stops at the next line, whatever its length
MAX_IDS = 131_072  # specified: the longest context that starpack offers
MAX_FILES = 1000  # guessed
MAX_LOGPROBS = 20  # guessed; OpenAI's own limit is 5
GREEDY_BELOW = 0.001  # guessed: a temperature so low that only rounding could tell it from 0
SEED_BITS = 32  # as many as every client can read back
LARGEST_SEED = 2**64 - 1
# Continue's generic stops. Together they say who sends them; each would end every line that starts
# with `t` (try, this, throw) or has "t." in it, so both are dropped, and the answer says so.
CONTINUE_STOPS = frozenset({"t.", "\nt"})

N = TypeVar("N", int, float)
Length = Annotated[int, Meta(ge=-2, le=LARGEST)]  # -1, Ollama's -2: as long as the server allows
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Repetition = Annotated[float, Meta(ge=-1, le=100)]
Probability = Annotated[float, Meta(ge=-1, le=1)]
Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Milliseconds = Annotated[float, Meta(ge=-1, le=LARGEST)]
Id = Annotated[int, Meta(ge=0, le=LARGEST)]
Ids = Annotated[list[Id], Meta(min_length=1, max_length=MAX_IDS)]
StopText = Annotated[str, Meta(max_length=MAX_STOP_CHARACTERS)]
Stops = StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)] | None
# What a base model cannot honour has to be empty: it is refused, not ignored.
NoText = Annotated[str, Meta(max_length=0)] | None
NoList = Annotated[list[Any], Meta(max_length=0)] | None
NoObject = Annotated[dict[str, Any], Meta(max_length=0)] | None


class SamplingBody(Struct, kw_only=True):
    """What all dialects call by the same names. The repetition penalty has two."""

    temperature: Annotated[float, Meta(ge=-1, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=LARGEST)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # msgspec's own bounds end at 2**63
    seed: Annotated[int, Meta(ge=-1, extra_json_schema={"maximum": LARGEST_SEED})] | None = None

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed > LARGEST_SEED:
            raise ValueError(f"the seed is above {LARGEST_SEED}")


class FileBody(Struct, kw_only=True):
    """Another file of the repository."""

    path: str
    text: str


class ExtensionBody(Struct, kw_only=True):
    """starpack's own: the repository around the prompt, in the form that the model was trained on,
    and what to do with a prompt that is too long."""

    repo_name: str | None = None
    path: str | None = None
    files: Annotated[list[FileBody], Meta(max_length=MAX_FILES)] | None = None
    over_context: OverContext | None = None


def context_of(extension: ExtensionBody | None) -> Context:
    """The repository in the extension field."""
    if extension is None:
        return NO_CONTEXT
    files = tuple(RepoFile(file.path, file.text) for file in extension.files or ())
    return Context(extension.repo_name, files, extension.path)


def over_context_of(extension: ExtensionBody | None) -> OverContext | None:
    """What the extension field says about a prompt that is too long."""
    return None if extension is None else extension.over_context


def text_prompt(
    text: str, suffix: str | None, defaults: ServerDefaults, context: Context = NO_CONTEXT
) -> TextPrompt:
    """A prompt and its suffix; "" is no suffix. A prompt alone may spell a whole infill prompt."""
    if suffix:
        return TextPrompt(text, suffix, context)
    raw = read_raw(text) if defaults.raw_fim else None
    if raw is None:
        return TextPrompt(text, None, context)
    own = raw.context != NO_CONTEXT
    return raw if own else TextPrompt(raw.prefix, raw.suffix, context)


def read_stops(*values: str | Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Stop strings to honour, without empty ones and repetitions, and those that are dropped."""
    stops: dict[str, None] = {}
    for value in values:
        texts = [value] if isinstance(value, str) else value or ()
        stops |= {text: None for text in texts if text}
    if stops.keys() >= CONTINUE_STOPS:
        kept = tuple(stop for stop in stops if stop not in CONTINUE_STOPS)
        return kept, tuple(stop for stop in stops if stop in CONTINUE_STOPS)
    return tuple(stops), ()


def read_length(value: int | None, defaults: ServerDefaults) -> int:
    """Most tokens of the answer: as asked for, within the server's limit."""
    if value is None:
        return min(defaults.default_tokens, defaults.max_tokens)
    return defaults.max_tokens if value < 0 else min(value, defaults.max_tokens)


def read_sampling(
    body: SamplingBody, defaults: ServerDefaults, repetition: float | None
) -> Sampling:
    """How to choose; `repetition` is the dialect's own name of that penalty.

    Without a seed there is a new one each time, which the answer tells.
    """
    temperature = _or(body.temperature, defaults.temperature)
    return Sampling(
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_k=_or(body.top_k, OFF),
        top_p=_or(body.top_p, OFF),
        min_p=_or(body.min_p, OFF),
        repetition_penalty=repetition if repetition and repetition > 0 else 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=_or(body.seed, secrets.randbits(SEED_BITS)),
    )


def _or(value: N | None, default: N) -> N:
    """`value` where it is one: null and negative numbers are none."""
    return default if value is None or value < 0 else value


def seconds(milliseconds: float | None) -> float | None:
    """A time limit; 0 and negative are none."""
    return None if milliseconds is None or milliseconds <= 0 else milliseconds / 1000


def ignored(body: Struct, names: Sequence[str]) -> tuple[str, ...]:
    """Which of these fields, known but not honoured, a body has something in."""
    return tuple(name for name in names if getattr(body, name) not in (None, [], {}, ""))
