"""The texts that go with a bundle: notices, licences, cards, bill of materials, ways to deploy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packager.bundle.artifacts import Packed
from packager.bundle.documents.deployment import deploy_files
from packager.bundle.documents.licensing import model_name, notice, own_licence
from packager.bundle.documents.model_card import model_card
from packager.bundle.documents.render import render
from packager.bundle.documents.sbom import SBOM_NAME, bill_of_materials
from packager.bundle.documents.wheel_metadata import WheelMetadata, read_wheel
from packager.core.records import Checkpoint
from packager.core.versions import tool_versions
from packager.engine.target import Target
from packager.engine.wheelhouse import newest_glibc

LICENCE_FOLDER = "licence/wheels"


def documents(
    parts: Sequence[Packed],
    checkpoint: Checkpoint,
    wheels: Sequence[Path],
    target: Target,
) -> dict[str, bytes]:
    """Path in the bundle to content. Raises IntegrityError for a wheel without metadata."""
    facts = [read_wheel(wheel) for wheel in wheels]
    version = tool_versions().get("starpack", "of no installed version")
    texts = {
        "README.md": _readme(parts, checkpoint, wheels, target),
        "NOTICE": notice([part.artifact for part in parts], checkpoint, version),
        "MODEL_CARD.md": model_card(parts, checkpoint),
        SBOM_NAME: bill_of_materials(parts, checkpoint, facts, version),
        **deploy_files({part.artifact.variant.format for part in parts}, target),
    }
    files = {path: text.encode() for path, text in texts.items()}
    for wheel in facts:
        for name, data in (_own_text(wheel) | wheel.texts).items():
            files[f"{LICENCE_FOLDER}/{wheel.name}/{name}"] = data
    return files


def _readme(
    parts: Sequence[Packed], checkpoint: Checkpoint, wheels: Sequence[Path], target: Target
) -> str:
    return render(
        "README.md",
        model=model_name(checkpoint),
        parts=parts,
        first=parts[0],
        window_tokens=checkpoint.window.size_tokens,
        context_tokens=checkpoint.context_tokens,
        target=target,
        glibc=newest_glibc(wheels),
    )


def _own_text(wheel: WheelMetadata) -> dict[str, bytes]:
    """The text of a licence that a wheel names and does not bring; that of starpack is the same."""
    if wheel.licence == "Apache-2.0" and set(wheel.texts) == {"METADATA"}:
        return {"LICENSE": own_licence().read_bytes()}
    return {}
