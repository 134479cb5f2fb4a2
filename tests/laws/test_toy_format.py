"""A new format is two folders: the laws hold for it, and it goes from plan to an installed bundle.

The folders lie in tests/support/toy_format. Nothing in packager/ or runtimes/ knows of them.
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

import runtimes.backends as backends
from packager import formats
from packager.checkpoint.reader import read_checkpoint
from packager.core.records import Checkpoint
from packager.devices.database import read_device
from runtimes.contract import Backend, BackendOptions, SpecialIds
from runtimes.prompts.tokenizer import Tokenizer
from tests.support.format_laws import (
    SHAPES,
    check_flat_memory,
    check_proof,
    check_reach,
    check_rewinds,
    check_saves,
    largest,
    logits_of,
)
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "support" / "toy_format"
MAX_ERROR = 1e-3  # logits have a standard deviation of 2, and both sides compute in float32
COPIED = ("packager", "runtimes", "profiles", "LICENSE")
CONTEXT = 1024


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    """Both packages with the toy's folders on their paths."""
    for package in (formats, backends):
        own = TOY.joinpath(*package.__name__.split("."))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(own)])
    yield formats.load("toy")
    formats.load.cache_clear()
    for name in [name for name in sys.modules if ".toy" in name]:
        del sys.modules[name]


def open_toy(checkpoint: Checkpoint, context: int = CONTEXT, **options) -> Backend:
    """Convert beside the checkpoint and open that."""
    path, format = checkpoint.path.with_name("toy"), formats.load("toy")
    if not path.is_dir():
        format.convert(checkpoint, format.variant("fp32"), path)
    return backends.open_model(
        "toy", path, checkpoint.window, BackendOptions(context, 1, **options)
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    shape = SHAPES["window-divides-nothing"]
    return read_checkpoint(write_checkpoint(tmp_path / "model", **shape))


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_logits_equal_the_reference_before_at_and_far_past_the_window(toy, checkpoint, chunk):
    ids = np.random.default_rng(5).integers(40, 320, 8 * checkpoint.window.size_tokens)
    found = logits_of(open_toy(checkpoint, chunk_tokens=chunk), ids, chunk)
    assert largest(found - eager_logits(checkpoint.path, ids)) < MAX_ERROR


def test_every_law(toy, checkpoint, tmp_path):
    check_proof(checkpoint, open_toy(checkpoint, 2048))
    check_saves(checkpoint, open_toy(checkpoint, chunk_tokens=24))
    check_rewinds(checkpoint, open_toy(checkpoint, 2048, chunk_tokens=24), MAX_ERROR)
    check_reach(tmp_path / "reach", open_toy)


def test_memory_is_flat(toy, tmp_path):
    # 32 - 1 + 2 chunks of 250 cells, in whole steps; 1 head of 32, keys and values in float32
    check_flat_memory(tmp_path, open_toy, key_value_bytes=2 * 576 * 32 * 4)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of what is installed, with the toy's two folders put in."""
    root = tmp_path_factory.mktemp("house")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignore)
        else:
            shutil.copy(source, root / name)
    for package in ("packager", "runtimes"):
        shutil.copytree(TOY / package, root / package, ignore=ignore, dirs_exist_ok=True)
    return root


def starpack(house: Path, *words: object) -> dict:
    """What a command says with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "packager", *map(str, words), "--json"],
        cwd=house, env=os.environ | {"PYTHONPATH": str(house)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_planning_considers_it(house):
    plan = ["plan", "--device", "cpu-zen4-2-cores", "--models", "3b", "--accept-uncalibrated"]
    found = starpack(house, *plan)
    every = {found["chosen"]["name"], *(r["candidate"]["name"] for r in found["rejected"])}
    assert "3b toy-fp32" in every and "3b gguf-Q4_K_M" in every
    (gpu,) = starpack(house, "estimate", "run", "3b", "--formats", "toy", "--device", "tesla-t4")[
        "estimates"
    ]
    assert gpu["unsupported"] == "numpy has no kernels for GPUs"


@pytest.mark.bundle
@pytest.mark.slow
def test_it_is_converted_measured_selected_packed_and_installed(house, tmp_path):
    model, out = write_checkpoint(tmp_path / "model", context=CONTEXT), tmp_path / "out"
    (model / "LICENSE").write_text("do as you like\n")
    out.mkdir()
    # measured once more it would take ten seconds
    (out / "device.json").write_text(json.dumps(read_device("cpu-zen4-2-cores")))
    common = [model, "--formats", "toy", "--out", out]
    judged = [*common, "--samples", "1", "--threads", "1", "--accept-uncalibrated"]

    (artifact,) = starpack(house, "convert", *common)["artifacts"]
    assert [file["path"] for file in artifact["files"]] == ["config.json", "model.npz"]
    (measured,) = starpack(house, "profile", *judged)["measurements"]
    assert measured["proof"]["verdict"] == "holds"
    assert measured["speed"]["peak_memory_bytes"] > 0
    assert starpack(house, "select", *judged)["chosen"]["name"] == "toy-fp32"
    starpack(house, "pack", *judged)
    carried = {path.name for path in (out / "bundle" / "runtimes" / "backends").iterdir()}
    assert {"toy", "own_cache"} < carried and not {"gguf", "gptq", "onnx"} & carried

    installed, clean = tmp_path / "installed", {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    clean["PYTHON"] = sys._base_executable

    def run(*words: object) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd="/", env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(out / "bundle" / "install", "--to", installed)
    prompt = "def f(x):\n    return " * 20  # past the window
    answer = json.loads(run(installed / "run", "generate", prompt, "--json", "--max-tokens", 8))
    assert answer["text"] == greedy(model, prompt, 8)


def greedy(model: Path, prompt: str, count: int) -> str:
    """What transformers' model would say."""
    tokenizer = Tokenizer(model / "tokenizer.json", SpecialIds())
    ids = tokenizer.encode(prompt)
    start = len(ids)
    while len(ids) < start + count:
        chosen = int(eager_logits(model, np.array(ids))[-1].argmax())
        if chosen in SpecialIds().stops:
            break
        ids.append(chosen)
    return tokenizer.decode(ids[start:])
