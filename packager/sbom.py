"""A bundle's bill of materials: CycloneDX 1.6, JSON, the same bytes from the same inputs.

The model is a machine-learning-model component with a model card, each wheel a library with its
hash, purl and licence, starpack's runtime an application. cyclonedx-python-lib writes it; model
cards it does not know yet (11.12), so that part of the JSON is added here.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from packager.archive import source_date_epoch
from packager.figures import figures
from packager.law import declared_licence, model_name
from packager.records import Artifact, Checkpoint
from packager.wheel_facts import WheelFacts

SBOM_NAME = "sbom.cdx.json"
MODEL_REF = "model"
RUNTIME_REF = "starpack-runtime"
NAMESPACE = uuid.UUID("b05afec9-061f-4a34-8ab1-747c75a6d0f1")  # drawn once, for serial numbers


def bill_of_materials(
    artifact: Artifact,
    checkpoint: Checkpoint,
    wheels: Sequence[WheelFacts],
    measured: Mapping[str, Any],
    provenance: Mapping[str, Any],
    starpack_version: str,
) -> str:
    """The text of sbom.cdx.json. Its serial number is derived from all the rest."""
    model = _model(artifact, checkpoint)
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
        name=f"{model_name(checkpoint)}-{artifact.variant.name}",
        type=ComponentType.APPLICATION,
        bom_ref="bundle",
    )
    bom = Bom(
        components=[model, runtime, *libraries],
        serial_number=uuid.UUID(int=0),
        metadata=BomMetaData(
            component=bundle,
            timestamp=datetime.fromtimestamp(source_date_epoch(), UTC),
        ),
    )
    bom.register_dependency(bundle, [model, runtime])
    bom.register_dependency(runtime, libraries)
    value = json.loads(JsonV1Dot6(bom).output_as_string())
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        del value["metadata"]["timestamp"]  # better none than a wrong one
    card = _card(checkpoint, measured, provenance)
    next(c for c in value["components"] if c["bom-ref"] == MODEL_REF)["modelCard"] = card
    del value["serialNumber"]
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    value["serialNumber"] = uuid.uuid5(NAMESPACE, text).urn
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _model(artifact: Artifact, checkpoint: Checkpoint) -> Component:
    licence = declared_licence(checkpoint)
    files = [
        Component(
            name=f"model/{entry.path}",
            type=ComponentType.FILE,
            bom_ref=f"model/{entry.path}",
            hashes=[_sha256(entry.sha256)],
        )
        for entry in artifact.files
    ]
    variant = artifact.variant
    origin = Component(
        name=model_name(checkpoint),
        version=checkpoint.revision or None,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{MODEL_REF}-checkpoint",
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
        bom_ref=MODEL_REF,
        description=f"StarCoder2 as {variant.format} {variant.recipe}; modified, see NOTICE",
        pedigree=Pedigree(ancestors=[origin], notes="converted and quantised; see NOTICE"),
        # of several files each has its own hash, below
        hashes=[_sha256(artifact.files[0].sha256)] if len(files) == 1 else None,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else None,
        components=files,
        properties=[Property(name=f"starpack:{key}", value=value) for key, value in facts.items()],
    )


def _library(wheel: WheelFacts) -> Component:
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


def _card(
    checkpoint: Checkpoint, measured: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """CycloneDX's modelCard, with what is known: nothing is guessed."""
    geometry, window = checkpoint.geometry, checkpoint.window.size_tokens
    calibration = provenance.get("calibration_sha256")
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
        for f in figures(measured)
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _sha256(value: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=value)
