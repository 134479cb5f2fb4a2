"""A pipe where a user's file is expected is refused at once, whatever the file is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.calibration.imatrix import read_importance
from packager.calibration.sources import read_sources
from packager.checkpoint.model_card import declared_licence
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.tensors import open_tensors
from packager.cli.main import main
from packager.core.errors import DataError
from packager.core.hash_cache import hash_entries
from packager.devices.budget import load_budget
from packager.devices.database import load_device
from packager.formats.gptq.reader import gptq_sha256
from packager.measurement.humaneval import read_tasks
from runtimes.errors import StarpackError
from tests.support.pipes import not_hanging, put_pipe
from tests.support.tiny import write_checkpoint

OF_A_CHECKPOINT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "model.safetensors",
    "starpack-fetch.json",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_a_pipe_in_a_checkpoint(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_pipe(folder / name)
    with not_hanging():
        assert main(["inspect", str(folder), "--json"]) == 8
    said = json.loads(capsys.readouterr().out)
    assert said["where"] == str(folder / name)
    assert "no file" in said["what"] and said["remedy"]


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"]
)
def test_a_pipe_among_the_shards(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    put_pipe(folder / name)
    with not_hanging(), pytest.raises(StarpackError, match="no file"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_in_an_adapter(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    put_pipe(tmp_path / "adapter" / name)
    with not_hanging(), pytest.raises(StarpackError, match="no file"):
        read_checkpoint(folder, adapter=tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_takes_the_place_of_weights_once_they_were_opened(folder: Path, kind: str) -> None:
    checkpoint = read_checkpoint(folder)
    tensors = open_tensors(checkpoint)
    file = folder / "model.safetensors"
    if kind == "pipe":
        put_pipe(file)
    else:
        file.unlink()
        file.mkdir() if kind == "folder" else file.symlink_to("/dev/zero")
    with not_hanging(), pytest.raises(StarpackError, match="can no longer be read"):
        tensors.read("model.norm.bias")


READERS: dict[str, Callable[[Path], object]] = {
    "an importance matrix": lambda file: read_importance(file, {"a": 1}),
    "a device": load_device,
    "a budget": load_budget,
    "infilling tasks": read_tasks,
    "what is hashed": lambda file: hash_entries([file]),
    "GPTQ settings": lambda file: gptq_sha256(file.parent),
    "a source": lambda file: read_sources(file.parent),
    "a model's card": lambda file: declared_licence(file.parent),
}
NAMES = {
    "GPTQ settings": "quantize_config.json",
    "a source": "a.py",
    "a model's card": "README.md",
}


@pytest.mark.parametrize("kind", READERS)
def test_a_pipe_where_a_file_is_named(tmp_path: Path, kind: str) -> None:
    file = put_pipe(tmp_path / NAMES.get(kind, "file.json"))
    with not_hanging(), pytest.raises(StarpackError) as caught:
        READERS[kind](file)
    assert str(caught.value.where).startswith(str(tmp_path))


@pytest.mark.parametrize("flag", ["--device", "--budget"])
def test_a_pipe_for_the_command_line(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = put_pipe(tmp_path / "a.json")
    with not_hanging():
        assert main(["plan", "--json", "--device", "a10-24gb", flag, str(pipe)]) == 2
    assert json.loads(capsys.readouterr().out)["where"] == str(pipe)


def test_a_pipe_among_the_sources_is_no_source(tmp_path: Path) -> None:
    put_pipe(tmp_path / "a.py")
    (tmp_path / "b.py").write_text("b = 1\r\n")
    with not_hanging():
        assert read_sources(tmp_path) == ["b = 1\n"]


def test_a_file_that_is_gone_before_it_is_hashed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.py cannot be read: No such file"):
        hash_entries([tmp_path / "gone.py"])
