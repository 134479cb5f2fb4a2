"""Which of OpenBLAS's kernels numpy uses: the program settles it before it imports numpy.

OpenBLAS chooses by the processor's model. One of AMD's that it does not know gets the kernels of
AVX2, also where there is AVX-512, with which it is twice as fast (benchmarks/LOG.md). Standard
library only.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
HEAD_BYTES = 8192  # of that file: the first processor and more
VARIABLE = "OPENBLAS_CORETYPE"
AVX512_CORE = "SkylakeX"  # specified: OpenBLAS's name for its plain AVX-512 kernels
NEEDED = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})


def core_type(cpuinfo: str) -> str | None:
    """The kernels to ask for on a processor as Linux describes it; None: OpenBLAS's own choice."""
    found = dict[str, str]()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    amd = found.get("vendor_id") == "AuthenticAMD"
    return AVX512_CORE if amd and set(found.get("flags", "").split()) >= NEEDED else None


def choose_kernels() -> None:
    """Set OpenBLAS's variable where it helps and the user has not."""
    with contextlib.suppress(OSError), CPUINFO.open(encoding="utf-8", errors="replace") as stream:
        if core := core_type(stream.read(HEAD_BYTES)):
            os.environ.setdefault(VARIABLE, core)
