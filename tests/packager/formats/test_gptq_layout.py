"""The arrays of a GPTQ file: the law of packing, and the words that others expect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.formats.quant.blocks import Blocks
from packager.formats.quant.gptq_layout import Packed, pack, unpack


@st.composite
def packable(draw: st.DrawFn) -> tuple[Blocks, int]:
    """Random blocks of 4 or 8 bits, all codes and all storable zero points, and the bits."""
    bits = draw(st.sampled_from([4, 8]))
    group = draw(st.sampled_from([8, 32, 128]))
    groups = draw(st.integers(1, 4))
    outputs = 8 * draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 1 << bits, (outputs, groups * group), np.uint8)
    scales = rng.standard_normal((outputs, groups)).astype(np.float16).astype(np.float32)
    zeros = rng.integers(1, 1 << bits, (outputs, groups), np.uint8)
    return Blocks(codes, scales, zeros), bits


@given(packable())
def test_unpack_is_the_inverse_of_pack(case: tuple[Blocks, int]) -> None:
    blocks, bits = case
    packed = pack(blocks, bits)
    found = unpack(packed, bits)
    for name in Blocks.__slots__:
        before, after = getattr(blocks, name), getattr(found, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(after, before)
    outputs, inputs = blocks.codes.shape
    groups = blocks.scales.shape[1]
    assert packed.qweight.shape == (inputs * bits // 32, outputs)
    assert packed.qzeros.shape == (groups, outputs * bits // 32)
    assert packed.scales.shape == (groups, outputs)
    assert [getattr(packed, name).dtype for name in Packed.__slots__] == [
        np.int32, np.int32, np.float16, np.int32,
    ]  # fmt: skip
    assert all(getattr(packed, name).flags.c_contiguous for name in Packed.__slots__)


def test_the_words_are_those_of_autogptq() -> None:
    codes = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
    codes[1] = 15
    blocks = Blocks(codes, np.full((8, 1), 0.5, np.float32), np.full((8, 1), 8, np.uint8))
    packed = pack(blocks, 4)
    assert packed.qweight.view(np.uint32).tolist() == [[0x76543210, 0xFFFFFFFF] + [0x76543210] * 6]
    assert packed.qzeros.tolist() == [[0x77777777]]
    assert packed.g_idx.tolist() == [0] * 8
    wide = pack(Blocks(codes, blocks.scales, np.full((8, 1), 128, np.uint8)), 8)
    assert wide.qweight[:, 0].tolist() == [0x03020100, 0x07060504]
    assert wide.qzeros.tolist() == [[0x7F7F7F7F] * 2]


@pytest.mark.parametrize(
    ("zero", "scale", "columns", "what"),
    [(0, 1.0, 8, "zero point 0"), (8, 1 / 3, 8, "exact in float16"), (8, 1.0, 4, "whole words")],
)
def test_what_the_layout_cannot_hold_is_a_bug(zero, scale, columns, what) -> None:
    blocks = Blocks(
        np.zeros((8, columns), np.uint8),
        np.full((8, 1), scale, np.float32),
        np.full((8, 1), zero, np.uint8),
    )
    with pytest.raises(AssertionError, match=what):
        pack(blocks, 4)
