"""From a selection to a bundle."""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import requires, version
from pathlib import Path, PurePosixPath

from packager import formats
from packager.bundle.artifacts import Origin, Packed
from packager.bundle.documents.provenance import calibration_sha256, provenance_of
from packager.bundle.pack import check_parts, pack
from packager.core.errors import DeviceError, UsageError
from packager.core.record_store import to_plain
from packager.core.records import Artifact, Checkpoint, Progress, Variant
from packager.core.results import Candidate, Measurement, Selection
from packager.core.settings import ConvertSettings, JudgeSettings
from packager.engine.target import Target
from packager.engine.wheelhouse import collect_wheels
from packager.selection.selector import ORDER
from runtimes import backends

BLOCK_BYTES = 1 << 20


def prepare(
    checkpoint: Checkpoint,
    names: Iterable[str],
    settings: JudgeSettings,
    target: Target,
    licence_file: Path | None,
    progress: Progress,
) -> dict[str, list[Path]]:
    """All that packing needs but the artifact, before the long work; the wheels of each format.

    For another target than this machine they have the versions that measure, in another build.

    Raises CheckpointError without a licence, UsageError for a GPU (no bundle for one yet) or an
    output that is something else, DeviceError where the installed engine, which measures, is not
    the one that would be shipped.
    """
    if settings.gpu_layers or settings.provider != "cpu":
        raise UsageError(
            "bundles are packed with CPU engines, so they are measured without a GPU",
            expected="--provider cpu and --gpu-layers 0",
            remedy="use `starpack profile` to measure with a GPU",
        )
    check_parts(checkpoint, settings.out / "bundle", licence_file)
    wheels = {}
    for name in sorted(set(names)):
        backend = backends.load(name)
        packages = backend.REQUIRES["cpu"]
        _check_self_contained(packages)
        built = formats.load(name).engine_wheels(settings.out / "wheels", progress)
        wheels[name] = collect_wheels(packages, built, target=target, progress=progress)
        if target.is_here:
            _check_engine(backend.engine_files(), wheels[name])
    return wheels


def _check_self_contained(packages: Iterable[str]) -> None:
    """A GPU build links libraries in packages of their own, which no bundle carries yet."""
    for name in packages:
        for needed in requires(name) or []:
            if needed.startswith(("nvidia-", "cuda-")) and "extra" not in needed:
                raise UsageError(
                    f"the installed {name} is a build for GPUs, which a bundle cannot carry yet",
                    expected=f"the CPU build of {name} {version(name)}",
                    remedy=f"put {name}=={version(name)}+cpu into .venv in its place, from the "
                    "index that its publisher names for CPUs",
                )


def _check_engine(installed: dict[str, str], wheels: list[Path]) -> None:
    """The libraries that measure must be those of the folder that is shipped: no more, no fewer."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            paths = map(PurePosixPath, archive.namelist())
            libraries = [path for path in paths if re.search(r"\.so(\.[\d.]+)?$", path.name)]
            folders = {path.parent for path in libraries if path.name in installed}
            shipped = {}
            for path in libraries:
                if path.parent in folders:
                    with archive.open(str(path)) as stream:
                        digest = hashlib.sha256()
                        while block := stream.read(BLOCK_BYTES):
                            digest.update(block)
                    shipped[path.name] = digest.hexdigest()
        if shipped == installed:
            return
    raise DeviceError(
        "the installed engine is not the one that would be shipped",
        where=", ".join(sorted(installed)),
        remedy="run `make setup`: what is measured has to be what runs on the device",
    )


def packed_variants(selection: Selection, most: int) -> list[Variant]:
    """The chosen one, and the best of the others that fit: `most` in all, the best first."""
    behind = [r.candidate.variant for r in selection.rejected if r.limit == ORDER]
    return [selection.chosen.variant, *behind][:most]


def pack_selection(
    checkpoint: Checkpoint,
    measured: Sequence[tuple[Artifact, Measurement]],
    selection: Selection,
    settings: ConvertSettings,
    wheels: Mapping[str, list[Path]],
    *,
    target: Target,
    licence_file: Path | None,
    arguments: Mapping[str, object],
    report: Path,
    progress: Progress,
) -> Path:
    """Pack variants into `out`/bundle, with the evidence for each; returns the folder.

    measured: the chosen variant, then the others, the best first. wheels: of each format, as
    `prepare` gives them. arguments: of the command, for the manifest; see
    provenance.py. report: the page that says why.
    """
    candidates = {r.candidate.variant: r.candidate for r in selection.rejected}
    candidates[selection.chosen.variant] = selection.chosen
    parts = [
        _packed(artifact, measurement, candidates[artifact.variant], settings)
        for artifact, measurement in measured
    ]
    needed = {w.name: w for part in parts for w in wheels[part.artifact.variant.format]}
    out = settings.out / "bundle"
    pack(
        parts,
        checkpoint,
        out,
        wheels=list(needed.values()),
        target=target,
        licence_file=licence_file,
        origin=Origin(provenance_of(checkpoint, arguments), _selection(selection), report),
        progress=progress,
    )
    return out


def _packed(
    artifact: Artifact, measured: Measurement, candidate: Candidate, settings: ConvertSettings
) -> Packed:
    """An artifact with its figures: by measurement, else by estimate."""
    memory, first, step = candidate.memory_bytes, candidate.first_token_s, candidate.per_token_s
    return Packed(
        artifact,
        to_plain(measured),
        memory_bytes=math.ceil(memory.high),
        first_token_s=None if first is None else first.p50,
        per_token_s=None if step is None else step.p50,
        divergence_nats=candidate.divergence_nats,
        calibration_sha256=calibration_sha256(artifact.variant.format, settings.calibrations),
    )


def _selection(selection: Selection) -> dict[str, object]:
    """Why this variant: for whoever receives the bundle."""
    return {
        "budget": to_plain(selection.budget),
        "device": selection.device,
        "prefer": selection.prefer,
        "overrides": list(selection.overrides),
        "rejected": [
            {"variant": r.candidate.name, "reason": r.reason}
            | ({"overrides": list(r.others)} if r.limit == ORDER and r.others else {})
            for r in selection.rejected
        ],
    }
