"""What a value of a decoded manifest must be: each check raises IntegrityError naming the key.

manifest.py says what the keys are. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any, TypeGuard

from runtimes.errors import IntegrityError

MANIFEST_NAME = "bundle.json"
DAMAGED = "the bundle is damaged or was not written by starpack: copy or pack it again"
MAX_SIZE = 2**63  # specified: what a file system can say
MAX_PATH_BYTES = 1024  # guessed: leaves room for the folder's own, of the 4,096 that Linux takes
MAX_PATH_PARTS = 40  # guessed: packages have up to 15; each takes descriptors to walk through
MAX_NAME_BYTES = 255  # specified: what Linux's file systems take


def record(
    value: object, key: str, names: Set[str], *, optional: Set[str] = frozenset()
) -> dict[str, Any]:
    """An object with exactly these keys, of which those `optional` may be missing."""
    if not isinstance(value, dict):
        raise bad(key, value, "an object")
    odd = set(value) ^ names
    if odd - (optional - set(value)):
        raise bad(
            key, f"missing or unknown keys {sorted(odd)}", f"exactly the keys {sorted(names)}"
        )
    return value


def mapping(value: object, key: str) -> dict[str, Any]:
    """An object with any keys."""
    if not isinstance(value, dict):
        raise bad(key, value, "an object")
    return value


def text(value: object, key: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise bad(key, value, "a text of 1 to 1024 characters")
    return value


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def count(value: object, key: str) -> int:
    """A whole number above 0."""
    if not is_int(value) or not 0 < value < 2**31:
        raise bad(key, value, "a whole number above 0")
    return value


def figure(value: object, key: str) -> float | None:
    """A finite number, 0 or more, or None where it is not known."""
    number = value if is_int(value) or isinstance(value, float) else math.nan
    if value is None:
        return None
    if not (0 <= number < MAX_SIZE):  # which NaN is not either
        raise bad(key, value, "null, or a number of 0 or more")
    return number


def size(value: object, key: str) -> int | None:
    """A whole number, 0 or more, or None where it is not known."""
    if value is None:
        return None
    if not is_int(value) or not 0 <= value < MAX_SIZE:
        raise bad(key, value, "null, or a whole number of 0 or more")
    return value


def safe_path(value: object, key: str) -> str:
    """A relative POSIX path that stays below its folder, and that a disk can hold."""
    name = text(value, key)
    parts = name.split("/")
    sizes = [len(part.encode(errors="surrogatepass")) for part in parts]
    odd = {"", ".", ".."}.intersection(parts) or "\\" in name or "\0" in name
    too_large = max(sizes) > MAX_NAME_BYTES or sum(sizes) > MAX_PATH_BYTES
    if odd or too_large or len(parts) > MAX_PATH_PARTS:
        raise bad(
            key, value, "a relative path that stays inside the bundle, and that a disk can hold"
        )
    return name


def bad(key: str, value: object, expected: str) -> IntegrityError:
    """The error for a key that has another value than is expected."""
    return IntegrityError(
        f"the manifest's {key} is {str(value)[:200]!r}",
        where=MANIFEST_NAME,
        expected=expected,
        remedy=DAMAGED,
    )
