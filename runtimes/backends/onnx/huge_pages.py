"""Moves what an engine keeps of the weights to the processor's large pages. Linux, from 6.1 on.

One step reads all weights. In pages of 4 KiB the processor keeps looking up where the next one
lies, twice over in a virtual machine; engines do not ask for pages of 2 MiB, and most systems give
them to those alone who ask. Figures: benchmarks/LOG.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import sys
import threading
from pathlib import Path

import numpy as np

MAPS, PAGEMAP = Path("/proc/self/maps"), Path("/proc/self/pagemap")
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGE_BYTES, SMALL_BYTES = 2 << 20, 4 << 10  # of x86-64, and of ARM where it has these
MIN_BYTES = 32 << 20  # guessed: what is smaller is no weights
MADV_COLLAPSE = 25  # specified: linux/mman.h
PRESENT = np.uint64(1 << 63)  # specified: Documentation/admin-guide/mm/pagemap.rst
THREAD_NAME = "large pages"

Region = tuple[int, int]
"""Addresses of the first byte and of the one after the last."""


def collapse_in_background(before: list[Region]) -> None:
    """Have a thread collapse what is new since `before`, a second or two for each GB.

    It is a daemon: a process that exits does not wait for it.
    """
    with contextlib.suppress(RuntimeError):  # no more threads: then it stays as it is
        threading.Thread(target=collapse, args=[before], name=THREAD_NAME, daemon=True).start()


def wait() -> None:
    """Return when no such thread is at work."""
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join()


def collapse(before: list[Region]) -> int:
    """Move large regions that are not in `before`, one large page after another; bytes moved.

    Only where all of it is in memory already, so that the process does not grow. The system copies;
    who touches that page or asks for memory meanwhile waits for one copy. Where the system cannot
    or may not, or has no large page left, or a container no memory, things stay as they are.
    """
    moved = 0
    if not sys.platform.startswith("linux"):
        return moved
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        if "[never]" in ENABLED.read_text():
            return moved
        with PAGEMAP.open("rb", buffering=0) as pagemap:
            for at in (at for region in _new(before) for at in _pages(region)):
                pagemap.seek(at // SMALL_BYTES * 8)
                small = np.frombuffer(pagemap.read(PAGE_BYTES // SMALL_BYTES * 8), np.uint64)
                if not (small & PRESENT).all():
                    continue
                if library.madvise(at, PAGE_BYTES, MADV_COLLAPSE) == 0:
                    moved += PAGE_BYTES
                elif ctypes.get_errno() in (errno.ENOMEM, errno.EBUSY):  # of memory there is none
                    return moved
    except OSError:
        pass  # the system does not show its maps
    return moved


def large_regions() -> list[Region]:
    """Regions of memory that are of no file, writable, private and large; none where unknown."""
    try:
        lines = MAPS.read_text(errors="replace").split("\n")
    except OSError:
        return []
    found = []
    for line in filter(None, lines):
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in span.split("-"))
        own = access == "rw-p" and inode == "0" and name in ([], ["[heap]"])
        if own and stop - start >= MIN_BYTES:
            found.append((start, stop))
    return found


def _new(before: list[Region]) -> list[Region]:
    """Large regions now, without what of them was in `before`."""
    found = []
    for start, stop in large_regions():
        for old_start, old_stop in sorted(before):
            if old_start < stop and start < old_stop:
                found.append((start, old_start))
                start = max(start, old_stop)
        found.append((start, stop))
    return found


def _pages(region: Region) -> range:
    """Addresses of the large pages that lie in a region."""
    first = -(-region[0] // PAGE_BYTES) * PAGE_BYTES
    return range(first, region[1] - PAGE_BYTES + 1, PAGE_BYTES)
