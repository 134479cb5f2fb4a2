"""This machine's processor, as Linux describes it. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
HEAD_BYTES = 8192  # of that file: the first processor and more


@dataclass(frozen=True, slots=True)
class Processor:
    """Texts are empty where unknown. flags: instruction sets and others, in Linux's own words."""

    vendor: str
    name: str
    flags: frozenset[str]


def read_processor() -> Processor:
    """The first processor; one of which nothing is known where Linux does not say."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as stream:
            return parse_cpuinfo(stream.read(HEAD_BYTES))
    except OSError:
        return parse_cpuinfo("")


def parse_cpuinfo(text: str) -> Processor:
    """What such a file says of its first processor. Arm has Features for flags."""
    found = dict[str, str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    flags = found.get("flags") or found.get("Features", "")
    return Processor(
        found.get("vendor_id", ""), found.get("model name", ""), frozenset(flags.split())
    )
