"""Calibration: what is drawn and written, and importance files that are not what they say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from packager.calibration.imatrix import (
    Batches,
    check_place,
    draw_batches,
    read_importance,
    write_importance,
)
from packager.checkpoint.reader import read_checkpoint
from packager.core.errors import DataError, IntegrityError, UsageError
from packager.core.records import Checkpoint
from tests.support.tiny import write_checkpoint

BATCHES = Batches([np.arange(8)], "a" * 64)
IMPORTANCE = {"one": np.arange(5, dtype=np.float32), "two": np.full(3, 0.5, np.float32)}
COLUMNS = {"one": 5, "two": 3}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path / "model"))


def test_what_is_written_is_read_back_and_by_ggufs_own_reader_too(tmp_path: Path) -> None:
    file = tmp_path / "importance.gguf"
    for _ in range(2):  # an earlier file is replaced
        write_importance(file, IMPORTANCE, BATCHES)
    read = read_importance(file, COLUMNS)
    for name, values in IMPORTANCE.items():
        np.testing.assert_array_equal(read[name], values)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}
    np.testing.assert_array_equal(tensors["one.in_sum2"], IMPORTANCE["one"][None] * 8)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "importance.gguf"
    write_importance(file, IMPORTANCE, BATCHES)
    before = file.read_bytes()
    with pytest.raises(IndexError):
        write_importance(file, IMPORTANCE, Batches([], ""))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("place", ["none/x.gguf", "file/x.gguf", "folder"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for refuse in (check_place, lambda file: write_importance(file, IMPORTANCE, BATCHES)):
        with pytest.raises(UsageError, match="cannot be written") as caught:
            refuse(tmp_path / place)
        assert caught.value.remedy
    check_place(tmp_path / "folder" / "x.gguf")
    assert not list((tmp_path / "folder").iterdir())


def header(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def key(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


def tensor(*shape: int, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", 1) + b"t" + dims + struct.pack("<IQ", 0, offset)


ENDLESS = 1 << 40
HOSTILE = {
    "empty": b"",
    "other magic": b"GGML" + bytes(40),
    "other version": b"GGUF" + struct.pack("<IQQ", 4, 0, 0),
    "endless keys": header(0, ENDLESS),
    "endless tensors": header(ENDLESS, 0),
    "endless array of numbers": header(0, 1) + key(9, struct.pack("<IQ", 0, ENDLESS)),
    "endless array of texts": header(0, 1) + key(9, struct.pack("<IQ", 8, ENDLESS)),
    "arrays in arrays": header(0, 1) + key(9, struct.pack("<IQ", 9, 1) * 5000),
    "endless text": header(0, 1) + key(8, struct.pack("<Q", ENDLESS)),
    "unknown type": header(0, 1) + key(13, bytes(8)),
    "name not UTF-8": header(0, 1) + struct.pack("<Q", 1) + b"\xff",
    "endless tensor": header(1, 0) + tensor(ENDLESS, ENDLESS) + bytes(64),
    "too many dimensions": header(1, 0) + tensor(*[1] * 5) + bytes(64),
    "tensor past the end": header(1, 0) + tensor(1, offset=ENDLESS) + bytes(64),
    "two of a name": header(2, 0) + tensor(1) * 2 + bytes(64),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_importance_file_is_refused_at_once(tmp_path: Path, case: str) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(HOSTILE[case])
    with pytest.raises(DataError, match="not an importance matrix") as caught:
        read_importance(file, COLUMNS)
    assert caught.value.remedy


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_importance(tmp_path / "none.gguf", COLUMNS)


def test_batches_never_hold_a_control_id_of_the_text(checkpoint: Checkpoint) -> None:
    """But for the end that stands between two texts; a text that cannot be encoded is left out."""
    texts = ["a <issue_start> <fim_middle> b " * 20, "\U00040000" * 1000]
    ids = np.concatenate(draw_batches(checkpoint, texts, sequences=9, length_tokens=10).sequences)
    assert set(ids[ids < 38].tolist()) <= {0}


@pytest.mark.parametrize(("sequences", "length"), [(0, 10), (1, 0), (-1, 10)])
def test_nothing_to_draw(checkpoint: Checkpoint, sequences: int, length: int) -> None:
    with pytest.raises(UsageError, match="expected: 1 or more"):
        draw_batches(checkpoint, ["a" * 100], sequences=sequences, length_tokens=length)


def test_a_broken_tokenizer_is_explained(checkpoint: Checkpoint) -> None:
    (checkpoint.path / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not a tokenizer file"):
        draw_batches(checkpoint, ["a" * 100], sequences=1, length_tokens=10)
