"""GPTQ's arithmetic: less error than rounding to nearest, and what cannot be calibrated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packager.core.errors import CheckpointError
from packager.formats.quant import blocks, gptq
from packager.formats.quant.blocks import Blocks
from packager.formats.quant.gptq import Factor, Hessian, factorize
from packager.formats.quant.gptq_layout import pack, unpack

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS, ROWS = 256, 96


def inputs(seed: int, tokens: int = 2048) -> torch.Tensor:
    """Activations (T, COLUMNS) that are correlated, and of different size by column."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99)
    mixing = shared.standard_normal((32, COLUMNS))
    sizes = np.exp(shared.standard_normal(COLUMNS) * 0.5)
    noise = 0.3 * rng.standard_normal((tokens, COLUMNS))
    x = (rng.standard_normal((tokens, 32)) @ mixing + noise) * sizes
    return torch.from_numpy(x.astype(np.float32))


def weight(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def factor(x: torch.Tensor | None = None) -> Factor:
    hessian = Hessian(COLUMNS)
    for part in (inputs(0) if x is None else x).split(700):
        hessian.add(part)
    return factorize(hessian, "test")


def error(w: np.ndarray, found: Blocks) -> float:
    """Relative output error on activations that were not calibrated on."""
    x = inputs(5).numpy()
    return float(np.linalg.norm(x @ (found.weights() - w).T) / np.linalg.norm(x @ w.T))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_less_error_than_rounding_to_nearest_and_stored_exactly(bits, group, symmetric):
    w = weight()
    nearest = blocks.quantize(w, bits, group, symmetric=symmetric, search=True)
    found = gptq.quantize(w, factor(), bits, group, symmetric=symmetric)
    assert error(w, found) < 0.5 * error(w, nearest)
    assert found.codes.max() < 1 << bits
    assert (found.zeros == 1 << (bits - 1)).all() if symmetric else found.zeros.min() >= 1
    stored = unpack(pack(found, bits), bits)
    np.testing.assert_array_equal(stored.weights(), found.weights())


def test_the_search_of_scales_and_smaller_groups_help():
    w, known = weight(), factor()
    plain = error(w, gptq.quantize(w, known, 4, 128, search=False))
    searched = error(w, gptq.quantize(w, known, 4, 128))
    assert searched < 0.995 * plain
    assert error(w, gptq.quantize(w, known, 4, 32)) < 0.95 * searched


def test_equal_inputs_give_equal_codes_and_rows_do_not_touch(monkeypatch):
    w, known = weight(), factor()
    whole = gptq.quantize(w, known, 4, 64)
    np.testing.assert_array_equal(gptq.quantize(w, factor(), 4, 64).codes, whole.codes)
    monkeypatch.setattr(gptq, "ROWS", 40)
    parts = gptq.quantize(w, known, 4, 64)
    # products of other sizes may be summed in another order
    assert (parts.codes != whole.codes).mean() < 0.01
    np.testing.assert_array_equal(parts.scales, whole.scales)


@pytest.mark.parametrize("panel", [gptq.PANEL, 80])  # wider and narrower than a product's rows
def test_the_codes_are_those_of_the_papers_own_update(monkeypatch, panel):
    """Algorithm 1 with the inverse Hessian, in float64, one column after the other."""
    monkeypatch.setattr(gptq, "PANEL", panel)
    w, x = weight(), inputs(0)
    found = gptq.quantize(w, factor(x), 4, 64)
    scales = np.repeat(found.scales, 64, axis=1).astype(np.float64)
    hessian = (x.T.double() @ x.double()).numpy()
    hessian[np.diag_indices(COLUMNS)] += gptq.DAMPINGS[0] * hessian.diagonal().mean()
    order = factor(x).order.numpy()[::-1]  # the most active first
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    left, scales = w[:, order].astype(np.float64), scales[:, order]
    codes = np.empty((ROWS, COLUMNS), np.uint8)
    for k in range(COLUMNS):
        steps = np.clip(np.rint(left[:, k] / scales[:, k]), -8, 7)
        lost = (left[:, k] - steps * scales[:, k]) / upper[k, k]
        left[:, k:] -= np.outer(lost, upper[k, k:])
        codes[:, order[k]] = steps + 8
    assert (codes != found.codes).mean() < 0.01


def test_the_factor_is_that_of_the_damped_and_sorted_hessian(monkeypatch):
    monkeypatch.setattr(gptq, "PANEL", 48)  # several panels, the last one short
    x = inputs(0)
    known = factor(x)
    hessian = (x.T.double() @ x.double()).numpy()
    order = known.order.numpy()
    assert (np.diff(hessian.diagonal()[order]) >= -1e-3 * hessian.diagonal().max()).all()
    hessian[np.diag_indices(COLUMNS)] += known.damping * hessian.diagonal().mean()
    lower = np.linalg.cholesky(hessian[np.ix_(order, order)])
    expected = np.tril(lower / lower.diagonal(), -1)
    np.testing.assert_allclose(np.tril(known.unit.numpy(), -1), expected, atol=2e-3)


def test_a_column_that_was_never_active_is_rounded_to_nearest():
    w, x = weight(), inputs(0)
    x[:, 17] = 0
    found = gptq.quantize(w, factor(x), 4, 64)
    scale = found.scales[:, 17 // 64]
    expected = np.clip(np.rint(w[:, 17] / scale), -8, 7) + 8
    np.testing.assert_array_equal(found.codes[:, 17], expected)


def test_a_singular_hessian_is_damped_and_still_worth_more_than_rounding():
    """Three tokens for 256 columns: all but three directions were never seen."""
    w, x = weight(), inputs(0, tokens=3)
    known = factor(x)
    assert known.damping == gptq.DAMPINGS[0]
    found = gptq.quantize(w, known, 4, 64)
    nearest = blocks.quantize(w, 4, 64, symmetric=True, search=True)
    lost, lost_nearest = (np.linalg.norm(x.numpy() @ (b.weights() - w).T) for b in (found, nearest))
    assert lost < 0.2 * lost_nearest


def test_matrices_of_zeros_stay_zeros():
    zeros = np.zeros((ROWS, COLUMNS), np.float32)
    assert not gptq.quantize(zeros, factor(torch.zeros(10, COLUMNS)), 4, 64).weights().any()


def test_damping_is_raised_until_the_factor_exists(monkeypatch):
    monkeypatch.setattr(gptq, "DAMPINGS", (-0.5, -0.01, 0.05))
    monkeypatch.setattr(gptq, "PANEL", 48)
    again = factor()
    monkeypatch.setattr(gptq, "DAMPINGS", (0.05,))
    assert again.damping == 0.05
    expected = factor()
    np.testing.assert_array_equal(again.unit.tril(-1), expected.unit.tril(-1))
    np.testing.assert_array_equal(again.order, expected.order)


def test_what_no_damping_helps_is_refused(monkeypatch):
    monkeypatch.setattr(gptq, "DAMPINGS", (-0.5, -0.01))
    with pytest.raises(
        CheckpointError, match=r"layer\.x cannot be calibrated: its Hessian"
    ) as caught:
        factorize_named("layer.x", inputs(0))
    assert caught.value.remedy
    broken = inputs(0)
    broken[3, 4] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        factorize_named("layer.x", broken)


def factorize_named(name: str, x: torch.Tensor) -> Factor:
    hessian = Hessian(COLUMNS)
    hessian.add(x)
    return factorize(hessian, name)


def test_weights_beyond_half_precision_are_refused():
    with pytest.raises(CheckpointError, match=r"layer\.x do not fit in float16") as caught:
        gptq.quantize(weight() * np.float32(1e7), factor(), 4, 64, name="layer.x")
    assert caught.value.remedy


def test_every_core_has_rows_of_its_own_and_torch_its_threads_back():
    w, known = weight(), factor()
    alone = gptq.quantize(w, known, 4, 64)
    torch.set_num_threads(2)
    try:
        shared = gptq.quantize(w, known, 4, 64)
        assert torch.get_num_threads() == 2
        with pytest.raises(CheckpointError):
            gptq.quantize(w * np.float32(1e7), known, 4, 64)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (alone.codes != shared.codes).mean() < 0.01
