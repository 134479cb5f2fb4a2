"""The verdict on a window, from divergences alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import runtimes
from packager.core.results import CallFigures
from packager.measurement import window_proof
from packager.measurement.window_proof import computing_sha256, divergence, judge, log_softmax
from runtimes import backends

RNG = np.random.default_rng(0)
NOISE = RNG.exponential(0.03, 2048)  # a coarse quantisation's divergence, position by position
LOST = RNG.exponential(0.03, 2048)  # what losing the window adds: no more than that


@pytest.mark.parametrize(
    "past, full, beyond, verdict",
    [
        (NOISE, NOISE + LOST, None, "holds"),
        (NOISE + LOST / 2, NOISE, None, "inconclusive"),  # nearer to full attention
        (NOISE, NOISE, None, "inconclusive"),  # the text cannot tell them apart
        (NOISE, NOISE, 0.0, "holds"),  # the reach can
        (NOISE, NOISE + LOST, 1e-6, "fails"),
        (5 * NOISE, NOISE, None, "fails"),
        (5 * NOISE, NOISE, 0.0, "fails"),
        (NOISE[:0], NOISE[:0], None, "holds"),
    ],
)
def test_verdict(past, full, beyond, verdict):
    assert judge(NOISE, past, full, beyond) == verdict


@pytest.mark.parametrize(
    "nats, verdict",
    [(0.031, "holds"), (0.07, "fails"), (float("nan"), "fails"), (1e-6, "holds")],
)
def test_tokens_must_be_as_near_as_blocks(nats, verdict):
    calls = [CallFigures("1", 256, 0.03, 0.03), CallFigures("1", 768, nats, 0.03)]
    assert judge(NOISE, NOISE, NOISE + LOST, None, calls) == verdict


def test_divergence_of_a_distribution_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], np.float32))
    even = log_softmax(np.zeros((2, 3), np.float32))
    expected = [np.log(3) - 1.5 * np.log(2), 0.2 * np.log(0.6) + 0.3 * np.log(0.9)]
    expected[1] += 0.5 * np.log(1.5)
    assert divergence(log_softmax(logits), even) == pytest.approx(expected, abs=1e-6)
    assert divergence(even, even) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("edited", "formats"),
    [
        ("server/dialects/openai.py", set()),
        ("cli/main.py", set()),
        ("trust/verify.py", set()),
        ("backends/gguf/engine.py", {"gguf"}),
        ("backends/gptq/linear.py", {"gptq"}),
        ("backends/own_cache/rope.py", {"gptq", "onnx"}),
        ("backends/checks.py", {"gguf", "gptq", "onnx"}),
        ("generation/sampling.py", {"gguf", "gptq", "onnx"}),
        ("prompts/fim.py", {"gguf", "gptq", "onnx"}),
        ("contract.py", {"gguf", "gptq", "onnx"}),
    ],
)
def test_a_proof_is_of_the_code_that_computes(
    edited: str, formats: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtimes"
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(runtimes.__file__).parent, copy, ignore=unneeded)
    monkeypatch.setattr(window_proof, "RUNTIME", copy)
    monkeypatch.setattr(backends, "__path__", [str(copy / "backends")])
    before = {name: computing_sha256(name) for name in backends.names()}
    with (copy / edited).open("a") as stream:
        stream.write("# a remark\n")
    after = {name: computing_sha256(name) for name in backends.names()}
    assert {name for name in before if before[name] != after[name]} == formats
    assert len(set(before.values())) == 3
