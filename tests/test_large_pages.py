"""Large pages: what is moved stays what it was, and nothing is asked where nothing is there."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from runtimes import large_pages


def huge_bytes() -> int:
    """What of this process lies on large pages."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"AnonHugePages:\s*(\d+) kB", text)[1]) * 1024


@pytest.mark.skipif(not large_pages.MAPS.exists(), reason="only Linux has such maps")
def test_what_is_moved_is_what_it_was_and_lies_on_large_pages() -> None:
    size = 48 << 20  # bytes hold no references, and numpy is asked for none of its large pages
    data = bytearray(np.random.default_rng(0).bytes(size))
    digest, before = hash(bytes(data)), huge_bytes()
    moved = large_pages.collapse()
    assert hash(bytes(data)) == digest
    if moved == 0:
        pytest.skip("this system moves nothing")
    assert huge_bytes() >= before + size - 2 * large_pages.PAGE_BYTES
    assert large_pages.collapse() >= size - 2 * large_pages.PAGE_BYTES  # again: already there


def test_files_shared_memory_and_small_regions_are_left_alone(tmp_path, monkeypatch) -> None:
    own = (1 << 32, (1 << 32) + large_pages.LEAST_BYTES)

    def line(access="rw-p", inode="0", name="", size=large_pages.LEAST_BYTES) -> str:
        return f"{own[0]:x}-{own[0] + size:x} {access} 00000000 00:00 {inode} {name}"

    lines = [
        line(), line("r--p"), line("rw-s"), line(inode="7", name="/lib/x y.so"),
        line(name="[stack]"), line(size=large_pages.LEAST_BYTES - 1), line(name="[heap]"),
    ]  # fmt: skip
    maps = tmp_path / "maps"
    maps.write_text("\n".join(lines))
    monkeypatch.setattr(large_pages, "MAPS", maps)
    assert large_pages._regions() == [own, own]
    monkeypatch.setattr(large_pages, "MAPS", tmp_path / "none")
    assert large_pages.collapse() == 0


def test_other_systems_are_asked_nothing(monkeypatch) -> None:
    monkeypatch.setattr(large_pages.sys, "platform", "darwin")
    monkeypatch.setattr(large_pages, "_regions", lambda: pytest.fail("asked"))
    large_pages.collapse_in_background()
    for thread in threading.enumerate():
        if thread.name == large_pages.THREAD_NAME:
            thread.join()
    assert large_pages.collapse() == 0
