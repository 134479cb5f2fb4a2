"""What is counted without weights is what the writers write and the engines allocate."""

from __future__ import annotations

import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.devices.database import load_device
from packager.estimate.memory import file_bytes, footprint, memory_parts
from packager.estimate.models import load_model, model_names
from packager.formats import Setting
from packager.formats.gguf import format as gguf
from packager.formats.gguf.recipe import repacked_bytes
from packager.formats.gptq import format as gptq
from packager.formats.gptq.footprint import weights_bytes
from packager.formats.onnx import format as onnx
from packager.formats.onnx.convert import MODEL_NAME
from packager.formats.quant import ggml
from runtimes.contract import BackendOptions, Window
from tests.support.tiny import write_checkpoint

SHAPE = dict(layers=9, hidden=256, heads=8, kv_heads=2, ffn=512, window=1000, context=4096)
ONNX = [
    "fp32", "fp16", "int8", "int8-fp16", "int4-g32", "int4-g64", "int4-g128", "int4-g32-fp16",
]  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return read_checkpoint(write_checkpoint(folder / "model", tied=request.param, **SHAPE))


@pytest.mark.parametrize("recipe", gguf.RECIPES)
def test_gguf_tensors_to_the_byte(checkpoint, recipe, tmp_path) -> None:
    pytest.importorskip("llama_cpp.llama_cpp", reason="needs the engine: make wheels")
    from gguf import GGUFReader

    variant = gguf.variant(recipe)
    artifact = gguf.convert(checkpoint, variant, tmp_path / "out")
    reader = GGUFReader(artifact.path / gguf.FILE_NAME)
    written = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    assert gguf.tensor_bytes(checkpoint.geometry, variant) == written
    padding = 32 * len(written)
    overhead = artifact.size_bytes - reader.data_offset - file_bytes(checkpoint.geometry, variant)
    assert 0 <= overhead < padding


def test_gguf_rows_are_as_long_as_the_engine_says() -> None:
    llama = pytest.importorskip("runtimes.backends.gguf.engine")
    pytest.importorskip("llama_cpp.llama_cpp", reason="needs the engine: make wheels")
    import ctypes

    size = llama.engine().function("ggml_row_size", [ctypes.c_int, ctypes.c_int64], ctypes.c_size_t)
    for name, number in ggml.TYPE_IDS.items():
        assert ggml.row_bytes(name, 1536) == size(number, 1536)


@pytest.mark.parametrize("head_bits", [None, 4])
@pytest.mark.parametrize("recipe", ONNX)
def test_onnx_tensors_to_the_byte(checkpoint, recipe, head_bits, tmp_path) -> None:
    from onnx import load

    variant = onnx.variant(recipe, head_bits)
    out = onnx.convert(checkpoint, variant, tmp_path / "out").path
    graph = load(out / MODEL_NAME, load_external_data=False).graph
    written = {
        tensor.name: int(next(e.value for e in tensor.external_data if e.key == "length"))
        for tensor in graph.initializer
        # another name of the same bytes
        if tensor.external_data and tensor.name != "embedding.codes"
    }
    counted = onnx.tensor_bytes(checkpoint.geometry, variant)
    # of an untied embedding the graph reads the codes by their other name alone
    missing = counted.keys() - written.keys()
    assert missing <= {"embedding.blocks"}
    assert written == {name: size for name, size in counted.items() if name not in missing}
    data = (out / "model.onnx.data").stat().st_size
    assert 0 <= data - sum(counted.values()) < 64 * len(counted)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("recipe", "head_bits"), [("w4g128", None), ("w8g32-asym", 8), ("w4g32-asym", 4)]
)
def test_gptq_file_and_what_torch_holds_of_it(recipe, head_bits, tied, tmp_path) -> None:
    models = pytest.importorskip("tests.support.gptq_models")
    from safetensors import safe_open

    shape = SHAPE | dict(layers=1, vocab=576)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "model", tied=tied, **shape))
    folder = models.quantise(checkpoint, tmp_path / "out", recipe, head_bits)
    variant = gptq.variant(recipe, head_bits)
    with safe_open(folder / "model.safetensors", "np") as file:
        written = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    assert gptq.tensor_bytes(checkpoint.geometry, variant) == written

    backend = models.open_backend(folder, checkpoint, 2048, kernel_path="packed")
    model = backend._model
    linears = [linear for layer in model.layers for linear in layer.linears]
    packed = [x for x in [*linears, model.head] if hasattr(x, "planes")]
    norms = [n for layer in model.layers for n in (layer.before_attention, layer.before_mlp)]
    unreported = sum(x.bias.nbytes for x in packed)
    unreported += sum(n.weight.nbytes + n.bias.nbytes for n in [*norms, model.norm])
    for plane in (plane for x in packed for plane in x.planes):
        unreported += plane.scales.nbytes + (0 if plane.zeros is None else plane.zeros.nbytes)
    held = backend.memory_bytes().weights_bytes + unreported
    found = footprint(checkpoint.geometry, variant, checkpoint.window, Setting(2048))
    assert found.weights_bytes == held
    assert found.key_values_bytes == backend.memory_bytes().key_values_bytes
    backend.close()


@pytest.mark.parametrize("kernel_path", ["half", "expanded"])
@pytest.mark.parametrize("recipe", ["w4g128", "w8g32-asym"])
def test_what_torch_holds_where_it_has_no_kernel(recipe, kernel_path, tmp_path) -> None:
    models = pytest.importorskip("tests.support.gptq_models")
    folder = write_checkpoint(tmp_path / "model", **SHAPE | dict(layers=1, vocab=576))
    checkpoint, variant = read_checkpoint(folder), gptq.variant(recipe)
    out = models.quantise(checkpoint, tmp_path / "out", recipe, None)
    backend = models.open_backend(out, checkpoint, 2048, kernel_path=kernel_path)
    held = backend.memory_bytes().weights_bytes
    backend.close()
    # biases and norms are not in what the backend says: 3 % of so small a model
    found = weights_bytes(checkpoint.geometry, variant, kernel_path, gpu=True)
    assert found == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize("recipe", ["w4g128", "w4g32-asym", "w8g32-asym"])
def test_what_torch_holds_on_a_gpu(recipe, tmp_path, monkeypatch) -> None:
    """On the meta device, which has the shapes of what a GPU would hold."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("tests.support.gptq_models")
    from runtimes.backends.gptq.files import Files, read_config
    from runtimes.backends.gptq.model import Model

    folder = write_checkpoint(tmp_path / "model", **SHAPE | dict(layers=1, vocab=576))
    checkpoint, variant = read_checkpoint(folder), gptq.variant(recipe)
    out = models.quantise(checkpoint, tmp_path / "out", recipe, None)
    files, device = Files(out, read_config(out)), torch.device("meta")
    held = Model(files, slots=64, positions=64, kernel_path="tiled", device=device).weights_bytes
    found = weights_bytes(checkpoint.geometry, variant, "int4", gpu=True)
    assert found == pytest.approx(held, rel=0.03)  # biases and norms, as above


@pytest.mark.parametrize("recipe", ["Q8_0", "Q5_K_M", "Q4_K_M"])
def test_llama_cpp_keeps_some_weights_twice(recipe, tmp_path) -> None:
    models = pytest.importorskip("tests.support.gguf_models")
    folder = write_checkpoint(tmp_path / "model", hidden=256, ffn=1024, heads=4, vocab=512)
    checkpoint, variant = read_checkpoint(folder), gguf.variant(recipe)
    out = gguf.convert(checkpoint, variant, tmp_path / recipe).path
    backend = models.open_backend(out, checkpoint, 512)
    held = backend.memory_bytes().weights_bytes
    backend.close()
    assert (repacked_bytes(checkpoint.geometry, variant) > 0) == (recipe == "Q4_K_M")
    cpu, gpu = (
        footprint(checkpoint.geometry, variant, checkpoint.window, Setting(512, device=device))
        for device in (None, load_device("l4-24gb"))
    )
    logged = 12_000  # llama.cpp says it in hundredths of a MiB
    assert abs(cpu.weights_bytes - held) < 2 * logged
    assert gpu.weights_bytes == file_bytes(checkpoint.geometry, variant)  # once, the model is tied


@pytest.mark.parametrize(("context", "chunk"), [(512, 512), (2048, 128), (4096, 512)])
def test_llama_buffers(checkpoint, context, chunk, tmp_path) -> None:
    models = pytest.importorskip("tests.support.gguf_models")
    variant = gguf.variant("F16")
    out = gguf.convert(checkpoint, variant, tmp_path / "f16").path
    backend = models.open_backend(out, checkpoint, context, chunk_tokens=chunk)
    memory = backend.memory_bytes()
    backend.close()
    found = footprint(checkpoint.geometry, variant, checkpoint.window, Setting(context, chunk))
    logged = 12_000  # llama.cpp says it in hundredths of a MiB
    assert abs(found.key_values_bytes - memory.key_values_bytes) < logged
    # and a little more for ids and positions
    assert abs(found.compute_bytes - memory.compute_bytes) < 0.03 * memory.compute_bytes
    assert abs(found.weights_bytes - memory.weights_bytes) < 0.01 * found.weights_bytes


@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_onnx_cache(checkpoint, recipe, tmp_path) -> None:
    module = pytest.importorskip("runtimes.backends.onnx.backend")
    pytest.importorskip("onnxruntime")
    variant = onnx.variant(recipe)
    out = onnx.convert(checkpoint, variant, tmp_path / "out").path
    backend = module.open_backend(out, checkpoint.window, BackendOptions(2048, 1))
    spare = 0 if recipe == "fp32" else backend._slots.count * 32 * 2
    expected = backend.memory_bytes().key_values_bytes + spare
    backend.close()
    found = footprint(checkpoint.geometry, variant, checkpoint.window, Setting(2048))
    assert found.key_values_bytes == expected


def test_published_sizes() -> None:
    # Hugging Face's listings of GGUF files of StarCoder2-7B and 15B, GB
    listed = {"7b": {"Q4_K_M": 4.46, "IQ4_XS": 3.95}, "15b": {"Q4_K_M": 9.86, "Q8_0": 17.0}}
    for name, sizes in listed.items():
        for recipe, size in sizes.items():
            found = file_bytes(load_model(name).geometry, gguf.variant(recipe)) / 1e9
            assert found == pytest.approx(size, rel=0.005)


def test_models_are_the_published_ones() -> None:
    parameters = {"3b": 3_030_371_328, "7b": 7_173_923_840, "15b": 15_957_889_024}
    assert model_names() == list(parameters)
    for name, count in parameters.items():
        model = load_model(name)
        assert model.geometry.parameters == count
        assert model.window == Window(4096)
    assert "fill in the middle" in load_model("15b").notes[0]


def test_embedding_stays_with_the_cpu_unless_it_is_the_head() -> None:
    tied, untied = load_model("3b").geometry, load_model("15b").geometry
    variant = gguf.variant("Q8_0")
    card = Setting(16_384, device=load_device("l4-24gb"))

    def found(geometry, setting):
        return footprint(geometry, variant, Window(4096), setting)

    assert found(tied, card).weights_bytes == file_bytes(tied, variant)
    embedding = untied.vocab * untied.hidden // 32 * 34
    rest = file_bytes(untied, variant) - embedding
    assert found(untied, card).weights_bytes == rest
    assert found(untied, Setting(16_384)).streamed_bytes == rest


def test_the_window_bounds_memory() -> None:
    model, device = load_model("15b"), load_device("tesla-t4")
    variant = gguf.variant("Q4_K_M")

    def parts(window, context):
        setting = Setting(context, device=device)
        return memory_parts(footprint(model.geometry, variant, window, setting), device)

    assert parts(model.window, 16_384) == parts(model.window, 131_072)
    # bytes of fp16 keys and values per token
    assert parts(Window(None), 131_072).key_values_bytes == 131_072 * 81_920
