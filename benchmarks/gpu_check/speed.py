"""Parts NAME-3b and NAME-7b: decode, prefill and memory of the real shapes, beside the estimate.

Weights are random (weights.py). A prompt of 512 tokens with 64 single tokens after it, and the same
past the window. Where the device's memory is too small for all layers, fewer are run, and each
finding says how many.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.gpu_check.engines import Engine, engine_of, path_of
from benchmarks.gpu_check.records import TOY, Job, Keep, Memory, Missing, Speed, StepTimes
from benchmarks.gpu_check.trying import held_bytes, noting
from benchmarks.gpu_check.weights import model_of
from examples.synthesise import cut
from packager.core.records import Budget, Device, Estimate, Workload
from packager.devices.database import device_of
from packager.estimate.estimator import estimate
from packager.estimate.memory import footprint, memory_parts
from packager.estimate.models import Model
from packager.formats import Setting
from packager.formats.gptq.footprint import KERNEL
from runtimes.backends.timing import time_prompt, time_steps, warm_up
from runtimes.contract import Backend, BackendOptions

PROMPT_TOKENS = 512  # llama-bench's own: pp512
STEPS = 64  # tg64
ROUNDS = 2  # graphs on, off, on, off: so that a clock that changes meets both
PROMPTS, PROMPTS_S = 5, 15.0  # prompts are repeated, within this time
SPARE = 0.9  # guessed: of the free memory; the estimate errs, and others use the device too


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model, cut to `model`'s layers, in an engine, on a device."""

    engine: Engine
    model: Model
    whole_layers: int
    device: Device | None
    context_tokens: int

    def estimate(self, prompt_tokens: int, output_tokens: int) -> Estimate | None:
        """What `starpack estimate` says of it; None where the device is not known."""
        if self.device is None:
            return None
        work = Workload(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        budget = Budget("gpu-check", work, self.context_tokens)
        variant = self.engine.variant(self.engine.recipe)
        model = self.model
        return estimate(model.name, model.geometry, model.window, variant, self.device, budget)


def missing(job: Job) -> Missing | None:
    """What has to be here for this part and is not."""
    return engine_of(job).missing(job)


def run(job: Job, keep: Keep) -> None:
    """Write the model, open it, time it at two depths, and ask for the memory that it took."""
    engine = engine_of(job)
    name = TOY if job.toy else job.part.split("-")[1]
    whole = model_of(name)
    device = None if job.device is None else device_of(job.device)
    window = whole.window.size_tokens
    prompt = window // 2 if job.toy else PROMPT_TOKENS
    depths = (prompt, window + prompt)
    context = depths[-1] + 4 * STEPS
    model = whole if job.toy else fitting(whole, engine, device, context, -job.held_bytes)
    subject = Subject(engine, model, whole.geometry.layers, device, context)
    path = engine.write(model, engine.recipe, job.work / engine.name)
    options = BackendOptions(context, job.threads, job.provider)
    backend = engine.ways()[0](path, model.window, options)
    try:
        warm_up(backend)
        for depth in depths:
            with noting(keep, f"{engine.name}, {depth} tokens"):
                keep(time_at(subject, backend, depth))
        keep(memory(subject, backend, max(0, held_bytes(job.provider) - job.held_bytes)))
    finally:
        backend.close()


def fitting(
    model: Model, engine: Engine, device: Device | None, context_tokens: int, free_bytes: int
) -> Model:
    """The model with as many layers as the free memory is enough for, by the estimate.

    free_bytes: 0 where nobody can say, and then all. Weights are counted in 4 bits also where the
    device has no kernel for them, since the backend then expands them as it goes.
    """
    if device is None or not free_bytes:
        return model
    counted = replace(device, kernels=(*device.kernels, KERNEL))
    setting = Setting(context_tokens, device=counted)
    variant = engine.variant(engine.recipe)
    for layers in range(model.geometry.layers, 1, -1):
        some = cut(model, layers)
        found = footprint(some.geometry, variant, model.window, setting)
        parts = memory_parts(found, device)
        if parts.total_bytes <= SPARE * free_bytes:
            return some
    return cut(model, 1)


def time_at(subject: Subject, backend: Backend, depth: int) -> Speed:
    """Prompts of `depth` tokens, then single ones, in turns of all modes that there are."""
    seconds: list[float] = []
    while len(seconds) < PROMPTS and sum(seconds) < PROMPTS_S:
        seconds.append(time_prompt(backend, depth).seconds)
    modes = ("graphs", "no graphs") if "cuda_graphs" in backend.describe() else ("plain",)
    steps: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(ROUNDS):
        for mode in modes:
            if len(modes) > 1:
                backend.graphs = mode == "graphs"
            steps[mode] += time_steps(backend, STEPS // ROUNDS).seconds
    if len(modes) > 1:
        backend.graphs = True
    said, expected = backend.describe(), subject.estimate(depth, STEPS)
    return Speed(
        engine=f"{said['engine']} {said['version']}",
        recipe=subject.engine.recipe,
        path=path_of(said),
        model=subject.model.name,
        layers=subject.model.geometry.layers,
        whole_layers=subject.whole_layers,
        prompt_tokens=depth,
        prompt_s=tuple(seconds),
        steps=tuple(_times(mode, found) for mode, found in steps.items()),
        prompt_estimated_s=expected and expected.first_token_s,
        token_estimated_s=expected and expected.per_token_s,
    )


def memory(subject: Subject, backend: Backend, measured_bytes: int) -> Memory:
    """What it took, as the driver and as the backend say it, beside the estimate."""
    said, expected = backend.describe(), subject.estimate(1, 1)
    use = backend.memory_bytes()
    return Memory(
        engine=f"{said['engine']} {said['version']}",
        recipe=subject.engine.recipe,
        model=subject.model.name,
        layers=subject.model.geometry.layers,
        whole_layers=subject.whole_layers,
        context_tokens=subject.context_tokens,
        measured_bytes=measured_bytes,
        weights_bytes=use.weights_bytes,
        key_values_bytes=use.key_values_bytes,
        compute_bytes=use.compute_bytes,
        estimated_bytes=expected and expected.memory_bytes,
    )


def _times(mode: str, seconds: list[float]) -> StepTimes:
    p90 = float(np.percentile(seconds, 90))
    return StepTimes(mode, len(seconds), statistics.median(seconds), p90)
