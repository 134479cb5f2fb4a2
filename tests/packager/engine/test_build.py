"""The engine: pinned inputs, a cache of whole wheels only, and the right command line."""

from __future__ import annotations

import re
import shutil
import tarfile
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu_check.engines import GGUF_REMEDY
from packager.core.atomic import cache_folder
from packager.core.errors import BuildError, IntegrityError
from packager.engine import build as wheels
from packager.engine.build_log import run_logged
from packager.engine.wheelhouse import COMMON_PACKAGES, locked
from runtimes.server import REQUIRES as SERVER_REQUIRES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
REAL_CACHE = cache_folder()  # before any test points it elsewhere


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "starpack"


def write_engine(folder: Path, *, version: str = wheels.VERSION, without: str = "") -> Path:
    """An engine's wheel with the right names and nothing in them."""
    libraries = ["libllama.so", "libggml.so", "libggml-base.so"]
    libraries += [f"libggml-cpu-{name}.so" for name in wheels._X86_VARIANTS]
    names = [f"llama_cpp/lib/{name}" for name in libraries if name != without]
    names += [f"llama_cpp_python-{version}.dist-info/licenses/{n}" for n in wheels._LICENCES]
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"llama_cpp_python-{version}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return wheel


@pytest.mark.parametrize(
    "path",
    [
        "Makefile",
        "README.md",
        "packager/engine/llama-cpp-python.patch",
        "profiles/measured/README.md",
        "pyproject.toml",
    ],
)
def test_every_text_names_the_version_that_is_built(path: str) -> None:
    named = re.findall(r"[\w.]*\+?starpack\d+[.\w]*", (ROOT / path).read_text())
    local = wheels.VERSION.partition("+")[2]
    assert set(named) <= {wheels.VERSION, wheels.CUDA_VERSION, f"+{local}", local}
    assert named or path == "README.md"


def test_the_wheel_for_gpus_is_found_as_the_texts_have_it_installed(tmp_path: Path) -> None:
    wheel = write_engine(tmp_path, version=wheels.CUDA_VERSION)
    write_engine(tmp_path)
    for text in ((ROOT / "profiles/measured/README.md").read_text(), GGUF_REMEDY):
        (pattern,) = re.findall(r"build/wheels/(\S+\.whl)`", text)
        assert list(tmp_path.glob(pattern)) == [wheel]


def test_another_source_is_refused_before_it_is_unpacked(cache: Path, tmp_path: Path) -> None:
    (cache / "sources").mkdir(parents=True)
    (cache / "sources" / wheels.SDIST).write_bytes(b"something else")
    with pytest.raises(IntegrityError) as caught:
        wheels._fetch_sdist(cache / "sources", tmp_path / "log", wheels.no_progress)
    assert caught.value.expected == wheels.SDIST_SHA256
    assert caught.value.where.endswith(wheels.SDIST)


def test_patch_is_refused_on_another_source(tmp_path: Path) -> None:
    for path in wheels.PATCHED_FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("of another release\n")
    with pytest.raises(IntegrityError, match="not the pinned content"):
        wheels.apply_patch(tmp_path)


def test_patch_gives_exactly_the_pinned_files(tmp_path: Path) -> None:
    sdist = REAL_CACHE / "sources" / wheels.SDIST
    if not sdist.is_file():
        pytest.skip("the engine's source is not in the cache: `make wheels` puts it there")
    source = tmp_path / "source"
    with tarfile.open(sdist) as archive:
        for path in wheels.PATCHED_FILES:
            stored = archive.extractfile(f"{wheels.SDIST.removesuffix('.tar.gz')}/{path}")
            assert stored is not None
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(stored.read())
    other = tmp_path / "other.patch"
    other.write_text(wheels.PATCH.read_text().replace("n_swa > 0", "n_swa > 1"))
    again = shutil.copytree(source, tmp_path / "again")
    with pytest.raises(IntegrityError, match="not the pinned content"):
        wheels.apply_patch(again, other)
    wheels.apply_patch(source)
    with pytest.raises(IntegrityError):
        wheels.apply_patch(source)  # not twice
    wheels._set_version(source, wheels.CUDA_VERSION)
    text = (source / "llama_cpp" / "__init__.py").read_text()
    assert f'__version__ = "{wheels.CUDA_VERSION}"' in text


def test_key_changes_with_each_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = {wheels.engine_key(cuda=False), wheels.engine_key(cuda=True)}
    other = tmp_path / "other.patch"
    other.write_text("another patch")
    for name, value in (
        ("PATCH", other),
        ("SDIST_SHA256", "0" * 64),
        ("_DEFINES", wheels._DEFINES | {"GGML_NATIVE": "ON"}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(wheels, name, value)
            keys.add(wheels.engine_key(cuda=False))
    assert len(keys) == 5
    assert wheels.engine_key(cuda=False) in keys


def test_command_line_needs_no_network_and_no_native_code(tmp_path: Path) -> None:
    command = wheels.build_command(tmp_path / "s", tmp_path / "b", tmp_path / "o", cuda=False)
    assert {"--no-deps", "--no-index", "--no-build-isolation"} <= set(command)
    settings = "\n".join(command)
    for define in ("GGML_NATIVE=OFF", "GGML_BACKEND_DL=ON", "GGML_CPU_ALL_VARIANTS=ON"):
        assert f"--config-settings=cmake.define.{define}" in command
    assert "CUDA" not in settings
    assert command[-1] == str(tmp_path / "s")


def test_command_line_for_cuda(tmp_path: Path) -> None:
    command = wheels.build_command(tmp_path / "s", tmp_path / "b", tmp_path / "o", cuda=True)
    prefix = "--config-settings=cmake.define."
    assert f"{prefix}GGML_CUDA=ON" in command
    assert f"{prefix}GGML_BACKEND_DL=ON" in command
    assert f"{prefix}CMAKE_CUDA_ARCHITECTURES=75;80;86;89;90;120" in command


def test_environment_hides_paths_and_foreign_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-march=native")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    environment = wheels.build_environment(Path("/x/source"), Path("/x/build"))
    assert "native" not in environment["CFLAGS"]
    assert "-ffile-prefix-map=/x/source=." in environment["CXXFLAGS"]
    assert "CMAKE_ARGS" not in environment


def test_cached_wheel_is_taken_as_it_is(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_build", lambda *_: pytest.fail("built again"))
    cached = write_engine(cache / "wheels" / wheels.engine_key(cuda=False))
    wheel = wheels.build_engine(tmp_path / "out")
    assert wheel.parent == tmp_path / "out"
    assert wheel.read_bytes() == cached.read_bytes()
    assert [file.name for file in wheel.parent.iterdir()] == [cached.name]


def test_failed_build_leaves_its_log_and_no_entry(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_check_tools", lambda cuda: None)
    monkeypatch.setattr(wheels, "_fetch_sdist", lambda *_: tmp_path)
    monkeypatch.setattr(wheels, "unpack", lambda sdist, folder: folder)
    monkeypatch.setattr(wheels, "apply_patch", lambda source: None)
    command = ["sh", "-c", "echo '[1/2] compiling'; echo 'fatal error: no such thing'; exit 3"]
    monkeypatch.setattr(wheels, "build_command", lambda *_: command)
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(BuildError, match="fatal error: no such thing") as caught:
        wheels.build_engine(tmp_path / "out", progress=lambda *step: steps.append(step))
    assert ("compiling the engine", 1, 2) in steps
    assert "exit code 3" in caught.value.what
    assert "fatal error" in Path(caught.value.where).read_text()
    names = {file.suffix for file in (cache / "wheels").iterdir()}
    assert names == {".log", ".lock"}


def test_interrupted_tool_is_ended_at_once(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_logged(
            ["sh", "-c", "echo '[1/2] step'; sleep 60; exit 1"],
            tmp_path / "log",
            what="building",
            progress=interrupt,
        )
    assert time.monotonic() - started < 30


def test_missing_tool_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no-such-tool"):
        run_logged(["no-such-tool"], tmp_path / "log", what="building")


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nvcc" else name)
    monkeypatch.setattr(wheels, "find_spec", lambda name: name)
    wheels._check_tools(cuda=False)
    with pytest.raises(BuildError, match="nvcc"):
        wheels._check_tools(cuda=True)


@pytest.mark.parametrize("extra", ["libggml.so.0", "libggml-cuda.so"])
def test_wheel_with_a_library_too_many_is_refused(tmp_path: Path, extra: str) -> None:
    wheel = write_engine(tmp_path)
    wheels.check_engine(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(f"llama_cpp/lib/{extra}", "")
    with pytest.raises(IntegrityError, match=extra):
        wheels.check_engine(wheel)


def test_wheel_without_kernels_or_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="haswell"):
        wheels.check_engine(write_engine(tmp_path, without="libggml-cpu-haswell.so"))
    with pytest.raises(IntegrityError, match=r"0\.3\.36"):
        wheels.check_engine(write_engine(tmp_path, version="0.3.36"))


def test_damaged_wheel_is_refused(tmp_path: Path) -> None:
    wheel = write_engine(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(IntegrityError, match="cannot be read"):
        wheels.check_engine(wheel)


def test_second_build_waits_for_the_first(tmp_path: Path) -> None:
    lock, order = tmp_path / "wheel.lock", []

    def second() -> None:
        with locked(lock, lambda *step: (order.append("waits"), waiting.set())):
            order.append("second")

    waiting = threading.Event()
    thread = threading.Thread(target=second)
    with locked(lock):
        thread.start()
        assert waiting.wait(timeout=30)
        order.append("first done")
    thread.join(timeout=30)
    assert order == ["waits", "first done", "second"]


def test_real_wheel_holds_the_engine_once() -> None:
    folder = REAL_CACHE / "wheels" / wheels.engine_key(cuda=False)
    if not folder.is_dir():
        pytest.skip("the engine is not in the cache: `make wheels` builds it")
    wheel = wheels._only_wheel(folder)
    wheels.check_engine(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = archive.read("llama_cpp/lib/libllama.so")
    assert not [name for name in names if ".so." in name or "/server/" in name]
    assert str(Path.home()).encode() not in library  # no path of the build machine


def test_the_server_brings_all_that_it_needs() -> None:
    needed, waiting = set(), ["starlette", "uvicorn", "msgspec"]
    while waiting:
        name = waiting.pop()
        needed.add(canonicalize_name(name))
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            # any Python that a bundle may be packed for, not this one alone
            marker = requirement.marker
            wanted = marker is None or marker.evaluate({"python_version": "3.11", "extra": ""})
            if wanted and canonicalize_name(requirement.name) not in needed:
                waiting.append(requirement.name)
    assert needed == {canonicalize_name(name) for name in SERVER_REQUIRES}
    assert set(SERVER_REQUIRES) < set(COMMON_PACKAGES)
