"""The fields that the dialects share, under whatever names: their schemas, and how they are read.

null is the same as absent. -1, and any negative number, means off. A request that does not say is
greedy and may have 128 tokens (unless the server's flags say otherwise), in every dialect: the
same request has the same answer, whichever dialect it comes in.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from runtimes.generation.sampling import OFF, Sampling
from runtimes.prompts.fim import NO_CONTEXT, Context, RepoFile
from runtimes.server.dialects.endpoint import BOOLEAN, STRING, Body, given, list_of, object_of
from runtimes.server.dialects.raw_fim import read_raw
from runtimes.server.http.schema import Schema
from runtimes.server.request import IdsPrompt, OverContext, Rules, TextPrompt

MOST_STOPS = 64  # guessed: Continue sends the file's next line and a dozen more
MOST_STOP_CHARACTERS = 4096  # guessed: Continue stops at the next line, whatever its length
MOST_IDS = 131_072  # specified: the longest context that starpack offers
MOST_FILES = 1000  # guessed
MOST_LOGPROBS = 20  # guessed; OpenAI's own limit is 5
GREEDY_BELOW = 0.001  # guessed: a temperature so low that only rounding could tell it from 0
SEED_BITS = 32  # as many as every client can read back
LARGEST = 2**53  # whole numbers up to here are exact in every JSON reader
# Continue's generic stops. Together they say who sends them; each would end every line that starts
# with `t` (try, this, throw) or has "t." in it, so both are dropped, and the answer says so.
CONTINUE_STOPS = frozenset({"t.", "\nt"})


def nullable(schema: Schema) -> dict[str, object]:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def whole_number(least: int, most: int = LARGEST) -> dict[str, object]:
    """A whole number within bounds, or null."""
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def number(least: float, most: float) -> dict[str, object]:
    """A number within bounds, or null."""
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


LENGTH = whole_number(-2)  # -1 and Ollama's -2: as long as the server allows
PENALTY = number(-100, 100)
REPETITION = number(-1, 100)
# What all dialects call by the same names. The repetition penalty has two.
SAMPLING: dict[str, Schema] = {
    "temperature": number(-1, 100),
    "top_k": whole_number(-1),
    "top_p": number(-1, 1),
    "min_p": number(-1, 1),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "seed": whole_number(-1, 2**64 - 1),
}
SWITCH = nullable(BOOLEAN)
TEXT = nullable(STRING)
NOTHING_OF = {"type": ["object", "null"], "maxProperties": 0}  # an object that must be empty
IDS = list_of({"type": "integer", "minimum": 0}, MOST_IDS, 1)
STOP_TEXT = {"type": "string", "maxLength": MOST_STOP_CHARACTERS}


def stops_schema(most: int) -> dict[str, object]:
    """One stop string, several, or null."""
    return {"anyOf": [nullable(STOP_TEXT), list_of(STOP_TEXT, most)]}


EXTENSION: Schema = {
    **nullable(
        object_of(
            repo_name=TEXT,
            path=TEXT,
            files=nullable(
                list_of(object_of("path", "text", path=STRING, text=STRING), MOST_FILES)
            ),
            over_context={"enum": ["error", "trim", None]},
        )
    ),
    "description": "starpack's own: the repository around the prompt, in the form that the model "
    "was trained on, and what to do with a prompt that is too long",
}


def context_of(body: Body) -> Context:
    """The repository in the extension field."""
    said = given(body, "starpack", {})
    files = tuple(RepoFile(file["path"], file["text"]) for file in given(said, "files", ()))
    return Context(given(said, "repo_name"), files, given(said, "path"))


def over_context_of(body: Body) -> OverContext | None:
    """What the extension field says about a prompt that is too long."""
    said: OverContext | None = given(given(body, "starpack", {}), "over_context")
    return said


def text_prompt(
    text: str, suffix: str | None, rules: Rules, context: Context = NO_CONTEXT
) -> TextPrompt:
    """A prompt and its suffix; "" is no suffix. A prompt alone may spell a whole infill prompt."""
    if suffix:
        return TextPrompt(text, suffix, context)
    raw = read_raw(text) if rules.raw_fim else None
    if raw is None:
        return TextPrompt(text, None, context)
    own = raw.context != NO_CONTEXT
    return raw if own else TextPrompt(raw.prefix, raw.suffix, context)


def ids_prompt(ids: Sequence[float]) -> IdsPrompt:
    """Ids as JSON has them, where 1.0 is a whole number too."""
    return IdsPrompt(tuple(int(i) for i in ids))


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


def read_length(value: float | None, rules: Rules) -> int:
    """Most tokens of the answer: as asked for, within the server's limit."""
    if value is None:
        return min(rules.default_tokens, rules.most_tokens)
    return rules.most_tokens if value < 0 else min(int(value), rules.most_tokens)


def read_sampling(body: Body, rules: Rules, repetition: str) -> Sampling:
    """How to choose; `repetition` is the dialect's name of that penalty.

    Without a seed there is a new one each time, which the answer tells.
    """
    temperature = given(body, "temperature", -1)
    if temperature < 0:
        temperature = rules.temperature
    penalty = given(body, repetition, 0)
    seed = given(body, "seed", -1)
    return Sampling(
        temperature=0.0 if temperature < GREEDY_BELOW else float(temperature),
        top_k=int(_or_off(body, "top_k")),
        top_p=_or_off(body, "top_p"),
        min_p=_or_off(body, "min_p"),
        repetition_penalty=penalty if penalty > 0 else 1.0,
        presence_penalty=given(body, "presence_penalty", 0.0),
        frequency_penalty=given(body, "frequency_penalty", 0.0),
        seed=secrets.randbits(SEED_BITS) if seed < 0 else int(seed),
    )


def _or_off(body: Body, name: str) -> float:
    value = given(body, name, OFF)
    return OFF if value < 0 else value


def seconds(milliseconds: float | None) -> float | None:
    """A time limit; 0 and negative are none."""
    return None if milliseconds is None or milliseconds <= 0 else milliseconds / 1000


def is_stream(body: Body, default: bool = False) -> bool:
    """Whether the answer is to come as a stream."""
    return bool(given(body, "stream", default))


def unhonoured(body: Body, names: Sequence[str]) -> tuple[str, ...]:
    """Which of these fields, known but not honoured, a body has something in."""
    return tuple(name for name in names if body.get(name) not in (None, [], {}, ""))
