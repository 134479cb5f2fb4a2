"""Calibration: batches of ids from a folder of sources, and the importance matrix they give.

The importance of a column is the mean square of what it is multiplied with, collected from the
float32 reference with the window active: the same text under full attention gives other values.
Files are llama.cpp's own GGUF kind, so that they travel in both directions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from tokenizers import Tokenizer

from packager.errors import CheckpointError, UsageError
from packager.records import Checkpoint, Progress, no_progress
from packager.reference import final_states
from packager.tensors import open_tensors

SOURCE_SUFFIXES = frozenset(
    ".c .cc .cpp .cs .css .go .h .hpp .html .java .js .json .kt .lua .md .php .pl .py .r .rb .rs "
    ".scala .sh .sql .swift .ts .tsx .yaml".split()
)
MAX_SOURCE_BYTES = 1 << 20
MAX_IMATRIX_BYTES = 1 << 30
SEED = 0


@dataclass(frozen=True, slots=True)
class Batches:
    """Sequences of ids (T,), and the SHA-256 of the texts they were drawn from."""

    sequences: list[np.ndarray]
    sha256: str


def read_sources(folder: Path) -> list[str]:
    """The source texts below `folder`, by path. Raises UsageError where there are none."""
    texts = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SOURCE_SUFFIXES or not file.is_file():
            continue
        if 0 < file.stat().st_size <= MAX_SOURCE_BYTES:
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue  # not text, whatever its name says
    if not texts:
        raise UsageError(
            "no source text to calibrate on",
            where=folder,
            expected="a folder with source files in UTF-8 of at most 1 MiB each",
        )
    return texts


def draw_batches(
    checkpoint: Checkpoint, texts: list[str], *, sequences: int, length_tokens: int
) -> Batches:
    """Draw `sequences` stretches of `length_tokens` ids from the shuffled, joined texts."""
    tokenizer = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    order = list(texts)
    random.Random(SEED).shuffle(order)
    ids: list[int] = []
    for text in order:
        ids += [*tokenizer.encode(text, add_special_tokens=False).ids, 0]
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


def write_importance(file: Path, importance: Mapping[str, np.ndarray], batches: Batches) -> None:
    """Write llama.cpp's importance file. `importance` is keyed by GGUF names."""
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

    Raises CheckpointError where a matrix is missing, of another width, not finite or negative.
    """
    if file.stat().st_size > MAX_IMATRIX_BYTES:
        raise CheckpointError("the importance matrix is too large", where=file)
    try:
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"not an importance matrix: {error}",
            where=file,
            expected="the GGUF file that llama-imatrix or `starpack calibrate` writes",
            remedy="convert an old .dat file with llama-imatrix --in-file OLD.dat -o NEW.gguf",
        ) from None
    importance = {}
    for name, width in columns.items():
        sums, counts = tensors.get(f"{name}.in_sum2"), tensors.get(f"{name}.counts")
        if sums is None or counts is None or counts.size != 1 or counts.flat[0] <= 0:
            raise CheckpointError(f"the importance matrix has no usable {name}", where=file)
        values = np.asarray(sums, np.float32).reshape(-1) / np.float32(counts.flat[0])
        if values.size != width or not np.isfinite(values).all() or (values < 0).any():
            raise CheckpointError(
                f"the importance of {name} does not fit",
                where=file,
                expected=f"{width} finite values, 0 or more",
                remedy="compute it from this very checkpoint",
            )
        importance[name] = np.ascontiguousarray(values)
    return importance
