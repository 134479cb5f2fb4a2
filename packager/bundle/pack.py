"""From an artifact to a bundle: a folder with all that a device needs, each byte accounted for.

    bundle.json     the manifest: every other file with its size and SHA-256
    bundle.json.sha256  the manifest's own, for `sha256sum -c`
    README.md       for whoever receives it
    NOTICE          what was modified; MODEL_CARD.md, beside the checkpoint's own; sbom.cdx.json
    install run     POSIX shell; start.py is what both start (see files/)
    model/          the artifact, or a folder for each;  tokenizer.json  the checkpoint's own
    runtimes/       this Python package, with the backends of these formats alone
    wheels/         the engine and the packages that run beside it
    licence/        model/: the model's licence;  starpack/: that of the runtime;  wheels/: theirs
    deploy/         systemd units, a container recipe, clients' configurations

What `./install --to DIR` makes of it is in runtimes/trust/installed/versions.py: a bundle is always
exactly what its manifest lists, wherever it is. Knows nothing of any format but its name. The same
inputs give the same bytes: no time, path or user name is recorded.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jsonschema

from packager.bundle.artifacts import Origin, Packed, placed
from packager.bundle.contents import install_script, model_licences, sources_of
from packager.bundle.documents.collect import documents
from packager.core.atomic import atomic_folder, file_entry, write_json
from packager.core.errors import IntegrityError, UsageError
from packager.core.package_data import read_schema
from packager.core.records import Checkpoint, Progress, no_progress
from packager.engine.target import Target, this_machine
from packager.engine.wheelhouse import newest_glibc
from runtimes.trust.entries import FileEntry
from runtimes.trust.files import NewFiles
from runtimes.trust.installed.stage import copy_file, mode_of
from runtimes.trust.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME, Manifest, manifest_hash

REPORT_NAME = "report.html"


def pack(
    parts: Sequence[Packed],
    checkpoint: Checkpoint,
    out: Path,
    *,
    wheels: Sequence[Path],
    target: Target | None = None,
    licence_file: Path | None = None,
    origin: Origin | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Write the bundle to the folder `out` and return its manifest.

    parts: the artifacts, the best first. target: what the wheels are for, where it is not this
    machine. licence_file: the model's licence, where the checkpoint's folder holds none. Progress
    counts bytes.

    An earlier bundle at `out` is replaced once the new one is complete. Raises UsageError where
    something else is there, CheckpointError without a licence, IntegrityError where the artifact
    is not what its record says.
    """
    _check_out(out)
    _check_wheels(wheels)
    target = target or this_machine()
    origin = origin or Origin()
    parts = placed(parts)
    sources = dict(sources_of(parts, checkpoint, licence_file, wheels))
    if origin.report is not None:
        sources[REPORT_NAME] = origin.report
    texts = documents(parts, checkpoint, wheels, target)
    with atomic_folder(out) as folder, NewFiles(folder) as files:
        known = {path: sha256 for part in parts for path, _, sha256 in part.files()}
        _copy(sources, known, files, progress)
        texts["install"] = install_script(sources, target).encode()
        for name, data in texts.items():
            with files.create(name, mode_of(name)) as stream:
                stream.write(data)
        paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        entries = tuple(file_entry(folder, path) for path in paths)
        for part in parts:
            _check_artifact(part, entries)
        manifest = _manifest(parts, checkpoint, entries, wheels, origin, target)
        check_manifest(manifest)
        write_json(folder / MANIFEST_NAME, manifest.to_json())
        data = (folder / MANIFEST_NAME).read_bytes()
        (folder / MANIFEST_HASH_NAME).write_bytes(manifest_hash(data))
        _flush(folder)
    return manifest


def check_parts(checkpoint: Checkpoint, out: Path, licence_file: Path | None) -> None:
    """What `pack` would refuse before it has an artifact; see there for the errors."""
    _check_out(out)
    model_licences(checkpoint, licence_file)


def check_manifest(manifest: Manifest) -> None:
    """Check that a manifest is one that readers accept; raises IntegrityError."""
    plain = manifest.to_json()
    try:
        jsonschema.validate(plain, read_schema("manifest"))
    except jsonschema.ValidationError as error:
        raise IntegrityError(
            f"the manifest breaks its schema: {error.message}",
            where=error.json_path,
            expected="profiles/manifest.schema.json",
        ) from None
    Manifest.from_json(plain)


def _check_out(out: Path) -> None:
    if os.path.lexists(out) and not (out / MANIFEST_NAME).is_file():
        raise UsageError(
            "there is something at the bundle's place that is not a bundle",
            where=out,
            expected=f"nothing, or a folder with {MANIFEST_NAME}, which is replaced",
            remedy="name another folder, or remove this one",
        )


def _check_wheels(wheels: Sequence[Path]) -> None:
    """Every wheel must be installable by unpacking it, which is all that ./install does."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        outside = [name for name in names if ".data/" in name.split("/")[0] + "/"]
        if outside:
            raise IntegrityError(
                f"a wheel has files for outside of site-packages: {outside[0]}",
                where=wheel,
                expected="a wheel that is installed by unpacking it",
            )
        started = [name for name in names if "/" not in name and name.endswith(".pth")]
        if started:
            raise IntegrityError(
                f"a wheel has a file that only a site-packages folder obeys: {started[0]}",
                where=wheel,
                expected="a wheel whose packages are imported from where they are",
            )


def _copy(
    sources: Mapping[str, Path], known: Mapping[str, str], files: NewFiles, progress: Progress
) -> None:
    """Copies: a bundle must not change with the files that it was made from.

    known: SHA-256 by path, of files of which those that are equal are stored once.
    """
    stored: dict[str, str] = {}
    total = sum(file.stat().st_size for file in sources.values())
    done = 0
    for path, file in sources.items():
        twin = stored.setdefault(known.get(path, path), path)
        # the checkpoint's own files may be links, as the hub's cache has them
        copy_file(file, files, path, twin, mode_of(path), follow=True)
        done += file.stat().st_size
        progress("pack", done, total)


def _check_artifact(part: Packed, entries: Sequence[FileEntry]) -> None:
    artifact = part.artifact
    packed = {entry.path: entry for entry in entries}
    for entry in artifact.files:
        found = packed[f"{part.folder}/{entry.path}"]
        if (found.bytes, found.sha256) != (entry.bytes, entry.sha256):
            raise IntegrityError(
                "the artifact has changed since it was converted",
                where=artifact.path / entry.path,
                expected=f"{entry.bytes} bytes, SHA-256 {entry.sha256}",
                remedy=f"delete {artifact.path} and run again",
            )


def _manifest(
    parts: Sequence[Packed],
    checkpoint: Checkpoint,
    entries: tuple[FileEntry, ...],
    wheels: Sequence[Path],
    origin: Origin,
    target: Target,
) -> Manifest:
    artifact, adapter = parts[0].artifact, checkpoint.adapter
    names = [wheel.name.split("-")[:2] for wheel in wheels]
    return Manifest(
        format=artifact.variant.format,
        recipe=artifact.variant.recipe,
        artifact=parts[0].path,
        files=entries,
        window=checkpoint.window,
        context_tokens=checkpoint.context_tokens,
        layers=checkpoint.geometry.layers,
        vocab_size=checkpoint.geometry.vocab,
        special_ids=checkpoint.special_ids,
        provenance={
            "model": checkpoint.path.resolve().name,
            "revision": checkpoint.revision,
            "checkpoint_sha256": artifact.checkpoint_sha256,
            "adapter_sha256": None if adapter is None else adapter.sha256,
            "bits": artifact.variant.bits,
            "group_size": artifact.variant.group_size,
            # what whoever uses the model has to be shown; those of the wheels go along unread
            "licences": [
                entry.path
                for entry in entries
                if entry.path.startswith(("licence/model/", "licence/starpack/"))
            ],
            **origin.provenance,
            "calibration_sha256": parts[0].calibration_sha256,
            **_recipes(parts),
        },
        measured={**parts[0].evidence}
        | ({} if origin.selection is None else {"selection": origin.selection}),
        versions={
            **{k: v for part in reversed(parts) for k, v in part.artifact.versions.items()},
            **{name.lower().replace("_", "-"): version for name, version in names},
            "wheels_python": target.python,
            "wheels_machine": target.machine,
            "wheels_glibc": newest_glibc(wheels),
        },
        variants=tuple(part.entry for part in parts) if len(parts) > 1 else (),
    )


def _recipes(parts: Sequence[Packed]) -> dict[str, object]:
    """What was done for each variant, where there are several."""
    if len(parts) == 1:
        return {}
    return {
        "variants": {
            part.artifact.variant.name: {
                "bits": part.artifact.variant.bits,
                "group_size": part.artifact.variant.group_size,
                "calibration_sha256": part.calibration_sha256,
            }
            for part in parts
        }
    }


def _flush(folder: Path) -> None:
    """Have the disk hold every file before the bundle appears under its name."""
    for file in folder.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
