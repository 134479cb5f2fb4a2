"""Safetensors files as a lazy source of float32 arrays; headers are not trusted.

Format: https://github.com/huggingface/safetensors (8 bytes of little-endian header length, a JSON
header, one data buffer without gaps). Parsed here because the library's numpy front end has no
bfloat16. A file is mapped block by block, so that its pages do not add up in memory. Knows nothing
of models.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from packager.checkpoint.json_files import parse_object, read_object
from packager.core.errors import CheckpointError, why_unreadable
from runtimes.trust.files import open_plain

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_INDEX_BYTES = 16 * 1024 * 1024  # guessed: StarCoder2-15B's index is under 64 KiB
BLOCK_ELEMENTS = 1 << 20  # guessed: 4 MiB of float32, far below any weight that matters

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# As stored -> (our name, little-endian numpy type of the stored bits).
DTYPES: dict[str, tuple[str, np.dtype]] = {
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", np.dtype("<u2")),
}
# What a file of quantised weights may hold besides.
CODE_DTYPES: dict[str, tuple[str, np.dtype]] = {"I32": ("int32", np.dtype("<i4"))}
_ITEM_TYPES = dict([*DTYPES.values(), *CODE_DTYPES.values()])


Floats = NDArray[np.float32]


class TensorSource(Protocol):
    """One model's tensors by Hugging Face name."""

    def names(self) -> list[str]:
        """Every tensor's name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape; KeyError for a name that is not in names()."""

    def dtype(self, name: str) -> str:
        """How it is stored: "float32", "bfloat16" or "float16"."""

    def read(self, name: str) -> Floats:
        """The whole tensor as float32; CheckpointError where a value is NaN or infinite."""

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows start..stop-1 as float32, (stop - start, ...); no more is held in memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: `offset_bytes` counts from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def item_type(self) -> np.dtype:
        """The numpy type of the stored bits; bfloat16 as uint16."""
        return _ITEM_TYPES[self.dtype]

    def blocks(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Stored elements start..stop-1, flat, in blocks of BLOCK_ELEMENTS, mapped read-only."""
        for begin in range(start, stop, BLOCK_ELEMENTS):
            try:
                with open_plain(self.file, follow=True) as stream:
                    block = np.memmap(
                        stream,
                        self.item_type,
                        mode="r",
                        offset=self.offset_bytes + begin * self.item_type.itemsize,
                        shape=(min(BLOCK_ELEMENTS, stop - begin),),
                    )
                yield block
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"a shard can no longer be read: {error}",
                    where=self.file,
                    expected="the file as it was when the checkpoint was opened",
                    remedy="do not change a checkpoint while it is being read; fetch it again",
                ) from None


class Shards:
    """A TensorSource over one or many safetensors files."""

    def __init__(self, entries: dict[str, Entry], files: list[Path]) -> None:
        self.entries = entries
        self.files = files

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self.entries[name].shape

    def dtype(self, name: str) -> str:
        """How it is stored."""
        return self.entries[name].dtype

    def read(self, name: str) -> Floats:
        """The whole tensor as float32; CheckpointError where a value is NaN or infinite."""
        return self.read_rows(name, 0, self.entries[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows start..stop-1 as float32; CheckpointError where a value is NaN or infinite."""
        entry = self.entries[name]
        assert 0 <= start < stop <= entry.shape[0], f"rows {start}..{stop} of {name} {entry.shape}"
        row = math.prod(entry.shape[1:])
        values = np.empty((stop - start) * row, np.float32)
        at = 0
        for block in entry.blocks(start * row, stop * row):
            target = values[at : at + block.size]
            _widen(block, target, entry.dtype)
            finite = np.isfinite(target)
            if not finite.all():
                first = start * row + at + int(np.argmin(finite))
                raise _not_finite(name, entry, first, float(target[np.argmin(finite)]))
            at += block.size
        return values.reshape(stop - start, *entry.shape[1:])

    def read_stored(self, name: str) -> np.ndarray:
        """The whole tensor as it is stored, bfloat16 as its bits; no value is looked at."""
        entry = self.entries[name]
        blocks = list(entry.blocks(0, math.prod(entry.shape)))
        return np.concatenate(blocks).reshape(entry.shape)

    def same_bytes(self, name: str, other: str) -> bool:
        """Whether two tensors are stored alike: dtype, shape and every byte."""
        a, b = self.entries[name], self.entries[other]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        size = math.prod(a.shape)
        pairs = zip(a.blocks(0, size), b.blocks(0, size), strict=True)
        # Bits, not values: NaN is unequal to itself, and 0.0 equals -0.0.
        bits = np.dtype(f"<u{a.item_type.itemsize}")
        return all(np.array_equal(x.view(bits), y.view(bits)) for x, y in pairs)


def open_file(file: Path, *, codes: bool = False) -> Shards:
    """One safetensors file; CheckpointError where its header and its data disagree."""
    return Shards(read_header(file, codes=codes), [file])


def open_folder(folder: Path, *, codes: bool = False) -> Shards:
    """The weights of a Hugging Face folder: model.safetensors, or the shards of its index.

    codes: whether integers may be among them, as in a quantised checkpoint. Raises CheckpointError
    for pickles, for both forms at once, for an index that leaves the folder and for an index that
    contradicts its shards.
    """
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if single.exists() and index.exists():
        raise CheckpointError(
            f"both {SINGLE_NAME} and {INDEX_NAME} are there",
            where=folder,
            expected="one of them",
            remedy="move the one that is not this model's weights away",
        )
    if single.exists():
        return open_file(single, codes=codes)
    if not index.exists():
        raise _no_weights(folder)
    weight_map = _weight_map(index)
    files = [folder / name for name in sorted(set(weight_map.values()))]
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file, codes=codes).items():
            if name in entries:
                raise _contradiction(
                    index, f"{name} is in {entries[name].file.name} and in {file.name}"
                )
            if weight_map.get(name) != file.name:
                raise _contradiction(
                    index, f"{name} is in {file.name}, but the index says {weight_map.get(name)}"
                )
            entries[name] = entry
    missing = sorted(set(weight_map) - set(entries))
    if missing:
        raise _contradiction(index, f"no shard holds {missing[0]} ({len(missing)} missing)")
    return Shards(entries, files)


def read_header(file: Path, *, codes: bool = False) -> dict[str, Entry]:
    """Name to Entry, in order of offset; CheckpointError for anything the format forbids."""
    dtypes = DTYPES | CODE_DTYPES if codes else DTYPES
    try:
        with open_plain(file, follow=True) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _bad_file(file, f"its header claims {length} bytes of {size}")
            text = stream.read(length)
    except (OSError, ValueError) as error:
        raise _bad_file(file, f"it cannot be read: {why_unreadable(error)}") from None
    if not text.startswith(b"{"):
        raise _bad_file(file, "its header does not begin with an object")
    header = parse_object(text, file)
    _check_metadata(file, header.pop("__metadata__", {}))
    spans = sorted(
        (_span(file, name, value, dtypes) for name, value in header.items()),
        key=lambda span: span[1:3],
    )
    entries: dict[str, Entry] = {}
    end = 0
    for name, begin, stop, dtype, shape in spans:
        if begin != end:
            fault = "overlaps the tensor before it" if begin < end else "leaves a gap before it"
            raise _bad_file(file, f"{name} {fault}: it starts at {begin}, not at {end}")
        entries[name] = Entry(file, dtype, shape, 8 + length + begin)
        end = stop
    held = size - 8 - length
    if end != held:
        fault = "truncated" if held < end else "followed by bytes that no tensor owns"
        raise _bad_file(file, f"its data is {fault}: {held} bytes held, {end} described")
    return entries


def _span(
    file: Path, name: str, value: object, dtypes: dict[str, tuple[str, np.dtype]]
) -> tuple[str, int, int, str, tuple[int, ...]]:
    """(name, begin, end, dtype, shape) of one header entry, consistent in itself."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad_file(file, f"{name} is not described by dtype, shape and data_offsets alone")
    if not isinstance(value["dtype"], str) or value["dtype"] not in dtypes:
        raise CheckpointError(
            f"{name} has dtype {value['dtype']!r}",
            where=file,
            expected=f"one of {', '.join(dtypes)}",
            remedy="start from the unquantised checkpoint in float32, bfloat16 or float16",
        )
    dtype, item_type = dtypes[value["dtype"]]
    shape, offsets = value["shape"], value["data_offsets"]
    if not _are_integers(shape, minimum=1) or not 1 <= len(shape) <= 2:
        raise _bad_file(file, f"{name} has shape {shape!r}")
    if not _are_integers(offsets, minimum=0) or len(offsets) != 2:
        raise _bad_file(file, f"{name} has data_offsets {offsets!r}")
    needed = math.prod(shape) * item_type.itemsize
    if offsets[1] - offsets[0] != needed:
        raise _bad_file(
            file, f"{name} is {shape} {dtype}, {needed} bytes, but its offsets are {offsets}"
        )
    return name, offsets[0], offsets[1], dtype, tuple(shape)


def _are_integers(value: object, minimum: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and minimum <= v < 2**63 for v in value)


def _check_metadata(file: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad_file(file, "its __metadata__ is not a map of texts")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name, every shard a plain name of a file beside the index."""
    weight_map = read_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _contradiction(index, "it has no weight_map")
    for name, shard in weight_map.items():
        # The files themselves may be links (the hub's cache is made of them); names may not lead.
        plain = isinstance(shard, str) and not set(shard) & set("/\\:\0")
        if not plain or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"the index puts {name} in {shard!r}",
                where=index,
                expected="the plain name of a .safetensors file in the same folder",
                remedy="do not trust this checkpoint; fetch it again from its publisher",
            )
    return weight_map


def _widen(stored: np.ndarray, target: np.ndarray, dtype: str) -> None:
    """Write the stored bits into `target` as float32, exactly."""
    if dtype == "bfloat16":  # the upper half of a float32
        bits = target.view(np.uint32)
        bits[...] = stored
        bits <<= 16
    else:
        target[...] = stored


def _not_finite(name: str, entry: Entry, flat: int, value: float) -> CheckpointError:
    index = tuple(int(i) for i in np.unravel_index(flat, entry.shape))
    return CheckpointError(
        f"{name} holds {value} at index {index}",
        where=entry.file,
        expected="finite values only",
        remedy="the weights are damaged or training diverged: take another checkpoint",
    )


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        return CheckpointError(
            "no weights",
            where=folder,
            expected=f"{SINGLE_NAME}, or {INDEX_NAME} and its shards",
            remedy="name a complete Hugging Face folder, or use `starpack fetch`",
        )
    return CheckpointError(
        f"the weights are pickles ({pickles[0]}), which can run code when they are read",
        where=folder,
        expected=f"{SINGLE_NAME}, or {INDEX_NAME} and its shards",
        remedy="convert them where you trust them, with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
    )


def _contradiction(index: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the index and its shards disagree: {what}",
        where=index,
        expected="each tensor in the one shard that the index names",
        remedy="fetch the index and all shards of one revision again",
    )


def _bad_file(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file.name} is not a valid safetensors file: {what}",
        where=file,
        expected="a header that describes every byte of the data exactly once",
        remedy="the file is damaged or incomplete: fetch it again",
    )
