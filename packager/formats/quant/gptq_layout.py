"""The arrays of a GPTQ file: codes and zero points in words of 32 bits.

Pure arithmetic on arrays; knows nothing of files or models. Layout: AutoGPTQ's version 1, as
GPTQModel, vLLM and transformers read it. For a linear of `in` inputs and `out` outputs:

    qweight  int32 (in * bits / 32, out)      codes of neighbouring inputs, the first lowest
    qzeros   int32 (groups, out * bits / 32)  zero - 1 of neighbouring outputs, the first lowest
    scales   float16 (groups, out)
    g_idx    int32 (in,)                      the group of each input

Law: `unpack(pack(blocks, bits), bits) == blocks` for zeros from 1 on and scales exact in float16.
A zero point of 0 does not exist in this version: 0 - 1 has no code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from packager.formats.quant.blocks import Blocks

WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """How matrices are stored: bits per weight, weights per scale, the zero point in the middle."""

    bits: int
    group: int
    symmetric: bool

    @property
    def bits_per_weight(self) -> float:
        """Scales and zero points included; symmetric files store those too."""
        return self.bits + (16 + self.bits) / self.group


@dataclass(frozen=True, slots=True)
class Packed:
    """The arrays of one linear as a GPTQ file stores them, in the order of its inputs."""

    qweight: np.ndarray
    qzeros: np.ndarray
    scales: np.ndarray
    g_idx: np.ndarray


def pack(blocks: Blocks, bits: int) -> Packed:
    """The arrays of `blocks` with 4 or 8 bits.

    Inputs and outputs must both fill whole words: multiples of 8 for 4 bits, of 4 for 8. Zeros must
    be 1 or more, scales exact in float16.
    """
    outputs, inputs = blocks.codes.shape
    groups = blocks.scales.shape[1]
    assert outputs % (WORD_BITS // bits) == 0, f"{outputs} outputs do not fill whole words"
    assert inputs % (WORD_BITS // bits) == 0, f"{inputs} inputs do not fill whole words"
    assert blocks.zeros.min() >= 1, "version 1 of the layout has no zero point 0"
    scales = blocks.scales.astype(np.float16)
    assert (scales == blocks.scales).all(), "scales must be exact in float16"
    return Packed(
        qweight=np.ascontiguousarray(_pack_words(blocks.codes, bits).T),
        qzeros=_pack_words(np.ascontiguousarray((blocks.zeros - 1).T), bits),
        scales=np.ascontiguousarray(scales.T),
        g_idx=(np.arange(inputs) // (inputs // groups)).astype(np.int32),
    )


def unpack(packed: Packed, bits: int) -> Blocks:
    """The blocks of arrays whose g_idx is trivial: input i in group i // group size."""
    return Blocks(
        codes=unpack_codes(packed.qweight, bits),
        scales=np.ascontiguousarray(packed.scales.T.astype(np.float32)),
        zeros=unpack_zeros(packed.qzeros, bits),
    )


def unpack_codes(qweight: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 (out, in) of int32 (in * bits / 32, out)."""
    return _unpack_words(np.ascontiguousarray(qweight.T), bits)


def unpack_zeros(qzeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points uint8 (out, groups) of int32 (groups, out * bits / 32).

    The one that is stored in 4 bits as 15 is 16, which is what readers of version 1 compute; in 8
    bits, 255 is 0 and not 256.
    """
    return np.ascontiguousarray(_unpack_words(qzeros, bits).T) + np.uint8(1)


def _pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (R, C) to int32 (R, C * bits / 32), the first code in the lowest bits."""
    per_word = WORD_BITS // bits
    words = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.uint32)
    for place in range(per_word):
        words |= codes[:, place::per_word].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def _unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 (R, W) to uint8 (R, W * 32 / bits): the inverse of _pack_words."""
    per_word = WORD_BITS // bits
    unsigned, mask = words.view(np.uint32), np.uint32((1 << bits) - 1)
    codes = np.empty((words.shape[0], words.shape[1] * per_word), np.uint8)
    for place in range(per_word):
        codes[:, place::per_word] = (unsigned >> np.uint32(bits * place)) & mask
    return codes
