"""Fetching, against a double of the hub that serves a local folder. No network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from packager.checkpoint import hub as module
from packager.checkpoint.hub import fetch
from packager.checkpoint.reader import read_checkpoint
from packager.core.errors import (
    Cancelled,
    CheckpointError,
    IntegrityError,
    OfflineError,
    StarpackError,
    UsageError,
)
from tests.support.tiny import write_checkpoint

huggingface_hub = pytest.importorskip("huggingface_hub")
httpx2 = pytest.importorskip("httpx2")  # comes with it
COMMIT = "a" * 40


class Hub:
    """One repository in a folder: the two calls that fetch makes of HfApi, and a fault to raise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloads: list[str] = []
        self.before_download: Callable[[str], None] = lambda name: None

    def model_info(self, repo: str, *, revision: str, files_metadata: bool) -> SimpleNamespace:
        assert (repo, revision, files_metadata) == ("org/name", "main", True)
        siblings = [
            SimpleNamespace(
                rfilename=file.relative_to(self.folder).as_posix(),
                size=file.stat().st_size,
                lfs=SimpleNamespace(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
                if file.suffix == ".safetensors"
                else None,
            )
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        ]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def hf_hub_download(self, repo: str, name: str, *, revision: str, local_dir: Path) -> str:
        assert (repo, revision) == ("org/name", COMMIT)
        self.before_download(name)
        self.downloads.append(name)
        (local_dir / ".cache").mkdir(exist_ok=True)
        return shutil.copy(self.folder / name, local_dir / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    double = Hub(write_checkpoint(tmp_path / "remote"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: double)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return double


def raises(kind: type[StarpackError], message: str, out: Path) -> StarpackError:
    with pytest.raises(kind, match=message) as raised:
        fetch("org/name", "main", out)
    assert type(raised.value) is kind
    assert raised.value.where
    assert raised.value.remedy
    assert not out.exists()
    return raised.value


def failing(error: BaseException, only: str = "") -> Callable[[str], None]:
    def fail(name: str) -> None:
        if only in name:
            raise error

    return fail


def response(status: int) -> object:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub.invalid"))


def test_takes_what_is_needed_and_records_it(hub: Hub, tmp_path: Path) -> None:
    unwanted = ["pytorch_model.bin", "x.py", ".gitattributes", "sub/model.safetensors"]
    unwanted += ["other.safetensors", "model.safetensors.index.json", "a.pt"]
    wanted = ["LICENSE", "LICENCE.md", "README.md", "NOTICE", "generation_config.json"]
    for name in [*unwanted, *wanted]:
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_text('{"eos_token_id": 0}')
    seen: list[tuple[int, int]] = []
    out = tmp_path / "new" / "model"
    record = fetch("org/name", "main", out, progress=lambda _, d, t: seen.append((d, t)))
    assert record.commit == COMMIT
    names = {entry.path for entry in record.files}
    assert names == {*wanted, "config.json", "tokenizer.json", "model.safetensors"}
    assert {file.name for file in out.iterdir()} == {*names, "starpack-fetch.json"}
    assert seen[-1][0] == seen[-1][1] == sum(entry.bytes for entry in record.files)
    assert hub.downloads[-1] == "model.safetensors"  # the longest comes last
    stored = json.loads((out / "starpack-fetch.json").read_text())
    assert stored["repo"] == "org/name"
    assert stored["date"].endswith("+00:00")
    for entry in stored["files"]:
        content = (out / entry["path"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert read_checkpoint(out).revision == COMMIT


def test_shards(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "model.safetensors").unlink()
    write_checkpoint(hub.folder, shards=2)
    fetch("org/name", "main", tmp_path / "out")
    assert read_checkpoint(tmp_path / "out").revision == COMMIT


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.json", "a\\x.safetensors", ".."])
def test_names_cannot_leave_the_folder(name: str) -> None:
    assert not module.WANTED.fullmatch(name)


def test_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    raises(CheckpointError, "no weights in safetensors", tmp_path / "out")
    assert not hub.downloads


def test_existing_output_is_kept(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="already there"):
        fetch("org/name", "main", tmp_path / "out")


@pytest.mark.parametrize("value", ["1", "on", "TRUE"])
def test_offline_by_request(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    raises(OfflineError, "HF_HUB_OFFLINE forbids", tmp_path / "out")
    assert not hub.downloads


ERRORS = pytest.importorskip("huggingface_hub.errors")
FAULTS: dict[str, tuple[BaseException, type[StarpackError], str]] = {
    "no route": (httpx2.ConnectError("no route"), OfflineError, "could not be reached: no route"),
    "timeout": (httpx2.ReadTimeout("slow"), OfflineError, "could not be reached: slow"),
    "disk": (OSError(28, "No space left"), OfflineError, "No space left"),
    "not cached": (ERRORS.LocalEntryNotFoundError("x"), OfflineError, "could not be reached"),
    "server": (ERRORS.HfHubHTTPError("500", response=response(500)), OfflineError, "500"),
    "gated": (ERRORS.GatedRepoError("terms", response=response(403)), UsageError, "its terms"),
    "repo": (
        ERRORS.RepositoryNotFoundError("404", response=response(404)),
        UsageError,
        "no such model or revision",
    ),
    "revision": (
        ERRORS.RevisionNotFoundError("404", response=response(404)),
        UsageError,
        "no such model or revision",
    ),
    "name": (ERRORS.HFValidationError("bad"), UsageError, "no such model or revision"),
    "interrupt": (KeyboardInterrupt(), Cancelled, "interrupted"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(hub: Hub, tmp_path: Path, case: str) -> None:
    error, kind, message = FAULTS[case]
    hub.before_download = failing(error, only="model.safetensors")
    raises(kind, message, tmp_path / "out")
    assert (tmp_path / "out.partial" / "config.json").exists()
    (tmp_path / "out.partial" / "model-00001-of-00002.safetensors").write_text("another revision")
    hub.before_download = lambda name: None
    fetch("org/name", "main", tmp_path / "out")  # goes on where it stopped
    assert not (tmp_path / "out.partial").exists()
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert read_checkpoint(tmp_path / "out").revision == COMMIT


def test_damaged_file(hub: Hub, tmp_path: Path) -> None:
    weights = hub.folder / "model.safetensors"
    sound = weights.read_bytes()

    def damage(name: str) -> None:
        if name == weights.name:
            weights.write_bytes(sound[:-1] + b"x")

    hub.before_download = damage
    raises(IntegrityError, "model.safetensors came damaged", tmp_path / "out")
    assert not (tmp_path / "out.partial" / "model.safetensors").exists()
