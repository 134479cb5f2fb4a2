"""Where the files of a bundle come from, and the text of the one that checks them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import runtimes
from packager.bundle.artifacts import Packed
from packager.bundle.documents.licensing import (
    check_full_text,
    own_licence,
)
from packager.bundle.documents.model_card import ORIGINAL_CARD_NAME
from packager.checkpoint.model_card import CARD_NAME
from packager.core.atomic import sha256_file
from packager.core.errors import CheckpointError, UsageError
from packager.core.records import Checkpoint
from packager.engine.target import Target
from runtimes import backends
from runtimes.bundle.open import TOKENIZER_NAME
from runtimes.trust.bootstrap import STARTER, checker_files

HUB_BLOBS = "blobs"  # specified: where ../.. of a snapshot in huggingface_hub's cache has the files
BUNDLE_FILES = Path(__file__).parent / "files"
RUNTIME = Path(runtimes.__file__).parent
LICENCE_NAMES = re.compile(r"(licen[cs]e|copying)([._-].*)?", re.IGNORECASE)


def sources_of(
    parts: Sequence[Packed],
    checkpoint: Checkpoint,
    licence_file: Path | None,
    wheels: Sequence[Path],
) -> Iterator[tuple[str, Path]]:
    """Path in the bundle to the file that is copied there."""
    for part in parts:
        for path, file, _ in part.files():
            yield path, file
    yield TOKENIZER_NAME, _own(checkpoint, checkpoint.path / TOKENIZER_NAME)
    card = checkpoint.path / CARD_NAME
    if card.is_file():
        yield ORIGINAL_CARD_NAME, _own(checkpoint, card)
    for file in model_licences(checkpoint, licence_file):
        yield f"licence/model/{file.name}", file
    yield "licence/starpack/LICENSE", own_licence()
    for path, file in _runtime_files({part.artifact.variant.format for part in parts}):
        yield path, file
    for wheel in wheels:
        yield f"wheels/{wheel.name}", wheel
    for name in (STARTER, "run"):
        yield name, BUNDLE_FILES / name


def model_licences(checkpoint: Checkpoint, licence_file: Path | None) -> list[Path]:
    if licence_file is not None:
        if not licence_file.is_file():
            raise UsageError("no such file", where=licence_file, expected="the model's licence")
        check_full_text(checkpoint, [licence_file])
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
    check_full_text(checkpoint, [_own(checkpoint, file) for file in found])
    return found


def _own(checkpoint: Checkpoint, file: Path) -> Path:
    """A file of the checkpoint: a link in its folder may lead into the hub's cache alone.

    Otherwise a stranger's folder could have any file of this machine carried away in a bundle.
    """
    folder, place = checkpoint.path.resolve(), file.resolve()
    if place.is_relative_to(folder) or place.parent == folder.parent.parent / HUB_BLOBS:
        return file
    raise CheckpointError(
        f"{file.name} is a link that leads out of the checkpoint",
        where=file,
        expected="a file of the checkpoint's own",
        remedy="where you trust it, put a copy of the file in its place",
    )


def _runtime_files(formats: Set[str]) -> Iterator[tuple[str, Path]]:
    """The runtime package; of its backends those of `formats`, and what these say they share."""
    for file in sorted([*RUNTIME.rglob("*.py"), *RUNTIME.glob("server/http/page/*")]):
        path = file.relative_to(RUNTIME)
        if path.parts[0] != "backends" or len(path.parts) == 2:
            yield f"runtimes/{path.as_posix()}", file
    for folder in sorted({folder for format in formats for folder in backends.folders(format)}):
        for file in sorted(folder.rglob("*.py")):
            yield f"runtimes/backends/{file.relative_to(folder.parent).as_posix()}", file


def install_script(sources: Mapping[str, Path], target: Target) -> str:
    """The text of `install`, which holds the hashes of what checks all other files."""
    checked = [f"{sha256_file(sources[path])}  {path}" for path in checker_files(sources)]
    install = (BUNDLE_FILES / "install").read_text(encoding="utf-8")
    return install.replace("@PYTHON@", target.python).replace("@CHECKER@", "\n".join(checked))
