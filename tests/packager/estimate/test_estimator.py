"""Estimates: their structure, how they answer to device, budget and window, and where they end."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from packager.cli.main import main
from packager.core.errors import UsageError
from packager.core.records import Budget, Calibration, Workload
from packager.devices.budget import load_budget
from packager.devices.database import load_device
from packager.estimate.constants import CONSTANTS, guessed, load_fitted
from packager.estimate.estimator import Case, case_of, estimate
from packager.estimate.models import load_model
from packager.estimate.time_model import pairs_seen, rates
from packager.formats import Setting
from packager.formats.gguf import format as gguf
from packager.formats.gptq import format as gptq
from packager.formats.gptq.footprint import kernel_path
from packager.formats.onnx import format as onnx
from runtimes.contract import Window
from tests.support.tiny import write_checkpoint

ENGINE = "llama-cpp-python 0.3"
Q4, Q8 = gguf.variant("Q4_K_M"), gguf.variant("Q8_0")


def of(variant=Q4, model="3b", device="tesla-t4", workload=None, **budget):
    found = load_model(model)
    device = load_device(device) if isinstance(device, str) else device
    budget = Budget(workload=workload or Workload(), **budget)
    return estimate(model, found.geometry, found.window, variant, device, budget)


def case(context=131_072, window=4096, variant=Q4, device="rtx-4090") -> Case:
    model = load_model("7b")
    return case_of(model.geometry, Window(window), variant, load_device(device), context)


@pytest.mark.parametrize(("window", "past"), [(None, 0), (7, 0), (7, 3), (7, 7), (7, 20), (100, 9)])
def test_pairs_are_what_a_loop_counts(window, past) -> None:
    for new in range(30):
        size = window or 10**9
        counted = sum(min(position + 1, size) for position in range(past, past + new))
        assert pairs_seen(past, new, window) == counted


def test_intervals_hold_their_middle_and_parts_their_sum() -> None:
    found = of()
    for interval in (
        found.memory_bytes, found.first_token_s, found.per_token_s, found.completion_s,
    ):  # fmt: skip
        assert 0 < interval.low < interval.middle < interval.high
    assert found.memory_bytes.middle == found.parts.total_bytes
    assert found.evidence == "specification"
    assert found.unsupported is None and found.unreliable is None


def test_completion_is_the_first_token_and_the_others() -> None:
    found = of(workload=Workload(1024, 64))
    assert found.completion_s.high == pytest.approx(
        found.first_token_s.high + 63 * found.per_token_s.high
    )


def test_never_faster_than_light() -> None:
    # nothing streams its weights faster than the bandwidth allows
    for name in ("tesla-t4", "rtx-3060-12gb", "a100-80gb-pcie", "h200-141gb"):
        device = load_device(name)
        for variant in (Q4, Q8, gguf.variant("F16")):
            found = of(variant, "7b", device)
            floor = found.parts.weights_bytes / device.bandwidth_bytes_per_s.value
            assert found.per_token_s.middle > floor


def test_order_that_nobody_doubts() -> None:
    def token(**kwargs):
        return of(**kwargs).per_token_s.middle

    assert token(variant=Q4) < token(variant=Q8)
    assert token(model="3b") < token(model="7b") < token(model="15b")
    assert token(device="rtx-4090") < token(device="rtx-3060-12gb")
    cold, warm = (of(workload=Workload(1024, 64, prefix)) for prefix in (0, 768))
    assert warm.first_token_s.middle < 0.5 * cold.first_token_s.middle
    assert warm.per_token_s == cold.per_token_s


def test_a_first_token_takes_no_less_than_a_step() -> None:
    found = of(workload=Workload(1024, 64, 1023), device="rtx-4090", model="15b")
    assert found.first_token_s.middle >= 0.99 * found.per_token_s.middle


def test_past_the_window_nothing_grows() -> None:
    near, far = (case().seconds(case().decode_time(at)) for at in (8_192, 100_000))
    assert near == far
    full = case(window=None)
    assert full.seconds(full.decode_time(100_000)) > 1.5 * far


def test_long_prompts_cost_in_proportion_with_the_window() -> None:
    windowed, full = case(), case(window=None)

    def seconds(of: Case, tokens: int) -> float:
        return of.seconds(of.prefill_time(0, tokens))

    assert seconds(windowed, 65_536) < 2.1 * seconds(windowed, 32_768)
    assert seconds(full, 65_536) > 2.5 * seconds(full, 32_768)


def test_calibration_scales_what_it_measured() -> None:
    device = load_device("tesla-t4")
    slow = dataclasses.replace(device, calibration=Calibration(2, 2, 2, ENGINE, "2026-01-01"))
    before, after = of(device=device), of(device=slow)
    assert after.per_token_s.middle == pytest.approx(2 * before.per_token_s.middle)
    assert after.first_token_s.middle == pytest.approx(2 * before.first_token_s.middle)
    assert after.evidence == "calibrated"
    width = [
        (e.per_token_s.high - e.per_token_s.low) / e.per_token_s.middle for e in (before, after)
    ]
    assert width[1] < width[0]


@pytest.mark.parametrize(
    ("variant", "device", "reason"),
    [
        (Q4, "tesla-p40", "before compute capability 7.0"),
        (Q4, "jetson-orin-nano-8gb", "share memory"),
        (Q4, "cpu-zen4-2-cores", "CPU"),
        (onnx.variant("int4-g32-fp16"), "l4-24gb", "published"),
        (Q4, "l4-24gb", None),
        (gptq.variant("w4g128"), "l4-24gb", None),
    ],
)
def test_where_a_specification_is_not_enough(variant, device, reason) -> None:
    found = of(variant, device=device)
    assert found.unsupported is None
    assert (found.unreliable is None) if reason is None else (reason in found.unreliable)


@pytest.mark.parametrize(
    ("variant", "device", "reason"),
    [
        (gptq.variant("w4g128"), "tesla-t4", "below compute capability 8.0"),
        (onnx.variant("int4-g32"), "tesla-t4", "float16"),
        (onnx.variant("int4-g32-fp16"), "v100-32gb", "no kernel"),
        (gguf.variant("BF16"), "tesla-t4", "bfloat16"),
        (onnx.variant("int4-g32"), "cpu-zen4-2-cores", None),
    ],
)
def test_a_device_without_a_kernel(variant, device, reason) -> None:
    found = of(variant, device=device).unsupported
    assert (found is None) if reason is None else (reason in found)


def test_without_a_kernel_a_model_that_fits_is_float16_and_another_stays_in_4_bits() -> None:
    small, large = (of(gptq.variant("w4g128"), model, "tesla-t4") for model in ("3b", "7b"))
    assert small.parts.weights_bytes == pytest.approx(6.06e9, rel=0.02)  # 2 bytes of each parameter
    assert large.parts.weights_bytes == pytest.approx(4.6e9, rel=0.1)
    assert large.per_token_s.middle > 2 * small.per_token_s.middle


def test_weights_are_expanded_once_for_a_chunk_as_for_a_token() -> None:
    model, device = load_model("7b"), load_device("tesla-t4")
    t4 = case_of(model.geometry, model.window, gptq.variant("w4g128"), device, 2048)
    assert kernel_path(model.geometry, t4.variant, Setting(2048, device=device)) == "expanded"
    chunk, token = (time.terms[0].memory_s for time in (t4.prefill_time(0, 512), t4.decode_time(0)))
    assert chunk == pytest.approx(token, rel=0.1)


def test_calibration_ends_what_is_unlike_the_fit_but_makes_no_kernels() -> None:
    calibration = Calibration(1, 1, 1, ENGINE, "2026-01-01")
    for name, variant, ends in (
        ("tesla-p40", Q4, True), ("tesla-t4", gptq.variant("w4g128"), False),
    ):  # fmt: skip
        device = dataclasses.replace(load_device(name), calibration=calibration)
        found = of(variant, device=device)
        assert (found.unsupported is None and found.unreliable is None) == ends


def test_a_calibration_is_for_the_engine_that_was_measured() -> None:
    device = load_device("cpu-zen4-2-cores")
    own = dataclasses.replace(device, calibration=Calibration(2, 2, 2, ENGINE, "2026-01-01"))
    variant = gptq.variant("w4g128")
    before, after = of(variant, device=device), of(variant, device=own)
    assert after.per_token_s == before.per_token_s
    assert after.evidence == "specification"
    assert "not with this engine" in after.unreliable
    assert of(device=own).unreliable is None


def test_small_models_are_not_in_the_fit() -> None:
    model = load_model("3b")
    small = dataclasses.replace(model.geometry, layers=4)
    device = load_device("a100-80gb-pcie")
    found = estimate("small", small, model.window, Q4, device, Budget())
    assert "HBM" in found.unreliable


def test_a_workload_beyond_the_context_is_refused() -> None:
    with pytest.raises(UsageError, match="more than the context"):
        of(workload=Workload(1024, 64), context_tokens=1024)


def test_onnx_on_a_gpu_cannot_go_back_past_the_window() -> None:
    fp16 = onnx.variant("int4-g32-fp16")
    warm, cold = (
        of(fp16, device="l4-24gb", workload=Workload(8000, 64, prefix)) for prefix in (7900, 0)
    )
    assert warm.first_token_s == cold.first_token_s


@pytest.mark.parametrize(
    ("variant", "family"),
    [
        (gguf.variant("IQ4_XS"), "kquant"), (Q8, "block8"), (gguf.variant("BF16"), "float"),
        (onnx.variant("fp16"), "float"), (onnx.variant("int8"), "block8"),
        (onnx.variant("int4-g32"), "group4"), (gptq.variant("w8g32"), "group4"),
    ],
)  # fmt: skip
def test_families(variant, family) -> None:
    assert case(variant=variant).load.family == family


def test_what_ships_has_every_constant() -> None:
    fitted = load_fitted()
    assert fitted.constants.keys() == CONSTANTS.keys() | guessed().keys()
    assert all(value > 0 for value in fitted.constants.values())
    for spread in fitted.spreads.values():
        assert spread.low <= 1 == spread.middle <= spread.high


def test_rates_of_every_device_are_finite() -> None:
    from packager.devices.database import list_devices

    for device in list_devices():
        values = dataclasses.astuple(rates(device))
        assert np.isfinite(values).all(), device.name


def test_command_line(tmp_path, capsys) -> None:
    arguments = ["estimate", "run", "15b", "--formats", "gguf:Q4_K_M,gptq", "--device", "t4"]
    assert main([*arguments, "--budget", "inline"]) == 0
    text = capsys.readouterr().out
    assert "gguf-Q4_K_M" in text
    assert "unsupported: gptq-w4g128: torch has no kernel" in text
    assert "faulty" in text
    assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [e["variant"]["recipe"] for e in data["estimates"]] == ["Q4_K_M", "w4g128"]
    folder = write_checkpoint(tmp_path / "model", hidden=256)
    assert main(["estimate", "run", str(folder), "--device", "l4-24gb"]) == 0
    assert "was in the fit" in capsys.readouterr().out


def test_command_line_refuses(capsys) -> None:
    assert main(["estimate", "run", "9b", "--device", "t4"]) == UsageError.exit_code
    assert "3b, 7b, 15b" in capsys.readouterr().err
    assert main(["device", "calibrate", "--device", "t4"]) == UsageError.exit_code
    assert "detect" in capsys.readouterr().err


def test_budgets_that_ship_can_be_estimated() -> None:
    for name in ("inline", "relaxed", "batch"):
        budget = load_budget(name)
        model = load_model("3b")
        found = estimate("3b", model.geometry, model.window, Q4, load_device("l4"), budget)
        assert found.completion_s.middle > found.first_token_s.middle


def test_a_model_of_a_short_context_is_opened_for_no_longer_one(tmp_path, capsys) -> None:
    folder = write_checkpoint(tmp_path / "model", hidden=256, context=2048)
    for arguments, context in (([], 2048), (["--budget", "inline"], 4096)):
        command = ["estimate", "run", str(folder), "--device", "l4-24gb", "--json", *arguments]
        assert main(command) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["estimates"][0]["context_tokens"] == context
