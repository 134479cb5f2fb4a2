"""Settings that GPTQModel needs before it is imported; only the peers' environment has it."""

import os
from pathlib import Path

import pytest

# with more workers than cores it crashes on two
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """GPTQModel, optimum and transformers warn of each other: theirs are no errors here."""
    config.addinivalue_line("filterwarnings", "default")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQModel leaves its logs where it is run."""
    monkeypatch.chdir(tmp_path)
