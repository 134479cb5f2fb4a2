"""Wheels for the target, not for this machine, and the same ones each time."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import pytest

from packager.core.errors import IntegrityError, UsageError
from packager.engine import wheelhouse
from packager.engine.target import Target, read_target, this_machine
from packager.engine.wheelhouse import collect_wheels, glibc_needed

HERE = this_machine()


def wheel_of(folder: Path, name: str, library: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("engine/lib/libengine.so.1", library)
    return folder / name


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of pip, which downloads nothing here but what is asked for by name."""
    seen: list[list[str]] = []

    def run(command: list[str], log: Path, **_: object) -> None:
        seen.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for pin in command[command.index("--dest") + 2 :]:
            (folder / f"{pin.replace('==', '-')}-py3-none-any.whl").write_bytes(pin.encode())

    monkeypatch.setattr(wheelhouse, "run_logged", run)
    return seen


def test_targets_are_read() -> None:
    assert read_target(None, None) == HERE and HERE.is_here and HERE.platforms == ()
    assert not read_target(None, "3.99").is_here
    target = read_target("manylinux_2_17_aarch64", "3.12")
    assert target == Target("3.12", "aarch64", 17)
    tags = target.platforms
    assert tags[:3] == (
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
        "manylinux_2_16_aarch64",
    )
    assert tags[-1] == "manylinux1_aarch64"
    for words in (("linux_x86_64", None), ("win_amd64", None), (None, "3"), (None, "2.7")):
        with pytest.raises(UsageError):
            read_target(*words)


def test_pip_is_asked_for_the_target(commands: list[list[str]], tmp_path: Path) -> None:
    target = Target("3.12", "aarch64", 28)
    wheels = collect_wheels([], cache=tmp_path, target=target)
    assert {"numpy", "tokenizers", "starlette"} <= {wheel.name.split("-")[0] for wheel in wheels}
    (command,) = commands
    assert command[command.index("--python-version") + 1] == "3.12"
    assert command[command.index("--platform") + 1] == "manylinux_2_28_aarch64"
    assert "--only-binary" in command and "--no-deps" in command
    collect_wheels([], cache=tmp_path)
    assert "--platform" not in commands[1]  # this machine's wheels are others
    collect_wheels([], cache=tmp_path, target=target)
    assert len(commands) == 2


def test_a_cached_wheel_that_has_changed_is_refused(
    commands: list[list[str]], tmp_path: Path
) -> None:
    wheel = collect_wheels([], cache=tmp_path)[0]
    wheel.write_bytes(b"another one")
    with pytest.raises(IntegrityError, match="not those that were downloaded"):
        collect_wheels([], cache=tmp_path)
    (record,) = tmp_path.rglob("*.json")
    kept = record.read_text()
    record.write_text('{"a": "1", "a": "1"}')
    with pytest.raises(IntegrityError, match="'a' is given twice") as caught:
        collect_wheels([], cache=tmp_path)
    assert "delete that folder" in str(caught.value.remedy)
    record.write_text(kept)
    wheel.unlink()
    with pytest.raises(IntegrityError, match="not those that were downloaded"):
        collect_wheels([], cache=tmp_path)


def test_what_is_compiled_here_must_run_there(commands: list[list[str]], tmp_path: Path) -> None:
    library = b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_PRIVATE\0"
    engine = wheel_of(tmp_path / "built", "engine-1-py3-none-linux_x86_64.whl", library)
    assert glibc_needed(engine) == 34
    machine = platform.machine()
    for fits in (HERE, Target("3.99", machine), Target("3.12", machine, 34)):
        assert engine in collect_wheels([], [engine], cache=tmp_path, target=fits)
    for other in (Target("3.12", machine, 28), Target(HERE.python, "pdp11")):
        with pytest.raises(UsageError, match="does not run on that target") as caught:
            collect_wheels([], [engine], cache=tmp_path, target=other)
        assert "glibc 2.34 or newer" in caught.value.expected
