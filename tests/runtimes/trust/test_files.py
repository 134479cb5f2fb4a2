"""Reading and writing where others may have put links and pipes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimes.trust.files import NewFiles, open_plain, read_plain


@pytest.fixture(params=[0o000, 0o777, 0o022], ids=oct)
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    assert read_plain(file, 3_000_000) == file.read_bytes()
    with pytest.raises(ValueError, match="more than 2999999 bytes"):
        read_plain(file, 2_999_999)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # a reader of it would wait for ever
    for follow in (False, True):
        with pytest.raises(ValueError, match="no file"):
            open_plain(tmp_path / "pipe", follow=follow)
    with pytest.raises(ValueError, match="no file"):
        read_plain("/dev/zero", 10)
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)


def test_a_link_is_followed_only_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert read_plain(tmp_path / "link", 10, follow=True) == b"text"
    with pytest.raises(OSError, match="symbolic"):
        read_plain(tmp_path / "link", 10)


@pytest.mark.usefixtures("any_umask")
def test_what_is_written_has_the_modes_that_were_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o755)
    (tmp_path / "source").write_bytes(b"copied")
    (tmp_path / "source").chmod(0o666)
    with NewFiles(out) as files:
        with files.create("a/b/program", 0o755) as stream:
            stream.write(b"new")
        files.copy(tmp_path / "source", "a/copy")
        files.link("c/twin", "a/copy")
    modes = {
        file.relative_to(out).as_posix(): file.stat().st_mode & 0o7777 for file in out.rglob("*")
    }
    assert modes == {
        "a": 0o755, "a/b": 0o755, "a/b/program": 0o755,
        "a/copy": 0o644, "c": 0o755, "c/twin": 0o644,
    }  # fmt: skip
    assert (out / "a/b/program").read_bytes() == b"new"
    assert (out / "c/twin").read_bytes() == b"copied"
    assert (out / "c/twin").samefile(out / "a/copy")


def test_nothing_is_written_or_changed_through_a_link(tmp_path: Path) -> None:
    out, secret = tmp_path / "out", tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    secret.chmod(0o600)
    out.mkdir()
    (out / "folder").symlink_to(secret.parent)
    (out / "file").symlink_to(secret)
    (out / "dangling").symlink_to(secret.parent / "new")
    with NewFiles(out) as files:
        for path in ("folder/secret", "folder/new", "file", "dangling"):
            with pytest.raises(OSError):
                files.create(path, 0o644)
            with pytest.raises(OSError):
                files.copy(out, path)
    assert [file.name for file in secret.parent.iterdir()] == ["secret"]
    assert (secret.read_text(), secret.stat().st_mode & 0o7777) == ("secret", 0o600)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(OSError):
        NewFiles(tmp_path / "link")
