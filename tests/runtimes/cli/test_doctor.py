"""doctor: the verdict on a device, from a real token and a short measure."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtimes import backends
from runtimes.backends.timing import Prompt, Steps
from runtimes.bundle.baseline import Baseline, fits, needed_bytes, read_baseline
from runtimes.cli import diagnosis
from runtimes.cli import doctor as cli_doctor
from runtimes.cli import main as cli
from runtimes.cli.doctor import Extent
from runtimes.errors import DeviceError
from runtimes.host import cpu as host_cpu
from tests.support.runtime_toys import ToyBackend, module_with, random_logits
from tests.support.toy_bundles import write_bundle, write_manifest

FAST = {"prompt_tokens": 16, "first_token_s": 3600.0, "per_token_p50_s": 60.0}
SLOW = {"prompt_tokens": 16, "first_token_s": 1e-9, "per_token_p50_s": 1e-9}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a toy format whose model answers at once."""
    module = SimpleNamespace(**module_with(random_logits(), []))
    monkeypatch.setattr(backends, "load", lambda format: module)
    monkeypatch.setattr(cli_doctor, "USUAL", Extent(32, 3, 4, 5, 5))
    return write_bundle(tmp_path / "bundle")


def doctor(bundle: Path, capsys, *flags: str) -> tuple[int, dict[str, Any], str]:
    code = cli.main(["doctor", "--bundle", str(bundle), "--json", *flags])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


@pytest.mark.parametrize(
    ("speed", "verdict"), [(FAST, "within baseline"), (SLOW, "slower"), ({}, "no baseline")]
)
def test_what_runs_is_compared_with_the_promise(
    bundle: Path, capsys, manifest_reads: list[Path], speed: dict[str, float], verdict: str
) -> None:
    write_manifest(bundle, measured={"device": "a processor", "speed": speed})
    code, report, _ = doctor(bundle, capsys)
    assert manifest_reads == [bundle]
    assert (code, report["verdict"], report["ready"]) == (0, verdict, True)
    assert report["measured here"]["prompt_tokens"] == (16 if speed else 32)
    assert report["measured here"]["steps"] == 4
    assert len(report["reasons"]) == len(report["comparisons"]) == (2 if speed else 0)
    assert report["baseline"]["device"] == "a processor"
    assert report["window"]["window_tokens"] == 6
    assert cli.main(["doctor", "--bundle", str(bundle), "--quick"]) == 0
    text = capsys.readouterr().out
    assert f"verdict: {verdict}" in text and "ready: yes" in text


def test_a_model_that_needs_more_than_is_free_is_not_even_opened(
    bundle: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(bundle, measured={"speed": {"peak_memory_bytes": 10**15}})
    monkeypatch.setattr(cli_doctor, "open_model", lambda *_: pytest.fail("it was opened"))
    code, report, err = doctor(bundle, capsys)
    assert (code, report["verdict"], report["ready"]) == (7, "does not fit", False)
    assert "smaller variant" in err


@pytest.mark.parametrize("kind", [DeviceError, MemoryError])
def test_a_model_that_cannot_be_opened(
    bundle: Path, capsys, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def open_backend(*_: object) -> ToyBackend:
        raise kind("there is no such engine")

    module = SimpleNamespace(open_backend=open_backend, WINDOW="exact")
    monkeypatch.setattr(backends, "load", lambda format: module)
    code, report, err = doctor(bundle, capsys)
    wrong = kind is DeviceError
    assert (code, report["ready"]) == (7, False)
    assert report["verdict"] == ("wrong device" if wrong else "does not fit")
    assert "there is no such engine" in report["reasons"][0]
    assert (report["error"], report["exit_code"]) == ("DeviceError", 7)
    assert "there is no such engine" in err


def test_no_real_token_no_readiness(bundle: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(position: int, ids: object) -> np.ndarray:
        return np.full(len(random_logits()(0, [1])), np.nan, np.float32)

    module = SimpleNamespace(**module_with(broken, []))
    monkeypatch.setattr(backends, "load", lambda format: module)
    code, report, err = doctor(bundle, capsys)
    assert code == 7 and report["verdict"] == "wrong device" and not report["ready"]
    assert "not numbers" in err


def test_a_measure_ends_at_its_limit(bundle: Path, capsys, monkeypatch) -> None:
    fast = random_logits()

    def slow(position: int, ids: object) -> np.ndarray:
        time.sleep(0.002)
        return fast(position, ids)

    module = SimpleNamespace(**module_with(slow, []))
    monkeypatch.setattr(backends, "load", lambda format: module)
    monkeypatch.setattr(cli_doctor, "QUICK", Extent(64, 3, 50, 0.0, 0.0))
    write_manifest(bundle, measured={"speed": {"prompt_tokens": 1024, "first_token_s": 1024e-6}})
    _, report, _ = doctor(bundle, capsys, "--quick")
    assert report["measured here"]["steps"] == 1
    # what was taken in counts against its fraction of the baseline: 1 microsecond for each token
    (comparison,) = report["comparisons"]
    tokens = report["measured here"]["prompt_tokens"]
    assert comparison["baseline_s"] == pytest.approx(tokens * 1e-6)
    assert report["verdict"] == "slower"


NEW = {
    "workload": {"prompt_tokens": 1024},
    "threads": 8,
    "context_tokens": 16384,
    "cold_s": [3.0, 1.0, 2.0],
    "warm_s": [0.1],
    "steps": [
        {"depth_tokens": 128, "seconds": [0.01]},
        {"depth_tokens": 1024, "seconds": [0.02, 0.03, 0.04]},
        {"depth_tokens": 8192, "seconds": [0.09]},
    ],
    "peak_memory_bytes": 3_000,
    "device_memory_bytes": 2_000,
}
OLD = {
    "threads": 2,
    "prompt_tokens": 512,
    "context_tokens": 4096,
    "first_token_s": 1.5,
    "per_token_p50_s": 0.05,
    "peak_memory_bytes": 1_000,
}


@pytest.mark.parametrize(
    ("speed", "baseline"),
    [
        (NEW, Baseline("x", 8, 16384, 1024, 2.0, 1024, 0.03, 2000, 7, 1.0)),
        (OLD, Baseline("x", 2, 4096, 512, 1.5, 512, 0.05, 1000, 7, 1.5)),
        (None, Baseline("x", artifact_bytes=7)),
        ([], Baseline("x", artifact_bytes=7)),
        ({"workload": 3, "steps": [None, {}], "cold_s": "x"}, Baseline("x", artifact_bytes=7)),
        ({"first_token_s": float("nan"), "threads": True}, Baseline("x", artifact_bytes=7)),
        ({"first_token_s": -1.0, "cold_s": []}, Baseline("x", artifact_bytes=7)),
    ],
)
def test_baselines_of_every_kind_and_none(speed: object, baseline: Baseline) -> None:
    assert read_baseline({"device": "x", "artifact_bytes": 7, "speed": speed}) == baseline


def test_a_promise_of_nothing_is_none() -> None:
    assert read_baseline({}) == Baseline()
    assert read_baseline({"device": 3, "speed": {"threads": float("inf")}}) == Baseline()


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(1.0, "within baseline"), (1.4, "within baseline"), (1.6, "slower")]
)
def test_the_verdict_leaves_room_for_noise(seconds: float, verdict: str) -> None:
    baseline = Baseline(prompt_tokens=100, fastest_prompt_s=1.0, per_token_s=1.0)
    for prompt, step in ((seconds, 0.5), (0.5, seconds)):
        found = diagnosis.compare(baseline, Prompt(100, prompt), Steps(100, (step,)))
        assert diagnosis.verdict_of(found) == verdict


def test_memory_that_is_needed_and_free() -> None:
    assert needed_bytes(None, 9) == needed_bytes(5, 9) == 9
    assert needed_bytes(50, 9) == 50
    assert fits(5, 0) and fits(5, 5) and not fits(6, 5)


def test_what_linux_says_of_processor_and_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").write_text("processor: 0\nflags\t\t: fpu avx2 sse4_2 avx vme\n")
    (tmp_path / "nvidia").write_text("NVRM version: NVIDIA UNIX Kernel Module  575.1\nGCC\n")
    for place, cpu, driver in (
        (tmp_path, ["avx2", "avx", "sse4_2"], "NVIDIA UNIX Kernel Module  575.1"),
        (tmp_path / "none", [], "none"),
    ):
        monkeypatch.setattr(host_cpu, "CPUINFO", place / "cpu")
        monkeypatch.setattr(diagnosis, "NVIDIA", place / "nvidia")
        assert diagnosis.instruction_sets() == cpu
        assert diagnosis.gpu_driver() == driver
