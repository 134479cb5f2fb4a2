"""The ONNX Runtime engine as a library: a known version, on the device that was asked for.

Silent in both senses: as published it sends usage events to its maker, on Linux too, and writes an
identifier of the machine into the user's cache.

The only file on the device that imports onnxruntime.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from runtimes.errors import DeviceError, IntegrityError, UsageError
from runtimes.host.limits import library_hashes

# GroupQueryAttention of these versions sees W keys for local_window_size W, the query's own
# included, and keeps a ring of them (onnxruntime#25927, #29904). Before 1.24 it saw W + 1; from
# 1.29 on it has the ring. The self-test in graph.py tries later versions.
MIN_VERSION = (1, 29)
TESTED_VERSION = "1.32"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FATAL = 4  # onnxruntime's severities: errors come as exceptions too


@functools.cache
def engine() -> ModuleType:
    """Import onnxruntime on first use. Raises DeviceError where it is missing or too old."""
    # read once, when it is loaded (its Privacy.md): no events, no identifier
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DeviceError(
            f"ONNX Runtime cannot be loaded: {error}",
            expected="the onnxruntime wheel of the bundle",
            remedy="install the bundle with its own ./install, or run `make setup`",
        ) from None
    if tuple(int(part) for part in module.__version__.split(".")[:2]) < MIN_VERSION:
        raise DeviceError(
            f"ONNX Runtime {module.__version__} has no window-sized cache, or another window",
            expected="{}.{} or newer".format(*MIN_VERSION),
            remedy="install the bundle with its own ./install, or run `make setup`",
        )
    module.set_default_logger_severity(FATAL)
    return module


def engine_files() -> dict[str, str]:
    """SHA-256 of each of the installed engine's libraries, by file name."""
    return library_hashes(Path(engine().__path__[0]) / "capi")


def open_session(model: Path, provider: str, threads: int) -> Any:
    """An onnxruntime.InferenceSession of the graph `model`, its weights mapped from beside it.

    Raises UsageError for an unknown provider, DeviceError where this machine does not give it, and
    IntegrityError where the file is no graph that this engine can run.
    """
    ort = engine()
    if provider not in PROVIDERS:
        raise UsageError(
            f"unknown provider {provider!r}", expected=f"one of {', '.join(PROVIDERS)}"
        )
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise _not_given(wanted)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = FATAL
    # the operators that a GPU leaves to the CPU (shapes) need the CPU's provider behind it
    names = list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
    try:
        session = ort.InferenceSession(str(model), options, providers=names)
    except Exception as error:  # the engine has a class for each of its codes, and no common one
        raise IntegrityError(
            f"ONNX Runtime cannot open the model: {_first_line(error)}",
            where=model,
            expected="the graph and the weights that starpack wrote, side by side",
            remedy="copy or convert the model again; if memory ran out, choose a smaller recipe",
        ) from None
    session.disable_fallback()
    if session.get_providers()[0] != wanted:  # it fell back to another with only a warning
        raise _not_given(wanted)
    return session


def _not_given(wanted: str) -> DeviceError:
    return DeviceError(
        f"ONNX Runtime does not give {wanted} here",
        expected=f"one of {engine().get_available_providers()}",
        remedy="use --provider cpu, or install onnxruntime-gpu with its driver and libraries",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
