"""The commands that measure, judge, select and pack: arguments in, a result out."""

from __future__ import annotations

import argparse
from pathlib import Path

from packager import pipeline
from packager.cli.formatting import measurement_text, selection_text
from packager.cli.result import CommandResult
from packager.cli.settings import checkpoint_of, settings_of, variants_of
from packager.core.errors import QualityError, UsageError
from packager.core.record_store import to_plain
from packager.core.records import Checkpoint, Progress
from packager.core.settings import DeviceSettings
from packager.engine.target import read_target


def profile(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Prove each variant's window, judge its quality, and time it if this is the device."""
    checkpoint = checkpoint_of(arguments, progress)
    settings = settings_of(arguments, checkpoint, progress)
    measurements = pipeline.measure_all(checkpoint, variants_of(arguments), settings, progress)
    notes = _notes(checkpoint, settings)
    text = "\n\n".join([*map(measurement_text, measurements), *notes])
    holds = all(one.proof is not None and one.proof.holds for one in measurements)
    return CommandResult(
        {"measurements": to_plain(measurements), "notes": notes},
        text,
        exit_code=0 if holds else QualityError.exit_code,
    )


def select(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Choose the best variant for the device within the budget, say why, and write report.html."""
    checkpoint = checkpoint_of(arguments, progress)
    settings = settings_of(arguments, checkpoint, progress)
    measurements = pipeline.measure_all(checkpoint, variants_of(arguments), settings, progress)
    selection, page = pipeline.select_with_report(checkpoint, measurements, settings)
    text = selection_text(selection, explain=arguments.explain)
    notes = _notes(checkpoint, settings)
    data = to_plain(selection) | {"report": str(page), "notes": notes}
    return CommandResult(data, "\n\n".join([text, *notes, f"report: {page}"]))


def pack(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Convert, measure, select, and pack the best variant."""
    return _pack(arguments, progress)[0]


def bundle(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Pack, then install the bundle and run it: all stages."""
    from packager.bundle.smoke_test import try_bundle

    if arguments.target or arguments.target_python:
        raise UsageError(
            "a bundle for another machine cannot run on this one", remedy="use `starpack pack`"
        )
    packed, folder = _pack(arguments, progress)
    trial = try_bundle(folder, folder.with_name("installed"), progress)
    shown = [
        packed.text,
        f"installed to {trial.installed} and run there:",
        f"--- generate ---\n{trial.prompt}[{trial.completion}]",
        f"--- infill ---\n{trial.prefix}[{trial.middle}]{trial.suffix}",
    ]
    return CommandResult(packed.data | {"trial": to_plain(trial)}, "\n\n".join(shown))


def _pack(arguments: argparse.Namespace, progress: Progress) -> tuple[CommandResult, Path]:
    from packager.bundle.documents.provenance import recorded
    from packager.bundle.split_archive import check_flags, write_files

    check_flags(arguments.archive, arguments.split)
    options = pipeline.PackOptions(
        target=read_target(arguments.target, arguments.target_python),
        licence_file=arguments.licence_file,
        variants=arguments.variants or 1,
        arguments=recorded(vars(arguments)),
    )
    checkpoint = checkpoint_of(arguments, progress)
    settings = settings_of(arguments, checkpoint, progress)
    built = pipeline.build_bundle(checkpoint, variants_of(arguments), settings, options, progress)
    notes, chosen = _notes(checkpoint, settings), built.measurements[0]
    text = [
        measurement_text(chosen),
        selection_text(built.selection, explain=False),
        *notes,
        f"report: {built.report}",
        f"bundle: {built.folder}",
    ]
    names = [measurement.variant.name for measurement in built.measurements]
    if len(names) > 1:
        text.append(f"variants in it, the best first: {', '.join(names)}")
    data = {
        "bundle": str(built.folder),
        "variants": names,
        "measurement": to_plain(chosen),
        "selection": to_plain(built.selection),
        "report": str(built.report),
        "notes": notes,
    }
    if arguments.archive:
        data["archive"] = write_files(built.folder, arguments.archive, arguments.split, progress)
        text.append("\n".join(["archive:", *data["archive"]]))
    return CommandResult(data, "\n\n".join(text)), built.folder


def _notes(checkpoint: Checkpoint, settings: DeviceSettings) -> list[str]:
    notes = []
    if settings.context_tokens > checkpoint.context_tokens:
        notes.append(
            f"note: the model was trained to {checkpoint.context_tokens} tokens. It runs "
            f"to {settings.context_tokens} with its window exact, but was never trained there."
        )
    wanted = settings.budget.context_tokens
    if wanted and wanted > settings.context_tokens:
        notes.append(
            f"note: the budget asks for a context of {wanted} tokens; "
            f"{settings.context_tokens} were opened."
        )
    if not settings.timed_here:
        notes.append(
            f"note: {settings.device.title} is not this machine. Quality and window were measured "
            "here; memory and times there are estimates."
        )
    return notes
