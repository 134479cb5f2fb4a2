"""Our three engines as the check uses them: which recipe, how a model is made, what has to be here.

Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.records import Job, Missing
from benchmarks.gpu_check.weights import round_gptq, write_gguf, write_gptq, write_onnx
from packager.checkpoint.tensors import TensorSource, open_tensors
from packager.core.records import Checkpoint, Variant
from packager.engine.build import CUDA_VERSION
from packager.estimate.models import Model
from packager.formats.gguf import format as gguf
from packager.formats.gptq import format as gptq
from packager.formats.onnx import format as onnx
from runtimes.backends.gguf import engine as llama
from runtimes.backends.onnx import session
from runtimes.contract import Backend, BackendOptions, Window
from runtimes.errors import StarpackError

GGUF_REMEDY = (
    "build it from the wheel's own source (needs nvcc 12.8 or newer; about an hour): "
    "`.venv/bin/starpack wheels --cuda --out build`, then `.venv/bin/pip install --no-deps "
    f"--force-reinstall build/wheels/*-{CUDA_VERSION}-*.whl`"
)
ONNX_REMEDY = (
    "make another environment as .venv, with onnxruntime-gpu (1.29 or newer) in place of "
    "onnxruntime, and name it: --python onnx-exact=PYTHON --python onnx-3b=PYTHON"
)
Open = Callable[[Path, Window, BackendOptions], Backend]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine. recipe: of the large models. exact_recipe: of the small one.

    write(model, recipe, out) makes a large model of random weights; convert(checkpoint, out) the
    small one, and what its weights stand for. ways: how either is opened, by name; the first is
    the one that users get.
    """

    name: str
    variant: Callable[[str], Variant]
    recipe: str
    exact_recipe: str
    write: Callable[[Model, str, Path], Path]
    convert: Callable[[Checkpoint, str, Path], tuple[Path, TensorSource]]
    ways: Callable[[], Sequence[Open]]
    missing: Callable[[Job], Missing | None]


def _convert_gptq(checkpoint: Checkpoint, recipe: str, out: Path) -> tuple[Path, TensorSource]:
    return out, round_gptq(checkpoint, open_tensors(checkpoint), recipe, out)


def _convert_gguf(checkpoint: Checkpoint, recipe: str, out: Path) -> tuple[Path, TensorSource]:
    artifact = gguf.convert(checkpoint, gguf.variant(recipe), out)
    return artifact.path / artifact.entry, open_tensors(checkpoint)


def _convert_onnx(checkpoint: Checkpoint, recipe: str, out: Path) -> tuple[Path, TensorSource]:
    return onnx.convert(checkpoint, onnx.variant(recipe), out).path, open_tensors(checkpoint)


def _gptq_ways() -> Sequence[Open]:
    from runtimes.backends.gptq.backend import (
        open_backend,  # torch is loaded where it is used alone
    )

    def in_float32(path: Path, window: Window, options: BackendOptions) -> Backend:
        return open_backend(path, window, options, kernel_path="float32")

    return open_backend, in_float32


def _gguf_ways() -> Sequence[Open]:
    from runtimes.backends.gguf.backend import open_backend

    return (open_backend,)


def _onnx_ways() -> Sequence[Open]:
    from runtimes.backends.onnx.backend import open_backend

    return (open_backend,)


def _missing_gptq(job: Job) -> Missing | None:
    try:
        from runtimes.backends.gptq.backend import find_gpu
    except ImportError as error:
        return Missing(f"torch cannot be loaded: {error}", "run `make setup`")
    if job.provider == "cuda":
        try:
            find_gpu()
        except StarpackError as error:
            return Missing(error.what, error.remedy or "")
    return None


def _missing_gguf(job: Job) -> Missing | None:
    try:
        api = llama.engine().api
    except StarpackError as error:
        return Missing(error.what, GGUF_REMEDY)
    if job.provider == "cuda" and not api.llama_supports_gpu_offload():
        return Missing("the installed llama.cpp engine is a build without CUDA", GGUF_REMEDY)
    return None


def _missing_onnx(job: Job) -> Missing | None:
    try:
        providers = session.engine().get_available_providers()
    except StarpackError as error:
        return Missing(error.what, ONNX_REMEDY)
    if session.PROVIDERS[job.provider] not in providers:
        found = f"the installed ONNX Runtime has {', '.join(providers)}"
        return Missing(f"{found}, and not {session.PROVIDERS[job.provider]}", ONNX_REMEDY)
    return None


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "gptq", gptq.variant, "w4g128", "w4g128", write_gptq, _convert_gptq, _gptq_ways,
            _missing_gptq,
        ),
        Engine(
            "gguf", gguf.variant, "Q4_K_M", "F16", write_gguf, _convert_gguf, _gguf_ways,
            _missing_gguf,
        ),
        # for GPUs activations are float16, and codes of 4 bits have no zero points
        Engine(
            "onnx", onnx.variant, "int4-g32-rtn-fp16", "fp16", write_onnx, _convert_onnx,
            _onnx_ways, _missing_onnx,
        ),
    )
}  # fmt: skip


def engine_of(job: Job) -> Engine:
    """That of a part such as gguf-3b or gptq-exact."""
    return ENGINES[job.part.split("-")[0]]


def path_of(said: Mapping[str, str]) -> str:
    """What a backend's description says of how it computes."""
    if said["engine"] == "llama.cpp":
        return "GPU" if said["gpu"] == "available" else "CPU"
    return said.get("path") or said["provider"]
