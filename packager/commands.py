"""What each starpack command does: arguments in, a Report out. Prints nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager import pipeline
from packager.calibrate import (
    check_place,
    compute_importance,
    draw_batches,
    read_sources,
    write_importance,
)
from packager.checkpoint import describe, read_checkpoint
from packager.errors import QualityError, UsageError
from packager.provenance import recorded
from packager.records import Checkpoint, Measurement, Progress, Variant
from packager.select import read_budget
from packager.store import to_plain
from runtimes.host import default_threads

DEFAULT_CONTEXT_TOKENS = 16_384  # what StarCoder2 was trained to; longer only on request


@dataclass(frozen=True, slots=True)
class Report:
    """A command's outcome: data for --json and the same for a reader."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


Command = Callable[[argparse.Namespace, Progress], Report]


def inspect(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Geometry, window and memory of a checkpoint."""
    checkpoint = _checkpoint(arguments, progress)
    data = describe(checkpoint)
    return Report(data, _table(data))


def fetch(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Download a checkpoint from the Hugging Face hub."""
    from packager.fetch import fetch as download

    record = download(arguments.repo, arguments.revision, arguments.out, progress=progress)
    data = to_plain(record)
    return Report(data, f"fetched {arguments.repo} to {arguments.out}")


def wheels(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Build the engine and download what is shipped beside it, or take both from the cache."""
    from packager.wheelhouse import collect_wheels
    from packager.wheels import build_engine
    from runtimes.backends.gguf import REQUIRES

    wheel = build_engine(arguments.out / "wheels", cuda=arguments.cuda, progress=progress)
    others = [str(file) for file in collect_wheels(REQUIRES, progress=progress)]
    return Report({"wheel": str(wheel), "others": others}, str(wheel))


def calibrate(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Compute an importance matrix from source code."""
    from packager.formats.gguf import gguf_name

    check_place(arguments.out)
    checkpoint = _checkpoint(arguments, progress)
    batches = draw_batches(
        checkpoint,
        read_sources(arguments.sources),
        sequences=arguments.sequences,
        length_tokens=arguments.length,
    )
    importance = compute_importance(checkpoint, batches, progress=progress)
    named = {gguf_name(name): values for name, values in importance.items()}
    write_importance(arguments.out, named, batches)
    data = {
        "imatrix": str(arguments.out),
        "matrices": len(named),
        "tokens": sum(map(len, batches.sequences)),
        "text_sha256": batches.sha256,
    }
    return Report(data, _table(data))


def convert(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Convert to every wanted variant."""
    checkpoint = _checkpoint(arguments, progress)
    settings = pipeline.Settings(arguments.out.resolve(), calibrations=_calibrations(arguments))
    artifacts = [
        pipeline.convert(checkpoint, variant, settings, progress) for variant in _plan(arguments)
    ]
    lines = [f"{a.variant.name:20} {a.bytes / 1e6:10.1f} MB  {a.path}" for a in artifacts]
    return Report({"artifacts": to_plain(artifacts)}, "\n".join(lines))


def profile(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Prove the window of every variant and time it on this machine."""
    checkpoint = _checkpoint(arguments, progress)
    settings = _settings(arguments, checkpoint)
    measurements = _measure_all(arguments, checkpoint, settings, progress)
    notes = _beyond_training(checkpoint, settings)
    text = "\n\n".join([*map(_measurement_text, measurements), *notes])
    holds = all(measurement.proof.holds for measurement in measurements)
    return Report(
        {"measurements": to_plain(measurements), "notes": notes},
        text,
        exit_code=0 if holds else QualityError.exit_code,
    )


def select(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Choose the best variant within the budget."""
    checkpoint = _checkpoint(arguments, progress)
    settings = _settings(arguments, checkpoint)
    measurements = _measure_all(arguments, checkpoint, settings, progress)
    selection = pipeline.choose(measurements, settings)
    lines = [f"chosen: {selection.chosen.variant.name}"]
    lines += [f"not {r.variant}: {r.reason} ({r.remedy})" for r in selection.rejected]
    return Report(to_plain(selection), "\n".join(lines))


def pack(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Convert, prove, select, and pack the best variant."""
    return _pack(arguments, progress)[0]


def bundle(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Pack, then install the bundle and let it answer: the whole way."""
    from packager.ship import try_bundle

    if arguments.target or arguments.target_python:
        raise UsageError(
            "a bundle for another machine cannot be tried on this one", remedy="use `starpack pack`"
        )
    packed, folder = _pack(arguments, progress)
    trial = try_bundle(folder, folder.with_name("installed"), progress)
    shown = [
        packed.text,
        f"installed to {trial.installed} and run there:",
        f"--- generate ---\n{trial.prompt}[{trial.completion}]",
        f"--- infill ---\n{trial.prefix}[{trial.middle}]{trial.suffix}",
    ]
    return Report(packed.data | {"trial": to_plain(trial)}, "\n\n".join(shown))


def _pack(arguments: argparse.Namespace, progress: Progress) -> tuple[Report, Path]:
    from packager.ship import pack_selection, prepare
    from packager.target import read_target
    from packager.volumes import check_flags, write_files

    check_flags(arguments.archive, arguments.split)
    target = read_target(arguments.target, arguments.target_python)
    checkpoint, licence_file = _checkpoint(arguments, progress), arguments.licence_file
    settings = _settings(arguments, checkpoint)
    formats = [variant.format for variant in _plan(arguments)]
    wheels = prepare(checkpoint, formats, settings, target, licence_file, progress)
    measurements = _measure_all(arguments, checkpoint, settings, progress)
    selection = pipeline.choose(measurements, settings)
    folder = pack_selection(
        checkpoint,
        selection,
        settings,
        wheels,
        target=target,
        licence_file=licence_file,
        arguments=recorded(arguments),
        progress=progress,
    )
    notes = _beyond_training(checkpoint, settings)
    text = [_measurement_text(selection.chosen), *notes, f"bundle: {folder}"]
    data = {"bundle": str(folder), "selection": to_plain(selection), "notes": notes}
    if arguments.archive:
        data["archive"] = write_files(folder, arguments.archive, arguments.split, progress)
        text.append("\n".join(["archive:", *data["archive"]]))
    return Report(data, "\n\n".join(text)), folder


def verify(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Check every byte of a bundle against its manifest, and its signature against a key."""
    from packager.signing import check_signature
    from runtimes.bundle import verify_files
    from runtimes.contract import read_manifest

    manifest = read_manifest(arguments.bundle)
    verify_files(arguments.bundle, manifest, progress=lambda d, t: progress("verify", d, t))
    signed = ""
    if arguments.public_key is not None:
        check_signature(arguments.bundle, arguments.public_key)
        signed = f"; signed with the key of {arguments.public_key}"
    data = {
        "bundle": str(arguments.bundle),
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files),
        "verified": True,
        "signed": bool(signed),
    }
    text = f"{data['files']} files, {data['bytes']} bytes: every one as packed{signed}"
    return Report(data, text)


def _checkpoint(arguments: argparse.Namespace, progress: Progress) -> Checkpoint:
    return read_checkpoint(arguments.model, adapter=arguments.adapter, progress=progress)


def _settings(arguments: argparse.Namespace, checkpoint: Checkpoint) -> pipeline.Settings:
    trained = min(DEFAULT_CONTEXT_TOKENS, checkpoint.context_tokens)
    return pipeline.Settings(
        out=arguments.out.resolve(),
        context_tokens=arguments.context or trained,
        threads=arguments.threads or default_threads(),
        provider=arguments.provider,
        gpu_layers=arguments.gpu_layers,
        device=arguments.device,
        budget=read_budget(arguments.budget),
        calibrations=_calibrations(arguments),
    )


def _plan(arguments: argparse.Namespace) -> list[Variant]:
    return pipeline.plan(arguments.formats, arguments.head_bits)


def _calibrations(arguments: argparse.Namespace) -> dict[str, Path]:
    given = {"gguf": arguments.imatrix, "gptq": arguments.sources, "onnx": arguments.gptq}
    return {format: path for format, path in given.items() if path is not None}


def _measure_all(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint,
    settings: pipeline.Settings,
    progress: Progress,
) -> list[Measurement]:
    return [
        pipeline.measure(
            checkpoint, pipeline.convert(checkpoint, v, settings, progress), settings, progress
        )
        for v in _plan(arguments)
    ]


def _beyond_training(checkpoint: Checkpoint, settings: pipeline.Settings) -> list[str]:
    if settings.context_tokens <= checkpoint.context_tokens:
        return []
    return [
        f"note: the model was trained to {checkpoint.context_tokens} tokens. It runs to "
        f"{settings.context_tokens} with its window exact, but no training is behind that."
    ]


def _measurement_text(measurement: Measurement) -> str:
    proof, speed = measurement.proof, measurement.speed
    lines = [
        f"{measurement.variant.name} on {measurement.device} ({measurement.evidence})",
        f"  file           {measurement.artifact_bytes / 1e6:.1f} MB",
        f"  window         {proof.window_tokens} tokens; the engine applies {proof.engine_window}",
        f"  divergence     {proof.inside_nats:.2e} nats inside the window "
        f"(same first choice {proof.agree_inside:.1%})",
    ]
    if proof.past_nats is not None:
        lines.append(
            f"                 {proof.past_nats:.2e} nats past it ({proof.agree_past:.1%}); "
            f"{proof.from_full_nats:.2e} from full attention"
        )
    if proof.beyond_reach is not None:
        lines.append(
            f"  reach          token {proof.reach_tokens} back changes a logit by "
            f"{proof.at_reach:.1e}, the one before it by {proof.beyond_reach:.1e}"
        )
    lines += [
        f"  window proof   {proof.verdict} over {proof.positions} positions",
        f"  first token    {speed.first_token_s * 1e3:.0f} ms for {speed.prompt_tokens} tokens",
        f"  per token      {speed.per_token_p50_s * 1e3:.1f} ms (p50), "
        f"{speed.per_token_p95_s * 1e3:.1f} ms (p95), {speed.threads} threads",
        f"  memory         weights {speed.weights_bytes / 1e6:.1f} MB, keys and values "
        f"{speed.key_values_bytes / 1e6:.1f} MB, peak of the process "
        f"{speed.peak_memory_bytes / 1e6:.0f} MB",
    ]
    return "\n".join(lines)


def _table(data: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", _table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:26} {value}")
    return "\n".join(lines)
