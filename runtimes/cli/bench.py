"""The command that times the model here: prompts of several lengths, tokens at several depths."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass

from runtimes.backends.timing import Prompt, Steps, go_to, time_prompt, time_steps, warm_up
from runtimes.cli.invocation import Invocation
from runtimes.cli.model import chosen_manifest, open_model
from runtimes.contract import Backend, MemoryUse
from runtimes.errors import ContextError
from runtimes.host.limits import peak_resident_bytes
from runtimes.trust.console import Console
from runtimes.trust.manifest import Manifest

# Guessed: what editors send, and one depth past StarCoder2's window.
PROMPTS = (128, 512, 1024)
DEPTHS = (128, 1024, 4096, 8192)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One length of prompts."""

    tokens: int
    seconds: list[float]
    median_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class StepsRow:
    """Single tokens at one depth; no rate where the clock saw no time pass."""

    depth_tokens: int
    seconds: tuple[float, ...]
    p50_s: float
    p90_s: float
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """What `bench --json` prints."""

    format: str
    recipe: str
    engine: dict[str, str]
    context_tokens: int
    window_tokens: int | None
    prompts: list[PromptRow]
    steps: list[StepsRow]
    memory: MemoryUse
    peak_memory_bytes: int


def bench(args: argparse.Namespace, call: Invocation) -> None:
    """Time prompts and single tokens; the same flags and figures in every format."""
    manifest = chosen_manifest(args, call)
    with open_model(args, call, manifest) as runtime:
        backend = runtime.backend
        available = backend.context_tokens
        prompts = _lengths("--prompt-tokens", args.prompt_tokens, PROMPTS, available)
        depths = _lengths("--depths", args.depths, DEPTHS, available - args.steps)
        warm_up(backend)
        total, done = len(prompts) * args.repeat + len(depths), 0
        progress = call.console.meter("bench", "runs")
        timed: list[list[Prompt]] = []
        for tokens in prompts:
            timed.append([])
            for _ in range(args.repeat):
                timed[-1].append(time_prompt(backend, tokens))
                progress(done := done + 1, total)
        steps: list[Steps] = []
        for depth in depths:
            go_to(backend, depth)
            steps.append(time_steps(backend, args.steps))
            progress(done := done + 1, total)
        result = _result(manifest, backend, timed, steps)
    if call.console.as_json:
        call.console.data(asdict(result))
    else:
        _show(result, call.console)


def _lengths(
    flag: str, wanted: list[int] | None, usual: tuple[int, ...], maximum: int
) -> list[int]:
    """The wanted lengths, all of which must fit; by default, the usual ones that do."""
    if maximum < 1:
        raise ContextError("the context is too short to time anything", expected="a larger one")
    if wanted is None:
        return [tokens for tokens in usual if tokens <= maximum] or [maximum]
    for tokens in wanted:
        if not 1 <= tokens <= maximum:
            raise ContextError(
                f"{flag} has {tokens}",
                expected=f"1 to {maximum} tokens, in this context",
                remedy="give a larger --context",
            )
    return sorted(set(wanted))


def _result(
    manifest: Manifest, backend: Backend, timed: list[list[Prompt]], steps: list[Steps]
) -> Result:
    prompts = [
        PromptRow(
            tokens=runs[0].tokens,
            seconds=[run.seconds for run in runs],
            median_s=statistics.median(run.seconds for run in runs),
            tokens_per_s=statistics.median(run.tokens_per_s for run in runs),
        )
        for runs in timed
    ]
    rows = [
        StepsRow(
            depth_tokens=run.depth_tokens,
            seconds=run.seconds,
            p50_s=run.p50_s,
            p90_s=run.p90_s,
            tokens_per_s=1 / run.p50_s if run.p50_s > 0 else None,
        )
        for run in steps
    ]
    return Result(
        format=manifest.format,
        recipe=manifest.recipe,
        engine=dict(backend.describe()),
        context_tokens=backend.context_tokens,
        window_tokens=backend.window.size_tokens,
        prompts=prompts,
        steps=rows,
        memory=backend.memory_bytes(),
        peak_memory_bytes=peak_resident_bytes(),
    )


def _show(result: Result, console: Console) -> None:
    window = result.window_tokens or "none"
    console.text(f"{result.format} {result.recipe}, window {window}, ")
    console.text(f"context {result.context_tokens} tokens\n\n")
    console.text(f"{'prompt, tokens':>16} {'seconds':>10} {'tokens/s':>10}\n")
    for prompt in result.prompts:
        console.text(f"{prompt.tokens:16} {prompt.median_s:10.3f} {prompt.tokens_per_s:10.1f}\n")
    console.text(f"\n{'after, tokens':>16} {'ms (p50)':>10} {'ms (p90)':>10} {'tokens/s':>10}\n")
    for row in result.steps:
        rate = "" if row.tokens_per_s is None else f"{row.tokens_per_s:10.1f}"
        times = f"{row.p50_s * 1e3:10.2f} {row.p90_s * 1e3:10.2f}"
        console.text(f"{row.depth_tokens:16} {times} {rate}\n")
    memory = sum(asdict(result.memory).values())
    console.text(f"\nmemory: {memory / 1e6:.1f} MB as the engine reports it, ")
    console.text(f"peak of the process {result.peak_memory_bytes / 1e6:.0f} MB\n")
