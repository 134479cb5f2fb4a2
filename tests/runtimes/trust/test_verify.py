"""Every byte counts: a change anywhere is found and the file named; hashes are reused with care."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from runtimes.errors import IntegrityError
from runtimes.trust.entries import FileEntry
from runtimes.trust.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME, read_manifest
from runtimes.trust.verify import TICK_NS, HashCache, verify_files, verify_folder
from tests.support.packing import write_bundle

CHANGES = 1000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("verify")
    return write_bundle(work / "parts", work / "bundle")


@pytest.mark.slow
def test_a_thousand_changed_bytes_are_all_found_and_their_files_named(bundle: Path) -> None:
    verify_files(bundle, read_manifest(bundle))
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    contents = {file: file.read_bytes() for file in files}
    rng = random.Random(6)
    seen = set()
    for count in range(CHANGES):
        # each file in turn, then any byte of the bundle
        file = (
            files[count]
            if count < len(files)
            else rng.choices(files, [len(contents[f]) for f in files])[0]
        )
        data = bytearray(contents[file])
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        file.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            verify_files(bundle, read_manifest(bundle))
        named = caught.value.where
        if file.name == MANIFEST_HASH_NAME:  # of these two either may be the damaged one
            named += MANIFEST_HASH_NAME.removeprefix(MANIFEST_NAME)
        assert named == str(file)
        file.write_bytes(contents[file])
        seen.add(file)
    assert seen == set(files)
    verify_files(bundle, read_manifest(bundle))


def test_a_manifest_without_its_hash_is_refused(bundle: Path) -> None:
    file = bundle / MANIFEST_HASH_NAME
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(IntegrityError, match="cannot be read: No such file"):
        read_manifest(bundle)
    file.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"content")
    return tmp_path / "files"


ENTRY = FileEntry("a", 7, "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73")


def hashed(folder: Path, cache: HashCache) -> int:
    """How many bytes a check reads."""
    totals = [0]
    verify_folder(folder, [ENTRY], (), lambda done, total: totals.append(total), cache)
    return totals[-1]


def test_a_hash_is_remembered_until_the_file_is_touched(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache.json"
    time.sleep(2 * TICK_NS / 1e9)
    assert hashed(folder, HashCache(file)) == 7
    assert hashed(folder, HashCache(file)) == 0
    info = (folder / "a").stat()
    (folder / "a").write_bytes(b"CONTENT")
    os.utime(folder / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(IntegrityError, match="has changed"):
        hashed(folder, HashCache(file))


def test_a_file_that_has_just_changed_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(b"content")
    assert hashed(folder, HashCache(tmp_path / "cache.json")) == 7
    assert not (tmp_path / "cache.json").exists()


def test_a_file_in_the_place_of_another_is_hashed(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache.json"
    (tmp_path / "b").write_bytes(b"CONTENT")
    time.sleep(2 * TICK_NS / 1e9)
    hashed(folder, HashCache(file))
    (tmp_path / "b").replace(folder / "a")
    with pytest.raises(IntegrityError, match="has changed"):
        hashed(folder, HashCache(file))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"1:2:3:4": 5}', "[" * 100_000])
def test_a_cache_that_is_none_is_ignored(folder: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "cache.json"
    file.write_text(text)
    time.sleep(2 * TICK_NS / 1e9)
    assert hashed(folder, HashCache(file)) == 7
    assert list(json.loads(file.read_text()).values()) == [ENTRY.sha256]


def test_a_cache_that_cannot_be_written_only_costs_time(folder: Path, tmp_path: Path) -> None:
    time.sleep(2 * TICK_NS / 1e9)
    for _ in range(2):
        assert hashed(folder, HashCache(tmp_path / "no such folder" / "cache.json")) == 7
