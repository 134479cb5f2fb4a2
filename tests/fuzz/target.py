"""What a fuzz target is: a module of tests/fuzz/targets that hands bytes to one reader.

A file in that folder is a target; nothing lists them. Knows nothing of how inputs are made or
judged.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from runtimes.errors import UsageError
from tests.fuzz.forms import Form

FOLDER = Path(__file__).parent / "targets"
CORPUS = Path(__file__).parent / "corpus"


class Wrong(Exception):
    """An input was accepted that should not have been, or was read otherwise than it says.

    what: the same words for the same fault. detail: of this input.
    """

    def __init__(self, what: str, detail: object = "") -> None:
        super().__init__(f"{what}: {detail}")
        self.what = what


class Target(Protocol):
    """A module of the folder. SHARE: how many of 1,000 inputs of a short run it is worth.

    PROGRAMS: what the reader may start, by name; nothing where it is absent.
    """

    FORM: Form
    SHARE: int

    def seeds(self, folder: Path) -> list[bytes]:
        """Valid inputs; `folder` is empty, and is there as long as the target is run."""

    def run(self, data: bytes, folder: Path) -> None:
        """Read `data`; `folder` is empty, and deleted afterwards.

        Returns where it is accepted, and raises StarpackError where it is refused. Anything else
        is a finding, Wrong included.
        """


def names() -> list[str]:
    """Every target."""
    return sorted(file.stem for file in FOLDER.glob("[a-z]*.py"))


def load(name: str) -> Target:
    """The target of that name."""
    return cast(Target, importlib.import_module(f"tests.fuzz.targets.{name}"))


def programs(target: Target) -> frozenset[str]:
    """What its reader may start."""
    return frozenset(getattr(target, "PROGRAMS", ()))


def corpus(name: str) -> dict[str, bytes]:
    """What was found before, by file name."""
    return {file.name: file.read_bytes() for file in sorted((CORPUS / name).glob("*"))}


def write_beside(data: bytes, seed: Path, folder: Path) -> None:
    """Copy the folder `seed` to `folder`, with the one file that `data` names as `data` has it."""
    name, content = split_file(data)
    if not (seed / name.replace("\0", "/")).is_file():  # only guided inputs change the name
        raise UsageError("no such input")
    for file in seed.rglob("*"):
        copy = folder / file.relative_to(seed)
        if file.is_dir():
            copy.mkdir(exist_ok=True)
        elif file.relative_to(seed).as_posix() != name:
            copy.write_bytes(file.read_bytes())
    (folder / name).write_bytes(content)


def split_file(data: bytes) -> tuple[str, bytes]:
    """(name, content) of an input that is one of several files: its first line is the name."""
    name, _, content = data.partition(b"\n")
    return name.decode("latin-1"), content


def one_of(name: str, content: bytes) -> bytes:
    """Law: split_file(one_of(name, content)) == (name, content)."""
    return name.encode("latin-1") + b"\n" + content


def json_bytes(value: Mapping[str, object]) -> bytes:
    """A seed."""
    return json.dumps(value).encode()
