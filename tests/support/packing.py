"""A bundle without a model in it: small enough to be packed and installed in a moment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from packager.bundle.artifacts import Packed
from packager.bundle.pack import pack
from packager.core.atomic import file_entry
from packager.core.records import Artifact, Checkpoint, Geometry, Variant
from runtimes.contract import SpecialIds, Window

GEOMETRY = Geometry(2, 2, 1, 8, 16, 32, 300, 10_000.0, 1e-5, True)
PACKAGE = "demo_package"
WHEEL = f"{PACKAGE}-1.0-py3-none-any.whl"


def write_checkpoint(folder: Path) -> Checkpoint:
    """What packing reads of a checkpoint, and no tensors."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the model's card")
    (folder / "LICENSE").write_text("the model's licence")
    return checkpoint_in(folder)


def checkpoint_in(folder: Path) -> Checkpoint:
    """The record of what `write_checkpoint` has written."""
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


def write_artifact(folder: Path, weights: bytes = b"weights" * 100) -> Artifact:
    """A GGUF artifact of any bytes."""
    folder.mkdir()
    (folder / "model.gguf").write_bytes(weights)
    return artifact_in(folder)


def artifact_in(folder: Path) -> Artifact:
    """The record of what `write_artifact` has written."""
    entry = file_entry(folder, "model.gguf")
    variant = Variant("gguf", "Q4_K_M", 4.8, None)
    return Artifact(variant, "a" * 64, folder, (entry,), {"python": "3.11.7"})


def write_wheel(folder: Path, code: str = "VALUE = 1\n", package: str = PACKAGE) -> Path:
    """A wheel with one package that consists of `code`."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in (
            (f"{package}/__init__.py", code),
            (f"{package}-1.0.dist-info/METADATA", f"Name: {package}\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name), text)  # which is of 1980, always
    return file


def write_bundle(
    work: Path, out: Path, *, weights: bytes = b"w" * 700, code: str = "", package: str = PACKAGE
) -> Path:
    """Pack a bundle to `out`, from parts that are left in `work`; returns `out`."""
    work.mkdir()
    write_artifact(work / "artifact", weights)
    write_checkpoint(work / "model")
    write_wheel(work, code, package)
    return pack_parts(work, out)


def pack_parts(work: Path, out: Path) -> Path:
    """Pack what `write_bundle` has left in `work` once more."""
    pack(
        [Packed(artifact_in(work / "artifact"), {"proof": {"holds": True}})],
        checkpoint_in(work / "model"),
        out,
        wheels=list(work.glob("*.whl")),
    )
    return out


def sh(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle's script with next to nothing in its environment."""
    words = [str(script), *map(str, arguments)]
    return subprocess.run(
        words, capture_output=True, text=True, env=bare_environment() | environment, check=False
    )


def bare_environment() -> dict[str, str]:
    """No home, no compiler, and a PYTHONPATH that would be an error to follow."""
    path = os.pathsep.join(("/usr/bin", "/bin"))
    return {"PYTHON": sys.executable, "PATH": path, "PYTHONPATH": "/nowhere"}


MEASURED = {
    "device": "a processor",
    "proof": {"inside_nats": 0.0125, "past_nats": 0.013, "agree_inside": 0.97, "holds": True},
    "quality": {
        "inside": {"perplexity": 3.5, "mean_nats": 0.02},
        "past": None,
        "fim": [{"kind": "line", "samples": 40, "exact": 0.25, "reference_exact": 0.3}],
    },
    "speed": {
        "threads": 4,
        "workload": {"prompt_tokens": 1024},
        "cold_s": [1.5, 1.25, 9.0],
        "steps": [{"depth_tokens": 1024, "seconds": [0.05, 0.04, 0.06]}],
        "peak_memory_bytes": 2_000_000_000,
    },
}


def assert_valid(text: str) -> None:
    """As CycloneDX's own schema of version 1.6 has it, formats and unknown keys included."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert errors is None, errors
