"""Several variants in one bundle: which they are, where each lies, what is told of them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from packager.bundle import build
from packager.bundle.artifacts import Origin, Packed
from packager.bundle.delta import write_delta
from packager.bundle.pack import pack
from packager.cli.parser import parser
from packager.core.atomic import file_entry
from packager.core.errors import IntegrityError, UsageError
from packager.core.records import Artifact, Budget, Variant, no_progress
from packager.core.settings import ConvertSettings
from packager.engine.target import this_machine
from packager.selection.candidates import of_measurement
from packager.selection.selector import select
from runtimes.bundle.open import verify_files
from runtimes.trust.files import FILE_MODE, NewFiles
from runtimes.trust.installed.stage import copy_file
from runtimes.trust.installed.versions import Installation
from runtimes.trust.manifest import Manifest, read_manifest
from tests.support.candidates import candidate
from tests.support.packing import (
    MEASURED,
    WHEEL,
    assert_valid,
    checkpoint_in,
    sh,
    write_checkpoint,
    write_wheel,
)
from tests.support.samples import ESTIMATE, MEASUREMENT, QUALITY, SPEED

pytestmark = pytest.mark.bundle


def write_parts(work: Path, code: str = "VALUE = 1\n") -> None:
    """A GGUF file and two ONNX folders that have one file in common."""
    work.mkdir()
    write_checkpoint(work / "checkpoint")
    write_wheel(work, code)
    for name, files in {
        "gguf-Q8_0": {"model.gguf": b"eight" * 900},
        "onnx-int8": {"model.onnx": b"int8" * 700, "shared.json": b"{}" * 500},
        "onnx-int4-g32": {"model.onnx": b"int4" * 300, "shared.json": b"{}" * 500},
    }.items():
        (work / name).mkdir()
        for file, data in files.items():
            (work / name / file).write_bytes(data)


def parts_in(work: Path) -> list[Packed]:
    """The best first, and the largest."""
    parts = []
    for name, bits, memory_bytes in (
        ("gguf-Q8_0", 8.5, 9_000_000),
        ("onnx-int8", 8.0, 5_000_000),
        ("onnx-int4-g32", 4.5, None),
    ):
        folder, (format, recipe) = work / name, name.split("-", 1)
        entries = tuple(file_entry(folder, file.name) for file in sorted(folder.iterdir()))
        artifact = Artifact(Variant(format, recipe, bits, None), "a" * 64, folder, entries)
        parts.append(Packed(artifact, MEASURED, memory_bytes, 1.5, 0.04, 0.002))
    return parts


def pack_several(work: Path, out: Path, parts: list[Packed] | None = None) -> Manifest:
    parts = parts or parts_in(work)
    return pack(
        parts,
        checkpoint_in(work / "checkpoint"),
        out,
        wheels=list(work.glob("*.whl")),
        origin=Origin(selection={}),
    )


def test_each_has_a_folder_and_what_is_equal_is_stored_once(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    out = tmp_path / "bundle"
    manifest = pack_several(tmp_path / "work", out)
    assert manifest == read_manifest(out)
    verify_files(out, manifest)
    assert manifest.artifact == "model/gguf-Q8_0/model.gguf"
    assert manifest.artifact_bytes == 4500
    listed = [(v.name, v.artifact, v.memory_bytes) for v in manifest.variants]
    assert listed == [
        ("gguf-Q8_0", "model/gguf-Q8_0/model.gguf", 9_000_000),
        ("onnx-int8", "model/onnx-int8", 5_000_000),
        ("onnx-int4-g32", "model/onnx-int4-g32", None),
    ]
    shared = [out / "model" / name / "shared.json" for name in ("onnx-int8", "onnx-int4-g32")]
    assert shared[0].samefile(shared[1]) and shared[0].read_bytes() == b"{}" * 500
    assert not shared[0].samefile(tmp_path / "work" / "onnx-int8" / "shared.json")
    folders = {f.name for f in (out / "runtimes" / "backends").iterdir() if f.is_dir()}
    assert folders == {"gguf", "onnx", "own_cache"}
    assert manifest.provenance["variants"]["onnx-int8"]["bits"] == 8.0
    assert "selection" in manifest.measured and "selection" not in manifest.variants[0].measured


def test_the_documents_tell_of_each(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    out = tmp_path / "bundle"
    pack_several(tmp_path / "work", out)
    assert "onnx with the recipe int4-g32" in " ".join((out / "NOTICE").read_text().split())
    card = (out / "MODEL_CARD.md").read_text()
    assert "Also in this bundle: onnx int8" in card
    assert "What was measured of onnx-int4-g32 on a processor" in card
    assert "`onnx-int8`: `model/onnx-int8`, 0.0 MB" in (out / "README.md").read_text()
    bill = (out / "sbom.cdx.json").read_text()
    assert_valid(bill)
    models = {c["bom-ref"]: c for c in json.loads(bill)["components"] if "modelCard" in c}
    assert set(models) == {"model", "model-onnx-int8", "model-onnx-int4-g32"}
    files = [file["name"] for model in models.values() for file in model["components"]]
    assert len(files) == len(set(files)) == 5


def test_the_same_files_are_one_artifact_under_two_names(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    first = parts_in(tmp_path / "work")[0]
    again = replace(first, artifact=replace(first.artifact, variant=Variant("gguf", "twin", 8, 1)))
    manifest = pack_several(tmp_path / "work", tmp_path / "bundle", [first, again])
    assert {v.artifact for v in manifest.variants} == {"model/gguf-Q8_0/model.gguf"}
    assert len([e for e in manifest.files if e.path.startswith("model/")]) == 1
    bill = (tmp_path / "bundle" / "sbom.cdx.json").read_text()
    assert_valid(bill)
    assert bill.count("model/gguf-Q8_0/model.gguf") == 2 and "BomRef" not in bill  # name and ref


def test_a_variant_that_has_changed_is_not_packed(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    parts = parts_in(tmp_path / "work")
    (tmp_path / "work" / "onnx-int4-g32" / "model.onnx").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="changed since it was converted"):
        pack_several(tmp_path / "work", tmp_path / "bundle", parts)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_one_has_no_list_of_variants(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    only = parts_in(tmp_path / "work")[0].artifact
    pack(
        [Packed(only)],
        checkpoint_in(tmp_path / "work" / "checkpoint"),
        tmp_path / "b",
        wheels=[],
    )
    value = json.loads((tmp_path / "b" / "bundle.json").read_bytes())
    assert "variants" not in value and "variants" not in value["provenance"]
    assert value["artifact"] == "model/model.gguf"


def test_installed_and_changed_by_a_delta(tmp_path: Path) -> None:
    for name, code in (("old", "VALUE = 1\n"), ("new", "VALUE = 22\n")):
        write_parts(tmp_path / f"{name} work", code)
        pack_several(tmp_path / f"{name} work", tmp_path / name)
    target = tmp_path / "target"
    done = sh(tmp_path / "old" / "install", "--to", target)
    assert done.returncode == 0, done.stderr
    delta = write_delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    assert delta.changed == ("sbom.cdx.json", f"wheels/{WHEEL}")
    done = sh(tmp_path / "delta" / "install", "--to", target)
    assert done.returncode == 0, done.stderr
    assert sh(target / "run", "verify", "--full").returncode == 0
    installed = Installation(target).current().bundle
    assert read_manifest(installed) == read_manifest(tmp_path / "new")
    shared = [installed / "model" / n / "shared.json" for n in ("onnx-int8", "onnx-int4-g32")]
    assert shared[0].samefile(shared[1])
    shared[1].write_bytes(b"?" * 1000)
    assert sh(target / "run", "verify").returncode == IntegrityError.exit_code


def test_those_that_fit_are_packed_the_best_first() -> None:
    fine, middle, coarse = (
        candidate(name, nats, 1, agreement=None)
        for name, nats in (("fine", 0.01), ("middle", 0.02), ("coarse", 0.9))
    )
    large = candidate("large", 0.0, 100)
    unproved = candidate("unproved", 0.005, 1, blocked="no window")
    every, budget = [coarse, large, middle, unproved, fine], Budget(divergence_nats=0.5)
    selection = select(every, budget, "here", 2**34)
    for most in (1, 2, 9):
        assert build.packed_variants(selection, most) == [c.variant for c in (fine, middle)][:most]
    selection = select(every, budget, "here", 2**34, accept=["quality"])
    assert build.packed_variants(selection, 9) == [c.variant for c in (fine, middle, coarse)]
    (rejected,) = [r for r in selection.rejected if r.candidate is coarse]
    assert "quality: it diverges by 0.9 nats" in rejected.others[0]


def test_a_selection_is_packed_with_the_figures_of_each(tmp_path: Path, monkeypatch) -> None:
    write_parts(tmp_path / "work")
    artifacts = {part.artifact.variant: part.artifact for part in parts_in(tmp_path / "work")}
    monkeypatch.setattr(build, "provenance_of", lambda *_: {})
    measured = [replace(MEASUREMENT, variant=variant) for variant in artifacts]
    worse = replace(QUALITY, inside=replace(QUALITY.inside, mean_nats=0.3))
    measured[2] = replace(measured[2], quality=worse, speed=None)  # the device is elsewhere
    candidates = [of_measurement(m, parameters=1, context_tokens=4096) for m in measured]
    selection = select(candidates, Budget(), "card", 2**34, accept=["uncalibrated"])
    chosen = build.packed_variants(selection, 3)
    by_variant = {m.variant: m for m in measured}
    wheel = write_wheel(tmp_path / "onnx", package="only_onnx")
    (tmp_path / "report.html").write_text("why")
    out = build.pack_selection(
        checkpoint_in(tmp_path / "work" / "checkpoint"),
        [(artifacts[variant], by_variant[variant]) for variant in chosen],
        selection,
        ConvertSettings(tmp_path),
        {"gguf": [tmp_path / "work" / WHEEL], "onnx": [tmp_path / "work" / WHEEL, wheel]},
        target=this_machine(),
        licence_file=None,
        arguments={},
        report=tmp_path / "report.html",
        progress=no_progress,
    )
    manifest = read_manifest(out)
    verify_files(out, manifest)
    listed = {variant.name: variant for variant in manifest.variants}
    assert list(listed) == [variant.name for variant in chosen]
    assert listed["gguf-Q8_0"].memory_bytes == SPEED.peak_memory_bytes
    assert listed["gguf-Q8_0"].per_token_s == SPEED.per_token_s.p50
    assert listed["gguf-Q8_0"].divergence_nats == QUALITY.divergence_nats
    assert listed["onnx-int4-g32"].memory_bytes == math.ceil(ESTIMATE.memory_bytes.high)
    assert listed["onnx-int4-g32"].first_token_s == ESTIMATE.first_token_s.middle
    assert {file.name for file in (out / "wheels").iterdir()} == {WHEEL, wheel.name}
    reasons = manifest.measured["selection"]["rejected"]
    assert [r["overrides"] for r in reasons if r["variant"] == "onnx-int4-g32"] == [
        [f"uncalibrated: {ESTIMATE.unreliable}"]
    ]


@pytest.mark.parametrize(
    ("flags", "count"), [([], None), (["--variants"], 100), (["--variants", "2"], 2)]
)
def test_how_many_are_asked_for(flags: list[str], count: int | None) -> None:
    assert parser().parse_args(["pack", "model", *flags]).variants == count
    with pytest.raises(UsageError, match="is not a number from 1"):
        parser().parse_args(["pack", "model", "--variants", "0"])


def test_where_the_disk_has_no_second_names_a_copy_is_made(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not on this disk")

    (tmp_path / "source").write_text("text")
    with NewFiles(tmp_path) as files:
        copy_file(tmp_path / "source", files, "first", "first", FILE_MODE)
        monkeypatch.setattr(os, "link", refuse)
        copy_file(tmp_path / "source", files, "second", "first", FILE_MODE)
    assert (tmp_path / "second").read_text() == "text"
    assert not (tmp_path / "second").samefile(tmp_path / "first")
