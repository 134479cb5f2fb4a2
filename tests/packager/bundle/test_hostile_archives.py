"""What an archive names is accepted before anything is done with it, and by one spelling alone."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from pathlib import Path

import pytest

from packager.bundle import archive as archives
from packager.bundle.archive import unpack_archive
from packager.bundle.delta import write_delta
from packager.bundle.split_archive import join_volumes, write_files
from packager.cli.main import main
from packager.core.errors import IntegrityError, UsageError
from runtimes.trust.manifest import manifest_hash
from tests.support.packing import write_bundle
from tests.support.pipes import not_hanging, put_pipe

pytestmark = pytest.mark.bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("hostile")
    return write_bundle(work / "parts", work / "bundle")


def archive_with(bundle: Path, file: Path, name: str) -> Path:
    """The archive of a bundle, with one more member of this name below its folder."""
    write_files(bundle, file, None)
    with tarfile.open(file, "a", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(f"{archive.getmembers()[0].name.split('/')[0]}/{name}")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    return file


SPELLINGS = ("{0}", "/{0}", "./{0}", "NOTICE/..{0}", "//{0}", "{0}/", "model/../../..{0}")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_nothing_outside_is_changed_however_its_path_is_spelt(
    bundle: Path, tmp_path: Path, spelling: str
) -> None:
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    secret.chmod(0o600)
    before = secret.stat().st_ctime_ns, secret.parent.stat().st_mtime_ns
    file = archive_with(bundle, tmp_path / "a.tar", spelling.format(secret))
    with pytest.raises(IntegrityError, match="its manifest does not list"):
        unpack_archive(file, tmp_path / "out")
    assert (secret.stat().st_ctime_ns, secret.parent.stat().st_mtime_ns) == before
    assert secret.read_text() == "secret"
    assert {p.name for p in tmp_path.iterdir()} == {"outside", "a.tar"}


@pytest.mark.parametrize("spelling", ["./NOTICE", "/NOTICE", "model//model.gguf", "NOTICE/"])
def test_a_listed_file_has_one_spelling(bundle: Path, tmp_path: Path, spelling: str) -> None:
    write_files(bundle, tmp_path / "a.tar", None)
    plain = spelling.strip("./").replace("//", "/")
    with tarfile.open(tmp_path / "a.tar") as good, tarfile.open(tmp_path / "b.tar", "w") as bad:
        for member in good:
            content = good.extractfile(member)
            top, _, path = member.name.partition("/")
            member.name = f"{top}/{spelling if path == plain else path}"
            bad.addfile(member, content)
    with pytest.raises(IntegrityError, match="its manifest does not list"):
        unpack_archive(tmp_path / "b.tar", tmp_path / "out")


def test_nothing_is_written_before_it_is_listed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive in another order, or with more, is refused at its first wrong member."""
    created: list[str] = []

    class Watched(archives.NewFiles):
        def create(self, path: str, mode: int = 0o644):
            created.append(path)
            return super().create(path, mode)

    monkeypatch.setattr(archives, "NewFiles", Watched)
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        archive.add(bundle / "NOTICE", "top/NOTICE")
        archive.add(bundle / "bundle.json", "top/bundle.json")
    with pytest.raises(IntegrityError, match="no manifest"):
        unpack_archive(file, tmp_path / "out")
    assert created == []
    with pytest.raises(IntegrityError):
        unpack_archive(archive_with(bundle, file, "extra"), tmp_path / "out")
    assert "extra" not in created and "NOTICE" in created


def with_path(bundle: Path, file: Path, path: str) -> Path:
    """An archive whose manifest lists one more file, and which has a file next."""
    plain = json.loads((bundle / "bundle.json").read_text())
    plain["files"].append({"path": path, "bytes": 1, "sha256": "0" * 64})
    data = json.dumps(plain).encode()
    member = path if path.isprintable() else "NOTICE"  # the rest is in a manifest's escapes alone
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("bundle.json", data), ("bundle.json.sha256", manifest_hash(data)), (member, b"x"),
        ):  # fmt: skip
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


LISTED = {
    "too long a name": "x" * 256,
    "too long a name in bytes": "\N{GRINNING FACE}" * 64,
    "too long a path": "/".join(["x" * 200] * 6),
    "half a surrogate pair": "a\ud800",
    "folders without end": "/".join(["a"] * 511),
    "a folder that is a file": "NOTICE/x",
    "a file that is a folder": "model",
    "a path upwards": "../x",
}


@pytest.mark.parametrize("case", LISTED)
def test_what_the_manifest_lists_is_judged_too(bundle: Path, tmp_path: Path, case: str) -> None:
    """A hostile manifest lists what it likes: all ends in an error of ours."""
    file = with_path(bundle, tmp_path / "a.tar", LISTED[case])
    with pytest.raises(IntegrityError):
        unpack_archive(file, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_a_pipe_is_no_archive_nor_a_volume(bundle: Path, tmp_path: Path) -> None:
    with not_hanging():
        with pytest.raises(UsageError, match="no file"):
            unpack_archive(put_pipe(tmp_path / "a.tar"), tmp_path / "out")
        with pytest.raises(IntegrityError, match="no file"):
            join_volumes(put_pipe(tmp_path / "pipe"), [], None)
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  b.tar.001\n{'0' * 64}  b.tar\n")
        put_pipe(tmp_path / "b.tar.001")
        with pytest.raises(IntegrityError, match=r"missing: b\.tar\.001"):
            join_volumes(tmp_path / "SHA256SUMS", [], None)
    with pytest.raises(UsageError, match="No such file"):
        unpack_archive(tmp_path / "none.tar", tmp_path / "out")
    assert main(["unpack", str(tmp_path), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("name", ["x" * 300, "\N{GRINNING FACE}" * 64, "..", "."])
def test_a_list_of_volumes_has_names_that_a_disk_can_hold(tmp_path: Path, name: str) -> None:
    text = f"{'0' * 64}  {name}.001\n{'0' * 64}  {name}\n"
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(IntegrityError, match="not the list of an archive's volumes"):
        join_volumes(tmp_path / "SHA256SUMS", [], None)


def test_a_volume_that_cannot_be_read_is_damaged(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(bundle, tmp_path / "a.tar", 50_000)
    (tmp_path / "a.tar.002").unlink()
    (tmp_path / "a.tar.002").symlink_to("/proc/self/mem")  # reading it is an error
    with pytest.raises(IntegrityError, match=r"damaged: .*a\.tar\.002"):
        join_volumes(tmp_path / "SHA256SUMS", [], None)


def test_a_delta_of_a_bundle_with_links_changes_no_modes(tmp_path: Path) -> None:
    """A file that became a link after it was looked at: it is not followed, nor is it copied."""
    old = write_bundle(tmp_path / "old parts", tmp_path / "old")
    new = write_bundle(tmp_path / "new parts", tmp_path / "new", code="VALUE = 2\n")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)

    def swap(what: str, done: int, total: int) -> None:
        (new / "install").unlink(missing_ok=True)
        (new / "install").symlink_to(secret)

    with pytest.raises(IntegrityError, match="is a link"):
        write_delta(old, new, tmp_path / "delta", swap)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert not (tmp_path / "delta").exists()
