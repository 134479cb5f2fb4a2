"""One of several variants is opened: by its name, or the best that there is memory for."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimes import backends
from runtimes.bundle import variants
from runtimes.bundle.open import OpenOptions, open_bundle
from runtimes.cli import main as cli
from runtimes.errors import DeviceError, UsageError
from runtimes.host import gpu_memory
from runtimes.server.service import served_model
from runtimes.trust.manifest import read_manifest
from tests.support.runtime_toys import ToyBackend, module_with, random_logits
from tests.support.toy_bundles import write_bundle as write_toy
from tests.support.toy_bundles import write_manifest

SMALL, LARGE = "toy-small", "toy-large"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ToyBackend]:
    """What is opened, with the file's name in what it says of itself."""
    opened: list[ToyBackend] = []
    module = dict(module_with(random_logits(), opened))
    open_backend = module["open_backend"]

    def open_named(path: Path, *more: object) -> ToyBackend:
        backend = open_backend(path, *more)
        backend.describe = lambda: {"engine": "toy", "file": path.name}
        return backend

    module["open_backend"] = open_named
    monkeypatch.setattr(backends, "load", lambda format: SimpleNamespace(**module))
    return opened


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two toys: the better takes 5.12 MB, its file; the other 1 MB, as measured."""
    folder = write_toy(tmp_path / "bundle")
    (folder / "model" / "small.bin").write_bytes(b"small")
    common = {"format": "toy", "first_token_s": 1.0, "per_token_s": None, "divergence_nats": 0.5}
    large = {"name": LARGE, "recipe": "F32", "artifact": "model/toy.bin", "memory_bytes": None}
    small = {"name": SMALL, "recipe": "F8", "artifact": "model/small.bin", "memory_bytes": 10**6}
    speed = {"prompt_tokens": 16, "first_token_s": 3600.0, "peak_memory_bytes": 10**6}
    measured = [{}, {"device": "a small one", "speed": speed}]
    listed = [v | common | {"measured": m} for v, m in zip((large, small), measured, strict=True)]
    write_manifest(folder, variants=listed)
    return folder


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(variants, "machine_memory_bytes", lambda: (2 * count, count))
    monkeypatch.setattr("runtimes.cli.doctor.machine_memory_bytes", lambda: (2 * count, count))


def file_of(backend: ToyBackend) -> str:
    return backend.describe()["file"]


def test_by_name_and_the_best_where_none_is_named(bundle: Path, opened: list[ToyBackend]) -> None:
    for name, file in ((None, "toy.bin"), (LARGE, "toy.bin"), (SMALL, "small.bin")):
        open_bundle(bundle, OpenOptions(variant=name)).close()
        assert file_of(opened[-1]) == file
    with pytest.raises(UsageError, match="no variant 'huge'") as caught:
        open_bundle(bundle, OpenOptions(variant="huge"))
    assert caught.value.expected == f"auto, {LARGE}, {SMALL}"


def test_the_server_tells_of_the_one_that_runs(bundle: Path, opened: list[ToyBackend]) -> None:
    manifest = variants.choose(read_manifest(bundle), SMALL)
    with open_bundle(bundle, OpenOptions(variant=SMALL)) as runtime:
        model = served_model(bundle, manifest, runtime, None)
    assert (model.recipe, model.size_bytes) == ("F8", len("small"))


@pytest.mark.parametrize(
    ("available", "file", "said"),
    [
        (6_000_000, "toy.bin", [f"variant {LARGE} fits: it needs 5 MB, and 6 MB are free"]),
        (0, "toy.bin", [f"variant {LARGE} fits: it needs 5 MB, and how much is free is not known"]),
        (
            2_000_000,
            "small.bin",
            [
                f"variant {LARGE} does not fit: it needs 5 MB, and 2 MB are free",
                f"variant {SMALL} fits: it needs 1 MB, and 2 MB are free",
            ],
        ),
    ],
)
def test_auto_takes_the_best_that_fits_and_says_why(
    bundle: Path, opened: list, capsys, monkeypatch, available: int, file: str, said: list[str]
) -> None:
    free(monkeypatch, available)
    words = ["bench", "--bundle", str(bundle), "--variant", "auto", "--steps", "2", "--repeat", "1"]
    assert cli.main([*words, "--prompt-tokens", "4", "--depths", "4"]) == 0
    out, err = capsys.readouterr()
    assert file_of(opened[-1]) == file
    assert [line for line in err.splitlines() if line.startswith("variant")] == said
    assert out.startswith("toy F8" if file == "small.bin" else "toy F32")


def test_nothing_fits(bundle: Path, opened: list, capsys, monkeypatch) -> None:
    free(monkeypatch, 1000)
    with pytest.raises(DeviceError, match="no variant"):
        open_bundle(bundle, OpenOptions(variant="auto"))
    for command in (["generate", "x"], ["doctor"]):
        words = [*command, "--bundle", str(bundle), "--variant", "auto", "--json"]
        assert cli.main(words) == DeviceError.exit_code
        out = capsys.readouterr().out
        assert f"{LARGE}: does not fit: it needs 5 MB" in json.loads(out)["expected"]
        assert f"{SMALL}: does not fit" in json.loads(out)["expected"]
    assert json.loads(out)["verdict"] == "does not fit"
    assert not opened


def test_doctor_lists_them_and_holds_one_to_its_own_promise(
    bundle: Path, opened: list, capsys, monkeypatch
) -> None:
    free(monkeypatch, 2_000_000)
    words = ["doctor", "--quick", "--json", "--bundle", str(bundle)]
    assert cli.main([*words, "--variant", "auto"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "within baseline" and report["baseline"]["device"] == "a small one"
    assert (report["bundle"]["recipe"], report["bundle"]["variant"]) == ("F8", SMALL)
    assert report["variants"][LARGE].startswith("does not fit")
    assert report["variants"][SMALL].startswith("fits")
    assert report["free memory"] == {"needed_bytes": 10**6, "available_bytes": 2_000_000}
    assert cli.main(words) == DeviceError.exit_code  # the default does not fit
    assert "--variant auto" in json.loads(capsys.readouterr().out)["remedy"]


def test_of_a_bundle_with_one_artifact(tmp_path: Path, opened: list, monkeypatch) -> None:
    bundle = write_toy(tmp_path / "one")
    manifest = read_manifest(bundle)
    assert variants.choose(manifest, None) is variants.choose(manifest, "toy-F32") is manifest
    free(monkeypatch, 10**9)
    open_bundle(bundle, OpenOptions(variant="auto")).close()
    free(monkeypatch, 1000)
    with pytest.raises(DeviceError, match="no variant"):
        open_bundle(bundle, OpenOptions(variant="auto"))


class Driver:
    """A stand-in for libnvidia-ml: two GPUs, with the calls of nvml.h."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.is_open = broken, False

    def nvmlInit_v2(self) -> int:
        self.is_open = self.broken != "init"
        return int(not self.is_open)

    def nvmlShutdown(self) -> int:
        self.is_open = False
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device) -> int:
        device._obj.value = index.value + 1
        return int(index.value > 1)

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, device) -> int:
        device._obj.value = 2
        return int(uuid != b"GPU-2")

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, memory) -> int:
        assert self.is_open
        memory._obj.free = device.value * 10**9
        return int(self.broken == "memory")


@pytest.mark.parametrize(
    ("visible", "broken", "free_bytes"),
    [
        (None, "", 10**9),
        ("1,0", "", 2 * 10**9),
        ("GPU-2", "", 2 * 10**9),
        ("GPU-3", "", 0),
        ("7", "", 0),
        ("", "", 0),
        ("0", "init", 0),
        ("0", "memory", 0),
    ],
)
def test_the_gpu_is_the_one_that_cuda_sees(monkeypatch, visible, broken, free_bytes) -> None:
    driver = Driver(broken)
    monkeypatch.setattr(gpu_memory.ctypes, "CDLL", lambda name: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert variants.free_bytes("cuda") == free_bytes
    assert not driver.is_open


def test_without_the_driver_nothing_is_known(monkeypatch) -> None:
    monkeypatch.setattr(gpu_memory, "LIBRARY", "libnone-such.so.1")
    assert gpu_memory.gpu_free_bytes() == 0
