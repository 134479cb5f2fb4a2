"""The command that says what a device is, and whether the model runs there as it was measured."""

from __future__ import annotations

import argparse
import math
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from runtimes.backends.timing import Prompt, Steps, fastest, time_prompts, time_steps, warm_up
from runtimes.bundle.baseline import Baseline, read_baseline
from runtimes.bundle.variants import check_memory, choose, free_bytes
from runtimes.cli.diagnosis import (
    Comparison,
    Verdict,
    compare,
    gpu_driver,
    instruction_sets,
    verdict_of,
)
from runtimes.cli.invocation import Invocation
from runtimes.cli.model import open_model
from runtimes.errors import DeviceError
from runtimes.generation.completion import GenerateOptions
from runtimes.generation.runtime import Runtime
from runtimes.host.limits import default_threads, machine_memory_bytes, peak_resident_bytes
from runtimes.trust.console import Console
from runtimes.trust.manifest import Manifest, read_manifest
from runtimes.trust.offline import guards

PROMPT = "def main("


@dataclass(frozen=True, slots=True)
class Extent:
    """How much to measure, and for how long at the most; one more chunk or token may be on top.

    The prompt is timed up to `prompts` times, as far as the limit allows, and the fastest counts:
    what else runs on a machine only ever adds to a time.
    """

    prompt_tokens: int
    prompts: int
    steps: int
    prompt_limit_s: float
    steps_limit_s: float


QUICK = Extent(prompt_tokens=128, prompts=3, steps=16, prompt_limit_s=3, steps_limit_s=3)
USUAL = Extent(prompt_tokens=1024, prompts=3, steps=64, prompt_limit_s=40, steps_limit_s=15)

Facts = dict[str, dict[str, object]]


def doctor(args: argparse.Namespace, call: Invocation) -> None:
    """Look at the machine, have the model answer, time it, and compare with the manifest.

    Raises DeviceError, after the report, where the model does not fit or does not run here.
    """
    console = call.console
    every = read_manifest(call.bundle)
    facts = _facts_before(call.bundle, every)
    try:
        manifest = _fitting(args, call, every, facts)
    except DeviceError as error:
        _report(console, "does not fit", False, facts, [], error)
        raise
    baseline = read_baseline(manifest.measured)
    try:
        with open_model(args, call, manifest) as runtime:
            facts |= _facts_after(manifest, runtime)
            ready = _answers(runtime)
            prompt, steps = _measure(runtime, baseline, QUICK if args.quick else USUAL)
    except DeviceError as error:
        _report(console, "wrong device", False, facts, [], error)
        raise
    except MemoryError as error:
        failure = DeviceError(f"memory ran out: {error}", where=call.bundle, remedy="free memory")
        _report(console, "does not fit", False, facts, [], failure)
        raise failure from None
    comparisons = compare(baseline, prompt, steps)
    facts["measured here"] = {
        "prompt_tokens": prompt.tokens,
        "prompt_s": prompt.seconds,
        "depth_tokens": steps.depth_tokens,
        "steps": len(steps.seconds),
        "per_token_p50_s": steps.p50_s,
        "per_token_p90_s": steps.p90_s,
        "peak_memory_bytes": peak_resident_bytes(),
    }
    facts["baseline"] = asdict(baseline)
    _report(console, verdict_of(comparisons), ready, facts, comparisons)


def _fitting(args: argparse.Namespace, call: Invocation, every: Manifest, facts: Facts) -> Manifest:
    """Choose of `every` variant, and add to the facts what the chosen one needs and what there is.

    Raises DeviceError where the memory is not enough.
    """
    if every.variants:
        fits_by_variant = check_memory(every, free_bytes(args.provider))
        facts["variants"] = {one.variant.name: one.text for one in fits_by_variant}
    manifest = choose(every, args.variant, args.provider, call.console.remark)
    facts["bundle"] |= {"format": manifest.format, "recipe": manifest.recipe}
    if manifest.variants:
        facts["bundle"]["variant"] = manifest.variants[0].name
    (here,) = check_memory(manifest, machine_memory_bytes()[1])
    needed, available = here.needed_bytes, here.available_bytes
    facts["free memory"] = {"needed_bytes": needed, "available_bytes": available or "unknown"}
    if args.provider == "cpu" and not here.fits:
        raise DeviceError(
            f"the model needs {needed / 1e6:.0f} MB, and {available / 1e6:.0f} MB are free",
            where=call.bundle,
            remedy="free memory, or take a bundle with a smaller variant"
            + (", or this one with --variant auto" if every.variants else ""),
        )
    return manifest


def _answers(runtime: Runtime) -> bool:
    """Whether a real token comes out: text in, tokenizer, model, sampler. A control id is one."""
    answer = runtime.generate(PROMPT, GenerateOptions(max_tokens=1))
    return bool(answer.ids) or answer.finish.reason == "stop"


def _measure(runtime: Runtime, baseline: Baseline, extent: Extent) -> tuple[Prompt, Steps]:
    backend = runtime.backend
    steps = min(extent.steps, max(1, backend.context_tokens // 2))
    wanted = min(extent.prompt_tokens, baseline.prompt_tokens or math.inf)
    tokens = max(1, min(int(wanted), backend.context_tokens - steps))
    warm_up(backend)
    limit_s = extent.prompt_limit_s
    prompts = time_prompts(backend, tokens, repeats=extent.prompts, limit_s=limit_s, cut_s=limit_s)
    return fastest(prompts), time_steps(backend, steps, extent.steps_limit_s)


def _report(
    console: Console,
    verdict: Verdict,
    ready: bool,
    facts: Facts,
    comparisons: list[Comparison],
    error: DeviceError | None = None,
) -> None:
    """Show it; as JSON it is the command's one value, so a failure is part of it."""
    reasons = [error.what] if error else [comparison.text for comparison in comparisons]
    if console.as_json:
        ratios = [asdict(c) | {"ratio": c.ratio} for c in comparisons]
        head = {"verdict": verdict, "ready": ready, "reasons": reasons, "comparisons": ratios}
        console.data(head | facts | (error.to_json() if error else {}))
        return
    for section, values in facts.items():
        console.text(f"{section}\n")
        for name, value in values.items():
            console.text(f"  {name:24} {value}\n")
    answered = "yes: it produced a token" if ready else "no"
    console.text(f"ready: {answered}\nverdict: {verdict}\n")
    for line in reasons:
        console.text(f"  {line}\n")


def _facts_before(bundle: Path, manifest: Manifest) -> Facts:
    """What is known before anything is loaded."""
    return {
        "bundle": {
            "path": str(bundle),
            "format": manifest.format,
            "recipe": manifest.recipe,
            **manifest.versions,
        },
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "default_threads": default_threads(),
            "instruction_sets": " ".join(instruction_sets()) or "unknown",
            "nvidia_driver": gpu_driver(),
            "network_refused_by": ", ".join(guards()) or "nothing",
        },
        "libraries": _libraries(manifest),
    }


def _libraries(manifest: Manifest) -> dict[str, object]:
    """Version here of each package that the bundle was packed with."""
    found: dict[str, object] = {}
    for name, packed in manifest.versions.items():
        try:
            here = metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            continue  # a tool of the build, or no package
        found[name] = here if here == packed else f"{here}, but packed with {packed}"
    return found


def _facts_after(manifest: Manifest, runtime: Runtime) -> Facts:
    backend = runtime.backend
    return {
        "window": {
            "window_tokens": backend.window.size_tokens or "none",
            "reach_tokens": backend.window.reach_tokens(manifest.layers) or "none",
            "context_tokens": backend.context_tokens,
            "trained_context_tokens": manifest.context_tokens,
            "chunk_tokens": backend.chunk_tokens,
        },
        "memory as the engine reports it": dict(asdict(backend.memory_bytes())),
        "engine": dict(backend.describe()),
    }
