"""Several variants in one bundle: packed, installed, changed by a delta, and one of them opened."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from packager.bundle import pack
from packager.delta import write_delta
from packager.errors import IntegrityError
from packager.files import file_entry
from packager.packed import Packed
from packager.records import Artifact, Budget, Variant
from packager.select import select
from packager.ship import packed_variants
from runtimes import bundle as bundles
from runtimes import cli, gpu_memory, variants
from runtimes.bundle import open_bundle, verify_files
from runtimes.contract import Manifest, read_manifest
from runtimes.errors import DeviceError, UsageError
from runtimes.installation import Installation
from tests.packing import WHEEL, checkpoint_in, sh, write_checkpoint, write_wheel
from tests.runtime_toys import ToyBackend, module_with, random_logits
from tests.test_bundle_open import write_bundle as write_toy
from tests.test_bundle_open import write_manifest
from tests.test_documents import MEASURED, assert_valid
from tests.test_select import candidate

SMALL, LARGE = "toy-small", "toy-large"


def write_parts(work: Path, code: str = "VALUE = 1\n") -> None:
    """A GGUF file and two ONNX folders that have one file in common."""
    work.mkdir()
    write_checkpoint(work / "checkpoint")
    write_wheel(work, code)
    for name, files in {
        "gguf-Q8_0": {"model.gguf": b"eight" * 900},
        "onnx-int8": {"model.onnx": b"int8" * 700, "shared.json": b"{}" * 500},
        "onnx-int4-g32": {"model.onnx": b"int4" * 300, "shared.json": b"{}" * 500},
    }.items():
        (work / name).mkdir()
        for file, data in files.items():
            (work / name / file).write_bytes(data)


def parts_in(work: Path) -> list[Packed]:
    """The best first, and the largest."""
    parts = []
    for name, bits, memory_bytes in (
        ("gguf-Q8_0", 8.5, 9_000_000),
        ("onnx-int8", 8.0, 5_000_000),
        ("onnx-int4-g32", 4.5, None),
    ):
        folder, (format, recipe) = work / name, name.split("-", 1)
        entries = tuple(file_entry(folder, file.name) for file in sorted(folder.iterdir()))
        artifact = Artifact(Variant(format, recipe, bits, None), "a" * 64, folder, entries)
        parts.append(Packed(artifact, MEASURED, memory_bytes, 1.5, 0.04, 0.002))
    return parts


def pack_several(work: Path, out: Path, parts: list[Packed] | None = None) -> Manifest:
    parts = parts or parts_in(work)
    return pack(
        parts[0].artifact,
        checkpoint_in(work / "checkpoint"),
        out,
        wheels=list(work.glob("*.whl")),
        evidence={**MEASURED, "selection": {}},
        variants=parts,
    )


def test_each_has_a_folder_and_what_is_equal_is_stored_once(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    out = tmp_path / "bundle"
    manifest = pack_several(tmp_path / "work", out)
    assert manifest == read_manifest(out)
    verify_files(out, manifest)
    assert manifest.artifact == "model/gguf-Q8_0/model.gguf"
    assert manifest.artifact_bytes == 4500
    listed = [(v.name, v.artifact, v.memory_bytes) for v in manifest.variants]
    assert listed == [
        ("gguf-Q8_0", "model/gguf-Q8_0/model.gguf", 9_000_000),
        ("onnx-int8", "model/onnx-int8", 5_000_000),
        ("onnx-int4-g32", "model/onnx-int4-g32", None),
    ]
    shared = [out / "model" / name / "shared.json" for name in ("onnx-int8", "onnx-int4-g32")]
    assert shared[0].samefile(shared[1]) and shared[0].read_bytes() == b"{}" * 500
    assert not shared[0].samefile(tmp_path / "work" / "onnx-int8" / "shared.json")
    backends = {file.name for file in (out / "runtimes" / "backends").iterdir()}
    assert backends == {"__init__.py", "gguf.py", "onnx.py"}
    assert manifest.provenance["variants"]["onnx-int8"]["bits"] == 8.0
    assert "selection" in manifest.measured and "selection" not in manifest.variants[0].measured


def test_the_documents_tell_of_each(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    out = tmp_path / "bundle"
    pack_several(tmp_path / "work", out)
    assert "onnx with the recipe int4-g32" in " ".join((out / "NOTICE").read_text().split())
    card = (out / "MODEL_CARD.md").read_text()
    assert "Also in this bundle: onnx int8" in card
    assert "What was measured of onnx-int4-g32 on a processor" in card
    assert "`onnx-int8`: `model/onnx-int8`, 0.0 MB" in (out / "README.md").read_text()
    bill = (out / "sbom.cdx.json").read_text()
    assert_valid(bill)
    models = {c["bom-ref"]: c for c in json.loads(bill)["components"] if "modelCard" in c}
    assert set(models) == {"model", "model-onnx-int8", "model-onnx-int4-g32"}
    files = [file["name"] for model in models.values() for file in model["components"]]
    assert len(files) == len(set(files)) == 5


def test_the_same_files_are_one_artifact_under_two_names(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    first = parts_in(tmp_path / "work")[0]
    again = replace(first, artifact=replace(first.artifact, variant=Variant("gguf", "twin", 8, 1)))
    manifest = pack_several(tmp_path / "work", tmp_path / "bundle", [first, again])
    assert {v.artifact for v in manifest.variants} == {"model/gguf-Q8_0/model.gguf"}
    assert len([e for e in manifest.files if e.path.startswith("model/")]) == 1
    assert_valid((tmp_path / "bundle" / "sbom.cdx.json").read_text())


def test_a_variant_that_has_changed_is_not_packed(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    parts = parts_in(tmp_path / "work")
    (tmp_path / "work" / "onnx-int4-g32" / "model.onnx").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="changed since it was converted"):
        pack_several(tmp_path / "work", tmp_path / "bundle", parts)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_one_has_no_list_of_variants(tmp_path: Path) -> None:
    write_parts(tmp_path / "work")
    only = parts_in(tmp_path / "work")[0].artifact
    pack(
        only,
        checkpoint_in(tmp_path / "work" / "checkpoint"),
        tmp_path / "b",
        wheels=[],
        evidence={},
    )
    value = json.loads((tmp_path / "b" / "bundle.json").read_bytes())
    assert "variants" not in value and "variants" not in value["provenance"]
    assert value["artifact"] == "model/model.gguf"


def test_installed_and_changed_by_a_delta(tmp_path: Path) -> None:
    for name, code in (("old", "VALUE = 1\n"), ("new", "VALUE = 22\n")):
        write_parts(tmp_path / f"{name} work", code)
        pack_several(tmp_path / f"{name} work", tmp_path / name)
    target = tmp_path / "target"
    done = sh(tmp_path / "old" / "install", "--to", target)
    assert done.returncode == 0, done.stderr
    delta = write_delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    assert delta.changed == ("sbom.cdx.json", f"wheels/{WHEEL}")
    done = sh(tmp_path / "delta" / "install", "--to", target)
    assert done.returncode == 0, done.stderr
    assert sh(target / "run", "verify", "--full").returncode == 0
    installed = Installation(target).current().bundle
    assert read_manifest(installed) == read_manifest(tmp_path / "new")
    shared = [installed / "model" / n / "shared.json" for n in ("onnx-int8", "onnx-int4-g32")]
    assert shared[0].samefile(shared[1])
    shared[1].write_bytes(b"?" * 1000)
    assert sh(target / "run", "verify").returncode == IntegrityError.exit_code


def test_those_that_fit_are_packed_the_best_first() -> None:
    fine, middle, coarse = (
        candidate(name, nats, 1, agreement=None)
        for name, nats in (("fine", 0.01), ("middle", 0.02), ("coarse", 0.9))
    )
    large = candidate("large", 0.0, 100)
    unproved = candidate("unproved", 0.005, 1, blocked="no window")
    every, budget = [coarse, large, middle, unproved, fine], Budget(divergence_nats=0.5)
    selection = select(every, budget, "here", 2**34)
    for most in (1, 2, 9):
        assert packed_variants(selection, most) == [fine, middle][:most]
    selection = select(every, budget, "here", 2**34, accept=["quality"])
    assert packed_variants(selection, 9) == [fine, middle, coarse]
    (rejected,) = [r for r in selection.rejected if r.candidate is coarse]
    assert "quality: it diverges by 0.9 nats" in rejected.others[0]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ToyBackend]:
    """What is opened, with the file's name in what it says of itself."""
    backends: list[ToyBackend] = []
    module = dict(module_with(random_logits(), backends))
    open_backend = module["open_backend"]

    def open_named(path: Path, *more: object) -> ToyBackend:
        backend = open_backend(path, *more)
        backend.describe = lambda: {"engine": "toy", "file": path.name}
        return backend

    module["open_backend"] = open_named
    monkeypatch.setattr(bundles, "backend_module", lambda format: SimpleNamespace(**module))
    return backends


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
    monkeypatch.setattr("runtimes.cli_doctor.machine_memory_bytes", lambda: (2 * count, count))


def file_of(backend: ToyBackend) -> str:
    return backend.describe()["file"]


def test_by_name_and_the_best_where_none_is_named(bundle: Path, opened: list[ToyBackend]) -> None:
    for name, file in ((None, "toy.bin"), (LARGE, "toy.bin"), (SMALL, "small.bin")):
        open_bundle(bundle, variant=name).close()
        assert file_of(opened[-1]) == file
    with pytest.raises(UsageError, match="no variant 'huge'") as caught:
        open_bundle(bundle, variant="huge")
    assert caught.value.expected == f"auto, {LARGE}, {SMALL}"


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
        open_bundle(bundle, variant="auto")
    for command in (["generate", "x"], ["doctor"]):
        words = [*command, "--bundle", str(bundle), "--variant", "auto", "--json"]
        assert cli.main(words) == DeviceError.exit_code
        out, err = capsys.readouterr()
        assert f"{LARGE}: does not fit: it needs 5 MB" in json.loads(err)["expected"]
        assert f"{SMALL}: does not fit" in err
    assert json.loads(out)["verdict"] == "does not fit"
    assert not opened


def test_doctor_lists_them_and_holds_one_to_its_own_promise(
    bundle: Path, opened: list, capsys, monkeypatch
) -> None:
    free(monkeypatch, 2_000_000)
    words = ["doctor", "--quick", "--json", "--bundle", str(bundle)]
    assert cli.main([*words, "--variant", "auto"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "as promised" and report["promised"]["device"] == "a small one"
    assert (report["bundle"]["recipe"], report["bundle"]["variant"]) == ("F8", SMALL)
    assert report["variants"][LARGE].startswith("does not fit")
    assert report["variants"][SMALL].startswith("fits")
    assert report["free memory"] == {"needed_bytes": 10**6, "available_bytes": 2_000_000}
    assert cli.main(words) == DeviceError.exit_code  # the default does not fit
    assert "--variant auto" in json.loads(capsys.readouterr().err)["remedy"]


def test_of_a_bundle_with_one_artifact(tmp_path: Path, opened: list, monkeypatch) -> None:
    bundle = write_toy(tmp_path / "one")
    manifest = read_manifest(bundle)
    assert variants.choose(manifest, None) is variants.choose(manifest, "toy-F32") is manifest
    free(monkeypatch, 10**9)
    open_bundle(bundle, variant="auto").close()
    free(monkeypatch, 1000)
    with pytest.raises(DeviceError, match="no variant"):
        open_bundle(bundle, variant="auto")


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
