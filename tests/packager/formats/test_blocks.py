"""Integer blocks: the arithmetic of scales, zero points and packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.formats.quant.blocks import pack, quantize


def rows(seed: int = 0, shape: tuple[int, int] = (24, 128)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e4), shift=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_rounding_to_nearest_is_within_half_a_step(bits, symmetric, seed, scale, shift):
    values = ((rows(seed, (4, 64)) + shift) * scale).astype(np.float32)
    blocks = quantize(values, bits, 32, symmetric=symmetric, search=False)
    steps = np.repeat(np.abs(blocks.scales), 32, axis=1)
    error = np.abs(blocks.weights() - values)
    # the end of a symmetric range that has one step less may be cut by one
    assert (error <= steps * (1.01 if symmetric else 0.51)).all()
    assert blocks.codes.max() < 1 << bits
    if symmetric:
        assert (blocks.zeros == 1 << (bits - 1)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128])
def test_searching_is_never_worse_and_on_the_whole_better(symmetric, group):
    values = rows()
    nearest, searched = (
        np.square(
            quantize(values, 4, group, symmetric=symmetric, search=s).weights() - values
        ).reshape(-1, group).sum(1)
        for s in (False, True)
    )  # fmt: skip
    assert searched.sum() < 0.95 * nearest.sum()
    assert (searched <= nearest * 1.02).mean() > 0.99


def test_zero_is_exact_and_a_block_of_zeros_is_zeros():
    values = rows()
    values[:, 40] = 0
    values[3] = 0
    for symmetric in (True, False):
        for search in (True, False):
            found = quantize(values, 4, 32, symmetric=symmetric, search=search).weights()
            assert (found[:, 40] == 0).all()
            assert (found[3] == 0).all()


def test_scales_are_those_that_are_stored():
    blocks = quantize(rows(), 4, 32, symmetric=True, search=True, scale_type=np.float16)
    assert (blocks.scales.astype(np.float16) == blocks.scales).all()
    beyond = quantize(rows() * 1e6, 4, 32, symmetric=True, search=False, scale_type=np.float16)
    assert np.isinf(beyond.scales).any()


def test_stretches_do_not_show(monkeypatch):
    values = rows(shape=(64, 256))
    whole = quantize(values, 4, 32, symmetric=False, search=True)
    monkeypatch.setattr("packager.formats.quant.blocks.CHUNK", 96)
    parts = quantize(values, 4, 32, symmetric=False, search=True)
    assert np.array_equal(whole.codes, parts.codes)
    assert np.array_equal(whole.scales, parts.scales)


@given(st.integers(1, 40), st.sampled_from([4, 8]))
@settings(deadline=None)
def test_packing_puts_the_first_code_lowest(columns, bits):
    codes = np.random.default_rng(columns).integers(0, 1 << bits, (3, columns)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, -(-columns * bits // 8))
    for row, line in zip(codes, packed, strict=True):
        value = int.from_bytes(line.tobytes(), "little")
        for i, code in enumerate(row):
            assert (value >> (bits * i)) & ((1 << bits) - 1) == code
