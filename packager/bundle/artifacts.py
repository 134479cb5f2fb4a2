"""Artifacts on their way into a bundle: where each lies there, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packager.core.records import Artifact
from runtimes.trust.entries import VariantEntry

FOLDER = "model"  # of a single artifact; of several, each has one of its own in it


@dataclass(frozen=True, slots=True)
class Packed:
    """An artifact with its evidence and the figures of runtimes.trust.entries.VariantEntry.

    calibration_sha256: of the data that it was calibrated on. folder: below the bundle's.
    """

    artifact: Artifact
    evidence: Mapping[str, Any] = field(default_factory=dict)
    memory_bytes: int | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None
    divergence_nats: float | None = None
    calibration_sha256: str | None = None
    folder: str = FOLDER

    @property
    def path(self) -> str:
        """What the backend opens, as a path in the bundle."""
        return f"{self.folder}/{self.artifact.entry}" if self.artifact.entry else self.folder

    @property
    def entry(self) -> VariantEntry:
        """As the manifest lists it."""
        variant = self.artifact.variant
        return VariantEntry(
            name=variant.name,
            format=variant.format,
            recipe=variant.recipe,
            artifact=self.path,
            memory_bytes=self.memory_bytes,
            first_token_s=self.first_token_s,
            per_token_s=self.per_token_s,
            divergence_nats=self.divergence_nats,
            measured=dict(self.evidence),
        )

    def files(self) -> Iterator[tuple[str, Path, str]]:
        """Path in the bundle, the file that is copied there, and its SHA-256."""
        for entry in self.artifact.files:
            yield f"{self.folder}/{entry.path}", self.artifact.path / entry.path, entry.sha256


@dataclass(frozen=True, slots=True)
class Origin:
    """How a bundle came about, beside what its artifacts know.

    provenance: see documents/provenance.py. selection: why the first artifact was chosen, for the
    manifest. report: the page that shows it.
    """

    provenance: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] | None = None
    report: Path | None = None


def placed(parts: Sequence[Packed]) -> list[Packed]:
    """Give each a folder; artifacts of the same files share one."""
    if len(parts) == 1:
        return [replace(parts[0], folder=FOLDER)]
    folders: dict[tuple[object, ...], str] = {}
    return [
        replace(
            part,
            folder=folders.setdefault(
                part.artifact.files, f"{FOLDER}/{part.artifact.variant.name}"
            ),
        )
        for part in parts
    ]
