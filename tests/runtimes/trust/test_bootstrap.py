"""What runs before the hashes hold: a folder, the standard library alone, hashed by rule."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packager.bundle import contents
from packager.bundle.delta import write_delta
from runtimes.trust.bootstrap import checker_files
from runtimes.trust.installed.versions import Installation
from tests.support.packing import sh, write_bundle

ROOT = Path(__file__).parents[3]
MODULES = sorted(
    file.relative_to(ROOT).as_posix()
    for folder in ("runtimes", "runtimes/trust", "runtimes/trust/installed")
    for file in (ROOT / folder).glob("*.py")
    if file.name != "__main__.py"
)


def test_the_rule() -> None:
    inside = [
        "runtimes/__init__.py",
        "runtimes/errors.py",
        "runtimes/trust/installed/root.py",
        "runtimes/trust/verify.py",
        "start.py",
    ]
    outside = [
        "run",
        "runtimes/__main__.py",
        "runtimes/cli/main.py",
        "runtimes/py.typed",
        "runtimes/trust/installed/deeper/verify.py",
        "runtimes/trust/two words.py",
        "trust/verify.py",
        "x/start.py",
    ]
    assert checker_files([*outside, *reversed(inside)]) == inside


@pytest.mark.parametrize("path", MODULES)
def test_each_needs_nothing_but_the_others_and_the_standard_library(
    path: str, tmp_path: Path
) -> None:
    for other in MODULES:
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / other, tmp_path / other)
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {name}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_new_file_of_the_folder_is_hashed_and_copied_without_being_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_bundle(tmp_path / "old parts", tmp_path / "old")
    changed = tmp_path / "runtimes"
    shutil.copytree(ROOT / "runtimes", changed, ignore=shutil.ignore_patterns("__pycache__"))
    (changed / "trust" / "newcomer.py").write_text("VALUE = 1\n")
    with (changed / "trust" / "verify.py").open("a") as stream:
        stream.write("from runtimes.trust.newcomer import VALUE\n")
    monkeypatch.setattr(contents, "RUNTIME", changed)
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle")
    sha256 = hashlib.sha256(b"VALUE = 1\n").hexdigest()
    assert f"{sha256}  runtimes/trust/newcomer.py" in (bundle / "install").read_text()
    target = tmp_path / "target"
    write_delta(old, bundle, tmp_path / "delta")
    for folder in (old, tmp_path / "delta"):
        done = sh(folder / "install", "--to", target)
        assert done.returncode == 0, done.stderr
    assert sh(target / "run", "verify", "--full").returncode == 0
    installed = Installation(target).current().bundle / "runtimes" / "trust" / "newcomer.py"
    assert installed.read_text() == "VALUE = 1\n"
    installed.write_text("raise SystemExit(9)\n")
    refused = sh(target / "run", "verify")
    assert refused.returncode == 5 and "newcomer.py" in refused.stderr
    (bundle / "runtimes" / "trust" / "newcomer.py").write_text("raise SystemExit(9)\n")
    refused = sh(bundle / "install", "--to", tmp_path / "other")
    assert refused.returncode == 5 and "newcomer.py" in refused.stderr
