"""The stages: artifacts are judged as far as their engine is exact; progress names its variant."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from packager import pipeline
from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Workload
from packager.core.settings import ConvertSettings, JudgeSettings, SampleSize
from packager.measurement.assessment import assess
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
    found = assess(checkpoint, artifact, settings)
    assert (found.proof.verdict, found.proof.positions) == ("holds", WINDOW)
    assert found.proof.past_nats is None and found.quality.past is None
    model = artifact.path / artifact.entry
    with pytest.raises(WindowError, match=f"at most {WINDOW} tokens"):
        backends.open_model("gguf", model, checkpoint.window, settings.options())


def test_an_artifact_whose_logits_are_not_numbers_ends_nothing_for_the_others(
    tmp_path: Path,
) -> None:
    """Activations of 100,000, which float16 does not have, and bfloat16 has."""
    pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")
    folder = write_checkpoint(tmp_path / "model", window=WINDOW, context=256, layers=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.c_fc.bias"][:] = 1e5
    tensors["model.layers.0.mlp.c_proj.weight"] *= 1e-6
    save_file(tensors, folder / "model.safetensors")
    checkpoint = read_checkpoint(folder)
    settings = JudgeSettings(tmp_path, context_tokens=256, threads=1, sample_size=SAMPLE_SIZE)
    for _ in range(2):  # the second time from the records
        half, brain = (
            assess(checkpoint, pipeline.convert(checkpoint, variant, settings), settings)
            for variant in pipeline.plan(["gguf:F16", "gguf:BF16"])
        )
        assert half.proof is None and half.quality is None
        assert "not numbers" in half.failure and "bfloat16" in half.failure
        assert brain.failure == "" and brain.proof.holds


def test_progress_says_which_variant_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model"))
    told: list[tuple[str, int, int]] = []
    for variant in pipeline.plan(["gguf:F16", "gguf:Q8_0"]):
        pipeline.convert(checkpoint, variant, ConvertSettings(tmp_path), lambda *a: told.append(a))
    assert {what for what, _, _ in told} == {"convert gguf-F16", "convert gguf-Q8_0"}
    assert told[-1][1] == told[-1][2] > 0


@pytest.mark.parametrize(
    ("context", "left"),
    [(4096, (1024, 64, 512)), (512, (448, 64, 447)), (64, (32, 32, 31)), (2, (1, 1, 0))],
)
def test_a_workload_is_made_to_fit_a_context(context: int, left: tuple[int, int, int]) -> None:
    assert Workload(1024, 64, 512).within(context) == Workload(*left)
