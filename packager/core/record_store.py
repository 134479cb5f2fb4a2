"""Records on disk: every finished hop writes one, keyed by its inputs, and is never redone.

Law: `from_plain(type(record), to_plain(record)) == record`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from packager.core.atomic import write_json

Record = TypeVar("Record")


def to_plain(value: Any) -> Any:
    """A record as JSON values: dataclasses become objects, paths text, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """Build a value of the annotated type `kind`. Raises TypeError, KeyError or ValueError."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_plain(hints[name], item) for name, item in value.items()})
    if kind is Path:
        return Path(value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return from_plain(next(a for a in arguments if a is not types.NoneType), value)
    if origin is tuple:
        return tuple(from_plain(arguments[0], item) for item in value)
    return value


class Store:
    """The records below one output folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def key(self, inputs: Mapping[str, Any]) -> str:
        """A short name for these inputs: equal inputs, equal key."""
        text = json.dumps(to_plain(inputs), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def resume(
        self,
        hop: str,
        inputs: Mapping[str, Any],
        kind: type[Record],
        make: Callable[[], Record],
        *,
        sound: Callable[[Record], bool] = lambda record: True,
    ) -> Record:
        """The record of this hop for these inputs: the one on disk if `sound`, or a new one."""
        file = self.out / "records" / f"{hop}-{self.key(inputs)}.json"
        if file.is_file():
            try:
                record = from_plain(kind, json.loads(file.read_bytes())["result"])
                if sound(record):
                    return record
            except (ValueError, KeyError, TypeError, AttributeError):
                pass  # a record of another version, or damaged: made again
        record = make()
        write_json(file, {"hop": hop, "inputs": to_plain(inputs), "result": to_plain(record)})
        return record
