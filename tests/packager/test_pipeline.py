"""Artifacts are judged as far as their engine is exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager import pipeline
from packager.checkpoint.reader import read_checkpoint
from packager.core.settings import JudgeSettings, SampleSize
from runtimes import backends
from runtimes.errors import WindowError
from tests.support.tiny import write_checkpoint

SAMPLE_SIZE = SampleSize(text_tokens=128, block_tokens=32, samples_per_kind=1, middle_tokens=8)
WINDOW = 32


def test_without_a_window_only_what_lies_within_it_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")
    checkpoint = read_checkpoint(
        write_checkpoint(tmp_path / "model", window=WINDOW, context=256, layers=1)
    )
    settings = JudgeSettings(tmp_path, context_tokens=256, threads=1, sample_size=SAMPLE_SIZE)
    (variant,) = pipeline.plan(["gguf:F16"])
    artifact = pipeline.convert(checkpoint, variant, settings)
    monkeypatch.setattr(backends.load("gguf"), "WINDOW", "none")
    found = pipeline.assess(checkpoint, artifact, settings)
    assert (found.proof.verdict, found.proof.positions) == ("holds", WINDOW)
    assert found.proof.past_nats is None and found.quality.past is None
    model = artifact.path / artifact.entry
    with pytest.raises(WindowError, match=f"at most {WINDOW} tokens"):
        backends.open_model("gguf", model, checkpoint.window, settings.options())
