"""Which tools made an artifact."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def tool_versions(*distributions: str) -> dict[str, str]:
    """Versions of starpack, Python, numpy and the named distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in ("starpack", "numpy", *distributions):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
