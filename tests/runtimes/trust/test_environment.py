"""No variable of the environment has a library load code that a bundle's hashes do not cover."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, PackagePath, files
from pathlib import Path

import pytest

from packager.engine.wheelhouse import COMMON_PACKAGES
from runtimes import backends
from runtimes.trust.environment import BEFORE_US, LOADING, drop_loading_variables
from tests.support.packing import sh, write_bundle

for engine in ("llama_cpp", "onnxruntime", "torch"):
    pytest.importorskip(engine, reason="looks at the packages of all formats")

ROOT = Path(__file__).parents[3]
REQUIRED = (backends.load(name).REQUIRES["cpu"] for name in backends.names())
PACKAGES = sorted(
    {"llama_cpp_python", *COMMON_PACKAGES, *(name for some in REQUIRED for name in some)}
)
TELLING = re.compile(
    "PATH|LIB|PLUGIN|BACKEND|INJECT|PRELOAD|MODULE|PROFILER|NOTIFY|TOOL|BINARY|COMMAND|_FN$|HOOK"
    "|IMPORT|EXTENSION|CONF|ENGINE|LOAD"
)
SCRIPTS = Path(__file__).parents[3] / "packager" / "bundle" / "files"
NAME = "[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+"
LONGEST = 60  # guessed: no name is longer, and tables of words without spaces are
C_STRING = re.compile(rf"(?<=\0){NAME}(?=\0)".encode())
RUST_STRING = re.compile(rf"(?<![A-Za-z0-9_]){NAME}(?![A-Za-z0-9_])".encode())  # they have no ends

# Names that look as if something were loaded, by why nothing is.
HARMLESS = {
    "no variable: an error, an enumeration, a macro, a format's key": """
        ARCHIVE_FORMAT_PATH ARCHIVE_VERSION_PATH CONSTANTS_CONFIG_FILENAME_FORMAT
        CONSTANTS_PARAM_CONFIG_FORMAT CUSTOM_CONFIG ENGINE_ERROR MBEDTLS_SSL_ENCRYPTED_EXTENSIONS
        MODEL_LOADED MODEL_LOAD_CANCELED MODULE_INFO_PATH OMIT_LOAD_EXTENSION TORCH_LIBRARY
        GLIBCXX_3 GLIBC_2 TORCH_LIBRARY_FRAGMENT TORCH_LIBRARY_IMPL UNKNOWN_BACKEND
        UNKNOWN_BACKEND_BIT
        WEIGHTS_CONFIG_FILENAME_FORMAT WEIGHTS_PARAM_CONFIG_FORMAT
        XL_MODEL_WEIGHTS_PARAM_CONFIG_PATH""",
    "settings, and choices among what is built in": """
        BACKEND_SUBGRAPH_DUMP CUBLAS_WORKSPACE_CONFIG CUDA_MODULE_LOADING CURL_SSL_BACKEND
        OMP_TARGET_OFFLOAD PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_HIP_ALLOC_CONF
        TORCH_DEVICE_BACKEND_AUTOLOAD TORCH_FORCE_WEIGHTS_ONLY_LOAD""",
    "of a profiler or a log: what is written, and where to": """
        FBGEMM_STATS_LOGPATH INTEL_ITTNOTIFY_GROUPS KINETO_CONFIG KINETO_FORCE_OPTIMIZER_HOOK
        KINETO_FORCE_STEP_HOOK MAX_EVENT_PROFILERS_PER_GPU ON_DEMAND_CONFIG_UPDATE_INTERVAL_SECS
        PROFILER_STATE PROFILE_WITH_MODULES PT_PROFILER_JOB_ATTEMPT_INDEX PT_PROFILER_JOB_NAME
        PT_PROFILER_JOB_VERSION TORCH_PROFILER_ENABLE_COLLECTIVE_PROFILING VERBOSE_LOG_MODULES""",
    "settings that a model's file holds, which is hashed": "ORT_LOAD_CONFIG_FROM_MODEL",
    "read on Windows alone, or for a report": "CUDA_PATH CUDNN_LIBRARY HIP_PATH NVTOOLSEXT_PATH",
    "of several machines at once, which nothing here starts": """
        NVSHMEM_LIB_DIR ROCSHMEM_LIB_DIR TORCHELASTIC_ETCD_BINARY_PATH USE_LIBUV""",
    "of AMD's GPUs, which no bundle has a build for": "ROCM_PATH",
    "of the user's own folders: data": "XDG_CONFIG_DIRS XDG_CONFIG_HOME",
    "of the system itself, and kept; see environment.py": "LD_LIBRARY_PATH LD_PRELOAD",
}
# Compilers and tests among the packages' Python files; that none is loaded is tested below.
UNUSED = (
    "numpy/distutils/",
    "onnxruntime/backend/",
    "onnxruntime/transformers/",
    "torch/_dynamo/",
    "torch/_inductor/",
    "torch/backends/xeon/",
    "torch/testing/_internal/common_distributed.py",
    "torch/utils/cpp_extension.py",
)


def names_in_library(data: bytes) -> set[str]:
    pattern = RUST_STRING if b"/rustc/" in data else C_STRING
    return {found.decode() for found in pattern.findall(data)}


def names_in_source(text: str) -> Iterator[str]:
    """What it looks up in the environment, as far as it is written out."""
    if "environ" not in text and "getenv" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                looked_in: ast.expr = function
            case ast.Subscript(value=looked_in, slice=ast.Constant(value=str(name))):
                pass
            case ast.Compare(left=ast.Constant(value=str(name)), comparators=[looked_in]):
                pass
            case _:
                continue
        if "env" in ast.unparse(looked_in):
            yield name


def telling_names(file: PackagePath) -> set[str]:
    path = Path(str(file.locate()))
    found: set[str] = set()
    if re.search(r"\.so(\.|$)", file.name) and not path.is_symlink():
        found = names_in_library(path.read_bytes())
    elif file.suffix == ".py" and not file.as_posix().startswith(UNUSED):
        found = set(names_in_source(path.read_text("utf-8", errors="replace")))
    return {
        name
        for name in found
        if len(name) <= LONGEST and re.fullmatch(NAME, name) and TELLING.search(name)
    }


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_that_a_packed_library_knows_is_dropped_or_harmless(package: str) -> None:
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        pytest.skip(f"needs {package}")
    assert listed
    harmless = {name for some in HARMLESS.values() for name in some.split()}
    unknown = {file: telling_names(file) - LOADING.keys() - harmless for file in listed}
    assert not {str(file): names for file, names in unknown.items() if names}


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("llama_cpp_python", {"GGML_BACKEND_PATH", "LLAMA_CPP_LIB_PATH"}),
        ("torch", {"INTEL_JIT_PROFILER64", "TORCH_PYTHON_NATIVE_USER_GRAPH_ORDER_FN"}),
    ],
)
@pytest.mark.slow
def test_the_search_finds_those_that_are_known(package: str, names: set[str]) -> None:
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        pytest.skip(f"needs {package}")
    assert names <= set().union(*map(telling_names, listed))


@pytest.mark.parametrize(
    ("library", "pattern", "known"),
    [
        ("gomp", "(ACC|GOMP|OMP)_.*(LIB|TOOL)", "ACC_PROFLIB"),
        ("crypto", "OPENSSL_", "OPENSSL_MODULES"),
        ("c", ".*_PATH$", "GCONV_PATH"),
    ],
)
def test_so_is_each_of_the_system_s_that_bundles_need(
    library: str, pattern: str, known: str
) -> None:
    name = find_library(library)
    if name is None:
        pytest.skip(f"needs lib{library}")
    code = f"import ctypes; ctypes.CDLL({name!r}); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (path,) = set(re.findall(rf"\S*/{re.escape(name)}", maps.stdout))
    found = {each for each in names_in_library(Path(path).read_bytes()) if re.match(pattern, each)}
    assert known in found <= LOADING.keys()


@pytest.mark.torch
def test_no_compiler_among_the_packages_is_loaded() -> None:
    code = (
        "import sys\n"
        "from runtimes import backends\n"
        "for name in backends.names():\n"
        "    backends.load(name)\n"
        "from runtimes.backends.onnx import session; session.engine()\n"
        "import runtimes.server.app\n"
        "print(*(getattr(module, '__file__', None) for module in list(sys.modules.values())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert len(loaded) > 500
    assert not [file for file in loaded if any(f"/site-packages/{part}" in file for part in UNUSED)]


def test_they_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*LOADING, "OMP_NUM_THREADS"]:
        monkeypatch.setenv(name, "4")
    drop_loading_variables()
    assert not LOADING.keys() & os.environ.keys()
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("script", ["install", "run"])
def test_the_scripts_drop_what_python_reads_before_us(script: str) -> None:
    text = (SCRIPTS / script).read_text("utf-8")
    assert re.findall("^unset (.*)$", text.partition("\nhere=")[0], re.M) == [" ".join(BEFORE_US)]
    assert {"GCONV_PATH", "OPENSSL_CONF"} < set(BEFORE_US)


@pytest.mark.bundle
def test_no_library_of_a_bundle_meets_them(tmp_path: Path) -> None:
    """Neither as `install` tries it, nor as `run` loads it."""
    code = f"import os\nassert not {sorted(LOADING)} & os.environ.keys()\nprint('met none')\n"
    code = code.replace("[", "{", 1).replace("]", "}", 1)
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle", code=code, package="numpy")
    nowhere = dict.fromkeys(LOADING, "/nowhere")
    done = sh(bundle / "install", "--to", tmp_path / "target", **nowhere)
    assert done.returncode == 0, done.stderr
    done = sh(tmp_path / "target" / "run", "doctor", **nowhere)
    assert "met none" in done.stdout, done.stderr
