"""JSON in which each key is given once: what two readers cannot take for two different values.

Knows nothing of what the keys mean. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable


def parse_json(data: str | bytes, parse_constant: Callable[[str], object] | None = None) -> object:
    """Decode one value; raises ValueError where it is not JSON or an object has a key twice.

    parse_constant: what to do with NaN and Infinity, as for json.loads.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key {name[:100]!r} is given twice")
        value[name] = item
    return value
