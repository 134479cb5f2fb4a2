"""Products with packed weights as GPUs compute them, with torch's int4 kernel replaced."""

from __future__ import annotations

import pytest

from runtimes.errors import DeviceError

torch = pytest.importorskip("torch")
from runtimes.backends.gptq import tiles as gptq_tiles  # noqa: E402
from runtimes.backends.gptq.files import Codes  # noqa: E402
from runtimes.backends.gptq.linear import FloatLinear  # noqa: E402
from runtimes.backends.gptq.model import KERNEL_PATHS  # noqa: E402
from runtimes.backends.gptq.tiles import ExpandedLinear, TiledLinear, Tiles, check_tiles  # noqa: E402
from tests.support import int4_kernel  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("inner", [2, 4, 8])
def test_tiles_expand_to_what_was_packed(kernel, inner):
    inputs, outputs = 5 * 16 * inner, 40
    inputs = inputs if inputs % 32 == 0 else 2 * inputs
    codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scales = torch.ones(outputs, inputs // 32)
    tiles = Tiles(codes, scales, torch.zeros_like(scales))
    assert tiles.inner == inner
    assert torch.equal(tiles.expand(0, 5).float(), codes.float() - 8)
    assert torch.equal(tiles.expand(2, 4).float(), codes[16:32].float() - 8)


def test_another_order_of_the_codes_is_an_error(kernel, monkeypatch):
    check_tiles(torch.device("cpu"))
    packed = kernel._convert_weight_to_int4pack

    def swapped(pairs, inner):
        return packed(pairs << 4 | pairs >> 4, inner)

    monkeypatch.setattr(kernel, "_convert_weight_to_int4pack", swapped)
    with pytest.raises(DeviceError, match="unknown way"):
        check_tiles(torch.device("cpu"))
    # a kernel that agrees with it does not help: prompts would be expanded wrongly
    monkeypatch.setattr(
        kernel, "_weight_int4pack_mm", lambda x, packed, *more: (
            int4_kernel.multiply(x, _swap_halves(packed), *more)
        ),
    )  # fmt: skip
    with pytest.raises(DeviceError, match="unknown way"):
        check_tiles(torch.device("cpu"))


def _swap_halves(packed):
    return (packed << 16) | (packed >> 16 & 0xFFFF)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["tiled", "expanded", "half"])
def test_linears_compute_what_their_codes_stand_for(kernel, monkeypatch, kind, bits, group):
    monkeypatch.setattr(gptq_tiles, "CHUNK_ELEMENTS", 24 * 384)  # chunks that do not divide
    torch.manual_seed(bits + group)
    outputs, inputs = 100, 384
    groups = inputs // group
    codes = Codes(
        torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8),
        (torch.rand(outputs, groups) / 2**bits).half().float(),
        torch.randint(0, 2**bits, (outputs, groups)).float(),
        torch.randn(outputs),
        torch.randperm(inputs),
    )
    kernel_path = KERNEL_PATHS[kind]
    linear = kernel_path.linear(codes, bits)
    assert isinstance(linear, {"tiled": TiledLinear, "expanded": ExpandedLinear}.get(kind, object))
    x = torch.randn(150, inputs)
    wanted = x @ codes.weights().T + codes.bias
    for rows in (1, 3, gptq_tiles.FEW_ROWS, 150):
        found = linear(x[:rows].to(kernel_path.type))
        assert found.dtype == (torch.bfloat16 if kind == "tiled" else torch.float32)
        error = (found.float() - wanted[:rows]).norm() / wanted[:rows].norm()
        assert error < (0.015 if kind == "tiled" else 0.001), (rows, float(error))


def test_what_float16_cannot_hold_comes_out_of_products_all_the_same():
    linear = FloatLinear(torch.full((8, 64), 60_000.0).half())
    assert linear(torch.full((1, 64), 2.0).half()).eq(64 * 2 * 60_000.0).all()


# (out, in) of StarCoder2-3B, 7B and 15B: attention, up, down, head
REAL = [
    (3584, 3072), (12288, 3072), (3072, 12288), (49152, 3072), (5632, 4608), (18432, 4608),
    (4608, 18432), (7168, 6144), (24576, 6144), (6144, 24576), (49152, 6144),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "inputs"), REAL)
def test_torchs_own_shapes_for_the_real_layers(outputs, inputs):
    """The operations' meta functions, which refuse other types and shapes, need no GPU."""
    groups = inputs // 128
    meta = (torch.empty(outputs, n, device="meta") for n in (groups, groups))
    codes = torch.empty(outputs, inputs, dtype=torch.uint8, device="meta")
    tiles = Tiles(codes, *meta)
    assert tiles.inner == 8
    assert tiles.packed.shape == (outputs // 8, inputs // 128, 32, 4)
    assert tiles.packed.nbytes == outputs * inputs // 2
    assert tiles.many(torch.empty(512, inputs, dtype=torch.bfloat16, device="meta")).shape == (
        512, outputs,
    )  # fmt: skip
    assert int4_kernel.multiply_shapes(
        torch.empty(3, inputs, dtype=torch.bfloat16, device="meta"), tiles.packed, 128,
        tiles.scales_zeros,
    ).shape == (3, outputs)  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_both_ways_to_multiply_agree_on_the_device(device, request):
    if device == "cpu":
        request.getfixturevalue("kernel")
    check_tiles(torch.device(device))
