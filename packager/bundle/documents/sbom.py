"""A bundle's bill of materials: CycloneDX 1.6, JSON, the same bytes from the same inputs.

The model is a machine-learning-model component with a model card, each wheel a library with its
hash, purl and licence, starpack's runtime an application. cyclonedx-python-lib writes it; model
cards it does not know yet (11.12), so that part of the JSON is added here.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from packager.bundle.archive import source_date_epoch
from packager.bundle.artifacts import Packed
from packager.bundle.documents.licensing import model_name
from packager.bundle.documents.wheel_metadata import WheelMetadata
from packager.bundle.figures import figures
from packager.checkpoint.model_card import declared_licence
from packager.core.records import Checkpoint

SBOM_NAME = "sbom.cdx.json"
MODEL_REF = "model"
RUNTIME_REF = "starpack-runtime"
NAMESPACE = uuid.UUID("b05afec9-061f-4a34-8ab1-747c75a6d0f1")  # drawn once, for serial numbers


def bill_of_materials(
    parts: Sequence[Packed],
    checkpoint: Checkpoint,
    wheels: Sequence[WheelMetadata],
    starpack_version: str,
) -> str:
    """The text of sbom.cdx.json. Its serial number is derived from all the rest."""
    models = {
        part.artifact.variant.name: _model(part, checkpoint, parts[:index])
        for index, part in enumerate(parts)
    }
    runtime = Component(
        name="starpack",
        version=starpack_version,
        type=ComponentType.APPLICATION,
        bom_ref=RUNTIME_REF,
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        description="the runtime in runtimes/, which opens the model and answers",
    )
    libraries = [_library(wheel) for wheel in wheels]
    bundle = Component(
        name=f"{model_name(checkpoint)}-{parts[0].artifact.variant.name}",
        type=ComponentType.APPLICATION,
        bom_ref="bundle",
    )
    bom = Bom(
        components=[*models.values(), runtime, *libraries],
        serial_number=uuid.UUID(int=0),
        metadata=BomMetaData(
            component=bundle,
            timestamp=datetime.fromtimestamp(source_date_epoch(), UTC),
        ),
    )
    bom.register_dependency(bundle, [*models.values(), runtime])
    bom.register_dependency(runtime, libraries)
    value = json.loads(JsonV1Dot6(bom).output_as_string())
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        del value["metadata"]["timestamp"]  # better none than a wrong one
    components = {component["bom-ref"]: component for component in value["components"]}
    for part in parts:
        model = models[part.artifact.variant.name]
        components[model.bom_ref.value]["modelCard"] = _card(part, checkpoint)
    del value["serialNumber"]
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    value["serialNumber"] = uuid.uuid5(NAMESPACE, text).urn
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _model(part: Packed, checkpoint: Checkpoint, earlier: Sequence[Packed]) -> Component:
    """The first has the name MODEL_REF; files that an earlier one has are listed there alone."""
    artifact, licence = part.artifact, declared_licence(checkpoint.path)
    ref = f"{MODEL_REF}-{artifact.variant.name}" if earlier else MODEL_REF
    files = [
        Component(
            name=path,
            type=ComponentType.FILE,
            bom_ref=path,
            hashes=[_sha256(sha256)],
        )
        for path, _, sha256 in part.files()
        if part.folder not in {other.folder for other in earlier}
    ]
    variant = artifact.variant
    origin = Component(
        name=model_name(checkpoint),
        version=checkpoint.revision or None,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{ref}-checkpoint",
        properties=[Property(name="starpack:sha256", value=artifact.checkpoint_sha256)],
    )
    facts = {
        "format": variant.format,
        "recipe": variant.recipe,
        "bits_per_weight": f"{variant.bits:g}",
        "checkpoint_sha256": artifact.checkpoint_sha256,
        "licence_text": "licence/model/",
    }
    return Component(
        name=model_name(checkpoint),
        version=checkpoint.revision or None,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=ref,
        description=f"StarCoder2 as {variant.format} {variant.recipe}; modified, see NOTICE",
        pedigree=Pedigree(ancestors=[origin], notes="converted and quantised; see NOTICE"),
        # of several files each has its own hash, below
        hashes=[_sha256(artifact.files[0].sha256)] if len(artifact.files) == 1 else None,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else None,
        components=files,
        properties=[Property(name=f"starpack:{key}", value=value) for key, value in facts.items()],
    )


def _library(wheel: WheelMetadata) -> Component:
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"wheels/{wheel.file}",
        description=wheel.summary,
        purl=PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.file}),
        hashes=[_sha256(wheel.sha256)],
        licenses=[LicenseFactory().make_from_string(wheel.licence)] if wheel.licence else None,
    )


def _card(part: Packed, checkpoint: Checkpoint) -> dict[str, Any]:
    """CycloneDX's modelCard, with what is known: nothing is guessed."""
    geometry, window = checkpoint.geometry, checkpoint.window.size_tokens
    calibration = part.calibration_sha256
    facts = {
        "layers": geometry.layers,
        "parameters": geometry.parameters,
        "window_tokens": "none" if window is None else window,
        "context_tokens": checkpoint.context_tokens,
    }
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": "Starcoder2ForCausalLM",
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "considerations": {
            "useCases": ["continuing code", "filling in between two pieces of code"],
            "technicalLimitations": [
                f"trained to {checkpoint.context_tokens} tokens of context",
                "what it writes is machine-generated, may be wrong and may repeat code of others",
            ],
        },
        "properties": [{"name": f"starpack:{k}", "value": str(v)} for k, v in facts.items()],
    }
    if calibration:
        card["modelParameters"]["datasets"] = [
            {
                "type": "dataset",
                "name": "calibration",
                "description": f"what the quantisation was calibrated on; SHA-256 {calibration}",
            }
        ]
    metrics = [
        {"type": f.name, "value": f.text, **({"slice": f.part} if f.part else {})}
        for f in figures(part.evidence)
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _sha256(value: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=value)
