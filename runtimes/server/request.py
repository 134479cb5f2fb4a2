"""The request that every dialect is translated to, and the same one prepared, in ids.

Data only. Knows nothing of HTTP, of dialects or of how a request is carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from runtimes.generation.completion import Completion, Finish, GenerateOptions
from runtimes.generation.sampling import TokenLogprobs
from runtimes.prompts.fim import NO_CONTEXT, Context

OverContext = Literal["error", "trim"]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue; with a `suffix`, the text around a gap. All of it is plain text."""

    prefix: str
    suffix: str | None = None
    context: Context = NO_CONTEXT


@dataclass(frozen=True, slots=True)
class IdsPrompt:
    """A prompt that the client has put into ids itself, control ids included."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completion request, in no dialect.

    choices: completions of each prompt. echo: the prompt belongs to the answer. scored: so do the
    log-probabilities of the prompt. stream: chunk by chunk. over_context: what to do with a prompt
    that is too long; None leaves it to the server. dropped_stops, ignored: stop strings and fields
    of the request that are not honoured; the answer says so.
    """

    prompts: tuple[TextPrompt | IdsPrompt, ...]
    options: GenerateOptions
    choices: int = 1
    echo: bool = False
    scored: bool = False
    stream: bool = False
    over_context: OverContext | None = None
    dropped_stops: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerDefaults:
    """What the server assumes where a request does not say; the same for every dialect.

    default_tokens, temperature: for requests that do not say. max_tokens: the longest answer to
    any request. raw_fim: read a prompt that spells a whole fill-in-the-middle prompt as one
    (see dialects/raw_fim.py). over_context: for a prompt that is too long. suffix_fraction,
    extras_fraction: the minimum parts of a trimmed prompt for the suffix and the repository's
    files; the prefix has the rest.
    """

    default_tokens: int = 128
    max_tokens: int = 1024
    temperature: float = 0.0
    raw_fim: bool = True
    over_context: OverContext = "error"
    suffix_fraction: float = (
        0.25  # guessed: what follows the cursor says less than what precedes it
    )
    extras_fraction: float = 0.25  # guessed


@dataclass(frozen=True, slots=True)
class PromptBudget:
    """Where the tokens of a prompt went; the parts and `control_tokens` add up to the prompt's.

    extras are the repository's name and files. room_tokens is the context less what is kept for
    the answer. dropped_*: trimmed from the far ends, the files as a whole; of a part so long that
    it was cut before it was tokenised, at least so many.
    """

    context_tokens: int
    room_tokens: int
    prompt_tokens: int
    prefix_tokens: int
    suffix_tokens: int
    extras_tokens: int
    control_tokens: int
    dropped_prefix_tokens: int = 0
    dropped_suffix_tokens: int = 0
    dropped_extras_tokens: int = 0
    dropped_files: int = 0

    @property
    def dropped_tokens(self) -> int:
        """Of all parts."""
        return self.dropped_prefix_tokens + self.dropped_suffix_tokens + self.dropped_extras_tokens


@dataclass(frozen=True, slots=True)
class PreparedSequence:
    """One sequence for the engine. scored: the log-probabilities of its prompt are wanted too."""

    ids: tuple[int, ...]
    options: GenerateOptions
    scored: bool = False


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request in ids, with the budget of each prompt.

    Sequence `i` is choice `i % choices` of prompt `i // choices`.
    """

    request: CompletionRequest
    sequences: tuple[PreparedSequence, ...]
    budgets: tuple[PromptBudget, ...]

    def prompt_of(self, index: int) -> TextPrompt | IdsPrompt:
        """The prompt that a run belongs to."""
        return self.request.prompts[index // self.request.choices]

    def budget_of(self, index: int) -> PromptBudget:
        """How the prompt of a run was laid out."""
        return self.budgets[index // self.request.choices]


@dataclass(frozen=True, slots=True)
class Result:
    """The whole answer of one run; `prompt_logprobs` are of each id but the first, if wanted."""

    completion: Completion
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """What a server tells about the model it serves. modified_s: Unix time."""

    name: str
    format: str
    recipe: str
    window_tokens: int | None
    context_tokens: int
    vocab_size: int
    layers: int
    size_bytes: int
    sha256: str
    modified_s: float
    token_bytes: Callable[[int], bytes]
    licences: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (path, text)

    def token_text(self, token_id: int) -> str:
        """One id as text; bytes that are no characters by themselves as in OpenAI's answers."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def report(prepared: PreparedRequest, ends: Sequence[Finish]) -> dict[str, object]:
    """What no dialect has a place for, and nobody should have to guess; under the key `starpack`.

    The budget of each prompt, why each choice ended, its timings, the seed, the length in force,
    what was not honoured.
    """
    options = prepared.request.options
    return {
        "budget": [asdict(budget) for budget in prepared.budgets],
        "finish_reasons": [end.reason for end in ends],
        "timings": [asdict(end.timings) for end in ends],
        "seed": options.sampling.seed,
        "max_tokens": options.max_tokens,
        "dropped_stops": list(prepared.request.dropped_stops),
        "ignored": list(prepared.request.ignored),
    }
