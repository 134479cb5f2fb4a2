"""Large pages: what is moved stays what it was, and nothing is asked where nothing is there."""

from __future__ import annotations

import mmap
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from runtimes.backends.onnx import huge_pages
from runtimes.host.limits import resident_bytes


def huge_bytes() -> int:
    """What of this process lies on large pages."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"AnonHugePages:\s*(\d+) kB", text)[1]) * 1024


RELEASE = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
needs_linux = pytest.mark.skipif(
    sys.platform != "linux" or RELEASE < [6, 1] or "[never]" in huge_pages.ENABLED.read_text(),
    reason="needs Linux 6.1, and large pages allowed",
)


@needs_linux
def test_what_is_moved_is_what_it_was_and_lies_on_large_pages() -> None:
    size, before, huge = 48 << 20, huge_pages.large_regions(), huge_bytes()
    data = bytearray(np.random.default_rng(0).bytes(size))
    digest = hash(bytes(data))
    moved = huge_pages.collapse(before)
    assert hash(bytes(data)) == digest
    assert moved > 0
    assert huge_bytes() >= huge + moved
    assert huge_pages.collapse(before) >= moved  # again: already there
    assert huge_pages.collapse(huge_pages.large_regions()) == 0


@needs_linux
def test_what_was_never_touched_takes_no_memory() -> None:
    before = huge_pages.large_regions()
    with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        for at in range(0, len(room), huge_pages.PAGE_BYTES):
            room[at] = 1
        held = resident_bytes()
        huge_pages.collapse(before)
        assert resident_bytes() - held < 4 << 20


def test_files_shared_memory_and_small_regions_are_left_alone(tmp_path, monkeypatch) -> None:
    own = (1 << 32, (1 << 32) + huge_pages.MIN_BYTES)

    def line(access="rw-p", inode="0", name="", size=huge_pages.MIN_BYTES) -> str:
        return f"{own[0]:x}-{own[0] + size:x} {access} 00000000 00:00 {inode} {name}"

    lines = [
        line(), "", line("r--p"), line("rw-s"), line(inode="7", name="/lib/x \xe9.so"),
        line(name="[stack]"), line(size=huge_pages.MIN_BYTES - 1), line(name="[heap]"),
    ]  # fmt: skip
    maps = tmp_path / "maps"
    maps.write_text("\n".join(lines), encoding="latin-1")
    monkeypatch.setattr(huge_pages, "MAPS", maps)
    assert huge_pages.large_regions() == [own, own]
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "none")
    assert huge_pages.large_regions() == []
    assert huge_pages.collapse([]) == 0


def test_other_systems_are_asked_nothing(monkeypatch) -> None:
    monkeypatch.setattr(huge_pages.sys, "platform", "darwin")
    monkeypatch.setattr(huge_pages, "large_regions", lambda: pytest.fail("asked"))
    huge_pages.collapse_in_background([])
    huge_pages.wait()
    assert huge_pages.collapse([]) == 0


@pytest.mark.parametrize(
    ("now", "new"),
    [
        ([(100, 200)], [(100, 120), (150, 180), (190, 200)]),
        ([(120, 150)], [(120, 120), (150, 150)]),
        ([(10, 20), (140, 185)], [(10, 20), (140, 120), (150, 180), (190, 185)]),
    ],
)
def test_what_was_there_before_is_not_moved(now, new, monkeypatch) -> None:
    monkeypatch.setattr(huge_pages, "large_regions", lambda: now)
    found = huge_pages._new([(180, 190), (120, 150)])
    assert [r for r in found if r[0] < r[1]] == [r for r in new if r[0] < r[1]]
