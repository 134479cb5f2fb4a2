"""GPTQ files between us, GPTQModel and transformers' own loader: `make test-peers`.

Each reads what the other wrote and computes the same, before and past the window. What their
arithmetic in half precision costs was measured on these models; logits are compared by the norm of
the difference over the norm of the logits, with our backend in float32.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

from benchmarks.gpu_check.product_times import MARK
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.tensors import open_tensors
from packager.core.records import Checkpoint
from packager.formats.gptq.reader import open_gptq
from tests.support.format_laws import logits_of
from tests.support.gptq_models import open_backend, quantise
from tests.support.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = dict(hidden=128, ffn=256, layers=2, window=32, seed=1)
# Measured: .0117 and .0133, inside the window and past it, with 4 bits as with 8.
MOST_IN_BFLOAT16 = 0.02
# Measured: .0069 and .0080 with 4 bits, whose kernel rounds to bfloat16 inside; .0014 with 8.
MOST_IN_FLOAT16 = {"w4g128": 0.012, "w8g128": 0.003}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model") / "model", **SHAPE))


@pytest.fixture(scope="module")
def ids(checkpoint) -> np.ndarray:
    length = 8 * checkpoint.window.size_tokens
    return np.random.default_rng(5).integers(40, checkpoint.geometry.vocab, length)


@pytest.fixture(scope="module", params=sorted(MOST_IN_FLOAT16))
def ours(request, checkpoint, tmp_path_factory) -> tuple[str, Path]:
    """(recipe, a folder that we wrote), with the tokenizer that GPTQModel asks for."""
    path = quantise(checkpoint, tmp_path_factory.mktemp("ours") / "out", request.param)
    shutil.copyfile(checkpoint.path / "tokenizer.json", path / "tokenizer.json")
    return request.param, path


def their_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(torch.tensor(ids)[None]).logits[0].float().numpy()


def our_logits(path: Path, checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    backend = open_backend(path, checkpoint, chunk_tokens=64)
    logits = logits_of(backend, ids, 64)
    backend.close()
    return logits


def check_agreement(theirs: np.ndarray, expected: np.ndarray, window: int, most: float) -> None:
    for part in (slice(window), slice(window, None)):
        error = np.linalg.norm(theirs[part] - expected[part]) / np.linalg.norm(expected[part])
        assert error < most


def test_gptqmodel_computes_from_our_files_what_we_compute(ours, checkpoint, ids):
    _, path = ours
    model = GPTQModel.load(str(path), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    assert model.dtype == torch.bfloat16  # what it runs in on a CPU, whatever the file says
    expected = our_logits(path, checkpoint, ids)
    check_agreement(
        their_logits(model, ids), expected, checkpoint.window.size_tokens, MOST_IN_BFLOAT16
    )


def test_transformers_computes_from_our_files_what_we_compute(ours, checkpoint, ids):
    """Its loader hands the file to optimum and that to GPTQModel's kernels."""
    recipe, path = ours
    model = transformers.AutoModelForCausalLM.from_pretrained(path, device_map="cpu")
    assert model.dtype == torch.float16
    assert type(model.model.layers[0].mlp.c_fc).__module__.startswith("gptqmodel.")
    expected = our_logits(path, checkpoint, ids)
    most = MOST_IN_FLOAT16[recipe]
    check_agreement(their_logits(model, ids), expected, checkpoint.window.size_tokens, most)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict(bits=4, group_size=128), id="w4g128"),
        pytest.param(dict(bits=8, group_size=128), id="w8g128"),
        pytest.param(
            dict(bits=4, group_size=32, desc_act=True, act_group_aware=False), id="by-activation"
        ),
    ],
)
def test_we_compute_from_the_files_of_gptqmodel_what_it_computes(
    checkpoint, ids, tmp_path, options
):
    rng = np.random.default_rng(0)
    texts = rng.integers(40, checkpoint.geometry.vocab, (8, 128)).tolist()
    batches = [dict(input_ids=text, attention_mask=[1] * len(text)) for text in texts]
    made = GPTQModel.load(str(checkpoint.path), QuantizeConfig(**options), device="cpu")
    made.quantize(batches, batch_size=1)
    made.save(str(tmp_path / "theirs"))
    model = GPTQModel.load(str(tmp_path / "theirs"), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    theirs = their_logits(model, ids)
    expected = our_logits(tmp_path / "theirs", checkpoint, ids)
    check_agreement(theirs, expected, checkpoint.window.size_tokens, MOST_IN_BFLOAT16)
    check_codes(tmp_path / "theirs", checkpoint, model)


def check_codes(folder: Path, checkpoint: Checkpoint, model: torch.nn.Module) -> None:
    """What we read stands for the very weights that GPTQModel's own modules expand to."""
    weights, tensors = open_gptq(folder), open_tensors(checkpoint)
    settings = json.loads((folder / "quantize_config.json").read_bytes())
    for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"):
        name = f"model.layers.1.{module}"
        shape = tensors.shape(f"{name}.weight")
        assert (weights.order(name, shape) is not None) == settings["desc_act"]
        layer = model.get_submodule(name)
        expanded = layer.dequantize_weight().T.float().numpy()
        # theirs are rounded to bfloat16
        np.testing.assert_allclose(weights.matrix(name, shape), expanded, rtol=2**-7)


def test_the_gpu_check_times_and_compares_their_kernel(ours):
    """As the part kernels-gptqmodel runs it on a GPU, but with the kernel that a CPU has."""
    _, path = ours
    words = [str(path), "GPTQ_TORCH", "cpu", "[1, 5]"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check.peer_child", *words],
        capture_output=True, text=True, check=True, cwd=path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    rows = json.loads(line.removeprefix(MARK))
    assert [row[0] for row in rows] == [1, 5]
    for _, layer_s, captured, error in rows:
        assert layer_s > 0 and not captured
        assert error < MOST_IN_BFLOAT16
