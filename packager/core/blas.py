"""Which of OpenBLAS's kernels numpy uses: the program settles it before it imports numpy.

OpenBLAS chooses by the processor's model. One of AMD's that it does not know gets the kernels of
AVX2, also where there is AVX-512, with which it is twice as fast (benchmarks/LOG.md). Standard
library only.
"""

from __future__ import annotations

import os

from runtimes.host.cpu import Processor, read_processor

VARIABLE = "OPENBLAS_CORETYPE"
AVX512_CORE = "SkylakeX"  # specified: OpenBLAS's name for its plain AVX-512 kernels
NEEDED = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})


def core_type(processor: Processor) -> str | None:
    """The kernels to ask for on a processor; None: OpenBLAS's own choice."""
    amd = processor.vendor == "AuthenticAMD"
    return AVX512_CORE if amd and processor.flags >= NEEDED else None


def choose_kernels() -> None:
    """Set OpenBLAS's variable where it helps and the user has not."""
    if core := core_type(read_processor()):
        os.environ.setdefault(VARIABLE, core)
