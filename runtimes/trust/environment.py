"""Variables of the environment that have a library load or run code, dropped before any is loaded.

What runs is what the bundle's hashes cover. Each name here has a library of a bundle, or one of the
system that it needs, take code from elsewhere. The packaged libraries are searched for such names
by tests/runtimes/trust/test_environment.py, so that a new version's new one is not overlooked.

These stay, for they are how a system is told where its own libraries are, and act on every program
before it has begun: LD_PRELOAD, LD_AUDIT and LD_LIBRARY_PATH (the driver of a GPU, on many
machines), PATH (`openssl`, `python3`), and the settings of Vulkan's loader, which no engine here
uses. Whoever can set the environment of `run` can run anything; this is about what is set by
accident, or meant for another program.

Standard library only.
"""

from __future__ import annotations

import os

_LLAMA_CPP = "llama.cpp and its Python bindings"
_CUDA = "NVIDIA's driver, as it starts"
_NVTX = "NVTX, which CUDA's libraries are built with"
_NCCL = "NCCL, in a torch for CUDA"
_ONEDNN = "oneDNN, in torch"
_OPENSSL = "OpenSSL: Python's hashlib and ssl, the `openssl` program"
_GLIBC = "glibc: converters of character sets, at Python's start too"

LOADING = {
    "GGML_BACKEND_PATH": _LLAMA_CPP,
    "LLAMA_CPP_LIB_PATH": _LLAMA_CPP,
    "LLAVA_CPP_LIB": _LLAMA_CPP,
    "MTMD_CPP_LIB": _LLAMA_CPP,
    "ACC_PROFLIB": "GCC's libgomp, as it is loaded",
    "OMP_TOOL_LIBRARIES": "the OpenMP libraries of LLVM and Intel, as they are loaded",
    "MIC_LD_LIBRARY_PATH": "Intel's MKL, in torch",
    "INTEL_LIBITTNOTIFY32": _ONEDNN,
    "INTEL_LIBITTNOTIFY64": _ONEDNN,
    "INTEL_JIT_PROFILER32": _ONEDNN,
    "INTEL_JIT_PROFILER64": _ONEDNN,
    "TORCH_ADDR2LINE_BINARY": "torch: a program to run for a stack trace",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "torch.load: lets a pickle run what it names",
    "TORCH_PYTHON_NATIVE_USER_GRAPH_ORDER_FN": "torch: a function to import, as it is imported",
    "CUDA_INJECTION32_PATH": _CUDA,
    "CUDA_INJECTION64_PATH": _CUDA,
    "NVTX_INJECTION32_PATH": _NVTX,
    "NVTX_INJECTION64_PATH": _NVTX,
    "NCCL_ENV_PLUGIN": _NCCL,
    "NCCL_GIN_PLUGIN": _NCCL,
    "NCCL_NET_PLUGIN": _NCCL,
    "NCCL_PROFILER_PLUGIN": _NCCL,
    "NCCL_TUNER_PLUGIN": _NCCL,
    "OPENSSL_CONF": _OPENSSL,
    "OPENSSL_CONF_INCLUDE": _OPENSSL,
    "OPENSSL_ENGINES": _OPENSSL,
    "OPENSSL_MODULES": _OPENSSL,
    "GCONV_PATH": _GLIBC,
}
"""Name to who reads it."""

BEFORE_US = sorted(name for name, reader in LOADING.items() if reader in (_OPENSSL, _GLIBC))
"""Those that Python may read before this is run: `install` and `run` unset them, too."""


def drop_loading_variables() -> None:
    """Take them out of this process's environment, so out of its children's too."""
    for name in LOADING:
        os.environ.pop(name, None)
