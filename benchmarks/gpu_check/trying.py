"""What every part needs: memory that is in use, and to go on where one of its things fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gpu_check.records import Keep, NotRun
from runtimes.errors import StarpackError
from runtimes.host.gpu_memory import gpu_free_bytes
from runtimes.host.limits import resident_bytes


@contextmanager
def noting(keep: Keep, name: str) -> Iterator[None]:
    """Keep a failure of the block as a finding, and go on after it."""
    try:
        yield
    except StarpackError as error:
        keep(NotRun(name, error.what, error.remedy or "", failed=True))
    except Exception as error:  # engines have classes of their own
        lines = str(error).splitlines() or [""]
        keep(NotRun(name, f"{type(error).__name__}: {lines[0][:300]}", "", failed=True))


def held_bytes(provider: str) -> int:
    """A figure that grows by what is taken: of the device, whose total nobody asks for, or the RAM.

    0 where the device's driver does not say.
    """
    return resident_bytes() if provider == "cpu" else -gpu_free_bytes()
