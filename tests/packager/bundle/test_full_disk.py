"""A disk that is full, or a run that was killed: what is said, and what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packager.bundle.archive import unpack_archive
from packager.bundle.split_archive import join_volumes, write_files
from packager.core.errors import IntegrityError, StarpackError, UsageError
from tests.support.packing import write_bundle

pytestmark = pytest.mark.bundle

WEIGHTS = bytes(range(256)) * 4000
DISK = "256k"  # less than an archive takes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("full")
    return write_bundle(work / "parts", work / "bundle", weights=WEIGHTS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only who may mount a disk can fill one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("volume_bytes", [None, 100_000])
def test_a_full_disk_is_the_targets_and_not_the_bundles(
    bundle: Path, disk: Path, volume_bytes: int | None
) -> None:
    with pytest.raises(StarpackError, match=r"a\.tar cannot be written: No space left") as caught:
        write_files(bundle, disk / "a.tar", volume_bytes)
    assert not isinstance(caught.value, IntegrityError)  # the bundle is as it was
    assert caught.value.where == str(disk)
    assert caught.value.remedy == "free space on that disk, or name a place on another one"
    assert not list(disk.iterdir())


def test_joining_and_unpacking_to_a_full_disk(bundle: Path, disk: Path, tmp_path: Path) -> None:
    write_files(bundle, tmp_path / "a.tar", None)
    with pytest.raises(UsageError, match="are free there") as caught:
        unpack_archive(tmp_path / "a.tar", disk / "out")
    assert caught.value.where == str(disk)
    assert "--out" in str(caught.value.remedy)
    write_files(bundle, tmp_path / "volumes" / "a.tar", 500_000)
    with pytest.raises(StarpackError, match=r"a\.tar cannot be written: No space left"):
        join_volumes(tmp_path / "volumes" / "SHA256SUMS", [], disk / "a.tar")
    assert not list(disk.iterdir())


def test_a_limit_on_the_size_of_files_is_told_with_what_helps(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "packager", "archive", str(bundle), "--out", "a.tar"]
    line = 'ulimit -f 64; exec "$@"'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        ["sh", "-c", line, "sh", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "a.tar cannot be written: File too large" in done.stderr
    assert "archive with --split" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_the_bundles(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("packager.bundle.archive.open_plain", lambda file: Failing())
    with pytest.raises(IntegrityError, match="it cannot be read: Input/output error"):
        write_files(bundle, tmp_path / "a.tar", None)
    assert not list(tmp_path.iterdir())


SLOW = """
import sys, time
from pathlib import Path
from packager.bundle.archive import unpack_archive
from packager.bundle.split_archive import join_volumes, write_files

def stop(what, done, total):
    if done * 2 > total:
        print("half", flush=True)
        time.sleep(600)

what, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if what == "unpack":
    unpack_archive(source, out, stop)
elif what == "join":
    join_volumes(source, [], out, stop)
else:
    write_files(source, out, 100_000 if what == "split" else None, stop)
"""


@pytest.mark.parametrize("what", ["archive", "split", "unpack", "join"])
def test_the_next_run_clears_what_a_killed_one_has_left(
    bundle: Path, tmp_path: Path, what: str
) -> None:
    write_files(bundle, tmp_path / "given" / "a.tar", None)
    write_files(bundle, tmp_path / "volumes" / "a.tar", 100_000)
    out = tmp_path / "work" / ("out" if what == "unpack" else "b.tar")
    runs: dict[str, tuple[Path, Callable[[], object]]] = {
        "archive": (bundle, lambda: write_files(bundle, out, None)),
        "split": (bundle, lambda: write_files(bundle, out, 100_000)),
        "unpack": (
            tmp_path / "given" / "a.tar",
            lambda: unpack_archive(tmp_path / "given" / "a.tar", out),
        ),
        "join": (
            tmp_path / "volumes" / "SHA256SUMS",
            lambda: join_volumes(tmp_path / "volumes" / "SHA256SUMS", [], out),
        ),
    }
    source, again = runs[what]
    command = [sys.executable, "-c", SLOW, what, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.kill()
    (left,) = out.parent.iterdir()
    assert left.name.startswith(f"{out.name}.") and left.name.endswith(".partial")
    again()
    names = {path.name for path in out.parent.iterdir()}
    assert left.name not in names and not [name for name in names if name.endswith(".partial")]
