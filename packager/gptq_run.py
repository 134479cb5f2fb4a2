"""GPTQ layer by layer, in a folder of unfinished work that a later run goes on from.

The folder lies beside the result and is named by what went into it. It holds a file for each
finished layer and the hidden states that go into the next one; both appear under their names only
when they are whole. What other versions have left behind is removed by the next run.
Knows nothing of the format of the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from packager.errors import CheckpointError, UsageError
from packager.files import write_json
from packager.gptq_layer import STEPS, LayerQuantizer, States, Tick
from packager.layout import EMBEDDING
from packager.quant.gptq_layout import Recipe
from packager.records import Checkpoint, Progress
from packager.reference import gather_rows
from packager.tensors import TensorSource

DAMPING = "damping"  # the largest one of a layer, beside its arrays
INPUTS_NAME = "inputs.json"  # what a work folder is for
WORK_FOLDER = re.compile(r".+\.[0-9a-f]{12}\.work")
WORK_FILES = re.compile(r"lock|layer-\d+\.(npz|partial)|states-\d+\.(f32|partial)|inputs\.json.*")


@contextmanager
def work_folder(out: Path, inputs: Mapping[str, object]) -> Iterator[Path]:
    """The folder for these inputs beside `out`, for this run alone; kept where it is interrupted.

    Raises UsageError where another run has it.
    """
    assert inputs["checkpoint"], "work on a checkpoint without a hash cannot be told apart"
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    folder = out.with_name(f"{out.name}.{key}.work")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        if not _locked(lock):
            raise UsageError(
                "another run is making the same artifact",
                where=folder,
                expected="one run at a time",
                remedy="wait for it to end, or use another --out",
            )
        write_json(folder / INPUTS_NAME, inputs)
        _remove_useless(out.parent, inputs["writer"])
        try:
            yield folder
        except CheckpointError:  # to go on from there would end there again
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _locked(lock: TextIO) -> bool:
    """Take the lock that a run holds on its folder; whether nobody else has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_useless(parent: Path, writer: object) -> None:
    """Remove work of other versions, which this one cannot go on from, where no run is at it.

    Work of this version on other inputs stays: the same command goes on from there. A folder with
    anything in it that a run does not write is somebody else's.
    """
    for folder in parent.glob("*.work"):
        with suppress(FileNotFoundError, NotADirectoryError):  # another run may remove it too
            names = {file.name for file in folder.iterdir()}
            ours = WORK_FOLDER.fullmatch(folder.name) and all(map(WORK_FILES.fullmatch, names))
            # one that has just been made holds a lock at the most
            if ours and names > {"lock"} and _writer_of(folder) != writer:
                with (folder / "lock").open("a") as lock:
                    if _locked(lock):
                        shutil.rmtree(folder)


def _writer_of(folder: Path) -> object:
    """The version that a work folder is of; None for one from before they said so."""
    try:
        return json.loads((folder / INPUTS_NAME).read_bytes())["writer"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def quantize_layers(
    checkpoint: Checkpoint,
    tensors: TensorSource,
    recipe: Recipe,
    sequences: Sequence[np.ndarray],
    work: Path,
    progress: Progress,
) -> list[Path]:
    """Quantise every layer that `work` does not have yet; their files, in order.

    Each is a numpy archive of `MODULE.ARRAY` (see quant/gptq_layout.py) and DAMPING.
    """
    layers = checkpoint.geometry.layers
    files = [work / f"layer-{layer}.npz" for layer in range(layers)]
    per_layer = STEPS * (len(sequences) + 1)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("quantise", done, layers * per_layer)

    first = next((i for i, file in enumerate(files) if not file.exists()), layers)
    if first == 0:
        _embed(tensors, sequences, _states(work, 0, checkpoint, sequences))
    for layer in range(first, layers):
        done = layer * per_layer
        before, after = (_states(work, i, checkpoint, sequences) for i in (layer, layer + 1))
        _quantize_layer(checkpoint, tensors, layer, recipe, before, after, files[layer], tick)
    return files


def _states(
    work: Path, layer: int, checkpoint: Checkpoint, sequences: Sequence[np.ndarray]
) -> States:
    """The states that go into `layer`."""
    lengths = tuple(map(len, sequences))
    return States(work / f"states-{layer}.f32", lengths, checkpoint.geometry.hidden)


def _embed(tensors: TensorSource, sequences: Sequence[np.ndarray], states: States) -> None:
    with states.written() as partial:
        for i, ids in enumerate(sequences):
            partial.write(i, torch.from_numpy(gather_rows(tensors, EMBEDDING, ids)))


def _quantize_layer(
    checkpoint: Checkpoint,
    tensors: TensorSource,
    layer: int,
    recipe: Recipe,
    before: States,
    after: States,
    file: Path,
    tick: Tick,
) -> None:
    """Make `after` and then `file` from `before`, which is deleted: never are all three lost."""
    quantizer = LayerQuantizer(checkpoint, tensors, layer, recipe, tick)
    with after.written() as partial:
        quantizer.run(before, partial)
    arrays = {
        f"{module}.{name}": getattr(packed, name)
        for module, packed in quantizer.packed.items()
        for name in packed.__slots__
    }
    unfinished = file.with_suffix(".partial")
    with unfinished.open("wb") as stream:
        np.savez(stream, **arrays, **{DAMPING: np.array(quantizer.damping)})
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)
    before.file.unlink()
