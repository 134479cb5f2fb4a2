"""What Linux says of the processor, read in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.host import cpu
from runtimes.host.cpu import Processor

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: A CPU @ 2GHz: the name
flags\t\t: fpu avx2 avx512f

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            X86,
            Processor(
                "AuthenticAMD", "A CPU @ 2GHz: the name", frozenset({"fpu", "avx2", "avx512f"})
            ),
        ),
        (ARM, Processor("", "", frozenset({"fp", "asimd", "sve"}))),
        ("", Processor("", "", frozenset())),
    ],
)
def test_the_first_processor_is_described(
    text: str, expected: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.read_processor() == expected
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    assert cpu.read_processor() == Processor("", "", frozenset())
