"""Multipliers from samples, and samples from small models on this very machine."""

from __future__ import annotations

import json

import numpy as np
import pytest

from packager.cli.main import main
from packager.core.errors import DeviceError
from packager.devices.database import load_device, read_device
from packager.estimate import calibration_runs
from packager.estimate.device_calibration import Sample, fit_calibration, multipliers
from packager.estimate.time_model import Roofline, Time

TIMES = [
    Time((Roofline(memory, arithmetic), Roofline(0.1, 0.0)), launch)
    for memory, arithmetic, launch in [(9, 1, 0.1), (1, 8, 0.2), (0.1, 0.1, 2), (4, 3, 1)]
]


def test_multipliers_are_found_again() -> None:
    wanted = (1.3, 0.8, 2.0)
    found = multipliers(TIMES, [float(time.seconds(*wanted)) for time in TIMES])
    assert found == pytest.approx(wanted, rel=0.02)


def test_what_samples_do_not_tell_stays_as_specified() -> None:
    memory_alone = [Time((Roofline(size, 0.0),), 0.0) for size in (1.0, 2.0, 3.0)]
    found = multipliers(memory_alone, [2.0, 4.0, 6.0])
    assert found[0] == pytest.approx(2, rel=0.01)
    assert found[1:] == pytest.approx((1, 1))


def test_multipliers_are_positive_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = multipliers(TIMES, np.exp(rng.uniform(-3, 3, len(TIMES))).tolist())
        assert min(found) > 0


@pytest.mark.parametrize("seconds", [[1.0, 1.0], [1.0, 0.0, 1.0]])
def test_too_little_is_refused(seconds) -> None:
    samples = [Sample(s, TIMES[0]) for s in seconds]
    with pytest.raises(DeviceError, match="do not tell"):
        fit_calibration(samples, "engine", "2026-01-01")


def test_calibrating_this_machine(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("llama_cpp.llama_cpp", reason="needs the engine: make wheels")
    monkeypatch.setattr(calibration_runs, "SHAPES", ((1, 256), (2, 512)))
    file = tmp_path / "mine.json"
    before = read_device("cpu-zen4-2-cores") | {"name": "mine"}
    file.write_text(json.dumps(before), encoding="utf-8")
    assert main(["device", "calibrate", "--device", str(file), "--threads", "1"]) == 0
    assert "times the specification" in capsys.readouterr().out
    after = json.loads(file.read_text(encoding="utf-8"))
    found = load_device(file).calibration
    assert min(found.memory, found.arithmetic, found.launch) > 0
    assert "llama-cpp-python" in found.engine
    assert after | {"calibration": None} == before | {"calibration": None}


def test_a_run_that_fails_is_explained(tmp_path) -> None:
    pytest.importorskip("llama_cpp.llama_cpp", reason="needs the engine: make wheels")
    with pytest.raises(DeviceError, match="the calibrating process ended"):
        calibration_runs._run_child(tmp_path / "none.gguf", 1, "cpu")
