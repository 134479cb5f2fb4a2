"""An exclusive lock on an open file or folder. The system frees that of a process that ends.

Between processes on one machine. Standard library only.
"""

from __future__ import annotations

import fcntl


def try_lock(descriptor: int) -> bool:
    """Take the lock unless somebody else holds it; whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int) -> None:
    """Take the lock, after whoever holds it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
