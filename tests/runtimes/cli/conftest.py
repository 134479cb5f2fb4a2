"""What the tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.trust import manifest


@pytest.fixture
def manifest_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every bundle whose manifest is read, each time that it is."""
    reads: list[Path] = []
    read = manifest.manifest_bytes

    def counted(bundle: Path) -> bytes:
        reads.append(bundle)
        return read(bundle)

    monkeypatch.setattr(manifest, "manifest_bytes", counted)
    return reads
