"""Where an artifact came from, for the manifest: files, calibration, and what was asked for.

No path, time or user: of a path that was given only its last part is recorded, and nothing that
says where the output went, so that the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packager import formats
from packager.checkpoint.config import CONFIG_NAME
from packager.checkpoint.safetensors_reader import open_folder
from packager.checkpoint.tokenizer import TOKENIZER_NAME
from packager.core.errors import CheckpointError, data_errors_as
from packager.core.hash_cache import hash_entries
from packager.core.records import Checkpoint

NAMES_OR_FILES = frozenset({"budget", "device"})  # of a file, the last part is enough
# What says where output goes and how it is shown, not what is made.
NOT_RECORDED = frozenset({"archive", "command", "json", "out", "quiet", "split"})


def provenance_of(
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest's `provenance` gets beside what packing knows itself.

    arguments: the command's, as `recorded` gives them. The hashes of files are remembered, not
    computed twice.
    """
    names = [checkpoint.path / CONFIG_NAME, checkpoint.path / TOKENIZER_NAME]
    with data_errors_as(CheckpointError, "check the disk, or fetch the checkpoint again"):
        entries = hash_entries([*names, *open_folder(checkpoint.path).files])
    return {
        "checkpoint_files": [asdict(entry) for entry in sorted(entries, key=lambda e: e.path)],
        "arguments": dict(arguments),
    }


def calibration_sha256(format: str, calibrations: Mapping[str, Path]) -> str | None:
    """Of what the format was calibrated on, if on anything.

    calibrations: by format, the file or folder that was learned from.
    """
    calibration = calibrations.get(format)
    if calibration is None:
        return None
    return formats.load(format).calibration_sha256(calibration)


def recorded(arguments: Mapping[str, object]) -> dict[str, Any]:
    """The flags of a command that have a say in what is made, those left at nothing aside."""
    return {
        name: _plain(Path(str(value)) if name in NAMES_OR_FILES else value)
        for name, value in sorted(arguments.items())
        if name not in NOT_RECORDED and value not in (None, False, [], ())
    }


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return value.resolve().name
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
    return value if isinstance(value, (str, int, float, bool)) else str(value)
