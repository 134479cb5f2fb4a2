"""The GPU check's models: as large as the estimate counts them, seeded, and read as written."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from benchmarks.dequantised import Dequantised  # noqa: E402
from benchmarks.gpu_check import weights  # noqa: E402
from packager.estimate.memory import file_bytes  # noqa: E402
from packager.formats.gguf import format as gguf  # noqa: E402
from packager.formats.gptq import format as gptq  # noqa: E402
from packager.formats.onnx import format as onnx  # noqa: E402
from runtimes.backends.gptq.files import Files, read_config  # noqa: E402
from tests.support.gpu_samples import small_case  # noqa: E402

TOY = weights.TOY_MODEL


def test_random_gptq_weights_are_of_the_models_size_and_run(tmp_path):
    path = weights.write_gptq(TOY, "w4g128", tmp_path / "toy")
    size = (path / "model.safetensors").stat().st_size
    wanted = file_bytes(TOY.geometry, gptq.variant("w4g128"))
    assert wanted < size < wanted + 16_384  # the header
    config = read_config(path)
    codes = Files(path, config).codes(["model.layers.1.mlp.c_fc"], [(512, 256)])
    assert codes.weights().std() == pytest.approx(0.0187, rel=0.05)
    again = weights.write_gptq(TOY, "w4g128", tmp_path / "again")
    first, second = ((p / "model.safetensors").read_bytes() for p in (path, again))
    assert first == second


def test_what_rounded_weights_stand_for_is_what_the_backend_reads(tmp_path):
    path, case = small_case(tmp_path)
    config = read_config(path)
    stands_for = Dequantised(path, case.checkpoint.geometry)
    module, shape = "model.layers.0.mlp.c_proj", (128, 256)
    theirs = Files(path, config).codes([module], [shape]).weights().numpy()
    assert np.array_equal(stands_for.read(f"{module}.weight"), theirs)
    assert np.array_equal(stands_for.read_rows(f"{module}.weight", 3, 5), theirs[3:5])


def test_random_gguf_and_onnx_files_are_of_the_models_size(tmp_path):
    pytest.importorskip("llama_cpp.llama_cpp")
    file = weights.write_gguf(TOY, "Q4_K_M", tmp_path / "gguf")
    wanted = file_bytes(TOY.geometry, gguf.variant("Q4_K_M"))
    assert wanted < file.stat().st_size < wanted + 65_536  # the header has the vocabulary
    folder = weights.write_onnx(TOY, "int4-g32-rtn-fp16", tmp_path / "onnx")
    wanted = file_bytes(TOY.geometry, onnx.variant("int4-g32-rtn-fp16"))
    assert wanted <= (folder / "model.onnx.data").stat().st_size < wanted + 64 * 40
    rows = weights.RandomTensors(TOY.geometry).read("model.layers.0.mlp.c_fc.weight")
    assert rows.std() == pytest.approx(0.018, rel=0.02) and math.isfinite(rows.sum())
