"""The published StarCoder2 models: shapes and windows as data, so that they can be planned for.

Files: profiles/models/NAME.json, from each model's published config.json. No weights are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.core.errors import UsageError
from packager.core.package_data import profiles_folder
from packager.core.records import Geometry
from packager.core.strict_json import read_object
from runtimes.contract import Window

MAX_MODEL_BYTES = 1 << 16  # guessed: ours have 1 KB


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model before any of its weights is here.

    notes: what a reader has to be told before they choose it.
    """

    name: str
    geometry: Geometry
    window: Window
    context_tokens: int
    notes: tuple[str, ...]


def model_names() -> list[str]:
    """The names that load_model knows, the smallest model first."""
    files = (profiles_folder() / "models").glob("*.json")
    return sorted((file.stem for file in files), key=lambda name: (len(name), name))


def load_model(name: str) -> Model:
    """The published model "3b", "7b" or "15b". Raises UsageError for another name."""
    if name not in model_names():
        raise UsageError(
            f"unknown model {name!r}",
            expected=f"one of {', '.join(model_names())}, or the folder of a checkpoint",
        )
    file: Path = profiles_folder() / "models" / f"{name}.json"
    data = read_object(file, MAX_MODEL_BYTES)
    return Model(
        data["name"],
        Geometry(**data["geometry"]),
        Window(data["window_tokens"]),
        data["context_tokens"],
        tuple(data["notes"]),
    )
