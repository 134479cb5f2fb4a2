"""The engine's wheel: llama-cpp-python from its published source, with StarCoder2's window.

As published, llama.cpp runs StarCoder2 with full attention. The patch beside this file makes it
read the window from the model file and use its own windowed attention. It also gives the wheel a
version of its own, leaves out llama.cpp's command-line tools, and keeps GCC 12 from dropping the
tile shapes that its AMX kernels load: without that, quantised models end in an illegal instruction
on processors with AMX. And it quantises to Q4_K and Q5_K in a fifth of the time where there is
AVX2, eight blocks side by side, with the same bytes.

The wheel is portable: one CPU kernel library per instruction set, chosen at run time, none tuned
to the build machine. It needs the build machine's glibc or newer (symbols up to 2.34 with GCC 12),
libstdc++ and libgomp on the device.

Reproducible: the source, the patch, the settings and the paths that end up in the binaries are
fixed, so the same tools (compiler, CMake, ninja, scikit-build-core) give the same bytes: seen for
two wheels built in different folders. Not fixed: the compiler itself, which is the machine's
own, and which the cache key leaves out.

With cuda=True a GPU library is built as well, with the machine's own CUDA toolkit (12.8 or newer,
for compute capability 12.0); its run-time libraries must be on the device. That build takes about
an hour. Only its command line is tested: neither the build nor its result has been run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from packager.core.atomic import atomic_file, cache_folder, sha256_file
from packager.core.errors import BuildError, IntegrityError
from packager.core.records import Progress, no_progress
from packager.engine.build_log import run_logged
from packager.engine.wheelhouse import content_key, locked, pip
from runtimes.trust.files import BLOCK_BYTES, open_plain

SDIST = "llama_cpp_python-0.3.36.tar.gz"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VERSION = "0.3.36+starpack2"
CUDA_VERSION = f"{VERSION}.cuda"
PATCH = Path(__file__).parent / "llama-cpp-python.patch"
# SHA-256 of each file that the patch touches, before and after it
PATCHED_FILES: Mapping[str, tuple[str, str]] = {
    "CMakeLists.txt": (
        "191af0d4f103c6d9f3a8d057947ff5e79732491ec071f2958ab87ee2774e21e8",
        "2eef7a7928c9b618762e8b6c0ec332773042fe6f5a207f821e4211d59d412c34",
    ),
    "llama_cpp/__init__.py": (
        "b05f3332080ca0313fea46964d9ee8f5183197360cf26247ad8fea9fa6b0e62b",
        "91169bfd9130b7d53e2a705e8a997da734ace01c4e548184b56d913bf8c655b7",
    ),
    "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp": (
        "0f95c80e0300eca3b3a3df07272042fee708425e19cd5f2c4cba7b253b26d226",
        "7aa9714089f2000ed7e3f7ece844ac3a49b44f8810c522138d8e202db45d5e7c",
    ),
    "vendor/llama.cpp/ggml/src/ggml-quants.c": (
        "7878680cc60493f98469a116e9b14af8b84789292ccf891c249230b2fa3d157f",
        "47c0f4e4c1cb8b2e0a136d8c1ab42710f177bbd20ebd03b79ddafa70aa23307d",
    ),
    "vendor/llama.cpp/src/models/starcoder2.cpp": (
        "f37d72a30092fbe193d0a8ea656e37bdea8b173c5ba10f4d3f20d72f94a29e90",
        "eef1d837e3c673a1d21a479fc0527731fbc2f326e4f67664bab5b30b9b762871",
    ),
}

_DEFINES = {
    "GGML_NATIVE": "OFF",  # as published it is tuned to the build machine
    "GGML_BACKEND_DL": "ON",  # kernels in libraries of their own ...
    "GGML_CPU_ALL_VARIANTS": "ON",  # ... one per instruction set, chosen at run time
    "GGML_CCACHE": "OFF",
    "LLAVA_BUILD": "OFF",
    "LLAMA_BUILD_IS_DEV": "OFF",
    # One file per library. Wheels store links as copies, and the bindings load libggml.so by path:
    # beside a libggml.so.0 that libllama.so asks for, the same code would be loaded twice.
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",
    "CMAKE_INSTALL_BINDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_LIBDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_INCLUDEDIR": "llama_cpp/include",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    # otherwise the length of the build folder's path shows in the kernels' string tables
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
}
_CUDA_DEFINES = {
    "GGML_CUDA": "ON",
    # Turing to consumer Blackwell: compute capability 7.5, 8.0, 8.6, 8.9, 9.0, 12.0
    "CMAKE_CUDA_ARCHITECTURES": "75;80;86;89;90;120",
}
_EXCLUDED = ("include/**", "lib/cmake/**", "lib/pkgconfig/**", "server/**")
_LICENCES = ("LICENSE.md", "vendor/llama.cpp/LICENSE")
_SOURCE_DATE_EPOCH = "1790000000"  # any fixed time will do; 2026-09-21, near the release
_BUILD_TOOLS = ("scikit_build_core", "cmake", "ninja")
_X86_VARIANTS = (
    "x64 sse42 sandybridge ivybridge piledriver haswell skylakex cannonlake cascadelake icelake "
    "cooperlake zen4 alderlake sapphirerapids"
).split()


def build_engine(out: Path, *, cuda: bool = False, progress: Progress = no_progress) -> Path:
    """Build the wheel, or take it from the cache, and put it into the folder `out`.

    Returns its path there. Raises BuildError where a tool fails or is missing, IntegrityError
    where the source or the patch is not the one that is pinned here.
    """
    folder = cache_folder() / "wheels" / engine_key(cuda)
    with locked(folder.with_name(folder.name + ".lock"), progress):
        if not folder.is_dir():
            _build(folder, cuda, progress)
    wheel = _only_wheel(folder)
    check_engine(wheel)
    with open_plain(wheel) as source, atomic_file(out / wheel.name) as made:
        shutil.copyfileobj(source, made, BLOCK_BYTES)
    return out / wheel.name


def engine_key(cuda: bool) -> str:
    """What the wheel is made from, as a hash: equal keys, interchangeable wheels."""
    return content_key(
        {
            "sdist": SDIST_SHA256,
            "patch": sha256_file(PATCH),
            "settings": build_settings(cuda),
            "epoch": _SOURCE_DATE_EPOCH,
            "machine": platform.machine(),
            "libc": platform.libc_ver(),
        }
    )


def build_settings(cuda: bool) -> list[str]:
    """The build's settings, as scikit-build-core takes them."""
    defines = _DEFINES | (_CUDA_DEFINES if cuda else {})
    return [
        "cmake.build-type=Release",
        "install.strip=true",
        *(f"cmake.define.{name}={value}" for name, value in defines.items()),
        "wheel.exclude=" + ";".join(f"llama_cpp/{pattern}" for pattern in _EXCLUDED),
        "wheel.license-files=" + ";".join(_LICENCES),
    ]


def build_command(source: Path, build: Path, out: Path, cuda: bool) -> list[str]:
    """The command line of the build: no dependencies, no isolation, so no network."""
    settings = [*build_settings(cuda), f"build-dir={build}"]
    options = [f"--config-settings={setting}" for setting in settings]
    return pip(
        *("wheel", "--verbose", "--no-deps", "--no-index", "--no-cache-dir"),
        *("--no-build-isolation", "--wheel-dir", str(out), *options, str(source)),
    )


def build_environment(source: Path, build: Path) -> dict[str, str]:
    """This process's environment without what would change the build, with what fixes it."""
    flags = f"-ffile-prefix-map={source}=. -ffile-prefix-map={build}=build"
    foreign = ("CMAKE_ARGS", "CPPFLAGS", "LDFLAGS", "SKBUILD_CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return kept | {
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "CUDAFLAGS": " ".join(f"-Xcompiler={flag}" for flag in flags.split()),
        "SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH,
        **_git_environment(source),
    }


def check_engine(wheel: Path) -> None:
    """Check that the wheel is intact and holds each library once; raises IntegrityError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            damaged = archive.testzip()
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise _bad_wheel(wheel, f"it cannot be read: {error}") from None
    if damaged:
        raise _bad_wheel(wheel, f"{damaged} in it is damaged")
    version = wheel.name.split("-")[1]
    libraries = {Path(name).name for name in names if name.startswith("llama_cpp/lib/")}
    wanted = {"libllama.so", "libggml.so", "libggml-base.so"}
    if version == CUDA_VERSION:
        wanted.add("libggml-cuda.so")
    if wheel.stem.endswith("x86_64"):
        wanted |= {f"libggml-cpu-{variant}.so" for variant in _X86_VARIANTS}
    elif not any(name.startswith("libggml-cpu") for name in libraries):
        raise _bad_wheel(wheel, "it has no CPU kernels")
    else:
        wanted |= {name for name in libraries if name.startswith("libggml-cpu")}
    licences = {f"llama_cpp_python-{version}.dist-info/licenses/{name}" for name in _LICENCES}
    if version not in (VERSION, CUDA_VERSION) or libraries != wanted or licences - names:
        odd = sorted((libraries ^ wanted) | (licences - names)) or version
        raise _bad_wheel(wheel, f"missing or unexpected in it: {odd}")


def _bad_wheel(wheel: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"not a wheel of the engine as it is built here: {reason}",
        where=wheel,
        expected=f"version {VERSION}, with each library of llama.cpp once",
        remedy="delete it, and its folder in the cache, and run `make wheels`",
    )


def _only_wheel(folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise IntegrityError(
            f"the cache entry holds {len(wheels)} wheels",
            where=folder,
            expected="one",
            remedy="delete that folder and run `make wheels`",
        )
    return wheels[0]


def _build(folder: Path, cuda: bool, progress: Progress) -> None:
    """Build into `folder`, which appears when the wheel in it is complete and checked."""
    _check_tools(cuda)
    log = folder.with_name(folder.name + ".log")
    log.unlink(missing_ok=True)
    sdist = _fetch_sdist(folder.parent.parent / "sources", log, progress)
    work = folder.with_name(folder.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        source = unpack(sdist, work)
        apply_patch(source)
        if cuda:
            _set_version(source, CUDA_VERSION)
        build, made = work / "build", work / "wheel"
        run_logged(
            build_command(source, build, made, cuda),
            log,
            what="compiling the engine",
            environment=build_environment(source, build),
            progress=progress,
        )
        check_engine(_only_wheel(made))
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_tools(cuda: bool) -> None:
    missing = [name for name in _BUILD_TOOLS if find_spec(name) is None]
    compilers = ["git", "cc", "c++"] + (["nvcc"] if cuda else [])
    missing += [name for name in compilers if shutil.which(name) is None]
    if missing:
        raise BuildError(
            f"building the engine needs tools that are not here: {', '.join(missing)}",
            remedy="run `make setup`; install git, a C and C++ compiler (and, for CUDA, the CUDA "
            "toolkit) with the system's package manager",
        )


def _fetch_sdist(folder: Path, log: Path, progress: Progress) -> Path:
    """The published source, from the cache or the package index, its hash checked.

    pip itself runs code of a source package to learn its metadata, so pip too is given the hash.
    """
    file = folder / SDIST
    if not file.is_file():
        progress("downloading the engine's source", 0, 1)
        folder.mkdir(parents=True, exist_ok=True)
        name, _, release = SDIST.removesuffix(".tar.gz").rpartition("-")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text(f"{name}=={release} --hash=sha256:{SDIST_SHA256}\n")
            options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
            run_logged(
                pip("download", *options, "--require-hashes", "-r", str(wanted), "-d", scratch),
                log,
                what="downloading the engine's source",
            )
            (Path(scratch) / SDIST).replace(file)
    check_file(file, SDIST_SHA256, "delete it and run `make wheels`")
    return file


def check_file(file: Path, sha256: str, remedy: str) -> None:
    """Raise IntegrityError where `file` is missing or its content is not what is pinned."""
    found = sha256_file(file) if file.is_file() else "no such file"
    if found != sha256:
        raise IntegrityError(
            f"not the pinned content: SHA-256 {found}", where=file, expected=sha256, remedy=remedy
        )


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the source below `folder` and return its root.

    Its git history stays out: a build would ask it whether the tree is clean.
    """
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if ".git" not in Path(member.name).parts]
        # the "data" filter refuses absolute paths, links that leave the folder and devices
        archive.extractall(folder, members, filter="data")
    return folder / SDIST.removesuffix(".tar.gz")


def apply_patch(source: Path, patch: Path = PATCH) -> None:
    """Apply the patch; every file that it touches is checked before and after.

    Raises IntegrityError where a file differs, BuildError where git refuses the patch.
    """
    remedy = "the patch belongs to another release: restore it, or adapt it and its hashes"
    for path, (before, _) in PATCHED_FILES.items():
        check_file(source / path, before, remedy)
    done = subprocess.run(
        ["git", "apply", str(patch.resolve())],
        cwd=source,
        env=os.environ | _git_environment(source),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"git apply refused it: {done.stderr}", where=patch, remedy=remedy)
    for path, (_, after) in PATCHED_FILES.items():
        check_file(source / path, after, remedy)


def _git_environment(source: Path) -> dict[str, str]:
    """Keeps git from taking a repository around the cache, or the user's settings, into account."""
    ceiling = {"GIT_CEILING_DIRECTORIES": str(source.resolve().parent)}
    return ceiling | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def _set_version(source: Path, version: str) -> None:
    file = source / "llama_cpp" / "__init__.py"
    file.write_text(file.read_text().replace(f'"{VERSION}"', f'"{version}"'))
