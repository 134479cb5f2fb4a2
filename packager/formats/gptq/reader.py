"""A folder of GPTQ weights as a source of codes: whoever made it, in the layout that many read.

Settings, shapes and groups are checked before a code is believed. Weights come as blocks of
neighbouring inputs; in act-order files, with the order of the inputs.
Knows nothing of what the codes are for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packager.checkpoint.json_files import read_object
from packager.checkpoint.safetensors_reader import Shards, open_folder
from packager.core.errors import CheckpointError, data_errors_as
from packager.core.hash_cache import combined_sha256, hash_entries
from packager.formats.quant.blocks import Blocks
from packager.formats.quant.gptq_layout import WORD_BITS, unpack_codes, unpack_zeros

CONFIG_NAME, SETTINGS_NAME = "config.json", "quantize_config.json"
BITS = (4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
ROW_GROUP = 128  # one scale for a whole row is the same scale for each of its blocks
WHOLE_ROW = -1  # specified: how the settings say so


@dataclass(frozen=True, slots=True)
class GptqWeights:
    """The quantised linears of one folder.

    stored_group: inputs that share a scale in the file, or WHOLE_ROW. group: in the blocks that
    it returns. version: 1 stores a zero point less one, 2 as it is.
    """

    shards: Shards
    bits: int
    stored_group: int
    version: int

    @property
    def group(self) -> int:
        """Inputs of one block."""
        return ROW_GROUP if self.stored_group == WHOLE_ROW else self.stored_group

    def blocks(self, module: str, shape: tuple[int, ...]) -> Blocks:
        """The weights of a linear (outputs, inputs), inputs in the order that `order` gives.

        Raises CheckpointError where an array is missing, contradicts `shape` or the settings, or
        holds what has no code.
        """
        outputs, inputs = shape
        groups = self._groups(module, shape)
        scales = self._array(module, "scales", "float16", (groups, outputs)).T.astype(np.float32)
        zeros = self.zeros(module, shape)
        if not np.isfinite(scales).all():
            raise self._bad(module, "a scale is not finite")
        words = (inputs * self.bits // WORD_BITS, outputs)
        codes = unpack_codes(self._array(module, "qweight", "int32", words), self.bits)
        order = self.order(module, shape)
        if order is not None:
            codes = codes[:, order]
        repeats = inputs // self.group // groups
        return Blocks(codes, np.repeat(scales, repeats, 1), np.repeat(zeros, repeats, 1))

    def matrix(self, module: str, shape: tuple[int, ...]) -> np.ndarray:
        """What a linear's codes stand for, float32 (outputs, inputs), inputs as they came."""
        order, values = self.order(module, shape), self.blocks(module, shape).weights()
        return values if order is None else values[:, np.argsort(order)]

    def zeros(self, module: str, shape: tuple[int, ...]) -> np.ndarray:
        """Zero points uint8 (outputs, groups of the file)."""
        words = (self._groups(module, shape), shape[0] * self.bits // WORD_BITS)
        zeros = unpack_zeros(self._array(module, "qzeros", "int32", words), self.bits)
        if self.version == 2:
            zeros -= np.uint8(1)
        if zeros.max() >= 1 << self.bits:
            raise self._bad(module, "it has the zero point 0, which version 1 cannot store")
        return zeros

    def order(self, module: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """int64 (inputs,): inputs group by group; None where they lie so already."""
        groups, inputs = self._groups(module, shape), shape[1]
        groups_of = self._array(module, "g_idx", "int32", (inputs,))
        if groups_of.min() < 0 or groups_of.max() >= groups:
            raise self._bad(module, "g_idx points outside", f"groups 0 to {groups - 1}")
        size = inputs // groups
        if (np.bincount(groups_of, minlength=groups) != size).any():
            raise self._bad(module, "its groups are of unequal sizes", f"{size} inputs in each")
        order = np.argsort(groups_of, kind="stable")
        return None if (np.diff(order) == 1).all() else order

    def _groups(self, module: str, shape: tuple[int, ...]) -> int:
        outputs, inputs = shape
        if inputs % self.group or outputs * self.bits % WORD_BITS:
            raise self._bad(module, f"{shape} does not divide into groups of {self.group}")
        return 1 if self.stored_group == WHOLE_ROW else inputs // self.group

    def _array(self, module: str, part: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        entry = self.shards.entries.get(f"{module}.{part}")
        if entry is None:
            raise self._bad(module, f"{part} is missing")
        if (entry.dtype, entry.shape) != (dtype, shape):
            raise self._bad(module, f"{part} is {entry.dtype} {entry.shape}", f"{dtype} {shape}")
        return self.shards.read_stored(f"{module}.{part}")

    def _bad(self, module: str, what: str, expected: str = "a file of this model") -> Exception:
        return CheckpointError(
            f"the GPTQ weights of {module} cannot be taken: {what}",
            where=self.shards.files[0].parent,
            expected=expected,
            remedy="quantise this checkpoint again, or use a recipe that needs no GPTQ weights",
        )


def open_gptq(folder: Path) -> GptqWeights:
    """Read a folder's settings and headers; CheckpointError where they are not GPTQ as known."""
    settings = _settings(folder)
    format = settings.get("checkpoint_format", "gptq")
    wanted: dict[str, tuple[object, ...]] = {
        "quant_method": ("gptq", None),
        "bits": BITS,
        "group_size": (*GROUPS, WHOLE_ROW),
        "checkpoint_format": ("gptq", "gptq_v2", None),
        "pack_dtype": ("int32", None),
        "lm_head": (False, None),
    }
    for key, values in wanted.items():
        found = settings.get(key)
        if not any(found == value and type(found) is type(value) for value in values):
            raise CheckpointError(
                f"the GPTQ setting {key} is {found!r}",
                where=folder,
                expected=f"one of {', '.join(str(v) for v in values if v is not None)}",
                remedy="quantise with these settings, or use a recipe that needs no GPTQ weights",
            )
    shards = open_folder(folder, codes=True)
    version = 2 if format == "gptq_v2" else 1
    return GptqWeights(shards, settings["bits"], settings["group_size"], version)


def gptq_sha256(folder: Path) -> str:
    """What a folder is known by: its settings and all its weights."""
    weights = open_gptq(folder).shards.files
    files = [file for name in (SETTINGS_NAME, CONFIG_NAME) if (file := folder / name).is_file()]
    files += weights
    with data_errors_as(CheckpointError, "check the disk, or quantise the checkpoint again"):
        return combined_sha256(hash_entries(files))


def _settings(folder: Path) -> dict[str, Any]:
    if os.path.lexists(folder / SETTINGS_NAME):
        return read_object(folder / SETTINGS_NAME)
    settings = read_object(folder / CONFIG_NAME).get("quantization_config")
    if not isinstance(settings, dict):
        raise CheckpointError(
            "no GPTQ settings",
            where=folder,
            expected=f"{SETTINGS_NAME}, or quantization_config in {CONFIG_NAME}",
            remedy="name a folder that `starpack convert --formats gptq` or GPTQModel wrote",
        )
    return settings
