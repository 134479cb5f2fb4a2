"""What others know of a format: a Format, satisfied by the module packager/formats/NAME/format.py.

A folder here with that module is a format, and one in runtimes/backends with a module `backend`
runs it; nothing else names either. The module `format` is light: recipes, sizes and words, without
the libraries that write or run a model. `convert` imports those when it is called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

from packager.core.errors import UsageError
from packager.core.records import Artifact, Checkpoint, Device, Geometry, Progress, Variant
from runtimes.contract import Window

CHUNK_TOKENS = 512  # BackendOptions' own: most tokens of one forward


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a format may learn from text: the flag that names the file or folder, and its help."""

    flag: str
    help: str


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs a format on the device, as the estimate knows it.

    name: of the constant launch_NAME (packager/estimate/constants.py). launch_us: that constant
    where no row was fitted, guessed; None where it is fitted. spread: the intervals in
    profiles/estimate.json that judge it. calibrated_by: how `starpack device calibrate` names the
    engine; None where it does not run it. makes_code: whether it writes machine code as it runs.
    """

    name: str
    launch_us: float | None
    spread: str
    calibrated_by: str | None
    makes_code: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is opened. device: None for a CPU of which nothing is known."""

    context_tokens: int
    chunk_tokens: int = CHUNK_TOKENS
    device: Device | None = None

    @property
    def gpu(self) -> bool:
        """Whether all of the model is on a GPU."""
        return self.device is not None and self.device.kind != "cpu"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an open variant takes, and what it does for each token.

    weights_bytes: all copies. library_bytes: what the engine itself takes. streamed_bytes: of the
    weights, read for each token. value_bytes: of a key or a value. attended_cells: most positions
    that attention goes through for a token. rewinds: whether the cache can go back past the window.
    family, product: of the weights, and of products of many rows (packager/estimate/time_model.py).
    """

    weights_bytes: int
    key_values_bytes: int
    compute_bytes: int
    library_bytes: int
    streamed_bytes: int
    value_bytes: int
    attended_cells: int
    family: str
    product: str
    rewinds: bool = True


@runtime_checkable
class Format(Protocol):
    """One way to store a model, and all that the other rooms ask of it.

    METHOD: how it quantises, for the model's card. RECIPE_HELP, HEAD_BITS_HELP: for `--formats` and
    `--head-bits`; the latter "" where the recipe decides. DEFAULT_RECIPES: those of the format's
    bare name. WORTH: those that `starpack plan` considers. WORK_FILES: names of the files of
    unfinished work. DEPLOY_FILES: of bundle/files/deploy, those for this format alone.
    """

    NAME: str
    VERSION: int
    METHOD: str
    RECIPE_HELP: str
    HEAD_BITS_HELP: str
    DEFAULT_RECIPES: tuple[str, ...]
    WORTH: tuple[str, ...]
    WORK_FILES: re.Pattern[str]
    DEPLOY_FILES: frozenset[str]
    CALIBRATION: Calibration | None
    ENGINE: Engine

    def variant(self, recipe: str, head_bits: int | None = None, /) -> Variant:
        """The variant of a recipe by its name; UsageError for another name."""

    def convert(
        self,
        checkpoint: Checkpoint,
        variant: Variant,
        out: Path,
        /,
        *,
        calibration: Path | None,
        progress: Progress,
    ) -> Artifact:
        """Write the artifact's files into the folder `out`, which appears when it is complete."""

    def calibration_sha256(self, path: Path, /) -> str:
        """What the file or folder that CALIBRATION names is known by."""

    def tensor_bytes(self, geometry: Geometry, variant: Variant, /) -> Mapping[str, int]:
        """Bytes of each tensor of the files by its name there, without padding."""

    def footprint(
        self, geometry: Geometry, variant: Variant, window: Window, setting: Setting, /
    ) -> Footprint:
        """What the variant takes once it is open."""

    def unsupported(self, variant: Variant, device: Device, /) -> str | None:
        """Why a device has no kernel for the variant; None where it has."""

    def engine_wheels(self, out: Path, progress: Progress, /) -> list[Path]:
        """Wheels of the engine that are on no index, built into the folder `out`."""


def names() -> list[str]:
    """Every format's name: folders of this package that hold a module `format`."""
    folders = map(Path, __path__)
    return sorted({file.parent.name for folder in folders for file in folder.glob("*/format.py")})


@cache
def load(name: str) -> Format:
    """The format of that name. Raises UsageError for a name that is not there."""
    if name not in names():
        raise UsageError(
            f"unknown format {name!r}",
            expected=f"one of {', '.join(names())}, then :RECIPE if you like",
            remedy="for example --formats gguf:Q4_K_M,gguf:Q8_0",
        )
    module = import_module(f"packager.formats.{name}.format")
    assert isinstance(module, Format), f"{module.__name__} lacks an attribute of Format"
    return module
