"""GPTQ layer by layer, in a folder of unfinished work that a later run resumes.

It holds a file for each finished layer and the hidden states that go into the next one; both appear
under their names only when they are whole. Knows nothing of the format of the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packager.checkpoint.reference import gather_rows
from packager.checkpoint.shapes import EMBEDDING
from packager.checkpoint.tensors import TensorSource
from packager.core.records import Checkpoint, Progress
from packager.formats.gptq.layer import STEPS, LayerQuantizer, States, Tick
from packager.formats.quant.gptq_layout import Recipe

DAMPING = "damping"  # the largest one of a layer, beside its arrays


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
    named: dict[str, Any] = {
        f"{module}.{name}": getattr(packed, name)
        for module, packed in quantizer.packed.items()
        for name in packed.__slots__
    }
    named[DAMPING] = np.array(quantizer.damping)
    unfinished = file.with_suffix(".partial")
    with unfinished.open("wb") as stream:
        np.savez(stream, **named)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)
    before.file.unlink()
