"""A delta holds what changed, and turns the version that it was made for into the new one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from packager.bundle.archive import unpack_archive
from packager.bundle.delta import write_delta
from packager.bundle.split_archive import write_files
from packager.cli.main import main
from packager.core.errors import IntegrityError, UsageError
from runtimes.trust.installed.versions import Installation
from runtimes.trust.manifest import read_manifest
from runtimes.trust.verify import verify_files
from tests.support.packing import WHEEL, sh, write_bundle

pytestmark = pytest.mark.bundle

BIG = bytes(range(256)) * 800


# the package, and the bill of materials, which has its hash
CHANGED = ("sbom.cdx.json", f"wheels/{WHEEL}")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An old bundle and a new one: the same weights, another package."""
    work = tmp_path_factory.mktemp("delta")
    old = write_bundle(work / "old parts", work / "old", weights=BIG, code="VALUE = 1\n")
    new = write_bundle(work / "new parts", work / "new", weights=BIG, code="VALUE = 22\n")
    return old, new


def install(folder: Path, target: Path) -> None:
    done = sh(folder / "install", "--to", target)
    assert done.returncode == 0, done.stderr


def test_a_delta_takes_an_installation_to_the_new_version_and_back(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = bundles
    target = tmp_path / "target"
    install(old, target)
    first = Installation(target).current()
    delta = write_delta(old, new, tmp_path / "delta")
    assert delta.delta_bytes < 200_000 < len(BIG)
    assert delta.changed == CHANGED
    # carried as an archive, like a bundle
    write_files(tmp_path / "delta", tmp_path / "delta.tar", None)
    install(unpack_archive(tmp_path / "delta.tar", tmp_path / "carried"), target)
    current = Installation(target).current()
    assert current != first
    verify_files(current.bundle, read_manifest(new))
    assert sh(target / "run", "verify", "--full").returncode == 0
    assert sh(target / "run", "rollback").returncode == 0
    assert Installation(target).current() == first
    # and forward again, without a copy: that version is still there
    assert "installed already" in sh(tmp_path / "carried" / "install", "--to", target).stderr
    assert Installation(target).current() == current


def test_a_delta_holds_only_blobs_by_hash_and_what_installs_them(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    write_delta(*bundles, tmp_path / "delta")
    files = {p.relative_to(tmp_path / "delta").as_posix() for p in _files(tmp_path / "delta")}
    blobs = {path for path in files if path.startswith("blobs/")}
    outside = {path for path in files - blobs if not path.startswith("runtimes/")}
    assert outside == {"install", "start.py", "bundle.json", "bundle.json.sha256", "delta.json"}
    folders = {path.rpartition("/")[0] for path in files if path.startswith("runtimes/")}
    assert folders == {"runtimes", "runtimes/trust", "runtimes/trust/installed"}
    changed = [entry for entry in read_manifest(bundles[1]).files if entry.path in CHANGED]
    assert blobs == {f"blobs/{entry.sha256}" for entry in changed}
    old_manifest = tmp_path / "manifest only"  # all that is needed of the old one
    old_manifest.mkdir()
    for file in bundles[0].glob("bundle.json*"):
        shutil.copy(file, old_manifest)
    write_delta(old_manifest, bundles[1], tmp_path / "second")
    assert _contents(tmp_path / "second") == _contents(tmp_path / "delta")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _contents(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(p.relative_to(folder)), p.read_bytes()) for p in _files(folder)]


def test_without_the_version_that_it_was_made_for_nothing_is_installed(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    write_delta(*bundles, tmp_path / "delta")
    refused = sh(tmp_path / "delta" / "install", "--to", tmp_path / "target")
    assert refused.returncode == 5
    assert "the delta does not have" in refused.stderr
    expected = (bundles[0] / "bundle.json.sha256").read_text().split()[0]
    assert expected in refused.stderr and "install that version first" in refused.stderr
    assert not (tmp_path / "target").exists()


def test_damage_in_the_delta_or_in_what_is_installed_is_found(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    target, delta = tmp_path / "target", tmp_path / "delta"
    install(bundles[0], target)
    first = Installation(target).current()
    write_delta(*bundles, delta)
    blob = next((delta / "blobs").iterdir())
    for file in (blob, delta / "delta.json", delta / "start.py", first.bundle / "tokenizer.json"):
        before = file.read_bytes()
        file.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        refused = sh(delta / "install", "--to", target)
        assert (refused.returncode, str(file) in refused.stderr) == (5, True), refused.stderr
        file.write_bytes(before)
    (delta / "extra").touch()
    assert "not packed with" in sh(delta / "install", "--to", target).stderr
    (delta / "extra").unlink()
    assert Installation(target).current() == first
    install(delta, target)


def test_what_cannot_be_compared_is_explained(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = bundles
    with pytest.raises(UsageError, match="the same"):
        write_delta(old, old, tmp_path / "delta")
    (tmp_path / "delta").mkdir()
    with pytest.raises(UsageError, match="not a delta"):
        write_delta(old, new, tmp_path / "delta")
    copy = shutil.copytree(new, tmp_path / "copy")
    wheel = next((copy / "wheels").iterdir())
    data = bytearray(wheel.read_bytes())
    data[0] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(IntegrityError, match="wheels/"):
        write_delta(old, copy, tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


def test_the_command(
    bundles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["diff", *map(str, bundles), "--out", str(tmp_path / "delta"), "--json"]
    assert main([*words, "--archive", str(tmp_path / "d.tar"), "--split", "50kB"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["removed"] == [] and data["changed"] == list(CHANGED)
    assert str(tmp_path / "d.tar.001") in data["archive"]
    assert main([*words, "--split", "50kB"]) == 2
