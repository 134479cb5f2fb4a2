"""Outputs are whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from packager.core import atomic
from packager.core.atomic import (
    atomic_file,
    atomic_folder,
    file_entry,
    partial_folder,
    write_json,
)
from packager.core.errors import StarpackError


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    out = tmp_path / "a" / "out"
    for text in ("old", "new"):
        with atomic_folder(out) as folder:
            (folder / text).write_text(text)
            assert not (out / text).exists()
        assert [p.name for p in out.iterdir()] == [text]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, failure):
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "kept").write_text("kept")
    with pytest.raises(failure), atomic_folder(out) as folder:
        (folder / "half").write_text("half")
        raise failure
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "kept").read_text() == "kept"


def test_two_runs_do_not_disturb_each_other(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as one:
        (one / "one").write_text("1")
        with atomic_folder(out) as two:
            (two / "two").write_text("2")
        assert (one / "one").exists()
    assert [p.name for p in out.iterdir()] == ["one"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_runs_that_write_one_file_do_not_disturb_each_other(tmp_path):
    out = tmp_path / "out"
    with atomic_file(out) as one:
        one.write(b"1")
        with atomic_file(out) as two:
            two.write(b"2")
        assert out.read_bytes() == b"2"
    assert out.read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["aside", "into place"])
def test_a_replacement_that_is_cut_short_leaves_the_old_folder(tmp_path, monkeypatch, failure, at):
    out, users = tmp_path / "out", tmp_path / "out.old"
    users.mkdir()
    (users / "thesis").write_text("precious")
    with atomic_folder(out) as folder:
        (folder / "kept").write_text("kept")
    rename = os.rename

    def cut_short(source, target):
        if source == out and at == "aside":
            raise failure
        if source == folder:
            raise failure
        rename(source, target)

    with pytest.raises(failure), atomic_folder(out) as folder:
        monkeypatch.setattr(os, "rename", cut_short)
    assert (out / "kept").read_text() == "kept"
    assert (users / "thesis").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.old"]


def test_what_a_killed_run_has_left_is_cleared_unless_somebody_is_at_work(tmp_path):
    out, users = tmp_path / "out", tmp_path / "out.of-mine.partial"
    users.mkdir()
    left = [
        tmp_path / f"out.{name}.partial"
        for name in ("deadbeef", "at__work", "a_file__", "busy_one")
    ]
    for folder in left[:2]:
        folder.mkdir()
        (folder / "half").write_text("half")
    for file in left[2:]:
        file.write_text("half")
    locks = [os.open(path, os.O_RDONLY) for path in left[1::2]]
    for descriptor in locks:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    for write in (write_folder, write_file):
        write(out)
        assert [path.exists() for path in left] == [False, True, False, True]
    for descriptor in locks:
        os.close(descriptor)
    write_file(out)
    assert [p.name for p in tmp_path.iterdir()] == [users.name]


def write_folder(out: Path) -> None:
    with atomic_folder(out) as folder:
        (folder / "new").write_text("new")
    shutil.rmtree(out)


def write_file(out: Path) -> None:
    with atomic_file(out) as stream:
        stream.write(b"new")
    out.unlink()


AT_WORK = """
import sys, time
from pathlib import Path
from packager.core.atomic import atomic_file, atomic_folder, partial_folder
with globals()[sys.argv[1]](Path(sys.argv[2])) as made:
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["atomic_file", "atomic_folder", "partial_folder"])
def test_the_next_run_clears_what_a_killed_one_has_left(tmp_path, how):
    out = tmp_path / "out [1]"  # no pattern of names, whatever it looks like
    command = [sys.executable, "-c", AT_WORK, how, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        (left,) = tmp_path.iterdir()
        write_folder(out)
        assert left.exists()  # somebody is at work there
        process.kill()
    assert left.exists()
    write_file(out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_is_cleared_before_it_is_locked_is_made_again(tmp_path, monkeypatch, write):
    cleared = []

    def clear_first(descriptor):
        if not cleared:
            (partial,) = tmp_path.iterdir()
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            cleared.append(partial)

    monkeypatch.setattr(atomic, "lock", clear_first)
    write(tmp_path / "out")
    assert cleared and not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_disk_without_locks_is_written_to_and_nothing_there_is_cleared(
    tmp_path, monkeypatch, write
):
    def refuse(descriptor):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(atomic, "lock", refuse)
    monkeypatch.setattr(atomic, "try_lock", refuse)
    left = tmp_path / "out.deadbeef.partial"
    left.write_text("half")
    write(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [left.name]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_modes_are_set_and_not_inherited(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # nobody else puts links there
            (folder / "a" / "b").mkdir(parents=True)
            (folder / "a" / "b" / "file").write_text("x")
            (folder / "run").write_text("x")
            (folder / "run").chmod(0o700)
            (folder / "link").symlink_to("/etc/passwd")
        with atomic_file(tmp_path / "file") as stream:
            stream.write(b"x")
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.lstat().st_mode)
        for path in tmp_path.rglob("*") if not path.is_symlink()
    }  # fmt: skip
    folders = dict.fromkeys(("out", "out/a", "out/a/b"), 0o755)
    assert modes == {**folders, "out/a/b/file": 0o644, "out/run": 0o755, "file": 0o644}
    assert stat.S_IMODE(Path("/etc/passwd").stat().st_mode) == 0o644


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("make", [atomic_file, atomic_folder, partial_folder])
def test_a_full_disk_is_named_with_what_helps(tmp_path, make, code):
    said = "out cannot be written: "
    with pytest.raises(StarpackError, match=said) as caught, make(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert caught.value.where == str(tmp_path)
    assert "name a place" in caught.value.remedy
    with pytest.raises(PermissionError), make(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "of something else")
    assert not list(tmp_path.iterdir())


def test_a_killed_replacement_gives_the_old_folder_back(tmp_path):
    out, aside = tmp_path / "out", tmp_path / "out.xyz_0123.partial"
    (aside / "old").mkdir(parents=True)
    (aside / "old" / "kept").write_text("kept")
    with pytest.raises(ValueError, match="later"), atomic_folder(out):
        raise ValueError("later")
    assert (out / "kept").read_text() == "kept" and not aside.exists()


def test_entries_and_json(tmp_path):
    write_json(tmp_path / "x" / "r.json", {"ä": 1})
    entry = file_entry(tmp_path, "x/r.json")
    assert entry.bytes == (tmp_path / "x" / "r.json").stat().st_size
    assert len(entry.sha256) == 64
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["r.json"]
