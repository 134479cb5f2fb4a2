"""Archives: the same bytes from the same inputs, plain files only; volumes that heal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.bundle.archive import unpack_archive
from packager.bundle.split_archive import join_volumes, parse_size, write_files
from packager.cli.main import main
from packager.core.errors import IntegrityError, UsageError
from runtimes.trust.manifest import read_manifest
from runtimes.trust.verify import verify_files
from tests.support.packing import sh, write_bundle

pytestmark = pytest.mark.bundle

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("archive")
    return write_bundle(work / "parts", work / "bundle", weights=WEIGHTS)


def archive_of(bundle: Path, file: Path) -> bytes:
    write_files(bundle, file, None)
    return file.read_bytes()


def test_two_packs_of_the_same_inputs_are_byte_identical(bundle: Path, tmp_path: Path) -> None:
    first = archive_of(bundle, tmp_path / "first.tar")
    time.sleep(1.1)  # another second on every clock
    umask = os.umask(0o077)
    try:
        other = write_bundle(tmp_path / "parts", tmp_path / "elsewhere", weights=WEIGHTS)
        shutil.rmtree(tmp_path / "parts")
        second = archive_of(other, tmp_path / "second.tar")
    finally:
        os.umask(umask)
    assert first == second
    with tarfile.open(tmp_path / "first.tar") as archive:
        members = archive.getmembers()
    top = members[0].name.split("/")[0]
    names = [member.name.removeprefix(f"{top}/") for member in members]
    assert names[:2] == ["bundle.json", "bundle.json.sha256"]
    assert names[2:] == sorted(names[2:])
    facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in members}
    assert facts == {(0, 0, 0, "", "", tarfile.REGTYPE)}
    assert {name for name, m in zip(names, members, strict=True) if m.mode == 0o755} == {
        "install",
        "run",
    }
    # stored, not compressed
    assert WEIGHTS in first


def test_source_date_epoch_is_the_time_of_all(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    archive_of(bundle, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {member.mtime for member in archive} == {1_700_000_000}
    for wrong in ("yesterday", "-1", "1e9", str(8**11)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
            archive_of(bundle, tmp_path / "b.tar")
    assert not list(tmp_path.glob("b.tar*"))


def test_unpacked_by_tar_or_by_us_it_installs(bundle: Path, tmp_path: Path) -> None:
    archive_of(bundle, tmp_path / "a.tar")
    subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path], check=True)
    (theirs,) = tmp_path.glob("starpack-*")
    ours = unpack_archive(tmp_path / "a.tar", tmp_path / "ours")
    for folder in (theirs, ours):
        verify_files(folder, read_manifest(bundle))
        done = sh(folder / "install", "--to", tmp_path / f"installed {folder.name}")
        assert done.returncode == 0, done.stderr
    with pytest.raises(UsageError, match="something at that place"):
        unpack_archive(tmp_path / "a.tar", tmp_path / "ours")


def test_a_damaged_bundle_gives_no_archive(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    data = bytearray(WEIGHTS)
    data[5] ^= 1
    (copy / "model" / "model.gguf").write_bytes(data)
    for volume_bytes in (None, 10_000):
        with pytest.raises(IntegrityError, match=r"model\.gguf"):
            write_files(copy, tmp_path / "a.tar", volume_bytes)
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]


def member(name: str, data: bytes = b"x", **changes: object) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in changes.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(data))

    return add


def add_all(archive: tarfile.TarFile, bundle: Path) -> None:
    """As an archive has it: the manifest and its hash first."""
    files = sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    for path in sorted(files, key=lambda path: not path.startswith("bundle.json")):
        archive.add(bundle / path, f"top/{path}")


HOSTILE = {
    "a path upwards": member("top/../../outside"),
    "an absolute path": member("/outside"),
    "another folder": member("other/file"),
    "no folder": member("file"),
    "a link": member("top/link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": member("top/link", b"", type=tarfile.LNKTYPE, linkname="top/install"),
    "a device": member("top/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a pipe": member("top/pipe", b"", type=tarfile.FIFOTYPE),
    "a folder": member("top/folder", b"", type=tarfile.DIRTYPE),
    "a file twice": member("top/install"),
    "an unknown file": member("top/extra.py"),
    "a sparse file": member("top/extra", b"x", pax_headers={"GNU.sparse.size": "99999999999999"}),
    "a longer file": member("top/NOTICE", b"x" * 100_000),
    "a name that no disk can hold": member(f"top/{'x' * 300}"),
    "a name that is no text": member("top/\udcff"),
    "a name with a NUL": member("top/x", pax_headers={"path": "top/NOTICE\0x"}),
    "a manifest once more": member("top/bundle.json"),
    "the record of a delta": member("top/delta.json", b"{}"),
    "a long header": member("top/extra", pax_headers={"comment": "x" * 70_000}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_with_more_than_plain_files_is_refused(
    name: str, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "work" / "a.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        add_all(archive, bundle)
        HOSTILE[name](archive)
    with pytest.raises(IntegrityError):
        unpack_archive(file, tmp_path / "work" / "out")
    assert [p.name for p in file.parent.iterdir()] == ["a.tar"]
    assert [p.name for p in tmp_path.iterdir()] == ["work"]


def test_a_size_that_is_claimed_and_not_there_is_refused(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(archive_of(bundle, tmp_path / "a.tar"))
    for damage in (data[:-20_000], data[:700], b"", b"\0" * 1024, b"not a tar" * 200):
        (tmp_path / "a.tar").write_bytes(damage)
        with pytest.raises(IntegrityError):
            unpack_archive(tmp_path / "a.tar", tmp_path / "out")
    huge = tarfile.TarInfo("top/bundle.json")
    huge.size = 2**62
    (tmp_path / "a.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises((IntegrityError, UsageError)):
        unpack_archive(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def parts(bundle: Path, tmp_path: Path) -> list[Path]:
    """The volumes, in a folder with their index and nothing else."""
    files = write_files(bundle, tmp_path / "volumes" / "a.tar", 50_000)
    return [Path(file) for file in files if file[-3:].isdigit()]


def test_volumes_are_the_archive_in_pieces(bundle: Path, parts: list[Path], tmp_path: Path) -> None:
    whole = archive_of(bundle, tmp_path / "whole.tar")
    assert len(parts) > 3
    assert all(file.stat().st_size == 50_000 for file in parts[:-1])
    assert b"".join(file.read_bytes() for file in parts) == whole
    sums = parts[0].with_name("SHA256SUMS")
    assert join_volumes(sums, [], tmp_path / "joined.tar") == tmp_path / "joined.tar"
    assert (tmp_path / "joined.tar").read_bytes() == whole
    # fewer of them: none of the old ones is left
    write_files(bundle, parts[0].with_suffix(""), 10**6)
    assert sorted(file.name for file in sums.parent.iterdir()) == ["SHA256SUMS", "a.tar.001"]


def coreutils(folder: Path) -> subprocess.CompletedProcess[str]:
    """As on a machine without starpack."""
    line = "cat a.tar.* > a.tar && sha256sum -c SHA256SUMS"
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=False
    )


def test_coreutils_join_them_and_name_the_damaged(
    bundle: Path, parts: list[Path], tmp_path: Path
) -> None:
    folder = parts[0].parent
    done = coreutils(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "a.tar").read_bytes() == archive_of(bundle, tmp_path / "whole.tar")
    damage(parts[1])
    done = coreutils(folder)
    assert done.returncode != 0
    assert f"{parts[1].name}: FAILED" in done.stdout and f"{parts[0].name}: OK" in done.stdout


def damage(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_too_many_volumes_leave_none(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("packager.bundle.split_archive.MAX_VOLUMES", 3)
    with pytest.raises(UsageError, match="more than 3 volumes"):
        write_files(bundle, tmp_path / "a.tar", 5_000)
    assert not list(tmp_path.iterdir())


def test_damaged_and_missing_volumes_are_named_and_others_found(
    bundle: Path, parts: list[Path], tmp_path: Path
) -> None:
    sums = parts[0].with_name("SHA256SUMS")
    medium = tmp_path / "medium"
    medium.mkdir()
    for part in (parts[1], parts[-1]):
        (medium / part.name).write_bytes(part.read_bytes())
    damage(parts[1])
    parts[-1].unlink()
    with pytest.raises(IntegrityError) as caught:
        join_volumes(sums, [], None)
    lines = caught.value.what.splitlines()
    assert lines == [f"damaged: {parts[1]}", f"missing: {parts[-1].name}"]
    assert not list(sums.parent.glob("a.tar*partial")) and not sums.with_name("a.tar").exists()
    out = join_volumes(sums, [medium], None)
    assert out == sums.with_name("a.tar")
    assert out.read_bytes() == archive_of(bundle, tmp_path / "whole.tar")


def test_the_joined_archive_is_checked_too(parts: list[Path]) -> None:
    sums = parts[0].with_name("SHA256SUMS")
    lines = sums.read_text().splitlines()
    sums.write_text("\n".join([*lines[:-1], "0" * 64 + lines[-1][64:]]) + "\n")
    with pytest.raises(IntegrityError, match=r"damaged: .*a\.tar"):
        join_volumes(sums, [], None)
    assert not sums.with_name("a.tar").exists()


def test_the_volumes_of_two_archives_do_not_mix(bundle: Path, parts: list[Path]) -> None:
    before = parts[0].with_name("SHA256SUMS").read_bytes()
    with pytest.raises(UsageError, match="another archive"):
        write_files(bundle, parts[0].with_name("b.tar"), 50_000)
    assert parts[0].with_name("SHA256SUMS").read_bytes() == before


HASH = "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        f"{HASH}  a.tar\n",
        f"{HASH}  ../a.tar.001\n{HASH}  ../a.tar\n",
        f"{HASH}  a.tar.002\n{HASH}  a.tar\n",
        f"{HASH}  a.tar.001\n{HASH}  b.tar\n",
        f"{HASH}  a.tar.001\nnot a hash  a.tar\n",
        f"{HASH}  a.tar.001\n{HASH}  a.tar\n" + "#" * 2_000_000,
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(IntegrityError, match="not the list of an archive's volumes"):
        join_volumes(tmp_path / "SHA256SUMS", [], None)


def test_sizes() -> None:
    wanted = {"4G": 4 * 10**9, "700MB": 700 * 10**6, "4GiB": 2**32, "5000": 5000, "9 kb": 9000}
    assert {text: parse_size(text) for text in wanted} == wanted
    for text in ("", "4T", "-4G", "4.5G", "4095", "I", "5000I"):
        with pytest.raises(UsageError, match="a size of"):
            parse_size(text)


def test_the_commands(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = tmp_path / "b.tar"
    assert main(["archive", str(bundle), "--out", str(tar), "--split", "100kB", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert {Path(file).name for file in files} >= {"b.tar.001", "SHA256SUMS"}
    assert main(["join", str(tmp_path / "SHA256SUMS")]) == 0
    assert main(["unpack", str(tar), "--out", str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert main(["unpack", str(tar), "--out", str(tmp_path / "out")]) == 2
    (tmp_path / "b.tar.002").write_bytes(b"")
    tar.unlink()
    assert main(["join", str(tmp_path / "SHA256SUMS")]) == 5
    assert "damaged: " in capsys.readouterr().err
    assert main(["archive", str(bundle), "--out", str(tar), "--split", "many"]) == 2


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777], ids=oct)
def test_what_the_commands_write_is_for_all_to_read_whatever_the_umask_is(
    bundle: Path, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        out = tmp_path / "new"
        assert main(["archive", str(bundle), "--out", str(out / "a.tar"), "--quiet"]) == 0
        split = ["--out", str(out / "b" / "a.tar"), "--split", "100kB"]
        assert main(["archive", str(bundle), *split]) == 0
        assert main(["join", str(out / "b" / "SHA256SUMS")]) == 0
        assert main(["unpack", str(out / "a.tar"), "--out", str(out / "c" / "d")]) == 0
        assert os.umask(umask) == umask  # the caller's, again
    finally:
        os.umask(before)
    for path in [out, *out.rglob("*")]:
        program = path.is_dir() or path.name in ("install", "run")
        assert oct(path.stat().st_mode & 0o7777) == ("0o755" if program else "0o644"), path
