"""Outputs are whole or absent."""

from __future__ import annotations

import fcntl
import os
import stat

import pytest

from packager.core.atomic import atomic_folder, file_entry, write_json


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


def test_what_a_killed_run_has_left_is_cleared_when_it_is_old_and_nobodys(tmp_path):
    out, users = tmp_path / "out", tmp_path / "out.of-mine.partial"
    users.mkdir()
    os.utime(users, (0, 0))
    left = [tmp_path / f"out.{name}.partial" for name in ("deadbeef", "youngone", "at__work")]
    for folder in left:
        folder.mkdir()
        (folder / "half").write_text("half")
    lock = os.open(left[2], os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for folder in (left[0], left[2]):
        os.utime(folder, (0, 0))
    with atomic_folder(out) as folder:
        (folder / "new").write_text("new")
    os.close(lock)
    assert [folder.exists() for folder in left] == [False, True, True]
    assert users.exists()


def test_a_killed_replacement_gives_the_old_folder_back(tmp_path):
    out, aside = tmp_path / "out", tmp_path / "out.xyz_0123.partial"
    (aside / "old").mkdir(parents=True)
    (aside / "old" / "kept").write_text("kept")
    os.utime(aside, (0, 0))
    with pytest.raises(ValueError, match="later"), atomic_folder(out):
        raise ValueError("later")
    assert (out / "kept").read_text() == "kept" and not aside.exists()


def test_entries_and_json(tmp_path):
    write_json(tmp_path / "x" / "r.json", {"ä": 1})
    entry = file_entry(tmp_path, "x/r.json")
    assert entry.bytes == (tmp_path / "x" / "r.json").stat().st_size
    assert len(entry.sha256) == 64
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["r.json"]
