"""Records on disk: every finished stage writes one, keyed by its inputs, and is never redone.

Law: `from_plain(type(record), to_plain(record)) == record`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from packager.core.atomic import write_json
from packager.core.errors import DataError
from packager.core.strict_json import read_object

Record = TypeVar("Record")

MAX_RECORD_BYTES = 64 << 20  # guessed: raw times of a long measurement are some hundred KB


def to_plain(value: object) -> Any:
    """A record as JSON values: dataclasses become objects, paths text, tuples lists."""
    return json.loads(json.dumps(msgspec.to_builtins(value, enc_hook=_plain)))


def from_plain(kind: type[Record], value: object) -> Record:
    """A record of `kind`. Raises ValueError where a value is of another type, or not of it."""
    record = msgspec.convert(value, kind, dec_hook=_typed)
    _check_known(value, to_plain(record))
    return record


def _plain(value: object) -> object:
    match value:
        case Path():
            return str(value)
        case float():  # numpy's own
            return float(value)
    raise TypeError(f"a record holds a {type(value).__name__}")


def _typed(kind: type, value: Any) -> object:
    if kind is Path:
        return Path(value)
    raise TypeError(f"a record cannot hold a {kind.__name__}")


def _check_known(found: object, known: object) -> None:
    """Raise ValueError for a key that the record does not have, which msgspec ignores."""
    match found, known:
        case dict(), dict():
            for key, item in found.items():
                if key not in known:
                    raise ValueError(f"a record of this kind has no {key!r}")
                _check_known(item, known[key])
        case list(), list():
            for pair in zip(found, known, strict=True):
                _check_known(*pair)


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
        stage: str,
        inputs: Mapping[str, Any],
        kind: type[Record],
        make: Callable[[], Record],
        *,
        valid: Callable[[Record], bool] = lambda record: True,
    ) -> Record:
        """The record of this stage for these inputs: the one on disk if `valid`, or a new one."""
        file = self.out / "records" / f"{stage}-{self.key(inputs)}.json"
        if file.is_file():
            try:
                record = from_plain(kind, read_object(file, MAX_RECORD_BYTES)["result"])
                if valid(record):
                    return record
            except (DataError, KeyError, ValueError):
                pass  # a record of another version, or damaged: made again
        record = make()
        write_json(file, {"stage": stage, "inputs": to_plain(inputs), "result": to_plain(record)})
        return record
