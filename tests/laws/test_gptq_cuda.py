"""The GPTQ backend on GPUs: what can be known of it without one, and with one the rest.

torch's int4 operations, which only CUDA has, are replaced by tests/support/int4_kernel.py; whatever
else the GPU's path computes runs here as it is. Where a GPU is there, the last tests run on it too.
The products themselves are in test_gptq_tiles.py.
"""

from __future__ import annotations

import contextlib
import inspect
import types

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from runtimes.backends.gptq import tiles
from runtimes.backends.gptq.cuda_graphs import STEP_IDS, Step, steps_of
from runtimes.backends.gptq.device import Gpu
from runtimes.backends.gptq.files import Files, read_config
from runtimes.backends.gptq.model import Model
from runtimes.errors import DeviceError
from tests.support import int4_kernel
from tests.support.format_laws import SHAPES, check_reach, check_rewinds, logits_of, rms
from tests.support.gptq_models import (
    backend_module,
    dequantised,
    open_backend,
    open_fresh,
    quantise,
    torch,
)
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
GIB = 1 << 30
MOST_ERROR = 1e-4  # float32, as in tests/laws/test_gptq_window.py
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


def stepping(path, floats, **options):
    """A backend on the CPU that takes what fits in steps, as one on a GPU does."""
    backend = open_backend(path, floats, **options)
    backend._steps = steps_of(backend._model)
    return backend


# The step of fixed shape


@pytest.mark.parametrize("kernel_path", ["tiled", "half", "expanded", "float32"])
def test_a_step_asks_nothing_of_the_device_and_mixes_no_devices(made, monkeypatch, kernel_path):
    """On the meta device, where there is nothing to read: a graph cannot read back either."""
    ops = types.SimpleNamespace(
        _convert_weight_to_int4pack=torch.ops.aten._convert_weight_to_int4pack,
        _weight_int4pack_mm=int4_kernel.multiply_shapes,
    )
    monkeypatch.setattr(tiles, "_ops", ops)
    _, path, *_ = made
    files = Files(path, read_config(path))
    model = Model(
        files, slots=60, positions=200, kernel_path=kernel_path, device=torch.device("meta")
    )
    for step in steps_of(model):
        logits = step.compute()
        assert (logits.shape, logits.dtype) == ((step.size, 320), torch.float32)
        assert logits.device.type == "meta"
    chunk = model.forward(torch.arange(40), 3, range(0, 43), 0, last_only=False)
    assert (chunk.shape, chunk.device.type) == ((40, 320), "meta")


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
    assert backend._slots.first > 0  # the slots did move
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


def test_what_is_recorded_is_what_is_replayed(made, monkeypatch):
    """Capturing with a graph that computes: how torch.cuda is called, and what stays in place."""
    computing: list[Step] = []

    class Graph:
        def __init__(self) -> None:
            self.step = computing[-1]

        def replay(self) -> None:
            self.step._recorded[1].copy_(self.step.compute())

    @contextlib.contextmanager
    def record(*arguments, **named):
        given = inspect.signature(real_graph).bind(*arguments, **named).arguments
        assert given["pool"] == (0, 1)
        yield

    real_graph, stream = torch.cuda.graph, types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: contextlib.nullcontext())
    floats, path, ids, reference = made
    backend = stepping(path, floats, chunk_tokens=40)
    for step in backend._steps:
        computing.append(step)
        step.capture((0, 1))
    held = [step._recorded[1].data_ptr() for step in backend._steps]
    logits = np.concatenate([logits_of(backend, ids[:99], 3), logits_of(backend, ids[99:120], 1)])
    assert np.abs(logits - reference[:120]).max() < MOST_ERROR
    assert [step._recorded[1].data_ptr() for step in backend._steps] == held
    backend.close()


@pytest.mark.parametrize("kernel_path", MOST_RMS)
def test_steps_err_past_the_window_as_they_do_inside(made, kernel, kernel_path):
    floats, path, ids, reference = made
    backend = stepping(path, floats, chunk_tokens=40, kernel_path=kernel_path)
    error = logits_of(backend, ids, 1) - reference
    backend.rewind(0)
    chunks = logits_of(backend, ids, 40) - reference
    backend.close()
    window = floats.window.size_tokens
    for found in (error, chunks):
        assert rms(found[:window]) < MOST_RMS[kernel_path]
        assert rms(found[window:]) < 1.3 * rms(found[:window])


@pytest.mark.parametrize("context", [21, 96])  # all of it in slots, or more than they hold
def test_a_step_ends_where_the_context_or_the_cells_do(made, context):
    floats, path, ids, reference = made
    backend = stepping(path, floats, context=context, chunk_tokens=8)
    taken = count_steps(backend)
    logits = logits_of(backend, ids[: context - 3], 3)
    before = dict(taken)
    assert before[4] >= 0.5 * (context / 3 - 1)
    last = backend.forward(ids[context - 3 : context].tolist(), last_only=False)
    assert taken == before  # no room for a fourth: the last three went the ordinary way
    error = np.concatenate([logits, last]) - reference[:context]
    assert np.abs(error).max() < MOST_ERROR
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
    ("capability", "free_gib", "path", "kernel_path"),
    [
        ((8, 6), 8.0, "int4 kernel for few rows, expanded to bfloat16 for many", "tiled"),
        ((7, 5), 8.0, "float16 weights", "half"),
        ((7, 5), 0.002, "expanded to float16 for each product", "expanded"),
    ],
)
def test_the_backend_takes_the_devices_path_and_says_so(
    made, gpu, capability, free_gib, path, kernel_path
):
    floats, artifact, ids, reference = made
    gpu(capability, free_gib)
    backend = open_backend(artifact, floats, kernel_path=None, provider="cuda", chunk_tokens=40)
    said = backend.describe()
    assert said["path"] == path
    assert said["capability"] == "CUDA {}.{}".format(*capability)
    assert (said["device"], said["cuda_graphs"]) == ("A card", "for up to 1, 2, 4, 8, 16 ids")
    error = np.concatenate([logits_of(backend, ids[:80], 40), logits_of(backend, ids[80:100], 1)])
    assert rms(error - reference[:100]) < MOST_RMS[kernel_path]
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
    backend = open_backend(path, checkpoint, kernel_path=None, provider="cuda", chunk_tokens=150)
    error = rms(logits_of(backend, ids, 150) - eager_logits(floats, ids))
    backend.close()
    assert error < {8: 0.05, 4: 0.3}[head_bits]


def test_values_beyond_float16_are_an_error_and_no_answer(made, gpu):
    floats, path, ids, _ = made
    gpu((7, 5))
    backend = open_backend(path, floats, kernel_path=None, provider="cuda")
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
        open_backend(path, floats, kernel_path=None, provider="cuda")
    assert "smaller recipe" in caught.value.remedy


# On every device that is there: the same laws with torch's own operations


@pytest.mark.parametrize("device", DEVICES)
def test_the_devices_own_way_errs_past_the_window_as_it_does_inside(made, device):
    floats, path, ids, reference = made
    backend = open_backend(path, floats, kernel_path=None, provider=device, chunk_tokens=40)
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
