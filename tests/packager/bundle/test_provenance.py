"""Where an artifact came from: enough to make it again, and nothing of who made it where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packager.bundle.documents.provenance import calibration_sha256, provenance_of, recorded
from packager.cli.main import parser
from packager.core.atomic import sha256_file
from packager.core.hash_cache import combined_sha256
from runtimes.trust.entries import FileEntry
from tests.support.tiny import write_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_flags_without_places(tmp_path: Path) -> None:
    common = [str(tmp_path / "star"), "--formats", "gguf:Q8_0,onnx", "--threads", "3"]
    common += ["--budget", str(tmp_path / "budget.json"), "--licence-file", "/home/me/terms.txt"]
    found = [
        recorded(vars(parser().parse_args([command, *common, "--out", str(tmp_path / out), *more])))
        for command, out, more in (("pack", "a", []), ("bundle", "b", ["--json"]))
    ]
    assert found[0] == found[1]
    assert found[0] == {
        "budget": "budget.json",
        "formats": ["gguf:Q8_0", "onnx"],
        "licence_file": "terms.txt",
        "model": "star",
        "prefer": "quality",
        "provider": "cpu",
        "threads": 3,
    }
    assert str(tmp_path) not in json.dumps(found) and "/home" not in json.dumps(found)


def test_files(tmp_path: Path) -> None:
    from packager.checkpoint.reader import read_checkpoint

    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "star"))
    found = provenance_of(checkpoint, {"model": "star"})
    assert found["arguments"] == {"model": "star"}
    # together they are what the checkpoint's own hash says
    assert combined_sha256([FileEntry(**e) for e in found["checkpoint_files"]]) == checkpoint.sha256


def test_calibration(tmp_path: Path) -> None:
    importance = tmp_path / "importance.gguf"
    importance.write_bytes(b"weights of weights")
    assert calibration_sha256("gguf", {}) is None
    found = calibration_sha256("gguf", {"gguf": importance, "onnx": tmp_path})
    assert found == sha256_file(importance)
