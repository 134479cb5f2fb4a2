"""Packing: exactly these files, a manifest that both validators accept, all or nothing."""

from __future__ import annotations

import ast
import copy
import os
import platform
import stat
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from packager.bundle.artifacts import Packed
from packager.bundle.pack import check_manifest, pack
from packager.core.atomic import file_entry
from packager.core.errors import CheckpointError, IntegrityError, UsageError
from packager.core.package_data import read_schema
from packager.core.records import Artifact, Checkpoint
from runtimes.bundle.open import verify_files
from runtimes.contract import Window
from runtimes.trust.manifest import Manifest, read_manifest
from tests.support.packing import write_artifact, write_checkpoint, write_wheel

GGUF_FILES = Path(__file__).parents[2] / "goldens" / "gguf_bundle_files.txt"
# Of runtimes/backends/, beside what every bundle has.
COMMON = "__init__.py call_costs.py checks.py timing.py"
OWN_CACHE = "own_cache/__init__.py own_cache/kv_slots.py own_cache/rope.py"
BACKENDS = {
    "gguf": "gguf/__init__.py gguf/backend.py gguf/engine.py",
    "onnx": "onnx/__init__.py onnx/backend.py onnx/bindings.py onnx/graph.py onnx/huge_pages.py "
    "onnx/session.py " + OWN_CACHE,
    "gptq": "gptq/__init__.py gptq/backend.py gptq/cuda_graphs.py gptq/device.py gptq/files.py "
    "gptq/linear.py gptq/model.py gptq/tiles.py " + OWN_CACHE,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return write_checkpoint(tmp_path / "demo-model")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_artifact(tmp_path / "artifact")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path)


def test_exact_list_of_files(
    artifact: Artifact,
    checkpoint: Checkpoint,
    wheel: Path,
    tmp_path: Path,
    regenerate_goldens: bool,
) -> None:
    out = tmp_path / "bundle"
    manifest = pack([Packed(artifact, {"proof": {"holds": True}})], checkpoint, out, wheels=[wheel])
    found = sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
    if regenerate_goldens:
        GGUF_FILES.write_text("\n".join(found) + "\n")
    assert found == GGUF_FILES.read_text().splitlines()
    assert manifest == read_manifest(out)
    verify_files(out, manifest)
    assert manifest.artifact == "model/model.gguf"
    assert manifest.window == Window(32)
    assert manifest.measured == {"proof": {"holds": True}}
    assert manifest.versions["demo-package"] == "1.0"
    assert manifest.versions["wheels_machine"] == platform.machine()
    assert str(tmp_path) not in (out / "bundle.json").read_text()
    assert "32 tokens, exact" in (out / "README.md").read_text()
    assert not list(tmp_path.glob("bundle.*"))


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_modes_are_set_whatever_the_umask_is(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path, umask: int
) -> None:
    out = tmp_path / "bundle"
    before = os.umask(umask)
    try:
        pack([Packed(artifact)], checkpoint, out, wheels=[wheel])
    finally:
        os.umask(before)
    modes = {
        path.relative_to(out).as_posix(): oct(stat.S_IMODE(path.stat().st_mode))
        for path in [out, *out.rglob("*")]
    }
    programs = {"install", "run"}
    for path, mode in modes.items():
        assert mode == ("0o755" if path in programs or (out / path).is_dir() else "0o644"), path


def test_a_snapshot_in_the_hubs_cache_is_packed(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    """There every file is a link to ../../blobs: the bundle has the files."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for count, file in enumerate(sorted(checkpoint.path.iterdir())):
        (blobs / str(count)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(count)))
    out = tmp_path / "bundle"
    manifest = pack([Packed(artifact)], replace(checkpoint, path=snapshot), out, wheels=[wheel])
    verify_files(out, manifest)
    assert (out / "tokenizer.json").read_bytes() == (blobs / "2").read_bytes()


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "tokenizer.json", "LICENCE.txt"])
def test_no_link_of_a_checkpoint_takes_a_file_of_this_machine_along(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    (checkpoint.path / name).unlink(missing_ok=True)
    (checkpoint.path / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="a link that leads out") as caught:
        pack([Packed(artifact)], checkpoint, tmp_path / "bundle", wheels=[wheel])
    assert caught.value.where == str(checkpoint.path / name)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("format", BACKENDS)
def test_a_bundle_has_the_backends_of_its_formats_alone(
    format: str, artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    of_format = replace(artifact, variant=replace(artifact.variant, format=format))
    out = tmp_path / "bundle"
    pack([Packed(of_format)], checkpoint, out, wheels=[])
    folder = out / "runtimes" / "backends"
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == {*COMMON.split(), *BACKENDS[format].split()}
    for file in (out / "runtimes").rglob("*.py"):  # and nothing that it carries needs another
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("runtimes"):
                path = out / str(node.module).replace(".", "/")
                assert path.is_dir() or path.with_suffix(".py").is_file(), (file, node.module)


def test_same_inputs_same_bytes(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    packed = [
        pack([Packed(artifact)], checkpoint, tmp_path / name, wheels=[wheel])
        for name in ("one", "two")
    ]
    assert packed[0] == packed[1]


def test_several_files_make_the_folder_the_artifact(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (artifact.path / "config.json").write_text("{}")
    both = (*artifact.files, file_entry(artifact.path, "config.json"))
    manifest = pack(
        [Packed(replace(artifact, files=both))], checkpoint, tmp_path / "bundle", wheels=[]
    )
    assert manifest.artifact == "model"


def test_no_licence_no_bundle(artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path) -> None:
    (checkpoint.path / "LICENSE").unlink()
    out = tmp_path / "bundle"
    with pytest.raises(CheckpointError, match="licence is missing") as caught:
        pack([Packed(artifact)], checkpoint, out, wheels=[])
    assert "--licence-file" in caught.value.remedy
    assert not out.exists()
    given = tmp_path / "OpenRAIL.txt"
    given.write_text("terms")
    pack([Packed(artifact)], checkpoint, out, wheels=[], licence_file=given)
    assert (out / "licence" / "model" / "OpenRAIL.txt").read_text() == "terms"
    with pytest.raises(UsageError, match="no such file"):
        pack([Packed(artifact)], checkpoint, out, wheels=[], licence_file=tmp_path / "none")


def test_only_a_bundle_is_replaced_and_only_by_a_whole_one(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not a bundle"):
        pack([Packed(artifact)], checkpoint, out, wheels=[])
    assert (out / "thesis.txt").read_text() == "precious"
    (out / "thesis.txt").unlink()
    out.rmdir()

    first = pack([Packed(artifact)], checkpoint, out, wheels=[])
    (artifact.path / "model.gguf").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="changed since it was converted") as caught:
        pack([Packed(artifact)], checkpoint, out, wheels=[])
    assert f"delete {artifact.path} and" in caught.value.remedy
    verify_files(out, first)  # the old one is untouched
    assert not list(tmp_path.glob("bundle.*"))

    changed = replace(artifact, files=(file_entry(artifact.path, "model.gguf"),))
    second = pack([Packed(changed)], checkpoint, out, wheels=[])
    assert second != first
    verify_files(out, second)
    assert not list(tmp_path.glob("bundle.*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo_package-1.0.data/scripts/tool", "outside of site-packages"),
        ("demo_package.pth", "only a site-packages folder obeys"),
    ],
)
def test_wheel_that_unpacking_cannot_install_is_refused(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path, name: str, message: str
) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, "")
    with pytest.raises(IntegrityError, match=message):
        pack([Packed(artifact)], checkpoint, tmp_path / "bundle", wheels=[wheel])


BAD = {
    "unknown key": lambda m: m | {"extra": 1},
    "missing key": lambda m: {k: v for k, v in m.items() if k != "window"},
    "other version": lambda m: m | {"schema_version": 2},
    "no files": lambda m: m | {"files": []},
    "path upwards": lambda m: m | {"artifact": "../model"},
    "path upwards inside": lambda m: m | {"artifact": "model/../../x"},
    "absolute path": lambda m: m | {"artifact": "/etc/passwd"},
    "path of this folder": lambda m: m | {"artifact": "."},
    "path not plain": lambda m: m | {"artifact": "model//x"},
    "path with ./": lambda m: m | {"artifact": "./model"},
    "path with an end": lambda m: m | {"artifact": "model/"},
    "backslash": lambda m: m | {"artifact": "model\\x"},
    "empty recipe": lambda m: m | {"recipe": ""},
    "window 0": lambda m: m | {"window": {"size_tokens": 0}},
    "window true": lambda m: m | {"window": {"size_tokens": True}},
    "window with more": lambda m: m | {"window": {"size_tokens": 1, "sinks": 4}},
    "layers as text": lambda m: m | {"layers": "2"},
    "context too long": lambda m: m | {"context_tokens": 2**31},
    "negative id": lambda m: m | {"special_ids": m["special_ids"] | {"fim_pad": -1}},
    "id missing": lambda m: m | {"special_ids": {"endoftext": 0}},
    "short hash": lambda m: m | {"files": [m["files"][0] | {"sha256": "abc"}]},
    "upper-case hash": lambda m: m | {"files": [m["files"][0] | {"sha256": "A" * 64}]},
    "negative size": lambda m: m | {"files": [m["files"][0] | {"bytes": -1}]},
    "measured is a list": lambda m: m | {"measured": []},
    "variants of none": lambda m: m | {"variants": []},
    "variants are an object": lambda m: m | {"variants": {"a": variant()}},
    "variant without a name": lambda m: m | {"variants": [variant(name="")]},
    "variant outside": lambda m: m | {"variants": [variant(artifact="../model")]},
    "variant with more": lambda m: m | {"variants": [variant(bits=4)]},
    "part of a byte": lambda m: m | {"variants": [variant(memory_bytes=0.5)]},
    "memory as text": lambda m: m | {"variants": [variant(memory_bytes="1 GB")]},
    "negative time": lambda m: m | {"variants": [variant(per_token_s=-1.0)]},
    "true divergence": lambda m: m | {"variants": [variant(divergence_nats=True)]},
    "a list": lambda m: [m],
}


def variant(**changes: object) -> dict[str, Any]:
    """As a manifest lists the variant that it tells of."""
    told = {"format": "gguf", "recipe": "Q4_K_M", "artifact": "model/model.gguf"}
    figures = {"memory_bytes": 5, "first_token_s": 1, "per_token_s": 0.5, "divergence_nats": None}
    return {"name": "gguf-Q4_K_M", **told, **figures, "measured": {}} | changes


def plain_manifest(artifact: Artifact, checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = Manifest(
        format="gguf",
        recipe="Q4_K_M",
        artifact="model/model.gguf",
        files=artifact.files,
        window=checkpoint.window,
        context_tokens=128,
        layers=2,
        vocab_size=300,
    )
    check_manifest(manifest)
    return manifest.to_json()


@pytest.mark.parametrize("name", BAD)
def test_both_validators_refuse_the_same(
    name: str, artifact: Artifact, checkpoint: Checkpoint
) -> None:
    bad = BAD[name](copy.deepcopy(plain_manifest(artifact, checkpoint)))
    with pytest.raises(IntegrityError):
        Manifest.from_json(bad)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, read_schema("manifest"))


@pytest.mark.parametrize("path", ["model", "model/x.gguf", ".hidden", "a/..b", "...", "a b/é"])
def test_both_validators_accept_the_same_paths(
    path: str, artifact: Artifact, checkpoint: Checkpoint
) -> None:
    good = plain_manifest(artifact, checkpoint) | {"artifact": path}
    assert Manifest.from_json(good).artifact == path
    jsonschema.validate(good, read_schema("manifest"))


def test_variants_are_read_as_they_were_written(artifact: Artifact, checkpoint: Checkpoint) -> None:
    second = variant(name="onnx-int8", format="onnx", artifact="model/onnx-int8")
    good = plain_manifest(artifact, checkpoint) | {"variants": [variant(), second]}
    jsonschema.validate(good, read_schema("manifest"))
    assert Manifest.from_json(good).to_json() == good
    assert [entry.name for entry in Manifest.from_json(good).variants] == [
        "gguf-Q4_K_M",
        "onnx-int8",
    ]
    for bad in ([second, variant()], [variant(), variant()], [variant(per_token_s=float("inf"))]):
        with pytest.raises(IntegrityError, match=r"variants"):
            Manifest.from_json(good | {"variants": bad})


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(read_schema("manifest"))
