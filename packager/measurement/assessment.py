"""What an artifact computes and how fast, each resumed from its record where it was found before.

Knows what each finding depends on. Knows nothing of estimates, budgets or selection.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from packager.calibration.sources import read_named_sources, texts_sha256
from packager.checkpoint.reference import Reference
from packager.checkpoint.tensors import open_tensors
from packager.core.record_store import Store
from packager.core.records import Artifact, Checkpoint, Progress, no_progress
from packager.core.results import Quality, WindowProof
from packager.core.settings import DeviceSettings, JudgeSettings
from packager.measurement import quality_gate, timing
from packager.measurement import window_proof as quality
from packager.measurement.gpu_meter import process_bytes
from packager.measurement.infill_samples import builtin_texts
from runtimes import backends
from runtimes.errors import LogitsError


@dataclass(frozen=True, slots=True)
class Assessment:
    """What an artifact computes, wherever it is to run."""

    proof: WindowProof | None
    quality: Quality | None
    failure: str = ""


def assess(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: JudgeSettings,
    progress: Progress = no_progress,
) -> Assessment:
    """Prove the window and compare with the checkpoint on held-out code, on this machine.

    An artifact whose logits are not numbers has a failure, and neither proof nor quality.
    """
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
        except LogitsError as error:  # of this artifact: others may do
            return Assessment(None, None, f"{error.what}; {error.remedy}")
        finally:
            backend.close()
        return Assessment(proof, found)

    return Store(settings.out).resume("assess", inputs, Assessment, make)


def time_here(
    checkpoint: Checkpoint,
    artifact: Artifact,
    settings: DeviceSettings,
    progress: Progress = no_progress,
) -> timing.Timing:
    """Time the artifact on this machine, in a process of its own."""
    options = settings.options()
    workload = settings.budget.workload.within(options.context_tokens)
    available_bytes = int(settings.device.memory_bytes.value)
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
            memory_bytes=available_bytes,
            device_bytes=process_bytes if settings.provider == "cuda" else None,
            progress=progress,
        )

    return Store(settings.out).resume("measure", inputs, timing.Timing, make)


@functools.lru_cache(maxsize=1)  # its states take memory: of one checkpoint, the one in hand
def _reference(checkpoint: Checkpoint) -> Reference:
    return Reference(checkpoint, open_tensors(checkpoint))


@functools.cache  # it hashes whole libraries, and each variant asks twice
def _engine_files(format: str) -> Mapping[str, str]:
    return backends.load(format).engine_files()
