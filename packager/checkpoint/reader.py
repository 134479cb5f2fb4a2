"""Read a Hugging Face StarCoder2 folder strictly, or say why it cannot be converted exactly.

Configuration, tokenizer and tensors are each checked, and then against each other. Reads no
weight beyond what hashing needs; values are checked as they stream. Knows nothing of formats.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from packager.checkpoint.config import CONFIG_NAME, read_config
from packager.checkpoint.json_files import read_object
from packager.checkpoint.lora import adapter_files, merge_adapter
from packager.checkpoint.safetensors_reader import Shards, open_folder
from packager.checkpoint.shapes import EMBEDDING, HEAD, tensor_shapes
from packager.checkpoint.tokenizer import TOKENIZER_NAME, read_special_ids
from packager.core.errors import CheckpointError, data_errors_as
from packager.core.hash_cache import combined_sha256, hash_entries
from packager.core.records import Adapter, Checkpoint, Geometry, Progress, no_progress
from runtimes.contract import Window
from runtimes.trust.entries import FileEntry

FETCH_RECORD_NAME = "starpack-fetch.json"

BYTES_PER_PARAMETER = {"fp32": 4.0, "fp16": 2.0, "8-bit": 1.0, "4-bit": 0.5}
KV_BYTES = 2  # a key or value in fp16


def read_checkpoint(
    path: Path,
    *,
    adapter: Path | None = None,
    hash_files: bool = True,
    progress: Progress = no_progress,
) -> Checkpoint:
    """Read and check the checkpoint in folder `path`, with the PEFT LoRA in folder `adapter`.

    With `hash_files` every byte of it is read once, and remembered (see hash_cache.py). Raises
    CheckpointError naming what is wrong, where, what was expected and the remedy.
    """
    if not path.is_dir():
        raise CheckpointError(
            "not a folder",
            where=path,
            expected="a Hugging Face StarCoder2 folder",
            remedy="name the folder that holds config.json, or use `starpack fetch`",
        )
    config = read_config(path)
    special_ids = read_special_ids(path, config.geometry.vocab)
    shards = open_folder(path)
    _check_tensors(shards, config.geometry, path)
    geometry = config.geometry
    if adapter is not None and merge_adapter(shards, adapter).unties:
        geometry = replace(geometry, tied=False)
    dtypes = {shards.dtype(name) for name in shards.names()}
    sha256 = adapter_sha256 = ""
    entries: list[FileEntry] = []
    if hash_files:
        own = [path / CONFIG_NAME, path / TOKENIZER_NAME, *shards.files]
        merged = [] if adapter is None else adapter_files(adapter)
        sha256, adapter_sha256, entries = _hashes(own, merged, progress)
    return Checkpoint(
        path=path,
        revision=_revision(path, entries),
        sha256=sha256,
        window=config.window,
        context_tokens=config.context_tokens,
        special_ids=special_ids,
        geometry=geometry,
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        adapter=None if adapter is None else Adapter(adapter, adapter_sha256),
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `starpack inspect` shows, as plain data.

    Weights are nominal: parameters times bits, without a format's scales. Keys and values are in
    fp16.
    """
    geometry, context = checkpoint.geometry, checkpoint.context_tokens
    return {
        "path": str(checkpoint.path),
        "revision": checkpoint.revision,
        "sha256": checkpoint.sha256 or None,
        "dtype": checkpoint.dtype,
        "adapter": None if checkpoint.adapter is None else str(checkpoint.adapter.path),
        "parameters": geometry.parameters,
        "geometry": asdict(geometry),
        "window_tokens": checkpoint.window.size_tokens,
        "reach_tokens": checkpoint.window.reach_tokens(geometry.layers),
        "context_tokens": context,
        "kv_fp16_bytes": {
            "per_token": geometry.position_bytes(KV_BYTES),
            "at_window": geometry.key_value_bytes(checkpoint.window, context, KV_BYTES),
            "at_context_without_window": geometry.key_value_bytes(Window(None), context, KV_BYTES),
        },
        "weights_bytes": {
            name: round(geometry.parameters * size) for name, size in BYTES_PER_PARAMETER.items()
        },
    }


def _check_tensors(shards: Shards, geometry: Geometry, path: Path) -> None:
    """Just the tensors of the geometry, in its shapes; a stored tied head must be the embedding."""
    wanted = tensor_shapes(geometry)
    stored = set(shards.names())
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise _bad_tensors(path, f"{missing[0]} is missing ({len(missing)} are)", "every tensor")
    extra = sorted(stored - set(wanted) - {HEAD})
    if extra:
        raise _bad_tensors(
            path, f"{extra[0]} is no tensor of this model ({len(extra)} are not)", "no other tensor"
        )
    for name, shape in wanted.items():
        if shards.shape(name) != shape:
            raise _bad_tensors(
                path, f"{name} has shape {shards.shape(name)}", f"{shape}, as config.json says"
            )
    if geometry.tied and HEAD in stored and not shards.same_bytes(HEAD, EMBEDDING):
        raise CheckpointError(
            f"config.json ties the head to the embedding, but {HEAD} is stored and differs",
            where=path,
            expected="equal bytes, or tie_word_embeddings false",
            remedy="if the head was trained apart, set tie_word_embeddings to false in config.json",
        )


def _bad_tensors(path: Path, what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=path,
        expected=expected,
        remedy="config.json and the weights must be of one StarCoder2 model: fetch both again",
    )


def _hashes(
    own: Sequence[Path], merged: Sequence[Path], progress: Progress
) -> tuple[str, str, list[FileEntry]]:
    """(SHA-256 of all, SHA-256 of the adapter's or "", the checkpoint's own files)."""
    with data_errors_as(CheckpointError, "check the disk, or fetch the checkpoint again"):
        entries = hash_entries([*own, *merged], progress)
    rest = entries[len(own) :]
    return combined_sha256(entries), combined_sha256(rest) if rest else "", entries[: len(own)]


def _revision(path: Path, entries: Sequence[FileEntry]) -> str | None:
    """The commit that `starpack fetch` recorded; "+modified" where a hashed file has changed."""
    file = path / FETCH_RECORD_NAME
    if not os.path.lexists(file):
        return None
    record = read_object(file)
    commit, files = record.get("commit"), record.get("files")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise _bad_record(file, f"commit is {str(commit)[:100]!r}")
    if not isinstance(files, list) or not all(
        isinstance(item, dict) and isinstance(item.get("path"), str) for item in files
    ):
        raise _bad_record(file, "files is not a list of files")
    fetched = {item["path"]: item.get("sha256") for item in files}
    changed = any(fetched.get(entry.path) != entry.sha256 for entry in entries)
    return f"{commit}+modified" if changed else commit


def _bad_record(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=file,
        expected="the record that `starpack fetch` wrote",
        remedy="fetch again, or delete the record: the revision is then unknown",
    )
