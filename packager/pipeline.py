"""The hops in order, each resumed from its record: read, convert, measure, select, pack.

Knows which hop needs what. Prints nothing; knows no flags.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packager import formats, quality
from packager.device import device_name
from packager.errors import UsageError
from packager.hashes import combined_sha256
from packager.measure import measure_speed
from packager.records import (
    Artifact,
    Budget,
    Checkpoint,
    Measurement,
    Progress,
    Selection,
    Variant,
    no_progress,
)
from packager.select import select
from packager.store import Store
from runtimes.contract import BackendOptions


def known_formats() -> list[str]:
    """Formats that can be written, by the names of the modules in packager/formats."""
    return sorted(file.stem for file in Path(formats.__file__).parent.glob("[a-z]*.py"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run of the pipeline is asked for.

    calibrations: by format, the file or folder with what was learned from text for it.
    """

    out: Path
    context_tokens: int = 0
    threads: int = 1
    gpu_layers: int = 0
    device: str | None = None
    budget: Budget = field(default_factory=Budget)
    provider: str = "cpu"
    calibrations: Mapping[str, Path] = field(default_factory=dict)

    def options(self) -> BackendOptions:
        """How artifacts are opened to be measured."""
        return BackendOptions(self.context_tokens, self.threads, self.provider, self.gpu_layers)


def plan(wanted: Sequence[str], head_bits: int | None = None) -> list[Variant]:
    """Variants from `FORMAT` (its default recipes) or `FORMAT:RECIPE`; each once, in order.

    head_bits: for the head and the embedding, where the format lets them be chosen.
    """
    variants: dict[str, Variant] = {}
    for text in wanted:
        name, _, recipe = text.partition(":")
        if name not in known_formats():
            raise UsageError(
                f"unknown format {name!r}",
                expected=f"one of {', '.join(known_formats())}, then :RECIPE if you like",
                remedy="for example --formats gguf:Q4_K_M,gguf:Q8_0",
            )
        module = importlib.import_module(f"packager.formats.{name}")
        for chosen in (recipe,) if recipe else module.DEFAULT_RECIPES:
            variant = module.variant(chosen, head_bits)
            variants[variant.name] = variant
    return list(variants.values())


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    settings: Settings,
    progress: Progress = no_progress,
) -> Artifact:
    """Convert one variant, or take the artifact that these very inputs made before."""
    store = Store(settings.out)
    module = importlib.import_module(f"packager.formats.{variant.format}")
    inputs = {"checkpoint": checkpoint.sha256, "variant": variant, "writer": module.VERSION}
    calibration = settings.calibrations.get(variant.format)
    if calibration is not None:
        inputs["calibration"] = module.calibration_sha256(calibration)
    folder = settings.out / "variants" / f"{variant.name}-{store.key(inputs)}"

    def make() -> Artifact:
        return module.convert(
            checkpoint, variant, folder, calibration=calibration, progress=progress
        )

    def sound(artifact: Artifact) -> bool:
        files = ((artifact.path / entry.path, entry.bytes) for entry in artifact.files)
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    return store.resume("convert", inputs, Artifact, make, sound=sound)


def measure(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: Settings,
    progress: Progress = no_progress,
) -> Measurement:
    """Prove the window, then time the artifact in a process of its own, on this machine."""
    device = device_name(settings.device)
    options = settings.options()
    backends = importlib.import_module(f"runtimes.backends.{artifact.variant.format}")
    inputs = {
        "artifact": artifact.files,
        "device": device,
        "options": options,
        "engine": backends.engine_files(),
        "proof": quality.VERSION,
    }

    def make() -> Measurement:
        model = artifact.path / artifact.entry
        # the proof looks further than the context that is asked for, where the model does
        longest = max(options.context_tokens, checkpoint.context_tokens)
        opened = dataclasses.replace(options, context_tokens=longest)
        backend = backends.open_backend(model, checkpoint.window, opened)
        try:
            sample = quality.proof_sample(checkpoint, quality.own_text())
            proof = quality.prove_window(checkpoint, backend, sample, progress)
        finally:
            backend.close()
        progress("time", 0, 1)
        speed = measure_speed(artifact, checkpoint, options)
        progress("time", 1, 1)
        return Measurement(
            artifact.variant,
            combined_sha256(artifact.files),
            artifact.bytes,
            device,
            "measured here",
            proof,
            speed,
        )

    return Store(settings.out).resume("measure", inputs, Measurement, make)


def choose(measurements: Sequence[Measurement], settings: Settings) -> Selection:
    """Select within the budget and record why."""
    inputs = {"measurements": list(measurements), "budget": settings.budget}
    return Store(settings.out).resume(
        "select", inputs, Selection, lambda: select(measurements, settings.budget)
    )
