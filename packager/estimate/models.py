"""The published StarCoder2 models: shapes and windows as data, so that they can be planned for.

Files: profiles/models/NAME.json, from each model's published config.json. No weights are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from packager.core.errors import UsageError
from packager.core.package_data import profiles_folder, read_record
from packager.core.records import Geometry
from runtimes.contract import Window


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


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    geometry: Geometry
    window_tokens: int | None
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
    file = read_record(f"models/{name}.json", _File)
    return Model(
        file.name, file.geometry, Window(file.window_tokens), file.context_tokens, file.notes
    )
