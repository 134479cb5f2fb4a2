"""A device or a budget from its JSON file, ours by name or the user's by path.

Checks the form against `profiles/KIND.schema.json` and says in plain words what is wrong. Knows
nothing of what the values mean, but for the units that end their keys.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match

from packager.core.errors import DataError, UsageError
from packager.core.package_data import profiles_folder, read_schema
from packager.core.strict_json import read_object

# Ends of keys, the longer ones first, and how a value in that unit is written.
UNITS = {
    "bytes_per_s": "bytes per second: 320 GB/s are 320000000000",
    "flops_per_s": "operations per second: 65 TFLOPS are 65000000000000",
    "ops_per_s": "operations per second: 130 TOPS are 130000000000000",
    "bytes": "bytes: 8 GiB are 8589934592",
    "tokens": "tokens",
    "nats": "nats",
    "s": "seconds: 150 ms are 0.15",
}
UNIT_LIKE = {"ms", "us", "sec", "seconds", "kb", "mb", "gb", "kib", "mib", "gib", "tflops", "tops"}


def slug(text: str) -> str:
    """A name as `--device` and `--budget` take it: "RTX 3060 12GB" is rtx-3060-12gb."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def names(kind: str) -> list[str]:
    """The names of our own files of `kind`, "device" or "budget"."""
    return sorted(file.stem for file in _folder(kind).glob("*.json"))


def builtin_file(kind: str, name: str) -> Path:
    """Where our file of that name is, or would be."""
    return _folder(kind) / f"{name}.json"


def is_path(wanted: str | Path) -> bool:
    """Whether a file is meant, and not a name of ours."""
    return isinstance(wanted, Path) or os.sep in wanted or wanted.endswith(".json")


def read_profile(kind: str, file: Path) -> dict[str, Any]:
    """The checked content of `file`. Raises UsageError: what, where, expected, remedy."""
    if not file.is_file():
        raise UsageError(
            f"there is no such {kind} file",
            where=file,
            expected="a JSON file, or a name without .json and /",
            remedy=f"check the path; the names are those of the files in {_folder(kind)}",
        )
    try:
        data = read_object(file)
    except DataError as error:
        raise UsageError(
            f"the {kind} file cannot be used: {error.what}",
            where=file,
            expected=error.expected,
            remedy=f"repair it, or start from a copy of one in {_folder(kind)}",
        ) from None
    check_profile(kind, data, file)
    return data


def check_profile(kind: str, data: dict[str, Any], where: object) -> None:
    """Raise UsageError where `data` is not as the schema of `kind` has it."""
    error = best_match(_validator(kind).iter_errors(data))
    if error is not None:
        raise _explained(kind, error, where)


def unknown_name(kind: str, wanted: str, known: list[str]) -> UsageError:
    """The error for a name that is not ours, with those that are like it."""
    near = difflib.get_close_matches(slug(wanted), known, n=5, cutoff=0.5)
    return UsageError(
        f"no {kind} is called {wanted!r}",
        expected=f"a name such as {', '.join(near or names(kind)[:5])}",
        remedy=f"take one of the {len(names(kind))} in {_folder(kind)}, or give the path of a file "
        "of your own (NAME.json)",
    )


def _folder(kind: str) -> Path:
    return profiles_folder() / f"{kind}s"


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(read_schema(kind))


def _explained(kind: str, error: jsonschema.ValidationError, where: object) -> UsageError:
    path = ".".join(map(str, error.absolute_path))
    instance: Any = error.instance
    known = list(error.schema.get("properties", ())) if isinstance(error.schema, Mapping) else []
    if error.validator == "additionalProperties":
        key = next(key for key in instance if key not in known)
        within = f" in {path!r}" if path else ""
        return UsageError(
            f"the {kind} has an unknown key {key!r}{within}",
            where=where,
            expected=f"one of {', '.join(known)}",
            remedy=_meant(key, known),
        )
    if error.validator == "required":
        required: Any = error.validator_value
        missing = next(key for key in required if key not in instance)
        full = f"{path}.{missing}" if path else missing
        return UsageError(
            f"the {kind} lacks {full!r}", where=where, expected=f"a value for {full!r}",
            remedy=_in_unit(full) or f"add it; a file in {_folder(kind)} shows how it looks",
        )  # fmt: skip
    if instance is None:
        remedy = "leave the key out where it does not apply"
    elif error.validator == "type" and known:
        inner = ", ".join(f'"{key}": ...' for key in known)
        remedy = f"write {{{inner}}}" + (f"; {_in_unit(path)}" if _in_unit(path) else "")
    else:
        remedy = _in_unit(path) or f"see the description in {kind}.schema.json"
    return UsageError(
        f"the {kind}'s {path!r} is {_short(instance)}",
        where=where,
        expected=_wanted(error),
        remedy=remedy,
    )


def _wanted(error: jsonschema.ValidationError) -> str:
    value: Any = error.validator_value
    match error.validator:
        case "type":
            return f"a JSON {value}" if isinstance(value, str) else f"a JSON {' or '.join(value)}"
        case "minimum":
            return f"at least {value:g}"
        case "exclusiveMinimum":
            return f"more than {value:g}"
        case "maximum":
            return f"at most {value:g}"
        case "enum":
            return f"one of {', '.join(map(str, value))}"
        case "const":
            return repr(value)
        case "pattern":
            return f"text like {value}"
    return error.message


def _meant(key: str, known: list[str]) -> str:
    """What a misspelt key may have been: the same with another unit, or one that looks like it."""
    stem = _stem(key)
    near = [name for name in known if stem and _stem(name) == stem]
    near = near or difflib.get_close_matches(key, known, n=1)
    if not near:
        return "leave it out"
    unit = _in_unit(near[0])
    return f"did you mean {near[0]!r}" + (f"? {unit}" if unit else "?")


def _stem(key: str) -> str:
    head, _, end = key.rpartition("_")
    if end.lower() in UNIT_LIKE:
        return head
    return next((key[: -len(unit) - 1] for unit in UNITS if key.endswith(f"_{unit}")), key)


def _in_unit(path: str) -> str:
    """How to write the value at a dotted path, by the unit that ends the nearest key; or ""."""
    for key in reversed(path.split(".")):
        for unit, text in UNITS.items():
            if key.endswith(f"_{unit}"):
                return f"write a plain number of {text}"
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
