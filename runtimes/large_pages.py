"""Moves the weights that an engine holds to the processor's large pages. Linux, from 6.1 on.

One step reads all weights. In pages of 4 KiB the processor keeps looking up where the next one
lies, twice over in a virtual machine; engines do not ask for pages of 2 MiB, and most systems give
them to those alone who ask. Figures: benchmarks/LOG.md.
"""

from __future__ import annotations

import ctypes
import errno
import sys
import threading
from pathlib import Path

MAPS = Path("/proc/self/maps")
PAGE_BYTES = 2 << 20  # of x86-64, and of ARM with pages of 4 KiB
LEAST_BYTES = 32 << 20  # guessed: what is smaller is no weights
MADV_COLLAPSE = 25  # specified: linux/mman.h
THREAD_NAME = "large pages"


def collapse_in_background() -> None:
    """Start doing so and return: it takes a second or two for each GB, and may end at any point."""
    threading.Thread(target=collapse, name=THREAD_NAME, daemon=True).start()


def collapse() -> int:
    """Move what large regions of this process hold, one large page after another; bytes moved.

    The system copies, and whoever reads or writes there meanwhile waits for one copy at the most.
    Where the system cannot, or has no large page left, things stay as they are.
    """
    moved = 0
    if not sys.platform.startswith("linux"):
        return moved
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, stop in _regions():
        for at in range(-(-start // PAGE_BYTES) * PAGE_BYTES, stop - PAGE_BYTES + 1, PAGE_BYTES):
            if library.madvise(at, PAGE_BYTES, MADV_COLLAPSE) == 0:
                moved += PAGE_BYTES
            elif ctypes.get_errno() == errno.ENOMEM:  # none left, or freed in the meantime
                break
    return moved


def _regions() -> list[tuple[int, int]]:
    """Addresses of memory that is of no file, writable and this process's own: from, to."""
    found = []
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in span.split("-"))
        own = access == "rw-p" and inode == "0" and name in ([], ["[heap]"])
        if own and stop - start >= LEAST_BYTES:
            found.append((start, stop))
    return found
