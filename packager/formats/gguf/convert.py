"""A StarCoder2 checkpoint to one GGUF file, in one pass and with a bounded buffer.

Rows are read from the memory-mapped shards, quantised by ggml's own code on every core and written
in order; no intermediate file exists. The file carries what others forget for this model: the
window, the rope base, the fill-in-the-middle, repository and separator ids, and the exact
pre-tokenizer. An unmodified llama.cpp loads it too and ignores the window key.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, Keys, TokenType

from packager.calibration.imatrix import read_importance
from packager.checkpoint.json_files import read_object
from packager.checkpoint.model_card import declared_licence
from packager.checkpoint.tensors import TensorSource, open_tensors
from packager.checkpoint.tokenizer import MAX_TOKENIZER_BYTES, TOKENIZER_NAME
from packager.core.atomic import file_entry, sha256_file
from packager.core.errors import CheckpointError, data_errors_as
from packager.core.parallel import results_in_order
from packager.core.records import Artifact, Checkpoint, Progress, Variant, no_progress
from packager.core.versions import tool_versions
from packager.core.workdir import Ledger, publish, work_folder
from packager.formats.gguf.recipe import (
    FILE_NAME,
    NAME,
    VERSION,
    WORK_FILES,
    TensorEntry,
    gguf_name,
    list_tensors,
)
from packager.formats.quant import ggml

ALIGNMENT = 32  # GGUF's default
ARCHITECTURE = "starcoder2"
BLOCK_BYTES = 8 * 1024 * 1024  # float32 rows per job: enough to keep a core busy, small in memory


def convert(
    checkpoint: Checkpoint,
    variant: Variant,
    out: Path,
    *,
    calibration: Path | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """Write `out`/model.gguf; the folder appears when the file is whole.

    An interrupted run resumes (packager/core/workdir.py).
    `calibration` is an importance file: per GGUF matrix name, the mean square (C,) of what the
    matrix is multiplied with. Raises CheckpointError for weights that cannot be converted.
    """
    source = open_tensors(checkpoint)
    importance: dict[str, np.ndarray] = {}
    if calibration is not None:
        importance = read_importance(calibration, matrix_columns(checkpoint))
    recipe = ggml.RECIPES[variant.recipe]
    entries = list_tensors(checkpoint.geometry, source, recipe, bool(importance))
    inputs = {
        "checkpoint": checkpoint.sha256,
        "variant": variant.name,
        "calibration": calibration and sha256_file(calibration),
        "block_bytes": BLOCK_BYTES,
        # what the header has beside what follows from the weights
        "header": [checkpoint.path.name, checkpoint.revision, declared_licence(checkpoint.path)],
    }
    with work_folder(out, (NAME, VERSION), WORK_FILES, inputs) as work:
        file = work / FILE_NAME
        ledger = Ledger(file)
        if ledger.jobs == 0:
            write_header(file, checkpoint, variant, entries)
        write_tensors(file, source, entries, importance, ledger, progress)
        written = file_entry(work, FILE_NAME)
        publish(work, [FILE_NAME], out)
    versions = tool_versions("gguf", "llama-cpp-python")
    return Artifact(variant, checkpoint.sha256, out, (written,), versions)


def write_header(
    file: Path, checkpoint: Checkpoint, variant: Variant, entries: list[TensorEntry]
) -> None:
    """Write the metadata and the tensor table, padded to where the tensors start."""
    writer = GGUFWriter(file, ARCHITECTURE)
    geometry = checkpoint.geometry
    writer.add_name(checkpoint.path.name)
    if licence := declared_licence(checkpoint.path):
        writer.add_license(licence)
    writer.add_file_type(ggml.RECIPES[variant.recipe].file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(checkpoint.context_tokens)
    writer.add_embedding_length(geometry.hidden)
    writer.add_block_count(geometry.layers)
    writer.add_feed_forward_length(geometry.ffn)
    writer.add_head_count(geometry.heads)
    writer.add_head_count_kv(geometry.kv_heads)
    writer.add_rope_dimension_count(geometry.head_dim)
    writer.add_rope_freq_base(geometry.rope_theta)
    writer.add_layer_norm_eps(geometry.norm_eps)
    if checkpoint.window.size_tokens is not None:
        writer.add_sliding_window(checkpoint.window.size_tokens)
    _add_tokenizer(writer, checkpoint)
    writer.add_string("starpack.checkpoint.sha256", checkpoint.sha256)
    if checkpoint.revision:
        writer.add_string("starpack.checkpoint.revision", checkpoint.revision)
    for entry in entries:
        type_id = GGMLQuantizationType(ggml.TYPE_IDS[entry.type_name])
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, raw_dtype=type_id
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(file, "ab") as stream:
        stream.write(bytes(-stream.tell() % ALIGNMENT))


class _Bpe(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[str | list[str]]


class _Added(msgspec.Struct):
    id: int
    content: str


class _Tokenizer(msgspec.Struct):
    """What a GGUF file tells of tokenizer.json."""

    model: _Bpe
    added_tokens: list[_Added]


def _add_tokenizer(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    data = read_object(checkpoint.path / TOKENIZER_NAME, MAX_TOKENIZER_BYTES)
    tokenizer = msgspec.convert(data, _Tokenizer)  # read_special_ids has looked at it
    by_id = {token_id: token for token, token_id in tokenizer.model.vocab.items()}
    control = {added.id: added.content for added in tokenizer.added_tokens}
    by_id.update(control)
    ids = range(checkpoint.geometry.vocab)
    unused = [i for i in ids if i not in by_id]
    by_id.update({i: f"[PAD{i}]" for i in unused})
    kinds = {i: TokenType.CONTROL for i in control} | {i: TokenType.UNUSED for i in unused}
    writer.add_tokenizer_model("gpt2")
    # llama.cpp's name for Digits(individual) + ByteLevel, the pre-tokenizer of StarCoder 1 and 2
    writer.add_tokenizer_pre("starcoder")
    writer.add_token_list([by_id[i] for i in ids])
    writer.add_token_types([kinds.get(i, TokenType.NORMAL) for i in ids])
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer.model.merges]
    writer.add_token_merges(merges)
    special = checkpoint.special_ids
    writer.add_bos_token_id(special.endoftext)
    writer.add_eos_token_id(special.endoftext)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_uint32(Keys.Tokenizer.FIM_PRE_ID, special.fim_prefix)
    writer.add_uint32(Keys.Tokenizer.FIM_SUF_ID, special.fim_suffix)
    writer.add_uint32(Keys.Tokenizer.FIM_MID_ID, special.fim_middle)
    writer.add_uint32(Keys.Tokenizer.FIM_PAD_ID, special.fim_pad)
    # llama.cpp looks these two up by names that StarCoder2 does not use
    writer.add_uint32(Keys.Tokenizer.FIM_REP_ID, special.repo_name)
    writer.add_uint32(Keys.Tokenizer.FIM_SEP_ID, special.file_sep)


def write_tensors(
    file: Path,
    source: TensorSource,
    entries: list[TensorEntry],
    importance: Mapping[str, np.ndarray],
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Append every tensor in order. At most two blocks of rows per core are in memory."""
    total = sum(entry.nbytes for entry in entries)
    remaining = itertools.islice(_row_blocks(source, entries, importance), ledger.jobs, None)
    with open(file, "ab") as stream:
        with (
            data_errors_as(CheckpointError, "use BF16, Q8_0 or a K-quant recipe"),
            closing(results_in_order(remaining)) as blocks,
        ):
            for block in blocks:
                progress("convert", ledger.add(stream, stream.write(block.data)), total)
        stream.flush()
        os.fsync(stream.fileno())
    progress("convert", total, total)


def _row_blocks(
    source: TensorSource, entries: list[TensorEntry], importance: Mapping[str, np.ndarray]
) -> Iterator[Callable[[], np.ndarray]]:
    """One job per block of rows, in file order; each tensor's last job is its padding."""
    for entry in entries:
        quantize = ggml.row_quantizer(entry.type_name, entry.source)
        if len(entry.shape) == 1:
            yield functools.partial(_pack_vector, source, entry, quantize)
        else:
            weights = importance.get(entry.name)
            rows_per_block = max(1, BLOCK_BYTES // (4 * entry.shape[1]))
            for start in range(0, entry.rows, rows_per_block):
                stop = min(start + rows_per_block, entry.rows)
                yield functools.partial(_pack_rows, source, entry, quantize, weights, start, stop)
        yield functools.partial(np.zeros, -entry.nbytes % ALIGNMENT, np.uint8)


def _pack_vector(
    source: TensorSource, entry: TensorEntry, quantize: ggml.RowQuantizer
) -> np.ndarray:
    return quantize(source.read(entry.source)[None, :], None)


def _pack_rows(
    source: TensorSource,
    entry: TensorEntry,
    quantize: ggml.RowQuantizer,
    weights: np.ndarray | None,
    start: int,
    stop: int,
) -> np.ndarray:
    return quantize(source.read_rows(entry.source, start, stop), weights)


def matrix_columns(checkpoint: Checkpoint) -> dict[str, int]:
    """Columns of every matrix inside the layers, by GGUF name: what an importance file covers."""
    source = open_tensors(checkpoint)
    shapes = {gguf_name(name): source.shape(name) for name in source.names()}
    return {
        name: shape[1]
        for name, shape in shapes.items()
        if len(shape) == 2 and name.startswith("blk.")
    }
