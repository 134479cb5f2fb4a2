"""Which kernels numpy's library is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from packager.core import blas
from runtimes.host.cpu import CPUINFO, parse_cpuinfo, read_processor

FLAGS = "fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
CPU = "processor\t: 0\nvendor_id\t: {}\nmodel name\t: a name\nflags\t\t: {}\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("vendor", "flags", "core"),
    [
        ("AuthenticAMD", FLAGS, blas.AVX512_CORE),
        ("AuthenticAMD", FLAGS.replace("avx512vl", ""), None),
        ("AuthenticAMD", "", None),
        ("GenuineIntel", FLAGS, None),  # known, and what it does not know is asked what it has
    ],
)
def test_amd_with_avx512_is_told(vendor, flags, core) -> None:
    assert blas.core_type(parse_cpuinfo(CPU.format(vendor, flags))) == core


def test_what_is_no_such_description_changes_nothing() -> None:
    assert blas.core_type(parse_cpuinfo("")) is None
    assert blas.core_type(parse_cpuinfo("Features : asimd\n\x00")) is None


def told(**environment: str) -> list[str]:
    """The variable before and after the program's first steps, and whether numpy came too early."""
    words = (
        "import os, sys; from packager import __main__ as program; from packager.core import blas\n"
        "def told(): print(os.environ.get(blas.VARIABLE))\n"
        "told(); assert 'numpy' not in sys.modules\n"
        "sys.argv = ['starpack', '--version']\n"
        "try: program.main()\n"
        "except SystemExit: told()\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != blas.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", words], env=kept | environment, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    before, _, after = done.stdout.split("\n", 2)
    return [before, after.strip()]


@pytest.mark.slow
@pytest.mark.skipif(not CPUINFO.exists(), reason="no Linux")
def test_the_program_settles_it_before_numpy_unless_the_user_has() -> None:
    assert told() == ["None", str(blas.core_type(read_processor()))]
    assert told(OPENBLAS_CORETYPE="Haswell") == ["Haswell", "Haswell"]
