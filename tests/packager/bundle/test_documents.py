"""The texts that go with a bundle: what a lawyer, an auditor and a scanner look for in it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from packager.bundle.artifacts import Packed
from packager.bundle.documents.sbom import SBOM_NAME
from packager.bundle.documents.wheel_metadata import read_wheel
from packager.bundle.pack import pack
from packager.core.atomic import sha256_file
from packager.core.errors import CheckpointError, IntegrityError
from packager.core.records import Adapter, Artifact, Checkpoint
from tests.support.packing import (
    MEASURED,
    WHEEL,
    assert_valid,
    write_artifact,
    write_checkpoint,
    write_wheel,
)

pytestmark = pytest.mark.bundle

ROOT = Path(__file__).parents[3]
RAIL_CARD = "---\nlicense: bigcode-openrail-m\n---\n# StarCoder2\n"
RAIL = (
    "BigCode Open RAIL-M v1 License Agreement\n11. Limitation of Liability. ...\n"
    "Attachment A - USE RESTRICTIONS\nYou agree not to ...\n"
)


@pytest.fixture(autouse=True)
def no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return write_checkpoint(tmp_path / "demo-model")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_artifact(tmp_path / "artifact")


def packed(artifact: Artifact, checkpoint: Checkpoint, out: Path, **more: object) -> Path:
    calibration = more.pop("calibration_sha256", None)
    part = Packed(artifact, more.pop("evidence", MEASURED), calibration_sha256=calibration)
    pack([part], checkpoint, out, **{"wheels": [write_wheel(out.parent / "wheels")]} | more)
    return out


def bill(bundle: Path) -> dict:
    return json.loads((bundle / SBOM_NAME).read_bytes())


def test_the_bill_of_materials_is_valid_and_names_everything(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    card = "---\nlicense: apache-2.0\n---\n"
    (checkpoint.path / "README.md").write_text(card)
    bundle = packed(artifact, checkpoint, tmp_path / "bundle", calibration_sha256="c" * 64)
    assert_valid((bundle / SBOM_NAME).read_text())
    value = bill(bundle)
    assert (value["bomFormat"], value["specVersion"]) == ("CycloneDX", "1.6")
    assert "timestamp" not in value["metadata"]
    components = {component["bom-ref"]: component for component in value["components"]}
    model = components["model"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["hashes"] == [{"alg": "SHA-256", "content": artifact.files[0].sha256}]
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["modelArchitecture"] == "Starcoder2ForCausalLM"
    assert "c" * 64 in parameters["datasets"][0]["description"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "first token", "value": "1.5 s",
            "slice": "prompt of 1024 tokens, nothing in the cache"} in metrics  # fmt: skip
    wheel = components[f"wheels/{WHEEL}"]
    file_hash = sha256_file(bundle / "wheels" / WHEEL)
    assert wheel["hashes"] == [{"alg": "SHA-256", "content": file_hash}]
    assert wheel["purl"] == f"pkg:pypi/demo-package@1.0?file_name={WHEEL}"
    listed = {entry["ref"]: entry.get("dependsOn", []) for entry in value["dependencies"]}
    assert listed["starpack-runtime"] == [f"wheels/{WHEEL}"]


def test_a_bill_without_anything_measured_is_valid_too(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bundle = packed(artifact, checkpoint, tmp_path / "bundle", wheels=[], evidence={})
    assert_valid((bundle / SBOM_NAME).read_text())
    assert "quantitativeAnalysis" not in (bundle / SBOM_NAME).read_text()
    assert "What was measured" not in (bundle / "MODEL_CARD.md").read_text()


def test_same_inputs_same_bytes_and_the_serial_number_follows_them(
    artifact: Artifact,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = packed(artifact, checkpoint, tmp_path / "one")
    two = packed(artifact, checkpoint, tmp_path / "two")
    for file in one.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (two / file.relative_to(one)).read_bytes(), file
    other = packed(artifact, checkpoint, tmp_path / "three", evidence={})
    serials = [bill(bundle)["serialNumber"] for bundle in (one, two, other)]
    assert serials[0] == serials[1] != serials[2]
    assert all(re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", serial) for serial in serials)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = packed(artifact, checkpoint, tmp_path / "dated")
    assert bill(dated)["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert "on 2023-11-14." in (dated / "NOTICE").read_text()
    assert_valid((dated / SBOM_NAME).read_text())


def test_the_notice_and_the_card_say_what_was_changed(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    checkpoint = replace(checkpoint, adapter=Adapter(tmp_path, "b" * 64))
    bundle = packed(artifact, checkpoint, tmp_path / "bundle")
    text = (bundle / "NOTICE").read_text()
    for words in ("demo-model, revision main", "gguf with the recipe Q4_K_M", "b" * 64, "a" * 64,
                  "machine-generated", "endorse"):  # fmt: skip
        assert words in text
    card = (bundle / "MODEL_CARD.md").read_text()
    for words in ("Q4_K_M", "4.8", "a processor, 4 threads", "| 0.0125 nats per position |",
                  "| 1.5 s |", "| 0.05 s |", "40 infilling samples of kind line",
                  artifact.files[0].sha256, "MODEL_CARD_ORIGINAL.md", "32 tokens, kept exact",
                  "none: not calibrated"):  # fmt: skip
        assert words in card
    assert (bundle / "MODEL_CARD_ORIGINAL.md").read_text() == "the model's card"
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    assert manifest["provenance"]["licences"] == [
        "licence/model/LICENSE",
        "licence/starpack/LICENSE",
    ]


@pytest.mark.parametrize("text", ["", "see the hub", RAIL.replace("RESTRICTIONS", "")])
def test_a_licence_with_use_restrictions_has_to_be_whole(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path, text: str
) -> None:
    (checkpoint.path / "README.md").write_text(RAIL_CARD)
    out = tmp_path / "bundle"
    given = tmp_path / "given.txt"
    given.write_text(text)
    (checkpoint.path / "LICENSE").write_text(text)
    for file in (None, given):
        with pytest.raises(CheckpointError, match="not its full text") as caught:
            packed(artifact, checkpoint, out, licence_file=file)
        assert "--licence-file" in caught.value.remedy and "Attachment A" in caught.value.expected
    (checkpoint.path / "LICENSE").unlink()
    with pytest.raises(CheckpointError, match="licence is missing"):
        packed(artifact, checkpoint, out)
    assert not out.exists()
    given.write_text(RAIL)
    packed(artifact, checkpoint, out, licence_file=given)
    assert (out / "licence" / "model" / "given.txt").read_text() == RAIL
    assert "license: bigcode-openrail-m" in (out / "MODEL_CARD.md").read_text()
    (model,) = (c for c in bill(out)["components"] if c["bom-ref"] == "model")
    assert model["licenses"] == [{"license": {"name": "bigcode-openrail-m"}}]


def test_the_real_text_is_whole(checkpoint: Checkpoint) -> None:
    from packager.bundle.documents.licensing import check_full_text

    data = os.environ.get("STARPACK_TEST_DATA")
    if not data:
        pytest.skip("STARPACK_TEST_DATA names no folder with licence/")
    (checkpoint.path / "README.md").write_text(RAIL_CARD)
    check_full_text(checkpoint, [Path(data) / "licence" / "bigcode-open-rail-m-v1.LICENSE"])


def test_the_demo_has_a_licence_of_its_own(checkpoint: Checkpoint) -> None:
    from packager.bundle.contents import model_licences
    from packager.checkpoint.model_card import declared_licence

    demo = replace(checkpoint, path=ROOT / "examples" / "demo")
    (text,) = model_licences(demo, None)
    assert "Apache License" in text.read_text() and declared_licence(demo.path) == "apache-2.0"


def write_any_wheel(file: Path, metadata: str, **texts: str) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("thing-2.0.dist-info/METADATA", "Metadata-Version: 2.4\n" + metadata)
        for name, text in texts.items():
            archive.writestr(name, text)
    return file


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("Name: thing\nLicense-Expression: MIT AND 0BSD\nLicense: no\n", "MIT AND 0BSD"),
        ("Name: thing\nLicense: Apache 2.0\n", "Apache-2.0"),
        ("Name: thing\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("Name: thing\nClassifier: License :: OSI Approved :: BSD License\n", "BSD License"),
        ("Name: thing\nLicense: " + "very long " * 30 + "\n", None),
        ("Name: thing\n", None),
    ],
)
def test_the_licence_of_a_wheel(tmp_path: Path, metadata: str, licence: str | None) -> None:
    wheel = write_any_wheel(tmp_path / "thing-2.0-py3-none-any.whl", metadata)
    assert read_wheel(wheel).licence == licence


def test_licence_texts_of_wheels_wherever_they_are(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    wheel = write_any_wheel(
        tmp_path / "thing-2.0-py3-none-any.whl",
        "Name: Thing\n",
        **{
            "thing-2.0.dist-info/licenses/LICENSE": "one",
            "thing-2.0.dist-info/licenses/vendor/x/COPYING.txt": "two",
            "thing-2.0.dist-info/AUTHORS": "three",
            "thing/ThirdPartyNotices.txt": "four",
            "thing/licenses.py": "code",
            "thing/../../LICENSE": "five",
        },
    )
    bundle = packed(artifact, checkpoint, tmp_path / "bundle", wheels=[wheel])
    folder = bundle / "licence" / "wheels" / "thing"
    found = {f.relative_to(folder).as_posix(): f.read_text() for f in folder.rglob("*")
             if f.is_file()}  # fmt: skip
    del found["METADATA"]
    assert found == {
        "LICENSE": "one",
        "vendor/x/COPYING.txt": "two",
        "AUTHORS": "three",
        "thing/ThirdPartyNotices.txt": "four",
    }


def test_the_apache_licence_is_added_where_a_wheel_only_names_it(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name, metadata = "thing-2.0-py3-none-any.whl", "Name: thing\nLicense: {}\n"
    for words, texts in (("Apache 2.0", {"LICENSE", "METADATA"}), ("MIT", {"METADATA"})):
        wheel = write_any_wheel(tmp_path / name, metadata.format(words))
        bundle = packed(artifact, checkpoint, tmp_path / "bundle", wheels=[wheel])
        folder = bundle / "licence" / "wheels" / "thing"
        assert {file.name for file in folder.iterdir()} == texts
        if len(texts) == 2:
            assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_a_wheel_without_metadata_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "")
    for data in (wheel.read_bytes(), b"no archive"):
        wheel.write_bytes(data)
        with pytest.raises(IntegrityError, match="without metadata"):
            read_wheel(wheel)
