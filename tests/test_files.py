"""Outputs are whole or absent."""

from __future__ import annotations

import pytest

from packager.files import atomic_folder, file_entry, write_json


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


def test_entries_and_json(tmp_path):
    write_json(tmp_path / "x" / "r.json", {"ä": 1})
    entry = file_entry(tmp_path, "x/r.json")
    assert entry.bytes == (tmp_path / "x" / "r.json").stat().st_size
    assert len(entry.sha256) == 64
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["r.json"]
