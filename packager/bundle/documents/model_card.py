"""The card of a converted model: what it is, what was changed, and what was measured.

It lies beside the checkpoint's own card, which stays as it is. Nothing is in it that is not known
from the checkpoint, the recipe or a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packager.bundle.artifacts import Packed
from packager.bundle.documents.licensing import model_name
from packager.bundle.figures import figures
from packager.checkpoint.model_card import declared_licence
from packager.core.records import Artifact, Checkpoint
from runtimes.bundle.baseline import read_promise

ORIGINAL_CARD_NAME = "MODEL_CARD_ORIGINAL.md"
METHODS = {
    "gguf": "blocks of weights with shared scales, the same bytes as llama-quantize writes",
    "onnx": "a graph of ONNX Runtime's own operators, weights quantised in groups",
    "gptq": "GPTQ: weights rounded one by one, each error made good by those still to come",
}


def model_card(parts: Sequence[Packed], checkpoint: Checkpoint) -> str:
    """The text of MODEL_CARD.md; of several variants, the first is the one that it is about."""
    name, variant = model_name(checkpoint), parts[0].artifact.variant
    licence = declared_licence(checkpoint.path)
    sections = [
        _front_matter(licence),
        f"# {name} as {variant.format} {variant.recipe}\n\n"
        f"A StarCoder2 model that continues code and fills in between two pieces of code. This is "
        f"a modified version of {name}: its weights were converted"
        + (", after a LoRA adapter was merged in" if checkpoint.adapter else "")
        + ". The model is as its authors trained it in everything else; read "
        + (
            f"[their card]({ORIGINAL_CARD_NAME}) for its training, uses and limits."
            if (checkpoint.path / "README.md").is_file()
            else "their documentation for its training, uses and limits (the checkpoint has no "
            "card of its own)."
        ),
        "## What was changed\n\n" + _table(_changes(parts[0], checkpoint)),
        _measured(parts[0].evidence, "What was measured"),
        *[section for part in parts[1:] for section in _another(part, checkpoint)],
        _limits(checkpoint),
        "## Licence\n\n"
        + (f"The model is under {licence}. " if licence else "")
        + "The text is in `licence/model/`; `run --licence` shows it. It goes with every copy, "
        "its use restrictions included, and binds whoever uses the model. `NOTICE` says what was "
        "modified. What the model writes is machine-generated: review it, say so where you "
        "publish it, and mind that it may repeat code that others hold rights in.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(licence: str | None) -> str:
    lines = ["---", *([f"license: {licence}"] if licence else []), "pipeline_tag: text-generation"]
    return "\n".join([*lines, "---"])


def _another(part: Packed, checkpoint: Checkpoint) -> tuple[str, str]:
    """The sections of a further variant."""
    variant = part.artifact.variant
    changed = f"## Also in this bundle: {variant.format} {variant.recipe}\n\n"
    changed += _table(_changes(part, checkpoint))
    return changed, _measured(part.evidence, f"What was measured of {variant.name}")


def _changes(part: Packed, checkpoint: Checkpoint) -> list[tuple[str, object]]:
    artifact, variant = part.artifact, part.artifact.variant
    window = checkpoint.window.size_tokens
    return [
        ("method", METHODS.get(variant.format, variant.format)),
        ("recipe", variant.recipe),
        ("bits for each weight, nominally", f"{variant.bits:g}"),
        ("bits of the files for each parameter", f"{_bits(artifact, checkpoint):.2f}"),
        ("weights that share a scale", variant.group_size or "as the recipe has it"),
        ("head and embedding", f"{variant.head_bits} bits" if variant.head_bits else "as the rest"),
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
    return 8 * artifact.bytes / checkpoint.geometry.parameters


def _measured(measured: Mapping[str, Any], title: str) -> str:
    rows = [(f.name + (f" ({f.part})" if f.part else ""), f.text) for f in figures(measured)]
    if not rows:
        return ""
    promise = read_promise(measured)
    where = f" on {promise.device}" if promise.device else ""
    threads = f", {promise.threads} threads" if promise.threads else ""
    return (
        f"## {title}{where}{threads}\n\n{_table(rows)}\n\n"
        "Divergences are from the unquantised checkpoint, computed in float32. `run doctor` "
        "compares the times with those of your machine."
    )


def _limits(checkpoint: Checkpoint) -> str:
    return (
        "## Limits\n\n"
        f"Trained to {checkpoint.context_tokens} tokens of context. A longer one runs, with the "
        "window exact, and is beyond what training covered. A base model: it does not follow "
        "instructions. Its answers may be wrong, insecure or not licensed to you. Quantising "
        "changes answers: the figures above say how much, on the texts that they were measured on."
    )


def _table(rows: list[tuple[str, object]]) -> str:
    lines = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])
