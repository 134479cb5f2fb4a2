"""The stages in order, each resumed from its record: plan, convert, measure, select, pack.

Knows which stage needs what. Prints nothing; knows no flags. `packager` has the same functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packager import formats
from packager.calibration.sources import read_named_sources, texts_sha256
from packager.checkpoint.reference import Reference
from packager.checkpoint.tensors import open_tensors
from packager.core.errors import SelectionError
from packager.core.hash_cache import combined_sha256
from packager.core.record_store import Store
from packager.core.records import (
    Artifact,
    Checkpoint,
    Estimate,
    Interval,
    Progress,
    Variant,
    Workload,
    no_progress,
)
from packager.core.results import Candidate, Measurement, Quality, Selection, WindowProof
from packager.core.settings import ConvertSettings, DeviceSettings, JudgeSettings
from packager.engine.target import Target, this_machine
from packager.estimate.estimator import estimate
from packager.measurement import quality_gate, timing
from packager.measurement import window_proof as quality
from packager.measurement.gpu_meter import process_bytes
from packager.measurement.infill_samples import builtin_texts
from packager.selection import selector
from packager.selection.candidates import of_measurement
from runtimes import backends

REPORT_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class Assessment:
    """What an artifact computes, wherever it is to run."""

    proof: WindowProof
    quality: Quality


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What packing needs beside the settings; by default it packs the best for this machine.

    target: where the bundle's packages run; None for here. licence_file: the model's licence,
    where its folder holds none. variants: at most so many of those that fit. arguments: what the
    manifest is to record of how the bundle was asked for.
    """

    target: Target | None = None
    licence_file: Path | None = None
    variants: int = 1
    arguments: Mapping[str, object] = field(default_factory=dict)


DEFAULT_PACK = PackOptions()


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle and why it is what it is; measurements are of what it holds, the best first."""

    folder: Path
    report: Path
    selection: Selection
    measurements: tuple[Measurement, ...]


def plan(wanted: Sequence[str], head_bits: int | None = None) -> list[Variant]:
    """Variants from `FORMAT` (its default recipes) or `FORMAT:RECIPE`; each once, in order.

    head_bits: for the head and the embedding, where the format lets them be chosen.
    """
    variants: dict[str, Variant] = {}
    for text in wanted:
        name, _, recipe = text.partition(":")
        format = formats.load(name)
        for chosen in (recipe,) if recipe else format.DEFAULT_RECIPES:
            variant = format.variant(chosen, head_bits)
            variants[variant.name] = variant
    return list(variants.values())


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    settings: ConvertSettings,
    progress: Progress = no_progress,
) -> Artifact:
    """Convert one variant, or take the artifact that these very inputs made before."""
    store = Store(settings.out)
    format = formats.load(variant.format)
    inputs = {"checkpoint": checkpoint.sha256, "variant": variant, "writer": format.VERSION}
    calibration = settings.calibrations.get(variant.format)
    if calibration is not None:
        inputs["calibration"] = format.calibration_sha256(calibration)
    folder = settings.out / "variants" / f"{variant.name}-{store.key(inputs)}"

    def make() -> Artifact:
        return format.convert(
            checkpoint, variant, folder, calibration=calibration, progress=progress
        )

    def valid(artifact: Artifact) -> bool:
        files = ((artifact.path / entry.path, entry.bytes) for entry in artifact.files)
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    return store.resume("convert", inputs, Artifact, make, valid=valid)


def assess(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: JudgeSettings,
    progress: Progress = no_progress,
) -> Assessment:
    """Prove the window and compare with the checkpoint on held-out code, on this machine."""
    options = settings.options()
    texts = builtin_texts() if settings.held_out is None else read_named_sources(settings.held_out)
    inputs = {
        "artifact": artifact.files,
        "options": options,
        "engine": _engine_files(artifact.variant.format),
        "runtime": quality.computing_sha256(artifact.variant.format),
        "texts": texts_sha256(texts),
        "sample_size": settings.sample_size,
        "versions": [quality.VERSION, quality_gate.VERSION],
    }

    def make() -> Assessment:
        # both look further than the context that is asked for, where the model and the engine do
        format, window = artifact.variant.format, checkpoint.window
        longest = max(options.context_tokens, checkpoint.context_tokens)
        longest = backends.longest_context(backends.load(format), window, longest)
        opened = dataclasses.replace(options, context_tokens=longest)
        backend = backends.open_model(format, artifact.path / artifact.entry, window, opened)
        shown = dataclasses.replace(
            checkpoint, context_tokens=min(checkpoint.context_tokens, longest)
        )
        try:
            sample = quality.proof_sample(shown, quality.builtin_text())
            reference = _reference(shown)
            proof = quality.prove_window(reference, backend, sample, progress)
            found = quality_gate.assess(reference, backend, texts, settings.sample_size, progress)
        finally:
            backend.close()
        return Assessment(proof, found)

    return Store(settings.out).resume("assess", inputs, Assessment, make)


def measure(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: DeviceSettings,
    progress: Progress = no_progress,
) -> Measurement:
    """Assess the artifact; time it in a process of its own if the device is this machine.

    What is expected of it there is added in any case.
    """
    assessment = assess(checkpoint, artifact, settings, progress)
    timed = timing.Timing(None)
    if settings.timed_here:
        timed = _time(checkpoint, artifact, settings, progress)
    return Measurement(
        variant=artifact.variant,
        model=checkpoint.path.name,
        artifact_sha256=combined_sha256(artifact.files),
        artifact_bytes=artifact.size_bytes,
        device=settings.device.name,
        proof=assessment.proof,
        quality=assessment.quality,
        speed=timed.speed,
        out_of_memory=timed.out_of_memory,
        estimate=expect(checkpoint, artifact.variant, settings),
    )


def _time(
    checkpoint: Checkpoint, artifact: Artifact, settings: DeviceSettings, progress: Progress
) -> timing.Timing:
    options = settings.options()
    workload = shortened(settings.budget.workload, options.context_tokens)
    room = int(settings.device.memory_bytes.value)
    inputs = {
        "artifact": artifact.files,
        "device": settings.device,
        "options": options,
        "workload": workload,
        "engine": _engine_files(artifact.variant.format),
        "runtime": quality.computing_sha256(artifact.variant.format),
        "version": timing.VERSION,
    }

    def make() -> timing.Timing:
        return timing.measure_speed(
            artifact,
            checkpoint,
            options,
            workload=workload,
            memory_bytes=room,
            device_bytes=process_bytes if settings.provider == "cuda" else None,
            progress=progress,
        )

    return Store(settings.out).resume("measure", inputs, timing.Timing, make)


def shortened(workload: Workload, context_tokens: int) -> Workload:
    """A workload that fits a context: less output, then less prompt, at least one token of each."""
    output = min(workload.output_tokens, max(1, context_tokens // 2))
    prompt = min(workload.prompt_tokens, context_tokens - output)
    return Workload(prompt, output, min(workload.warm_prefix_tokens, prompt - 1))


def expect(checkpoint: Checkpoint, variant: Variant, settings: DeviceSettings) -> Estimate:
    """What the estimate says of a variant of this checkpoint on the device."""
    context = settings.context_tokens
    workload = shortened(settings.budget.workload, context)
    return estimate(
        checkpoint.path.name,
        checkpoint.geometry,
        checkpoint.window,
        variant,
        settings.device,
        dataclasses.replace(settings.budget, context_tokens=context, workload=workload),
    )


def measure_all(
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    settings: DeviceSettings,
    progress: Progress = no_progress,
) -> list[Measurement]:
    """Convert and measure every variant."""
    return [
        measure(checkpoint, convert(checkpoint, variant, settings, progress), settings, progress)
        for variant in variants
    ]


def select(
    checkpoint: Checkpoint, measurements: Sequence[Measurement], settings: DeviceSettings
) -> Selection:
    """Select within the budget and record why.

    Raises NothingFits or QualityError, both with every candidate and what would make it fit.
    """
    candidates = [
        of_measurement(
            measurement,
            parameters=checkpoint.geometry.parameters,
            context_tokens=settings.context_tokens,
        )
        for measurement in measurements
    ]

    def at_context(candidate: Candidate, tokens: int) -> Candidate:
        whole, shorter = (
            expect(checkpoint, candidate.variant, s).parts.total_bytes
            for s in (settings, dataclasses.replace(settings, context_tokens=tokens))
        )
        known = candidate.memory_bytes
        less = (x - whole + shorter for x in (known.low, known.middle, known.high))
        return dataclasses.replace(candidate, memory_bytes=Interval(*less), context_tokens=tokens)

    inputs = {
        "candidates": candidates,
        "budget": settings.budget,
        "device": settings.device,
        "prefer": settings.prefer,
        "accept": sorted(settings.accept),
        "version": selector.VERSION,
    }

    def make() -> Selection:
        return selector.select(
            candidates,
            settings.budget,
            settings.device.name,
            int(settings.device.memory_bytes.value),
            prefer=settings.prefer,
            accept=settings.accept,
            at_context=at_context,
        )

    return Store(settings.out).resume("select", inputs, Selection, make)


def select_with_report(
    checkpoint: Checkpoint,
    measurements: Sequence[Measurement],
    settings: DeviceSettings,
    *,
    dated: bool = True,
) -> tuple[Selection, Path]:
    """Select, and write `out`/report.html even where nothing can be selected.

    dated: the page has the day it was written.
    """
    from packager.report.from_selection import write_selection_report

    page = settings.out / REPORT_NAME
    try:
        selection = select(checkpoint, measurements, settings)
    except SelectionError as error:
        write_selection_report(page, checkpoint, measurements, settings, error, dated=dated)
        raise
    write_selection_report(page, checkpoint, measurements, settings, selection, dated=dated)
    return selection, page


def pack(
    checkpoint: Checkpoint,
    measurements: Sequence[Measurement],
    selection: Selection,
    settings: DeviceSettings,
    options: PackOptions = DEFAULT_PACK,
    progress: Progress = no_progress,
) -> Path:
    """Pack the selection with its evidence to `out`/bundle; returns that folder.

    Raises UsageError for what no bundle can carry, CheckpointError without a licence, DeviceError
    where the installed engine is not the one that would be shipped.
    """
    from packager.bundle.build import pack_selection, packed_variants, prepare
    from packager.report.from_selection import write_selection_report

    target = options.target or this_machine()
    taken = packed_variants(selection, options.variants)
    formats = [variant.format for variant in taken]
    wheels = prepare(checkpoint, formats, settings, target, options.licence_file, progress)
    page = settings.out / REPORT_NAME  # without a day: the same inputs give the same bundle
    write_selection_report(page, checkpoint, measurements, settings, selection, dated=False)
    by_variant = {measurement.variant: measurement for measurement in measurements}
    return pack_selection(
        checkpoint,
        [(convert(checkpoint, v, settings, progress), by_variant[v]) for v in taken],
        selection,
        settings,
        wheels,
        target=target,
        licence_file=options.licence_file,
        arguments=options.arguments,
        report=page,
        progress=progress,
    )


def build_bundle(
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    settings: DeviceSettings,
    options: PackOptions = DEFAULT_PACK,
    progress: Progress = no_progress,
) -> Built:
    """All stages; what packing needs is checked before anything is converted."""
    from packager.bundle.build import packed_variants, prepare

    formats = [variant.format for variant in variants]
    target = options.target or this_machine()
    prepare(checkpoint, formats, settings, target, options.licence_file, progress)
    measurements = measure_all(checkpoint, variants, settings, progress)
    selection, page = select_with_report(checkpoint, measurements, settings, dated=False)
    folder = pack(checkpoint, measurements, selection, settings, options, progress)
    by_variant = {measurement.variant: measurement for measurement in measurements}
    taken = packed_variants(selection, options.variants)
    return Built(folder, page, selection, tuple(by_variant[variant] for variant in taken))


@functools.lru_cache(maxsize=1)  # its states take memory: of one checkpoint, the one in hand
def _reference(checkpoint: Checkpoint) -> Reference:
    return Reference(checkpoint, open_tensors(checkpoint))


@functools.cache  # it hashes whole libraries, and each variant asks twice
def _engine_files(format: str) -> Mapping[str, str]:
    return backends.load(format).engine_files()
