"""The part of JSON Schema (2020-12) that request bodies are described and checked with.

One description serves both: it is checked here and shown at /openapi.json. A whole validator
would be five more packages in every bundle; the tests hold this one against the `jsonschema`
library. Bodies are decoded strictly as well: no NaN, no infinity, no nesting without end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from runtimes.errors import UsageError

Schema = Mapping[str, Any]

SHOWN_CHARACTERS = 60  # guessed: of a wrong value, in an error message
_TYPES = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
_KEYWORDS = frozenset(
    "type enum anyOf minimum maximum minLength maxLength minItems maxItems maxProperties items "
    "properties required description title examples".split()
)


def decode(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; raises UsageError."""
    try:
        value = json.loads(data, parse_constant=_not_a_number, parse_float=_finite)
    except RecursionError:
        raise _bad("the body is nested too deeply", "a request") from None
    except ValueError as error:  # malformed, not UTF-8, or a whole number of thousands of digits
        raise _bad(f"the body is not JSON: {str(error)[:200]}", "a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise _bad(f"the body is {_shown(value)}", "a JSON object")
    return value


def check(value: object, schema: Schema, where: str = "") -> None:
    """Raise UsageError naming the first place where `value` does not fit `schema`.

    Keys that a schema does not name are allowed: clients send what other servers know.
    """
    assert schema.keys() <= _KEYWORDS, f"a keyword that is not implemented: {schema.keys()}"
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], where)
    types = schema.get("type")
    if types is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            raise _wrong(value, where, " or ".join(names))
    if "enum" in schema and value not in schema["enum"]:
        raise _wrong(value, where, f"one of {schema['enum']}")
    _check_bounds(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            check(item, schema["items"], f"{where}[{i}]")
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                raise _bad(f"{_path(where, name)} is missing", "it in the body")
        for name, part in schema.get("properties", {}).items():
            if name in value:
                check(value[name], part, _path(where, name))


def _check_any(value: object, schemas: list[Schema], where: str) -> None:
    reasons = []
    for schema in schemas:
        try:
            check(value, schema, where)
        except UsageError as error:
            reasons.append(f"{error.expected} ({error.what})")
        else:
            return
    raise _wrong(value, where, "; or ".join(dict.fromkeys(reasons)))


def _check_bounds(value: object, schema: Schema, where: str) -> None:
    """Each bound is for one kind of value and passes over the others."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        size, names = value, ("minimum", "maximum")
    elif isinstance(value, str):
        size, names = len(value), ("minLength", "maxLength")
    elif isinstance(value, list):
        size, names = len(value), ("minItems", "maxItems")
    elif isinstance(value, dict):
        size, names = len(value), ("minProperties", "maxProperties")
    else:
        return
    least, most = (schema.get(name) for name in names)
    if least is not None and size < least:
        raise _wrong(value, where, f"{names[0]} {least}")
    if most is not None and size > most:
        raise _wrong(value, where, f"{names[1]} {most}")


def _is(value: object, name: str) -> bool:
    """Whether `value` is of the JSON type `name`; 1.0 is an integer in JSON Schema."""
    if name in ("number", "integer"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return name == "number" or value == math.floor(value)
    return isinstance(value, _TYPES[name])


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: object) -> str:
    """No more of a value than helps: it may be somebody's code."""
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    try:
        text = json.dumps(value)
    except ValueError:  # a whole number too long to be printed
        text = "a number of thousands of digits"
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _wrong(value: object, where: str, expected: str) -> UsageError:
    return _bad(f"{where or 'the body'} is {_shown(value)}", expected)


def _bad(what: str, expected: str) -> UsageError:
    return UsageError(what, expected=expected)
