"""From an artifact to a bundle: a folder with all that a device needs, each byte accounted for.

    bundle.json     the manifest: every other file with its size and SHA-256
    README.md       for whoever receives it;  MODEL_CARD.md  the checkpoint's own, where it has one
    install run     POSIX shell; install.py does the work of the first (see bundle_files/)
    model/          the artifact;  tokenizer.json  the checkpoint's own
    runtimes/       this Python package, with the backend of this format alone
    wheels/         the engine and the packages that run beside it
    licence/        model/: the model's licence;  starpack/: that of the runtime

`./install --to DIR` makes DIR/bundle (a checked copy), DIR/venv and DIR/run. The virtual
environment lies beside the bundle and not in it, so that a bundle is always exactly what its
manifest lists, wherever it is. Knows nothing of any format but its name. The same inputs give the
same bytes: no time, path or user name is recorded.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import string
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

import jsonschema

import runtimes
from packager.errors import CheckpointError, IntegrityError, UsageError
from packager.files import atomic_folder, file_entry, write_json
from packager.profiles_folder import read_schema
from packager.records import Artifact, Checkpoint, Progress, no_progress
from runtimes.bundle import TOKENIZER_NAME
from runtimes.contract import MANIFEST_NAME, FileEntry, Manifest

BUNDLE_FILES = Path(__file__).parent / "bundle_files"
LICENCE_NAMES = re.compile(r"(licen[cs]e|copying)([._-].*)?", re.IGNORECASE)
MODEL_CARD_NAME = "README.md"  # as the Hugging Face hub has it


def pack(
    artifact: Artifact,
    checkpoint: Checkpoint,
    out: Path,
    *,
    wheels: Sequence[Path],
    evidence: Mapping[str, object],
    licence_file: Path | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Write the bundle to the folder `out` and return its manifest.

    evidence: what was measured and proved, for the manifest. licence_file: the model's licence,
    where the checkpoint's folder holds none. Progress counts bytes.

    An earlier bundle at `out` is replaced once the new one is whole. Raises UsageError where
    something else is there, CheckpointError without a licence, IntegrityError where the artifact
    is not what its record says.
    """
    _check_out(out)
    _check_wheels(wheels)
    sources = dict(_sources(artifact, checkpoint, licence_file, wheels))
    with atomic_folder(out) as folder:
        _copy(sources, folder, progress)
        for name, text in _rendered(artifact, checkpoint, sources).items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "install").chmod(0o755)
        (folder / "run").chmod(0o755)
        paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        entries = tuple(file_entry(folder, path) for path in paths)
        _check_artifact(artifact, entries)
        manifest = _manifest(artifact, checkpoint, entries, wheels, evidence)
        check_manifest(manifest)
        write_json(folder / MANIFEST_NAME, manifest.to_json())
        _flush(folder)
    return manifest


def check_parts(checkpoint: Checkpoint, out: Path, licence_file: Path | None) -> None:
    """What `pack` would refuse before it has an artifact; see there for the errors."""
    _check_out(out)
    _model_licences(checkpoint, licence_file)


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
            outside = [name for name in archive.namelist() if ".data/" in name.split("/")[0] + "/"]
        if outside:
            raise IntegrityError(
                f"a wheel has files for outside of site-packages: {outside[0]}",
                where=wheel,
                expected="a wheel that is installed by unpacking it",
            )


def _sources(
    artifact: Artifact, checkpoint: Checkpoint, licence_file: Path | None, wheels: Sequence[Path]
) -> Iterator[tuple[str, Path]]:
    """Path in the bundle to the file that is copied there."""
    for entry in artifact.files:
        yield f"model/{entry.path}", artifact.path / entry.path
    yield TOKENIZER_NAME, checkpoint.path / TOKENIZER_NAME
    card = checkpoint.path / MODEL_CARD_NAME
    if card.is_file():
        yield "MODEL_CARD.md", card
    for file in _model_licences(checkpoint, licence_file):
        yield f"licence/model/{file.name}", file
    yield "licence/starpack/LICENSE", _own_licence()
    for path, file in _runtime_files(artifact.variant.format):
        yield path, file
    for wheel in wheels:
        yield f"wheels/{wheel.name}", wheel
    for name in ("install.py", "run"):
        yield name, BUNDLE_FILES / name


def _model_licences(checkpoint: Checkpoint, licence_file: Path | None) -> list[Path]:
    if licence_file is not None:
        if not licence_file.is_file():
            raise UsageError("no such file", where=licence_file, expected="the model's licence")
        return [licence_file]
    found = sorted(
        file
        for file in checkpoint.path.iterdir()
        if file.is_file() and LICENCE_NAMES.fullmatch(file.name)
    )
    if not found:
        raise CheckpointError(
            "the model's licence is missing, and a bundle may not be passed on without it",
            where=checkpoint.path,
            expected="a file LICENSE in the checkpoint's folder",
            remedy="name it with --licence-file. The model's card names its licence and links to "
            "the text; StarCoder2's is the BigCode OpenRAIL-M v1 licence agreement",
        )
    return found


def _own_licence() -> Path:
    """The licence of starpack itself: in the checkout, or in the installed distribution."""
    checkout = Path(__file__).parent.parent / "LICENSE"
    if checkout.is_file():
        return checkout
    try:
        files = distribution("starpack").files or []
        return next(Path(file.locate()) for file in files if file.name == "LICENSE")
    except (PackageNotFoundError, StopIteration):
        raise IntegrityError(
            "starpack's own licence is missing from this installation",
            where=checkout,
            remedy="install starpack again",
        ) from None


def _runtime_files(format: str) -> Iterator[tuple[str, Path]]:
    """The runtime package, without the backends of other formats."""
    root = Path(runtimes.__file__).parent
    for file in sorted([*root.rglob("*.py"), *root.glob("page/*")]):
        path = file.relative_to(root)
        if path.parts[0] != "backends" or file.stem in ("__init__", format):
            yield f"runtimes/{path.as_posix()}", file


def _copy(sources: Mapping[str, Path], folder: Path, progress: Progress) -> None:
    """Copies, not links: a bundle must not change with the files that it was made from."""
    total = sum(file.stat().st_size for file in sources.values())
    done = 0
    for path, file in sources.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        done += file.stat().st_size
        progress("pack", done, total)


def _rendered(
    artifact: Artifact, checkpoint: Checkpoint, sources: Mapping[str, Path]
) -> dict[str, str]:
    """The files that are written for this bundle: name to text."""
    window = checkpoint.window.size_tokens
    readme = string.Template((BUNDLE_FILES / "README.md").read_text(encoding="utf-8"))
    # the name of a folder may hold anything; a backtick or a line break would spoil the text
    model = re.sub(r"[^\w. -]", "_", checkpoint.path.resolve().name)
    return {
        "install": (BUNDLE_FILES / "install").read_text().replace("@PYTHON@", _python_version()),
        "README.md": readme.substitute(
            model=model,
            format=artifact.variant.format,
            recipe=artifact.variant.recipe,
            window="none: full attention" if window is None else f"{window} tokens, exact",
            context=checkpoint.context_tokens,
            artifact=_artifact_path(artifact),
            megabytes=f"{artifact.bytes / 1e6:.1f}",
            machine=platform.machine(),
            python=_python_version(),
        ),
    }


def _artifact_path(artifact: Artifact) -> str:
    """What the backend opens, as a path in the bundle."""
    return f"model/{artifact.entry}" if artifact.entry else "model"


def _python_version() -> str:
    """Compiled packages fit one minor version of Python: that which runs here."""
    return "{}.{}".format(*sys.version_info)


def _check_artifact(artifact: Artifact, entries: Sequence[FileEntry]) -> None:
    packed = {entry.path: entry for entry in entries}
    for entry in artifact.files:
        found = packed[f"model/{entry.path}"]
        if (found.bytes, found.sha256) != (entry.bytes, entry.sha256):
            raise IntegrityError(
                "the artifact has changed since it was converted",
                where=artifact.path / entry.path,
                expected=f"{entry.bytes} bytes, SHA-256 {entry.sha256}",
                remedy=f"delete {artifact.path} and run again",
            )


def _manifest(
    artifact: Artifact,
    checkpoint: Checkpoint,
    entries: tuple[FileEntry, ...],
    wheels: Sequence[Path],
    evidence: Mapping[str, object],
) -> Manifest:
    adapter = checkpoint.adapter
    names = [wheel.name.split("-")[:2] for wheel in wheels]
    return Manifest(
        format=artifact.variant.format,
        recipe=artifact.variant.recipe,
        artifact=_artifact_path(artifact),
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
            "licences": [e.path for e in entries if PurePosixPath(e.path).parts[0] == "licence"],
        },
        measured=dict(evidence),
        versions={
            **artifact.versions,
            **{name.lower().replace("_", "-"): version for name, version in names},
            "wheels_python": _python_version(),
            "wheels_machine": platform.machine(),
        },
    )


def _flush(folder: Path) -> None:
    """Have the disk hold every file before the bundle appears under its name."""
    for file in folder.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
