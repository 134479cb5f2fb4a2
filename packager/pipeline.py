"""The stages in order, each resumed from its record: plan, convert, measure, select, pack.

Knows which stage needs what. Prints nothing; knows no flags. `packager` has the same functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packager import formats
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
    named,
    no_progress,
)
from packager.core.results import Candidate, Measurement, Selection
from packager.core.settings import ConvertSettings, DeviceSettings
from packager.engine.target import Target, this_machine
from packager.estimate.estimator import estimate
from packager.measurement.assessment import assess, time_here
from packager.measurement.timing import Timing
from packager.selection import selector
from packager.selection.candidates import of_measurement

REPORT_NAME = "report.html"


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
    progress = named(progress, variant.name)
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


def measure(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: DeviceSettings,
    progress: Progress = no_progress,
) -> Measurement:
    """Assess the artifact; time it in a process of its own if the device is this machine.

    What is expected of it there is added in any case.
    """
    progress = named(progress, artifact.variant.name)
    assessment = assess(checkpoint, artifact, settings, progress)
    timed = Timing(None)
    if settings.timed_here and not assessment.failure:
        timed = time_here(checkpoint, artifact, settings, progress)
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
        failure=assessment.failure,
    )


def expect(checkpoint: Checkpoint, variant: Variant, settings: DeviceSettings) -> Estimate:
    """What the estimate says of a variant of this checkpoint on the device."""
    context = settings.context_tokens
    workload = settings.budget.workload.within(context)
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
