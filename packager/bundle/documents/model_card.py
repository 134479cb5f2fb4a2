"""The card of a converted model: what it is, what was changed, and what was measured.

It lies beside the checkpoint's own card, which stays as it is. Nothing is in it that is not known
from the checkpoint, the recipe or a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packager import formats
from packager.bundle.artifacts import Packed
from packager.bundle.documents.licensing import model_name
from packager.bundle.documents.render import render
from packager.bundle.figures import Figure, figures
from packager.checkpoint.model_card import CARD_NAME, declared_licence
from packager.core.records import Artifact, Checkpoint, Variant
from runtimes.bundle.baseline import read_baseline

ORIGINAL_CARD_NAME = "MODEL_CARD_ORIGINAL.md"


@dataclass(frozen=True, slots=True)
class Section:
    """One variant, as the card tells of it."""

    variant: Variant
    changes: Sequence[tuple[str, object]]
    figures: Sequence[Figure]
    device: str | None
    threads: int | None


def model_card(parts: Sequence[Packed], checkpoint: Checkpoint) -> str:
    """The text of MODEL_CARD.md; of several variants, the first is the one that it is about."""
    return render(
        "MODEL_CARD.md",
        model=model_name(checkpoint),
        licence=declared_licence(checkpoint.path),
        original_card=ORIGINAL_CARD_NAME if (checkpoint.path / CARD_NAME).is_file() else None,
        adapted=checkpoint.adapter is not None,
        context_tokens=checkpoint.context_tokens,
        sections=[_section(part, checkpoint) for part in parts],
    )


def _section(part: Packed, checkpoint: Checkpoint) -> Section:
    baseline = read_baseline(part.evidence)
    return Section(
        variant=part.artifact.variant,
        changes=_changes(part, checkpoint),
        figures=figures(part.evidence),
        device=baseline.device,
        threads=baseline.threads,
    )


def _changes(part: Packed, checkpoint: Checkpoint) -> list[tuple[str, object]]:
    artifact, variant = part.artifact, part.artifact.variant
    window = checkpoint.window.size_tokens
    return [
        ("method", formats.load(variant.format).METHOD),
        ("recipe", variant.recipe),
        ("bits for each weight, nominally", f"{variant.bits:g}"),
        ("bits of the files for each parameter", f"{_bits(artifact, checkpoint):.2f}"),
        ("weights that share a scale", variant.group_size or "as the recipe has it"),
        (
            "head and embedding",
            f"{variant.head_bits} bits" if variant.head_bits else "same as the other layers",
        ),
        ("calibrated on data with SHA-256", part.calibration_sha256 or "none: not calibrated"),
        ("from the checkpoint's revision", checkpoint.revision or "not known"),
        ("with SHA-256", artifact.checkpoint_sha256),
        ("merged adapter's SHA-256", checkpoint.adapter.sha256 if checkpoint.adapter else "none"),
        ("sliding window", "full attention" if window is None else f"{window} tokens, kept exact"),
        ("made with", ", ".join(f"{n} {v}" for n, v in sorted(artifact.versions.items()))),
        *[(f"SHA-256 of {entry.path}", entry.sha256) for entry in artifact.files],
    ]


def _bits(artifact: Artifact, checkpoint: Checkpoint) -> float:
    """With scales, norms, biases and what else is in the files."""
    return 8 * artifact.size_bytes / checkpoint.geometry.parameters
