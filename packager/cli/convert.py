"""`wheels`, `calibrate`, `convert`: what is made before it is measured. Prints nothing."""

from __future__ import annotations

import argparse

from packager import pipeline
from packager.calibration.imatrix import (
    check_place,
    compute_importance,
    draw_batches,
    write_importance,
)
from packager.calibration.sources import read_sources
from packager.cli.result import CommandResult, key_values
from packager.cli.settings import calibrations_of, checkpoint_of, variants_of
from packager.core.record_store import to_plain
from packager.core.records import Progress
from packager.core.settings import ConvertSettings
from packager.core.units import megabytes
from runtimes import backends


def wheels(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Build the engine and download what is shipped beside it, or take both from the cache."""
    from packager.engine.build import build_engine
    from packager.engine.wheelhouse import collect_wheels

    wheel = build_engine(arguments.out / "wheels", cuda=arguments.cuda, progress=progress)
    packages = backends.load("gguf").REQUIRES["cuda" if arguments.cuda else "cpu"]
    others = [str(file) for file in collect_wheels(packages, progress=progress)]
    return CommandResult({"wheel": str(wheel), "others": others}, str(wheel))


def calibrate(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Compute an importance matrix from source code."""
    from packager.formats.gguf.recipe import gguf_name

    check_place(arguments.out)
    checkpoint = checkpoint_of(arguments, progress)
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
    return CommandResult(data, key_values(data))


def convert(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Convert to each variant in --formats."""
    checkpoint = checkpoint_of(arguments, progress)
    settings = ConvertSettings(arguments.out.resolve(), calibrations_of(arguments))
    artifacts = [
        pipeline.convert(checkpoint, variant, settings, progress)
        for variant in variants_of(arguments)
    ]
    lines = [f"{a.variant.name:20} {megabytes(a.size_bytes):>13}  {a.path}" for a in artifacts]
    return CommandResult({"artifacts": to_plain(artifacts)}, "\n".join(lines))
