"""What each starpack command does: arguments in, a Report out. Prints nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packager import pipeline
from packager.calibration.imatrix import (
    check_place,
    compute_importance,
    draw_batches,
    write_importance,
)
from packager.calibration.sources import read_sources
from packager.checkpoint.reader import describe
from packager.cli.settings import calibrations_of, checkpoint_of, variants_of
from packager.core.record_store import to_plain
from packager.core.records import Progress
from packager.core.settings import ConvertSettings
from runtimes import backends


@dataclass(frozen=True, slots=True)
class Report:
    """A command's outcome: data for --json and the same for a reader."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


Command = Callable[[argparse.Namespace, Progress], Report]


def inspect(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Geometry, window and memory of a checkpoint."""
    checkpoint = checkpoint_of(arguments, progress)
    data = describe(checkpoint)
    return Report(data, table(data))


def fetch(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Download a checkpoint from the Hugging Face hub."""
    from packager.checkpoint.hub import fetch as download

    record = download(arguments.repo, arguments.revision, arguments.out, progress=progress)
    data = to_plain(record)
    return Report(data, f"fetched {arguments.repo} to {arguments.out}")


def wheels(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Build the engine and download what is shipped beside it, or take both from the cache."""
    from packager.engine.build import build_engine
    from packager.engine.wheelhouse import collect_wheels

    wheel = build_engine(arguments.out / "wheels", cuda=arguments.cuda, progress=progress)
    packages = backends.load("gguf").REQUIRES["cuda" if arguments.cuda else "cpu"]
    others = [str(file) for file in collect_wheels(packages, progress=progress)]
    return Report({"wheel": str(wheel), "others": others}, str(wheel))


def calibrate(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Compute an importance matrix from source code."""
    from packager.formats.gguf.convert import gguf_name

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
    return Report(data, table(data))


def convert(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Convert to every wanted variant."""
    checkpoint = checkpoint_of(arguments, progress)
    settings = ConvertSettings(arguments.out.resolve(), calibrations_of(arguments))
    artifacts = [
        pipeline.convert(checkpoint, variant, settings, progress)
        for variant in variants_of(arguments)
    ]
    lines = [f"{a.variant.name:20} {a.bytes / 1e6:10.1f} MB  {a.path}" for a in artifacts]
    return Report({"artifacts": to_plain(artifacts)}, "\n".join(lines))


def verify(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Check every byte of a bundle against its manifest, and its signature against a key."""
    from packager.bundle.signing import check_signature
    from runtimes.bundle.open import verify_files
    from runtimes.trust.manifest import read_manifest

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


def table(data: dict[str, Any], indent: str = "") -> str:
    """Keys and values in two columns, nested ones indented."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:26} {value}")
    return "\n".join(lines)
