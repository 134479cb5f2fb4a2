"""What each part of the GPU check measures, on toys: on the CPU, and on a card that is one.

torch's int4 operations, which only CUDA has, are tests/support/int4_kernel.py. No GPU was there.
"""

from __future__ import annotations

import contextlib
import json
import types
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from benchmarks.gpu_check import (  # noqa: E402
    exact,
    kernels,
    peer_kernels,
    product_times,
    speed,
    weights,
)
from benchmarks.gpu_check.engines import ENGINES  # noqa: E402
from benchmarks.gpu_check.kernel_table import KERNELS  # noqa: E402
from benchmarks.gpu_check.product_times import series_s  # noqa: E402
from packager.devices.database import load_device  # noqa: E402
from packager.estimate.models import load_model  # noqa: E402
from runtimes.backends.gptq.cuda_graphs import Step  # noqa: E402
from runtimes.contract import BackendOptions, Window  # noqa: E402
from runtimes.errors import DeviceError  # noqa: E402
from tests.support.gpu_samples import card, findings, job, small_case  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
GIB = 1 << 30
TOY = weights.TOY_MODEL
ENGINE = {"gguf": "llama_cpp.llama_cpp", "onnx": "onnxruntime"}


def need(name: str) -> None:
    """Skip where the engine is not installed; torch is."""
    if name in ENGINE:
        pytest.importorskip(ENGINE[name])


# The window


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_is_exact_on_the_cpu_and_the_check_says_so(tmp_path, name):
    need(name)
    found = findings(exact.run, job(f"{name}-exact", tmp_path))
    assert {f.ids_per_call for f in found} == set(exact.CALLS)
    assert all(f.kind == "exactness" and f.exact and f.mode == "plain" for f in found)
    assert all(0 < f.far_rms < 2 * f.inside_rms for f in found)
    assert all(f.beyond_reach == 0 and f.full_attention_rms > 1 for f in found)


def test_on_a_card_both_ways_are_compared_with_graphs_and_without(tmp_path, kernel, monkeypatch):
    card(monkeypatch, (8, 6))
    monkeypatch.setattr(exact, "TOY_WINDOWS", 4)  # the kernel's stand-in is slow
    monkeypatch.setattr(exact, "PAST_WINDOWS", 2)
    found = findings(exact.run, job("gptq-exact", tmp_path, "cuda"))
    modes = [(1, "graphs"), (1, "no graphs"), (5, "graphs"), (5, "no graphs"), (64, "plain")]
    assert [(f.ids_per_call, f.mode) for f in found] == 2 * modes
    assert [f.path[:4] for f in found] == 5 * ["int4"] + 5 * ["floa"]
    assert all(f.exact for f in found)
    assert max(f.largest for f in found[5:]) < 1e-4  # float32


def test_a_window_of_another_size_is_not_exact(tmp_path):
    path, case = small_case(tmp_path)
    settings = json.loads((path / "config.json").read_text())
    for size in (case.checkpoint.window.size_tokens - 1, 4096):
        (path / "config.json").write_text(json.dumps(settings | {"sliding_window": size}))
        options = BackendOptions(len(case.ids), 1, chunk_tokens=64)
        backend = ENGINES["gptq"].ways()[1](path, Window(size), options)
        found = exact.compare(ENGINES["gptq"], case, backend, 64, "plain")
        backend.close()
        assert found.inside_rms < 1e-4
        assert found.past_rms > 0.01 and not found.exact


def test_graphs_that_are_off_are_not_used(tmp_path, kernel, monkeypatch):
    card(monkeypatch, (8, 6))
    path = weights.write_gptq(TOY, "w4g128", tmp_path / "toy")
    backend = ENGINES["gptq"].ways()[0](path, TOY.window, BackendOptions(128, 1, "cuda"))
    used: list[int] = []
    compute = Step.compute
    monkeypatch.setattr(Step, "compute", lambda step: used.append(step.size) or compute(step))
    backend.graphs = False
    backend.forward([41])
    assert not used
    backend.graphs = True
    backend.forward([41])
    assert used == [1]
    backend.close()


def test_a_way_that_fails_leaves_the_others(tmp_path, monkeypatch):
    card(monkeypatch, (8, 6))  # torch's own operations, which want CUDA
    found = findings(exact.run, job("gptq-exact", tmp_path, "cuda"))
    assert found[0].kind == "not run" and found[0].failed and found[0].what
    assert len(found) == 6 and all(f.exact for f in found[1:])


# Time and memory


@pytest.mark.parametrize("name", ENGINES)
def test_time_and_memory_beside_the_estimate(tmp_path, name):
    need(name)
    *times, memory = findings(speed.run, job(f"{name}-3b", tmp_path))
    assert [f.prompt_tokens for f in times] == [32, 96]  # inside the window of 64, and past it
    for found in times:
        assert (found.kind, found.model, found.layers, found.whole_layers) == ("speed", "toy", 2, 2)
        assert 1 <= len(found.prompt_s) <= speed.PROMPTS and min(found.prompt_s) > 0
        assert [step.mode for step in found.steps] == ["plain"]
        assert sum(step.steps for step in found.steps) == speed.STEPS
        assert 0 < found.steps[0].p50_s <= found.steps[0].p90_s
        assert found.prompt_estimated_s.low < found.prompt_estimated_s.high
    assert memory.kind == "memory" and memory.key_values_bytes > 0
    assert memory.estimated_bytes.middle > memory.weights_bytes


def test_graphs_take_turns_on_a_card(tmp_path, kernel, monkeypatch):
    card(monkeypatch, (8, 6))
    monkeypatch.setattr(speed, "PROMPTS", 1)
    monkeypatch.setattr(speed, "STEPS", 4)
    monkeypatch.setattr("benchmarks.gpu_check.speed.held_bytes", lambda provider: -4 * GIB)
    asked = job("gptq-7b", tmp_path, "cuda", held_bytes=-5 * GIB)
    *times, memory = findings(speed.run, asked)
    for found in times:
        assert [step.mode for step in found.steps] == ["graphs", "no graphs"]
        assert [step.steps for step in found.steps] == [speed.STEPS, speed.STEPS]
    assert memory.measured_bytes == GIB
    assert memory.estimated_bytes is not None


def test_without_a_device_file_there_is_no_estimate(tmp_path):
    asked = job("gptq-3b", tmp_path)
    asked = replace(asked, device=None)
    *times, memory = findings(speed.run, asked)
    assert {f.token_estimated_s for f in times} == {memory.estimated_bytes} == {None}


@pytest.mark.parametrize("name", ENGINES)
def test_layers_are_left_out_where_memory_is_short(name):
    whole, engine, card_ = load_model("7b"), ENGINES[name], load_device("rtx-3060-12gb")

    def layers(free_gib: float) -> int:
        model = speed.fitting(whole, engine, card_, 8192, int(free_gib * GIB))
        return model.geometry.layers

    assert layers(11) == layers(0) == 32  # 0: nobody says
    assert layers(0.5) == 1
    found = [layers(free) for free in (2.5, 3, 3.5, 4)]
    assert found == sorted(found) and 1 < found[0] < found[-1] < 32
    assert speed.fitting(whole, engine, None, 8192, GIB) == whole


# Kernels


def test_all_kernels_of_ours_compute_the_same(tmp_path, kernel, monkeypatch):
    card(monkeypatch, (8, 6))
    found = findings(kernels.run, job("kernels", tmp_path, "cuda"))
    ours = {kernel.name for kernel in KERNELS.values() if kernel.owner in ("ours", "torch")}
    assert {f.kernel for f in found} == ours
    for one in found:
        assert one.kind == "kernel" and one.layer_s > 0 and not one.captured
        assert one.error < (0.001 if one.kernel in ("float16", "expanded-float16") else 0.01)


def test_a_kernel_that_is_not_for_the_card_says_so(tmp_path, monkeypatch):
    card(monkeypatch, (7, 5))
    found = findings(kernels.run, job("kernels", tmp_path, "cuda"))
    absent = {f.name: f for f in found if f.kind == "not run"}
    assert set(absent) == {"torch-int4", "expanded-bfloat16", "bfloat16"}
    assert "7.5" in absent["torch-int4"].what and "8.0 and newer" in absent["torch-int4"].what
    assert not any(f.failed for f in absent.values())
    assert {f.kernel for f in found if f.kind == "kernel"} == {"expanded-float16", "float16"}


def test_the_shapes_are_those_of_our_backend(tmp_path):
    path = weights.write_gptq(TOY, "w4g128", tmp_path / "toy")
    backend = ENGINES["gptq"].ways()[1](path, TOY.window, BackendOptions(64, 1))
    linears = backend._model.layers[0].linears
    assert kernels.shapes_of(TOY.geometry) == [tuple(x.weights.shape) for x in linears]
    backend.close()


def test_a_series_is_timed_as_a_whole():
    done = []
    seconds, captured = series_s([lambda: done.append(1)] * 3, torch.device("cpu"))
    assert seconds > 0 and not captured
    assert len(done) % 3 == 0 and len(done) > 9


@pytest.mark.parametrize("works", [True, False])
def test_a_series_is_replayed_as_a_graph_where_it_can_be_recorded(monkeypatch, works):
    """How torch.cuda is called; what it does there, only a GPU shows."""
    said: list[str] = []

    @contextlib.contextmanager
    def record(graph):
        assert isinstance(graph, Graph)
        said.append("record")
        yield
        if not works:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    class Graph:
        def replay(self) -> None:
            said.append("replay")

    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("wait"))
    device = types.SimpleNamespace(type="cuda")
    seconds, captured = series_s([lambda: said.append("call")] * 2, device)
    assert seconds > 0 and captured is works
    warm = [*["call"] * 2 * product_times.WARM_UPS, "wait", "record", "call", "call"]
    assert said[: len(warm)] == warm
    once = ["replay"] if works else ["call", "call"]
    rest = said[len(warm) :]
    assert rest[:4] == (["replay", "wait", "wait", "replay"] if works else ["wait", "wait", *once])
    assert rest[-len(once) - 1 :] == [*once, "wait"]


class Peer:
    """A Python that has GPTQModel, or not, whose kernel answers `lines`."""

    def __init__(self, folder, lines: str) -> None:
        self.path = folder / "python"
        self.path.write_text(f"#!/bin/sh\n[ $1 = -c ] && exit 0\n{lines}\n")
        self.path.chmod(0o755)


@pytest.mark.parametrize(
    ("lines", "what", "failed"),
    [
        ("echo 'ValueError: no nvcc' >&2; exit 1", "ended with code 1: ValueError: no nvcc", True),
        ("exec sleep 60", "not compiled and timed within", False),
    ],
)
def test_a_peers_kernel_that_does_not_run_is_explained(tmp_path, monkeypatch, lines, what, failed):
    monkeypatch.setattr(peer_kernels, "LEAST_S", 0.2)
    monkeypatch.setattr(peer_kernels, "START_S", 0.0)
    asked = job("kernels-gptqmodel", tmp_path / "work", peer=str(Peer(tmp_path, lines).path))
    asked = replace(asked, limit_s=1.0)
    assert peer_kernels.missing(asked) is None
    (found,) = findings(peer_kernels.run, asked)
    assert found.name == "GPTQ_TORCH" and what in found.what and found.failed is failed


def test_what_a_peers_kernel_says_is_kept(tmp_path):
    lines = """echo noise; echo 'RESULT[[1, 0.5, true, 0.001], [5, 0.75, false, 0.002]]'"""
    asked = job("kernels-gptqmodel", tmp_path / "work", peer=str(Peer(tmp_path, lines).path))
    first, second = findings(peer_kernels.run, asked)
    assert (first.kernel, first.rows, first.layer_s, first.captured) == ("GPTQ_TORCH", 1, 0.5, True)
    assert (second.rows, second.error) == (5, 0.002)


def test_kernels_of_a_peer_run_where_they_are_made_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    peer = Peer(tmp_path, """echo 'RESULT[[1, 0.5, true, 0.001]]'""")
    asked = job("kernels-gptqmodel", tmp_path / "work", "cuda", peer=str(peer.path))
    asked = replace(asked, toy=False)
    monkeypatch.setattr(peer_kernels, "model_of", lambda *given: TOY)
    found = findings(peer_kernels.run, asked)
    assert {f.name for f in found if f.kind == "not run"} == {"GPTQ_MACHETE", "GPTQ_SWORDFISH"}
    assert {f.kernel for f in found if f.kind == "kernel"} == {
        "GPTQ_TRITON", "GPTQ_MARLIN", "GPTQ_EXLLAMA_V2", "GPTQ_TORCH",
    }  # fmt: skip


# What is not here


def test_what_is_missing_comes_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    absent = {}
    for name in ENGINES:
        need(name)
        absent[name] = exact.missing(job(f"{name}-exact", tmp_path, "cuda"))
        assert exact.missing(job(f"{name}-exact", tmp_path)) is None
    assert "without CUDA" in absent["gptq"].what
    assert "index" in absent["gptq"].remedy
    assert "without CUDA" in absent["gguf"].what
    assert "starpack wheels --cuda" in absent["gguf"].remedy
    assert "CUDAExecutionProvider" in absent["onnx"].what
    assert "--python onnx-" in absent["onnx"].remedy
    peer = peer_kernels.missing(job("kernels-gptqmodel", tmp_path))
    assert "no environment" in peer.what and "--peer" in peer.remedy
    for path in (str(tmp_path / "none"), "/bin/false"):
        assert path in peer_kernels.missing(job("kernels-gptqmodel", tmp_path, peer=path)).what


def test_a_broken_model_is_an_error_of_the_part(tmp_path, monkeypatch):
    def broken(*given):
        raise DeviceError("no memory", remedy="a larger card")

    monkeypatch.setattr(speed, "warm_up", broken)
    with pytest.raises(DeviceError, match="no memory"):
        findings(speed.run, job("gptq-3b", tmp_path))
