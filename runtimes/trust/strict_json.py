"""JSON that all readers take for the same value: each key once, finite numbers, whole characters.

Knows nothing of what the keys mean. Standard library only.
"""

from __future__ import annotations

import json
import math


def parse_json(data: str | bytes) -> object:
    """Decode one value; raises ValueError where it is not JSON in UTF-8.

    So it does for a key that an object has twice, for NaN and numbers that are too large, and for
    half of a surrogate pair, which no file and no other program can hold.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite
        )
        text.encode()
        if "\\u" in text:  # or else none can have come of an escape
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is not a character") from None
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key {name[:100]!r} is given twice")
        value[name] = item
    return value
