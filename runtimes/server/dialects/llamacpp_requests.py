"""The bodies of llama.cpp's server, and how they are read; see llamacpp.py."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from runtimes.generation.completion import GenerateOptions
from runtimes.prompts.fim import Context, RepoFile
from runtimes.server.dialects import fields
from runtimes.server.request import CompletionRequest, IdsPrompt, ServerDefaults, TextPrompt
from runtimes.server.service import MAX_RUNS

IGNORED = ("samplers", "lora")


class OptionsBody(fields.SamplingBody, kw_only=True):
    """What /completion and /infill share."""

    n_predict: fields.Length | None = None
    repeat_penalty: fields.Repetition | None = None
    stop: fields.Stops = None
    stream: bool | None = None
    n_probs: fields.Logprobs | None = None
    n_indent: Annotated[int, Meta(ge=-1, le=1000)] | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=MAX_RUNS)] | None = None
    t_max_prompt_ms: fields.Milliseconds | None = None
    t_max_predict_ms: fields.Milliseconds | None = None
    return_tokens: bool | None = None
    response_fields: Annotated[list[str], Meta(max_length=100)] | None = None
    grammar: fields.NoText = None
    json_schema: fields.NoObject = None
    starpack: fields.ExtensionBody | None = None
    samplers: Any = None
    lora: Any = None


class CompletionBody(OptionsBody, kw_only=True):
    """A text or ids to continue."""

    prompt: str | fields.Ids


class ExtraBody(Struct, kw_only=True):
    """Another file of the repository, or a part of one."""

    text: str
    filename: str | None = None


class InfillBody(OptionsBody, kw_only=True):
    """A gap. `prompt` is the start of the line at the cursor, so it ends the prefix."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[ExtraBody], Meta(max_length=fields.MAX_FILES)] | None = None
    prompt: str | None = None


class TokenizeBody(Struct, kw_only=True):
    """A text. Control tokens in it stay text."""

    content: str
    with_pieces: bool | None = None


class DetokenizeBody(Struct, kw_only=True):
    """Ids."""

    tokens: Annotated[list[fields.Id], Meta(max_length=fields.MAX_IDS)]


def read_completion(body: CompletionBody, defaults: ServerDefaults) -> CompletionRequest:
    """/completion to request."""
    if isinstance(body.prompt, list):
        return _request(body, defaults, IdsPrompt(tuple(body.prompt)))
    context = fields.context_of(body.starpack)
    return _request(body, defaults, fields.text_prompt(body.prompt, None, defaults, context))


def read_infill(body: InfillBody, defaults: ServerDefaults) -> CompletionRequest:
    """/infill to request."""
    said = fields.context_of(body.starpack)
    extra = tuple(RepoFile(file.filename, file.text) for file in body.input_extra or ())
    prefix = body.input_prefix + (body.prompt or "")
    context = Context(said.repo_name, (*said.files, *extra), said.path)
    return _request(body, defaults, TextPrompt(prefix, body.input_suffix, context))


def _request(
    body: OptionsBody, defaults: ServerDefaults, prompt: TextPrompt | IdsPrompt
) -> CompletionRequest:
    stops, dropped = fields.read_stops(body.stop)
    return CompletionRequest(
        prompts=(prompt,),
        options=GenerateOptions(
            max_tokens=fields.read_length(body.n_predict, defaults),
            sampling=fields.read_sampling(body, defaults, body.repeat_penalty),
            stop=stops,
            logprobs=body.n_probs or None,
            min_indent=max(0, body.n_indent or 0),
            max_prompt_s=fields.seconds(body.t_max_prompt_ms),
            max_decode_s=fields.seconds(body.t_max_predict_ms),
        ),
        choices=body.n_cmpl or 1,
        stream=bool(body.stream),
        over_context=fields.over_context_of(body.starpack),
        dropped_stops=dropped,
        ignored=fields.ignored(body, IGNORED),
    )
