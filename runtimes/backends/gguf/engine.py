"""The llama.cpp engine as a library: loaded once, silent, with what it logged at hand for errors.

The only file on the device that imports llama_cpp. Uses its low-level bindings alone: the
high-level `Llama` object adds tokens of its own, parses control strings in user text and rolls
back past what a windowed cache still holds.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import re
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

from runtimes.errors import DeviceError
from runtimes.host.limits import library_hashes

_BUFFER = re.compile(r"(model|KV|compute) buffer size\s*=\s*([0-9.]+) MiB")
_CELLS = re.compile(r"\( *(\d+) cells, *[1-9]\d* layers")  # a cache of no layers is not used
_KEPT_LINES = 2000  # guessed: loading a model logs a few hundred lines
_MIB = 1024 * 1024


class Engine:
    """The loaded library. `api` is the low-level binding module, `library` the ctypes handle."""

    def __init__(self, api: ModuleType) -> None:
        self.api = api
        self.library: ctypes.CDLL = api._lib
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = ""
        # the callback must outlive every call into the library
        self._callback = api.llama_log_callback(self._log)
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        self._load_kernels()
        api.llama_backend_init()

    def _log(self, level: int, text: bytes | None, _user_data: object) -> None:
        # lines come in pieces; a level is of no use to us, since errors come as plain text too
        self._partial += (text or b"").decode("utf-8", "replace")
        *complete, self._partial = self._partial.split("\n")
        self.lines.extend(line for line in complete if line)

    def _load_kernels(self) -> None:
        """Load the CPU (and GPU) kernels from beside the library, and from nowhere else.

        A build with run-time dispatch keeps them in files of their own and would look for them
        beside the interpreter and in the current folder, where anyone may have put something.
        """
        if self.function("ggml_backend_reg_count", [], ctypes.c_size_t)() == 0:
            load = self.function("ggml_backend_load_all_from_path", [ctypes.c_char_p], None)
            load(str(Path(self.library._name).resolve().parent).encode())

    def function(self, name: str, argument_types: list[Any], result_type: Any) -> Any:
        """A C function of the library or of the ggml libraries that it is linked to."""
        found = getattr(self.library, name)
        found.argtypes = argument_types
        found.restype = result_type
        return found

    def last_words(self) -> str:
        """The end of the log, for an error message."""
        words = [line for line in self.lines if "error" in line.lower() or "fail" in line.lower()]
        return "; ".join(words[-3:]) or "the engine gave no reason"

    def buffer_bytes(self, kind: str) -> int:
        """Sum of the buffers of one kind (model, KV, compute) that the log reports."""
        found = (match for line in self.lines if (match := _BUFFER.search(line)))
        return round(sum(float(match[2]) * _MIB for match in found if match[1] == kind))

    def cells(self) -> int:
        """How many positions the cache holds, by the log; DeviceError where it does not say."""
        found = [int(match[1]) for line in self.lines if (match := _CELLS.search(line))]
        if not found:
            raise DeviceError(
                "llama.cpp does not say how many cells its cache has",
                expected="the engine that starpack builds",
                remedy="run without --reproducible",
            )
        return found[-1]

    def system_info(self) -> str:
        """The instruction sets that the chosen CPU kernels use."""
        info = self.api.llama_print_system_info().decode()
        return " ".join(part.strip() for part in info.split("|") if part.strip())


@functools.cache
def engine() -> Engine:
    """Load the engine on first use. Raises DeviceError where it is not installed."""
    try:
        api = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"the llama.cpp engine cannot be loaded: {error}",
            expected="the llama-cpp-python wheel that starpack builds",
            remedy="install the bundle with its own ./install, or run `make wheels setup`",
        ) from None
    return Engine(api)


def engine_version() -> str:
    """The version of the installed llama-cpp-python."""
    return importlib.metadata.version("llama_cpp_python")


def engine_files() -> dict[str, str]:
    """SHA-256 of each of the installed engine's libraries, by file name."""
    return library_hashes(Path(engine().library._name).resolve().parent)
