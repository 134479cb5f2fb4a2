"""The GPTQ backend's way on GPUs: what can be known of it without one, and with one the rest.

torch's int4 operations, which only CUDA has, are replaced by tests/formats/int4_kernel.py; whatever
else the GPU's path computes runs here as it is. Where a GPU is there, the last tests run on it too.
"""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest

from packager.checkpoint import read_checkpoint
from runtimes import gptq_device, gptq_tiles
from runtimes.errors import DeviceError
from runtimes.gptq_device import Gpu, choose_way, find_gpu
from runtimes.gptq_files import Codes, Files, read_config
from runtimes.gptq_linear import FloatLinear
from runtimes.gptq_model import WAYS, Model
from runtimes.gptq_step import STEP_IDS, Step, steps_of
from runtimes.gptq_tiles import ExpandedLinear, TiledLinear, Tiles, check_tiles
from tests.formats import int4_kernel
from tests.formats.gptq_models import (
    backend_module,
    dequantised,
    open_backend,
    open_fresh,
    quantise,
    torch,
)
from tests.formats.laws import SHAPES, check_reach, check_rewinds, logits_of, rms
from tests.reference import eager_logits
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
GIB = 1 << 30
MOST_ERROR = 1e-4  # float32, as in tests/formats/test_gptq_window.py
MOST_RMS = {"packed": 0.04, "tiled": 0.04, "half": 0.01, "expanded": 0.01}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(checkpoint of the weights as quantised, artifact, ids to 8 windows, their logits)."""
    folder = tmp_path_factory.mktemp("gptq")
    shape = SHAPES["window-divides-nothing"]
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **shape))
    artifact = quantise(checkpoint, folder / "w4g32")
    floats = read_checkpoint(dequantised(checkpoint, artifact, 4, folder / "float"))
    ids = np.random.default_rng(5).integers(40, 320, 8 * shape["window"])
    return floats, artifact, ids, eager_logits(floats.path, ids)


@pytest.fixture
def kernel(monkeypatch):
    """torch's operations for CUDA, on any device."""
    ops = types.SimpleNamespace(
        _convert_weight_to_int4pack=int4_kernel.convert, _weight_int4pack_mm=int4_kernel.multiply
    )
    monkeypatch.setattr(gptq_tiles, "_ops", ops)
    return ops


def stepping(path, floats, **options):
    """A backend on the CPU that takes what fits in steps, as one on a GPU does."""
    backend = open_backend(path, floats, **options)
    backend._steps = steps_of(backend._model)
    return backend


# Which way


@pytest.mark.parametrize(
    ("capability", "free_gib", "half_gib", "way"),
    [
        ((12, 0), 16, 6, "tiled"),
        ((9, 0), 80, 30, "tiled"),
        ((8, 9), 2, 6, "tiled"),  # 4 bits are all it holds
        ((8, 0), 40, 6, "tiled"),
        ((7, 5), 15, 6, "half"),
        ((7, 5), 15, 12, "half"),
        ((7, 5), 15, 12.1, "expanded"),
        ((7, 0), 15, 30, "expanded"),
        ((6, 1), 24, 6, None),
        ((5, 2), 24, 6, None),
    ],
)
def test_the_way_follows_from_the_device(capability, free_gib, half_gib, way):
    given = (capability, int(free_gib * GIB), int(half_gib * GIB))
    if way is None:
        with pytest.raises(DeviceError, match="compute capability {}.{}".format(*capability)):
            choose_way(*given)
    else:
        assert choose_way(*given) == way


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch):
    def refused(match: str) -> None:
        with pytest.raises(DeviceError, match=match) as caught:
            find_gpu()
        assert "--provider cpu" in caught.value.remedy

    monkeypatch.setattr(torch.version, "cuda", None)
    refused("a build without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def old_driver() -> bool:
        warnings.warn("the driver is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    refused("no CUDA device: the driver is too old")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])

    def no_kernel(*shape: int, device: object) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(gptq_device.torch, "ones", no_kernel)
    refused("cannot use the GPU: no kernel image is available\n")


# Products


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
    monkeypatch.setattr(gptq_tiles, "STRETCH_ELEMENTS", 24 * 384)  # stretches that do not divide
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
    way = WAYS[kind]
    linear = way.linear(codes, bits)
    assert isinstance(linear, {"tiled": TiledLinear, "expanded": ExpandedLinear}.get(kind, object))
    x = torch.randn(150, inputs)
    wanted = x @ codes.weights().T + codes.bias
    for rows in (1, 3, gptq_tiles.FEW_ROWS, 150):
        found = linear(x[:rows].to(way.type))
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
    assert multiply_shapes(
        torch.empty(3, inputs, dtype=torch.bfloat16, device="meta"), tiles.packed, 128,
        tiles.scales_zeros,
    ).shape == (3, outputs)  # fmt: skip


def multiply_shapes(x, packed, group, scales_zeros):
    """torch's meta function of the product, which wants tensors of its own kind."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, packed, scales_zeros = (
            torch.empty(t.shape, dtype=t.dtype) for t in (x, packed, scales_zeros)
        )
        y = torch.ops.aten._weight_int4pack_mm(x, packed, group, scales_zeros)
    return torch.empty(y.shape, dtype=y.dtype, device="meta")


@pytest.mark.parametrize("way", ["tiled", "half", "expanded", "float32"])
def test_a_step_asks_nothing_of_the_device_and_mixes_no_devices(made, monkeypatch, way):
    """On the meta device, where there is nothing to read: a graph cannot read back either."""
    ops = types.SimpleNamespace(
        _convert_weight_to_int4pack=torch.ops.aten._convert_weight_to_int4pack,
        _weight_int4pack_mm=multiply_shapes,
    )
    monkeypatch.setattr(gptq_tiles, "_ops", ops)
    _, path, *_ = made
    files = Files(path, read_config(path))
    model = Model(files, cells=60, positions=200, way=way, device=torch.device("meta"))
    for step in steps_of(model):
        logits = step.compute()
        assert (logits.shape, logits.dtype) == ((step.size, 320), torch.float32)
        assert logits.device.type == "meta"
    chunk = model.forward(torch.arange(40), 3, range(0, 43), 0, last_only=False)
    assert (chunk.shape, chunk.device.type) == ((40, 320), "meta")


# The step of fixed shape


@pytest.mark.parametrize("sizes", [(1,), (5, 9, 17), (2, 4, 11, 16), (1, 40, 3, 17, 1, 1)], ids=str)
def test_steps_give_the_references_logits_before_at_and_past_the_window(made, sizes):
    floats, path, ids, reference = made
    backend = stepping(path, floats, chunk_tokens=40)
    taken = count_steps(backend)
    position = turn = 0
    while position < len(ids):
        part = ids[position : position + sizes[turn % len(sizes)]]
        logits = backend.forward(part.tolist(), last_only=False)
        assert np.abs(logits - reference[position : position + len(part)]).max() < MOST_ERROR
        position, turn = position + len(part), turn + 1
    assert backend._cells.first > 0  # the cells did move
    assert sum(taken.values()) >= 0.9 * sum(
        sizes[i % len(sizes)] <= max(STEP_IDS) for i in range(turn)
    )
    backend.close()


def count_steps(backend) -> dict[int, int]:
    """How often each step will have been called, by its size."""
    taken = {step.size: 0 for step in backend._steps}

    class Counted:
        def __init__(self, step: Step) -> None:
            self.step, self.size, self.fits = step, step.size, step.fits

        def __call__(self, *arguments):
            taken[self.size] += 1
            return self.step(*arguments)

    backend._steps = [Counted(step) for step in backend._steps]
    return taken


def test_random_rewinds_equal_a_fresh_run(made):
    floats, path, *_ = made
    backend = stepping(path, floats, chunk_tokens=24)
    taken = count_steps(backend)
    check_rewinds(floats, backend, 2e-5)
    assert min(taken.values()) > 1


def test_a_token_beyond_the_reach_changes_not_one_bit(tmp_path):
    def opened(checkpoint, **options):
        backend = open_fresh(checkpoint, **options)
        backend._steps = steps_of(backend._model)
        return backend

    check_reach(tmp_path, opened)


@pytest.mark.parametrize("way", MOST_RMS)
def test_steps_err_past_the_window_as_they_do_inside(made, kernel, way):
    floats, path, ids, reference = made
    backend = stepping(path, floats, chunk_tokens=40, way=way)
    error = logits_of(backend, ids, 1) - reference
    backend.rewind(0)
    chunks = logits_of(backend, ids, 40) - reference
    backend.close()
    window = floats.window.size_tokens
    for found in (error, chunks):
        assert rms(found[:window]) < MOST_RMS[way]
        assert rms(found[window:]) < 1.3 * rms(found[:window])


def test_a_step_ends_where_the_context_or_the_cells_do(made):
    floats, path, ids, reference = made
    backend = stepping(path, floats, context=20, chunk_tokens=8)
    taken = count_steps(backend)
    logits = logits_of(backend, ids[:20], 4)
    assert np.abs(logits - reference[:20]).max() < MOST_ERROR
    assert taken == {1: 0, 5: 4, 9: 0, 17: 0}  # and the last four went the ordinary way
    backend.close()


# The backend on a device that says it is a GPU


@pytest.fixture
def gpu(kernel, monkeypatch):
    """gpu(capability, free_gib): from now on that is what is found; its memory is the CPU's."""

    def found(capability, free_gib=8.0):
        device = Gpu("A card", capability, int(free_gib * GIB), torch.device("cpu"))
        monkeypatch.setattr(backend_module, "find_gpu", lambda: device)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * GIB, 24 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB // 2)

    return found


@pytest.mark.parametrize(
    ("capability", "free_gib", "path", "way"),
    [
        ((8, 6), 8.0, "int4 kernel for few rows, expanded to bfloat16 for many", "tiled"),
        ((7, 5), 8.0, "float16 weights", "half"),
        ((7, 5), 0.002, "expanded to float16 for each product", "expanded"),
    ],
)
def test_the_backend_takes_the_devices_way_and_says_so(made, gpu, capability, free_gib, path, way):
    floats, artifact, ids, reference = made
    gpu(capability, free_gib)
    backend = open_backend(artifact, floats, way=None, provider="cuda", chunk_tokens=40)
    said = backend.describe()
    assert said["path"] == path
    assert said["capability"] == "CUDA {}.{}".format(*capability)
    assert (said["device"], said["cuda_graphs"]) == ("A card", "for up to 1, 5, 9, 17 ids")
    error = np.concatenate([logits_of(backend, ids[:80], 40), logits_of(backend, ids[80:100], 1)])
    assert rms(error - reference[:100]) < MOST_RMS[way]
    use = backend.memory_bytes()
    linears = [x for layer in backend._model.layers for x in layer.linears]
    weights = {
        id(t): t.nbytes for x in [*linears, backend._model.head] for t in held_tensors(x)
    } | {id(backend._model.embedding): backend._model.embedding.nbytes}
    assert use.weights_bytes == sum(weights.values())
    assert use.key_values_bytes == sum(cache.nbytes for cache in backend._model.cache)
    lost = max(GIB // 2, int(free_gib * GIB) - 7 * GIB)
    assert sum((use.weights_bytes, use.key_values_bytes, use.compute_bytes)) == lost
    backend.close()
    backend.close()


def held_tensors(linear) -> list:
    """The tensors of a linear that grow with it twice over: not biases."""
    parts = getattr(linear, "planes", [linear])
    values = [value for part in parts for value in vars(part).values()]
    return [value for value in values if isinstance(value, torch.Tensor) and value.dim() > 1]


@pytest.mark.parametrize("head_bits", [8, 4])
@pytest.mark.parametrize("recipe", ["w8g64-asym", "w4g128"])
@pytest.mark.parametrize("capability", [(8, 0), (7, 5)], ids=str)
def test_every_recipe_is_computed_as_its_weights_say(tmp_path, gpu, recipe, head_bits, capability):
    shape = SHAPES["window-divides-nothing"]
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", **shape))
    path = quantise(checkpoint, tmp_path / "out", recipe, head_bits)
    ids = np.random.default_rng(5).integers(40, 320, 150)
    floats = dequantised(checkpoint, path, int(recipe[1]), tmp_path / "float")
    gpu(capability)
    backend = open_backend(path, checkpoint, way=None, provider="cuda", chunk_tokens=150)
    error = rms(logits_of(backend, ids, 150) - eager_logits(floats, ids))
    backend.close()
    assert error < {8: 0.05, 4: 0.3}[head_bits]


def test_values_beyond_float16_are_an_error_and_no_answer(made, gpu):
    floats, path, ids, _ = made
    gpu((7, 5))
    backend = open_backend(path, floats, way=None, provider="cuda")
    backend._model.layers[1].down.weights[:] = torch.inf
    with pytest.raises(DeviceError, match="position 0 a value is beyond the range of float16"):
        backend.forward(ids[:3].tolist())
    assert backend.position == 0
    backend.close()


def test_memory_that_runs_out_is_an_error_with_the_remedy(made, gpu, monkeypatch):
    floats, path, *_ = made
    gpu((8, 0))

    def out_of_memory(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend_module, "steps_of", out_of_memory)
    with pytest.raises(DeviceError, match="failed to load the model: CUDA out of memory") as caught:
        open_backend(path, floats, way=None, provider="cuda")
    assert "smaller recipe" in caught.value.remedy


# On every device that is there: the same laws with torch's own operations


@pytest.mark.parametrize("device", DEVICES)
def test_the_devices_own_way_errs_past_the_window_as_it_does_inside(made, device):
    floats, path, ids, reference = made
    backend = open_backend(path, floats, way=None, provider=device, chunk_tokens=40)
    window = floats.window.size_tokens
    for chunk in (1, 5, 40):
        backend.rewind(0)
        error = logits_of(backend, ids, chunk) - reference
        assert rms(error[:window]) < MOST_RMS["packed"]
        assert rms(error[window:]) < 1.3 * rms(error[:window])
    backend.close()


@pytest.mark.parametrize("device", DEVICES)
def test_random_rewinds_in_float32_equal_a_fresh_run_on_the_device(made, device):
    """On a GPU through replayed graphs."""
    floats, path, *_ = made
    backend = open_backend(path, floats, provider=device, chunk_tokens=24)
    assert [step.size for step in backend._steps] == ([] if device == "cpu" else [*STEP_IDS])
    check_rewinds(floats, backend, 2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_both_ways_to_multiply_agree_on_the_device(device, request):
    if device == "cpu":
        request.getfixturevalue("kernel")
    check_tiles(torch.device(device))
