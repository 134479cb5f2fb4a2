"""Quantities as people read them, everywhere on the build side: GiB, ms, per cent, three digits.

The unit of a quantity is the end of its name (`memory_bytes`, `first_token_s`); a name without one
(`agreement`) is a share. What is not known is a dash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from packager.core.records import Interval, Limit

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MB, GB, TERA = 1e6, 1e9, 1e12
UNKNOWN = "\N{EM DASH}"
TITLES = {
    "memory_bytes": "Memory",
    "first_token_s": "First token",
    "per_token_s": "Per token",
    "completion_s": "Completion",
    "divergence_nats": "Divergence",
    "agreement": "Agreement",
}
SUFFIXES = ("_bytes", "_s", "_nats", "_tokens")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit to show numbers in: its sign, its size in the quantity's own, and how many digits."""

    sign: str
    size: float
    digits: int = 3

    def show(self, value: float) -> str:
        """The number with its unit, `4.15 GiB`."""
        return f"{digits(value / self.size, self.digits)}\N{NO-BREAK SPACE}{self.sign}"


def title_of(quantity: str) -> str:
    """`First token` for `first_token_s`."""
    return TITLES.get(quantity) or _bare(quantity).replace("_", " ").capitalize()


def unit_of(quantity: str, largest: float) -> Unit:
    """The unit in which numbers up to `largest` read best."""
    match quantity.removeprefix(_bare(quantity)):
        case "_bytes":
            if largest >= GIB:
                return Unit("GiB", GIB)
            return Unit("MiB", MIB) if largest >= MIB else Unit("KiB", KIB)
        case "_s":
            return Unit("s", 1) if largest >= 1 else Unit("ms", 1e-3)
        case "_nats":
            return Unit("nats", 1, 2)  # more than two would be noise
        case "_tokens":
            return Unit("tokens", 1, 1)
    return Unit("%", 0.01)


def show(quantity: str, value: float | None) -> str:
    """A value with its unit, or a dash."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return unit_of(quantity, abs(value)).show(value)


def show_ends(quantity: str, interval: Interval | None) -> str:
    """`3.90 to 4.40 GiB`; empty where the ends are the same or not known."""
    if interval is None or interval.low == interval.high or not is_known(interval):
        return ""
    unit = unit_of(quantity, interval.high)
    return f"{digits(interval.low / unit.size)} to {unit.show(interval.high)}"


def is_known(interval: Interval | None) -> TypeGuard[Interval]:
    """Whether there are three finite numbers."""
    return interval is not None and all(
        math.isfinite(value) for value in (interval.low, interval.middle, interval.high)
    )


def gib(size_bytes: float) -> str:
    """`4.15 GiB`, for a terminal."""
    return f"{size_bytes / GIB:.2f} GiB"


def megabytes(size_bytes: float) -> str:
    """`1234.5 MB`, of files, for a terminal."""
    return f"{size_bytes / MB:.1f} MB"


def gib_between(interval: Interval) -> str:
    """`3.90 to 4.40 GiB`, or one number where the ends are the same."""
    if interval.low == interval.high:
        return gib(interval.middle)
    return f"{interval.low / GIB:.2f} to {gib(interval.high)}"


def duration(seconds: float) -> str:
    """`1.23 s` or `12.3 ms`, for a terminal."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def durations(limit: Limit) -> str:
    """p50 to p90."""
    return f"{duration(limit.p50)} to {duration(limit.p90)}"


def digits(value: float, significant: int = 3) -> str:
    """A few significant digits, and all before the point: 0.0123, 4.15, 1,234, 1.2e-7."""
    if not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{significant}g}")
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def _bare(quantity: str) -> str:
    for suffix in SUFFIXES:
        if quantity.endswith(suffix):
            return quantity.removesuffix(suffix)
    return quantity
