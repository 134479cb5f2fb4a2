"""One line for a person on what was generated, and from which files."""

from __future__ import annotations

from runtimes.generation.completion import Timings
from runtimes.prompts.repo_context import Chosen


def describe_timings(timings: Timings, finish_reason: str) -> str:
    """One line for a person."""
    line = (
        f"prompt: {timings.prompt_tokens} tokens, {timings.reused_tokens} of them reused, "
        f"{timings.prompt_s:.2f} s; generated: {timings.generated_tokens} tokens"
    )
    if timings.first_token_s is not None:
        line += f", the first after {timings.first_token_s:.2f} s"
    if timings.generated_tokens > 1 and timings.decode_s > 0:
        line += f", then {(timings.generated_tokens - 1) / timings.decode_s:.1f} tokens/s"
    return f"{line}; ended by: {finish_reason}"


def describe_chosen(chosen: Chosen) -> str:
    """One line for a person, the most relevant file first."""
    paths = ", ".join(str(file.path) for file in reversed(chosen.files)) or "none fits"
    more = "" if chosen.is_complete else "; the folder is too large to be looked at as a whole"
    return (
        f"repository: {len(chosen.files)} files, {chosen.tokens} of {chosen.budget_tokens} tokens "
        f"({paths}); {chosen.left_out} left out{more}"
    )
