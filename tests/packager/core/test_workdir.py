"""A conversion that was killed goes on at what was on the disk, and ends in the same bytes."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.core import workdir
from packager.core.errors import StarpackError, UsageError
from packager.core.records import Checkpoint
from packager.core.workdir import INPUTS_NAME, LEDGER_NAME
from packager.formats.gguf import convert as gguf_writer
from packager.formats.gguf import format as gguf
from packager.formats.onnx import format as onnx
from packager.formats.onnx import weights_file
from packager.formats.onnx.layout import DATA_NAME
from tests.support.pipes import not_hanging, put_pipe
from tests.support.tiny import write_checkpoint

pytestmark = pytest.mark.engine

FORMATS = [(gguf, "Q8_0", gguf.FILE_NAME), (onnx, "int4-g32", DATA_NAME)]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Some hundred jobs of 4 KiB, noted every 16 KiB."""
    monkeypatch.setattr(gguf_writer, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(weights_file, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(workdir, "NOTE_BYTES", 16_384)
    shape = dict(window=37, layers=2, hidden=256, heads=4, kv_heads=2, ffn=512)
    return read_checkpoint(write_checkpoint(tmp_path / "model", **shape))


def stop_at_half(module, checkpoint: Checkpoint, recipe: str, out: Path) -> Path:
    def stop(what: str, done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.convert(checkpoint, module.variant(recipe), out, progress=stop)
    assert not out.exists()
    (left,) = out.parent.glob(f"{out.name}.*.work")
    assert {INPUTS_NAME, LEDGER_NAME, "lock"} < {file.name for file in left.iterdir()}
    return left


def torn(file: Path) -> None:
    """A job that came after the note is there in part."""
    with file.open("ab") as stream:
        stream.write(b"x" * 5000)


def lost(file: Path) -> None:
    """The file is shorter than was noted: nothing of it is believed."""
    file.write_bytes(b"y" * 100)


@pytest.mark.parametrize(("module", "recipe", "name"), FORMATS, ids=["gguf", "onnx"])
@pytest.mark.parametrize("damage", [None, torn, lost])
def test_it_goes_on_and_ends_in_the_same_bytes(checkpoint, tmp_path, module, recipe, name, damage):
    variant = module.variant(recipe)
    whole = module.convert(checkpoint, variant, tmp_path / "whole")
    left = stop_at_half(module, checkpoint, recipe, tmp_path / "out")
    if damage is not None:
        damage(left / name)
    shares: list[float] = []
    resumed = module.convert(
        checkpoint, variant, tmp_path / "out",
        progress=lambda what, done, total: shares.append(done / total),
    )  # fmt: skip
    assert resumed.files == whole.files
    assert (shares[0] < 0.1) if damage is lost else (0.4 < shares[0] < 0.6)
    assert shares == sorted(shares) and shares[-1] == 1
    assert {file.name for file in tmp_path.iterdir()} == {"model", "whole", "out"}


def test_a_note_of_what_was_lost_is_forgotten_at_once(checkpoint, tmp_path):
    left = stop_at_half(onnx, checkpoint, "int4-g32", tmp_path / "out")
    lost(left / DATA_NAME)
    assert workdir.Ledger(left / DATA_NAME).jobs == 0
    assert not (left / LEDGER_NAME).exists()  # the file may soon be as long again


def test_a_file_that_could_not_be_published_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "one").write_text("1")
    with pytest.raises(FileNotFoundError):
        workdir.publish(tmp_path / "w", ["one", "two"], tmp_path / "out")
    assert (tmp_path / "w" / "one").read_text() == "1"
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("note", [b"", b"[]", b'{"jobs": 3}', b'{"end": "x"}'])
def test_a_note_that_says_nothing_is_passed_over(checkpoint, tmp_path, note):
    left = stop_at_half(gguf, checkpoint, "Q8_0", tmp_path / "out")
    (left / LEDGER_NAME).write_bytes(note)
    resumed = gguf.convert(checkpoint, gguf.variant("Q8_0"), tmp_path / "out")
    assert resumed.files == gguf.convert(checkpoint, gguf.variant("Q8_0"), tmp_path / "b").files


NOTES = {
    "a key twice": '{"jobs": 3, "jobs": 3, "bytes": 5, "end": 5}',
    "no whole number": '{"jobs": 3.0, "bytes": 5, "end": 5}',
    "true": '{"jobs": true, "bytes": 5, "end": 5}',
    "less than nothing": '{"jobs": 3, "bytes": -5, "end": -5}',
    "NaN": '{"jobs": 3, "bytes": NaN, "end": 5}',
    "no object": "[3, 5, 5]",
}


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_no_run_writes_is_not_believed(tmp_path, note):
    (tmp_path / "file").write_bytes(b"x" * 10)
    (tmp_path / LEDGER_NAME).write_text(NOTES[note])
    ledger = workdir.Ledger(tmp_path / "file")
    assert (ledger.jobs, ledger.bytes) == (0, 0)
    assert (tmp_path / "file").read_bytes() == b"x" * 10
    (tmp_path / LEDGER_NAME).write_text('{"jobs": 3, "bytes": 4, "end": 5}')
    ledger = workdir.Ledger(tmp_path / "file")
    assert (ledger.jobs, ledger.bytes, (tmp_path / "file").stat().st_size) == (3, 4, 5)


def link_to_a_file(folder, target):
    (folder / "lock").symlink_to(target)


def link_to_all(folder, target):
    folder.rmdir()
    folder.symlink_to(target.parent)


def pipe_of_work(folder, target):
    put_pipe(folder / "work")


@pytest.mark.parametrize("plant", [link_to_a_file, link_to_all, pipe_of_work])
def test_work_that_others_have_put_there_is_not_gone_on_with(tmp_path, plant):
    """Its name can be known beforehand, in a folder that others can write to."""
    given = (tmp_path / "out", ("toy", 1), re.compile("work"), {"checkpoint": "a"})
    with workdir.work_folder(*given) as work:
        pass
    secret = tmp_path / "private" / "work"
    secret.parent.mkdir(mode=0o700)
    secret.write_text("secret")
    work.mkdir()
    plant(work, secret)
    said = pytest.raises(UsageError, match="was not left by a run of this user")
    with not_hanging(), said, workdir.work_folder(*given):
        pytest.fail("it is gone on with")
    assert secret.read_text() == "secret"
    assert secret.parent.stat().st_mode & 0o777 == 0o700


def test_a_full_disk_is_named_and_the_work_is_kept(tmp_path):
    given = (tmp_path / "out", ("toy", 1), re.compile("work"), {"checkpoint": "a"})
    said = pytest.raises(StarpackError, match="out cannot be written: No space")
    with said, workdir.work_folder(*given) as work:
        (work / "work").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (work / "work").read_text() == "half"


def test_a_pipe_or_a_link_among_older_work_is_left_alone(tmp_path):
    left = tmp_path / "other.0123456789ab.work"
    left.mkdir()
    for name in ("lock", INPUTS_NAME):
        put_pipe(left / name)
    (tmp_path / "link.0123456789ab.work").symlink_to(left)
    given = (tmp_path / "out", ("toy", 1), re.compile("work"), {"checkpoint": "a"})
    with not_hanging(), workdir.work_folder(*given):
        pass


def test_another_recipe_does_not_go_on_from_there(checkpoint, tmp_path):
    left = stop_at_half(gguf, checkpoint, "Q8_0", tmp_path / "out")
    gguf.convert(checkpoint, gguf.variant("F16"), tmp_path / "out")
    assert left.is_dir()


def test_a_newer_version_removes_what_its_own_format_has_left(checkpoint, tmp_path, monkeypatch):
    of_gguf = stop_at_half(gguf, checkpoint, "Q8_0", tmp_path / "one")
    of_onnx = stop_at_half(onnx, checkpoint, "int4-g32", tmp_path / "other")
    monkeypatch.setattr(gguf_writer, "VERSION", gguf.VERSION + 1)
    gguf.convert(checkpoint, gguf.variant("F16"), tmp_path / "out")
    assert of_onnx.is_dir() and not of_gguf.exists()


def test_a_checkpoint_that_was_not_hashed_leaves_nothing_to_go_on_from(checkpoint, tmp_path):
    unknown = read_checkpoint(checkpoint.path, hash_files=False)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.convert(unknown, gguf.variant("Q8_0"), tmp_path / "out", progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    gguf.convert(unknown, gguf.variant("Q8_0"), tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"model", "out"}
