"""Calibration: batches of ids from a folder of sources, and the importance matrix they give.

The importance of a column is the mean square of what it is multiplied with, collected from the
float32 reference with the window active: the same text under full attention gives other values.
Files are llama.cpp's own GGUF kind, so that they travel in both directions.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packager.checkpoint.reference import final_states
from packager.checkpoint.tensors import open_tensors
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.atomic import partial_folder
from packager.core.errors import DataError, UsageError, why_unreadable
from packager.core.records import Checkpoint, Progress, no_progress
from runtimes.prompts.tokenizer import Tokenizer
from runtimes.trust.files import FILE_MODE, read_plain

MAX_IMATRIX_BYTES = 64 << 20  # calculated: StarCoder2-15B's is 9 MB
SEED = 0
# GGUF's types of value and their sizes (ggml, docs/gguf.md): 8 and 9 are strings and arrays.
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_UINT32, GGUF_STRING, GGUF_ARRAY = 4, 8, 9
GGML_F32 = 0
MAX_DIMENSIONS = 4  # specified: ggml's own limit


@dataclass(frozen=True, slots=True)
class Batches:
    """Sequences of ids (T,), and the SHA-256 of the texts they were drawn from."""

    sequences: list[np.ndarray]
    sha256: str


def draw_batches(
    checkpoint: Checkpoint, texts: list[str], *, sequences: int, length_tokens: int
) -> Batches:
    """Draw `sequences` chunks of `length_tokens` ids from the shuffled, joined texts.

    A text with a character that the model has no token for is left out. Raises UsageError where
    there is too little text.
    """
    for name, value in (("sequences", sequences), ("length", length_tokens)):
        if value < 1:
            raise UsageError(f"{name} is {value}", expected="1 or more")
    tokenizer = Tokenizer(checkpoint.path / TOKENIZER_NAME, checkpoint.special_ids)
    order = list(texts)
    random.Random(SEED).shuffle(order)
    ids: list[int] = []
    for text in order:
        try:
            ids += [*tokenizer.encode(text), checkpoint.special_ids.endoftext]
        except UsageError:
            continue
        if len(ids) >= sequences * length_tokens:
            break
    count = min(sequences, len(ids) // length_tokens)
    if count == 0:
        raise UsageError(
            f"the calibration text has only {len(ids)} tokens",
            expected=f"at least {length_tokens}",
            remedy="give a folder with more source code",
        )
    array = np.array(ids[: count * length_tokens]).reshape(count, length_tokens)
    digest = hashlib.sha256("\0".join(order).encode()).hexdigest()
    return Batches(list(array), digest)


def compute_importance(
    checkpoint: Checkpoint, batches: Batches, *, progress: Progress = no_progress
) -> dict[str, np.ndarray]:
    """Per matrix (Hugging Face name): mean square (C,) of its input over all tokens."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def observe(name: str, x: np.ndarray) -> None:
        sums[name] = sums.get(name, 0.0) + np.square(x, dtype=np.float64).sum(0)
        counts[name] = counts.get(name, 0) + len(x)

    final_states(
        checkpoint, open_tensors(checkpoint), batches.sequences, observe=observe, progress=progress
    )
    return {name: (total / counts[name]).astype(np.float32) for name, total in sums.items()}


def check_place(file: Path) -> None:
    """Refuse a place that `file` cannot be written to: before computing for hours.

    Raises UsageError.
    """
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            reason = "it is a folder" if file.is_dir() else None
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UsageError(
            f"the importance matrix cannot be written: {reason}",
            where=file,
            expected="a file in an existing folder that you may write to",
            remedy="make the folder, or name another one",
        )


def write_importance(file: Path, importance: Mapping[str, np.ndarray], batches: Batches) -> None:
    """Write llama.cpp's importance file, all of it or nothing; keys are GGUF names.

    Raises UsageError where it cannot be written; see check_place.
    """
    check_place(file)
    with partial_folder(file) as folder:
        partial = folder / file.name
        _write_gguf(partial, importance, batches)
        partial.chmod(FILE_MODE)
        os.replace(partial, file)


def _write_gguf(file: Path, importance: Mapping[str, np.ndarray], batches: Batches) -> None:
    from gguf import GGUFWriter  # planning and converting without a matrix need no library

    writer = GGUFWriter(file, "imatrix")
    tokens = sum(len(sequence) for sequence in batches.sequences)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [f"sha256:{batches.sha256}"])
    writer.add_uint32("imatrix.chunk_count", len(batches.sequences))
    writer.add_uint32("imatrix.chunk_size", len(batches.sequences[0]))
    for name, mean in sorted(importance.items()):
        writer.add_tensor(f"{name}.in_sum2", (mean * np.float32(tokens))[None, :])
        writer.add_tensor(f"{name}.counts", np.full((1, 1), tokens, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_importance(file: Path, columns: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read llama.cpp's importance file for matrices of the given `columns`, by GGUF name.

    Raises DataError where the file cannot be read or is no such file, or a matrix is
    missing, of another width, not finite or negative.
    """
    try:
        data = read_plain(file, MAX_IMATRIX_BYTES, follow=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the importance matrix cannot be read: {why_unreadable(error)}",
            where=file,
            expected=f"a readable file of at most {MAX_IMATRIX_BYTES} bytes",
            remedy="check its path, or write one with `starpack calibrate`",
        ) from None
    try:
        tensors = _float_tensors(data)
    except ValueError as error:
        raise DataError(
            f"not an importance matrix: {error}",
            where=file,
            expected="the GGUF file that llama-imatrix or `starpack calibrate` writes",
            remedy="convert an old .dat file with llama-imatrix --in-file OLD.dat -o NEW.gguf",
        ) from None
    importance = {}
    for name, width in columns.items():
        sums, counts = tensors.get(f"{name}.in_sum2"), tensors.get(f"{name}.counts")
        if sums is None or counts is None or counts.size != 1 or not counts[0] > 0:
            raise DataError(
                f"the importance matrix has no usable {name}",
                where=file,
                expected="in_sum2 and counts, in float32",
                remedy="compute it from this very checkpoint",
            )
        values = sums / counts[0]
        if values.size != width or not np.isfinite(values).all() or (values < 0).any():
            raise DataError(
                f"the importance of {name} does not fit",
                where=file,
                expected=f"{width} finite values, 0 or more",
                remedy="compute it from this very checkpoint",
            )
        importance[name] = np.ascontiguousarray(values)
    return importance


class _Cursor:
    """Reads on through bytes; ValueError where there are fewer than are asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"the file ends early: {count} bytes are announced at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode()


def _float_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Name to values (n,) of the float32 tensors of a GGUF file (ggml, docs/gguf.md).

    gguf's own reader believes the counts in a file, and a short file can keep it busy for ever.
    Here whatever is counted takes bytes that must be there. Raises ValueError.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF" or cursor.number("I") not in (2, 3):
        raise ValueError("not GGUF of version 2 or 3, little-endian")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    alignment = 32  # specified: where the key is absent
    for _ in range(key_count):
        key, kind = cursor.text(), cursor.number("I")
        if key == "general.alignment" and kind == GGUF_UINT32:
            alignment = max(cursor.number("I"), 1)
        else:
            _skip_value(cursor, kind)
    places = {}
    for _ in range(tensor_count):
        name = cursor.text()
        dimensions = cursor.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        shape = [cursor.number("Q") for _ in range(dimensions)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if name in places:
            raise ValueError(f"two tensors are called {name[:200]}")
        if kind == GGML_F32:
            places[name] = (offset, math.prod(shape))
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, (offset, count) in places.items():
        cursor.at = start + offset
        tensors[name] = np.frombuffer(cursor.take(4 * count), "<f4")
    return tensors


def _skip_value(cursor: _Cursor, kind: int) -> None:
    count = 1
    if kind == GGUF_ARRAY:
        kind, count = cursor.number("I"), cursor.number("Q")
    if kind == GGUF_STRING:
        for _ in range(count):
            cursor.take(cursor.number("Q"))
    elif kind in SCALAR_BYTES:
        cursor.take(count * SCALAR_BYTES[kind])
    else:  # an array of arrays too, which llama.cpp refuses as well
        raise ValueError(f"a value of the unknown type {kind}")
