"""Packing: exactly these files, a manifest that both validators accept, all or nothing."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import runtimes
from packager.bundle import check_manifest, pack
from packager.errors import CheckpointError, IntegrityError, UsageError
from packager.files import file_entry
from packager.profiles_folder import read_schema
from packager.records import Artifact, Checkpoint, Geometry, Variant
from runtimes.bundle import verify_files
from runtimes.contract import Manifest, SpecialIds, Window, read_manifest

GEOMETRY = Geometry(2, 2, 1, 8, 16, 32, 300, 10_000.0, 1e-5, True)
WHEEL = "demo_package-1.0-py3-none-any.whl"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "demo-model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the model's card")
    (folder / "LICENSE").write_text("the model's licence")
    return Checkpoint(
        path=folder,
        revision="main",
        sha256="a" * 64,
        window=Window(32),
        context_tokens=128,
        special_ids=SpecialIds(),
        geometry=GEOMETRY,
        dtype="float32",
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"weights" * 100)
    entry = file_entry(folder, "model.gguf")
    variant = Variant("gguf", "Q4_K_M", 4.8, None)
    return Artifact(variant, "a" * 64, folder, (entry,), {"python": "3.11.7"})


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("demo_package/__init__.py", "VALUE = 1\n")
        archive.writestr("demo_package-1.0.dist-info/METADATA", "Name: demo-package\n")
    return file


def runtime_files() -> set[str]:
    root = Path(runtimes.__file__).parent
    files = {f"runtimes/{file.relative_to(root).as_posix()}" for file in root.rglob("*.py")}
    others = {f for f in files if f.startswith("runtimes/backends/")}
    files |= {f"runtimes/page/page.{suffix}" for suffix in ("html", "css", "js")}
    return files - others | {"runtimes/backends/__init__.py", "runtimes/backends/gguf.py"}


def test_exact_list_of_files(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    manifest = pack(artifact, checkpoint, out, wheels=[wheel], evidence={"proof": {"holds": True}})
    found = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert found == runtime_files() | {
        "MODEL_CARD.md",
        "README.md",
        "bundle.json",
        "install",
        "install.py",
        "licence/model/LICENSE",
        "licence/starpack/LICENSE",
        "model/model.gguf",
        "run",
        "tokenizer.json",
        f"wheels/{WHEEL}",
    }
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


def test_same_inputs_same_bytes(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    packed = [
        pack(artifact, checkpoint, tmp_path / name, wheels=[wheel], evidence={})
        for name in ("one", "two")
    ]
    assert packed[0] == packed[1]


def test_several_files_make_the_folder_the_artifact(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (artifact.path / "config.json").write_text("{}")
    both = (*artifact.files, file_entry(artifact.path, "config.json"))
    manifest = pack(
        replace(artifact, files=both), checkpoint, tmp_path / "bundle", wheels=[], evidence={}
    )
    assert manifest.artifact == "model"


def test_no_licence_no_bundle(artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path) -> None:
    (checkpoint.path / "LICENSE").unlink()
    out = tmp_path / "bundle"
    with pytest.raises(CheckpointError, match="licence is missing") as caught:
        pack(artifact, checkpoint, out, wheels=[], evidence={})
    assert "--licence-file" in caught.value.remedy
    assert not out.exists()
    given = tmp_path / "OpenRAIL.txt"
    given.write_text("terms")
    pack(artifact, checkpoint, out, wheels=[], evidence={}, licence_file=given)
    assert (out / "licence" / "model" / "OpenRAIL.txt").read_text() == "terms"
    with pytest.raises(UsageError, match="no such file"):
        pack(artifact, checkpoint, out, wheels=[], evidence={}, licence_file=tmp_path / "none")


def test_only_a_bundle_is_replaced_and_only_by_a_whole_one(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not a bundle"):
        pack(artifact, checkpoint, out, wheels=[], evidence={})
    assert (out / "thesis.txt").read_text() == "precious"
    (out / "thesis.txt").unlink()
    out.rmdir()

    first = pack(artifact, checkpoint, out, wheels=[], evidence={})
    (artifact.path / "model.gguf").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="changed since it was converted") as caught:
        pack(artifact, checkpoint, out, wheels=[], evidence={})
    assert f"delete {artifact.path} and" in caught.value.remedy
    verify_files(out, first)  # the old one is untouched
    assert not list(tmp_path.glob("bundle.*"))

    changed = replace(artifact, files=(file_entry(artifact.path, "model.gguf"),))
    second = pack(changed, checkpoint, out, wheels=[], evidence={})
    assert second != first
    verify_files(out, second)
    assert not list(tmp_path.glob("bundle.*"))


def test_wheel_that_unpacking_cannot_install_is_refused(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("demo_package-1.0.data/scripts/tool", "")
    with pytest.raises(IntegrityError, match="outside of site-packages"):
        pack(artifact, checkpoint, tmp_path / "bundle", wheels=[wheel], evidence={})


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
    "a list": lambda m: [m],
}


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


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(read_schema("manifest"))


@pytest.fixture
def bundle(artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path) -> Path:
    out = tmp_path / "packed bundle"  # shell scripts must bear a space
    pack(artifact, checkpoint, out, wheels=[wheel], evidence={})
    return out


def sh(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PYTHONPATH": "/nowhere"}
    return subprocess.run(
        [str(script), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_install_and_run(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed here"
    before = {file: file.stat().st_mtime_ns for file in bundle.rglob("*")}
    done = sh(bundle / "install", "--to", str(target))
    assert done.returncode == 0, done.stderr
    assert "copying" in done.stderr and "unpacking" in done.stderr and "trying" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in bundle.rglob("*")} == before
    assert {file.name for file in target.iterdir()} == {"bundle", "run", "venv"}
    shutil.rmtree(bundle)  # the installation stands alone
    helped = sh(target / "run", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "infill" in helped.stdout
    verify_files(target / "bundle", read_manifest(target / "bundle"))  # no bytecode was left
    python = target / "venv" / "bin" / "python"
    code = "import demo_package; print(demo_package.__file__)"
    shown = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(str(target / "venv"))


def test_install_replaces_an_installation_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    refused = sh(bundle / "install", "--to", str(target))
    assert (refused.returncode, (target / "thesis.txt").read_text()) == (2, "precious")
    (target / "thesis.txt").unlink()
    assert sh(bundle / "install", "--to", str(target)).returncode == 0
    (target / "left-over").write_text("of the old one")
    (tmp_path / "target.old").write_text("the user's own")
    assert sh(bundle / "install", "--to", str(target)).returncode == 0
    assert {file.name for file in target.iterdir()} == {"bundle", "run", "venv"}
    assert [file.name for file in tmp_path.glob("target.*")] == ["target.old"]


def test_no_file_beside_the_runtime_is_run_before_the_check(bundle: Path, tmp_path: Path) -> None:
    # one that Python has, and one that subprocess looks for and Linux does not have
    added = {name: f"open({str(tmp_path / 'ran')!r}, 'w')\n" for name in ("argparse", "msvcrt")}
    target = tmp_path / "target"
    assert sh(bundle / "install", "--to", str(target)).returncode == 0
    for folder, command in (
        (target / "bundle", (target / "run", "verify")),
        (bundle, (bundle / "install", "--to", str(tmp_path / "other"))),
    ):
        for name, code in added.items():
            (folder / f"{name}.py").write_text(code)
        refused = sh(*command)
        assert refused.returncode == 5
        assert "not packed with" in refused.stderr
    assert not (tmp_path / "ran").exists()


def test_a_place_that_cannot_be_written_is_explained(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = sh(bundle / "install", "--to", str(tmp_path / "file" / "target"))
    assert refused.returncode == 1
    assert "cannot install: " in refused.stderr and "remedy: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_interrupted_install_leaves_nothing(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:  # the last phase lasts until it is interrupted
        archive.writestr("demo_package/__init__.py", "import time\ntime.sleep(60)\n")
    pack(artifact, checkpoint, tmp_path / "bundle", wheels=[wheel], evidence={})
    command = [tmp_path / "bundle" / "install", "--to", tmp_path / "target"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        start_new_session=True,
        # a shell that starts us in the background has us, and our children, ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        said = next(line for line in process.stderr if "trying" in line)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130
    assert said.startswith("install: trying") and "interrupted" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("target*"))


def test_changed_bundle_is_not_installed(bundle: Path, tmp_path: Path) -> None:
    with (bundle / "model" / "model.gguf").open("r+b") as stream:
        stream.write(b"W")
    target = tmp_path / "target"
    refused = sh(bundle / "install", "--to", str(target))
    assert refused.returncode == 5
    assert "model.gguf" in refused.stderr
    assert not target.exists()
    assert not list(tmp_path.glob("target.*"))


def test_packages_that_cannot_be_loaded_are_not_installed(
    artifact: Artifact, checkpoint: Checkpoint, wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo_package/__init__.py", "raise ImportError('libgomp.so.1: no file')")
    pack(artifact, checkpoint, tmp_path / "bundle", wheels=[wheel], evidence={})
    refused = sh(tmp_path / "bundle" / "install", "--to", str(tmp_path / "target"))
    assert refused.returncode == 7
    assert "libgomp.so.1: no file" in refused.stderr
    assert not (tmp_path / "target").exists()


def test_run_before_install_says_so(bundle: Path) -> None:
    refused = sh(bundle / "run", "generate", "x")
    assert refused.returncode == 7
    assert "./install --to DIR" in refused.stderr


def test_install_for_another_machine_says_so(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["versions"]["wheels_machine"] = "pdp11"
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    refused = sh(bundle / "install", "--to", str(tmp_path / "target"))
    assert refused.returncode == 7
    assert "pdp11" in refused.stderr
