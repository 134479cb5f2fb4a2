"""What wheels unpack to: the same each time, and nothing of an archive that is none."""

from __future__ import annotations

import random
import sys
import zipfile
from pathlib import Path

import pytest

from runtimes.errors import IntegrityError
from runtimes.trust.files import NewFiles
from runtimes.trust.installed.package_list import PackageList
from runtimes.trust.installed.packages import byte_code, unpack, unpacked_bytes


def wheel(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    file = folder / f"w{len(list(folder.glob('*.whl')))}.whl"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def unpack_to(wheels: list[Path], out: Path) -> tuple:
    out.mkdir()
    with NewFiles(out) as files:
        return unpack(wheels, files)


def test_what_is_listed_is_what_is_written(tmp_path: Path) -> None:
    members = {"a/__init__.py": b"X = 1\n", "a/data.bin": bytes(range(256)) * 9000, "b.py": b"x ="}
    file = wheel(tmp_path, members)
    written = unpack_to([file], tmp_path / "out")
    assert written == unpack([file])
    assert [entry.path for entry in written] == sorted(
        [*members, f"a/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"]
    )
    assert unpacked_bytes([file]) == sum(map(len, members.values()))
    packages = PackageList(written)
    assert PackageList.read(packages.data) == packages


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    file = wheel(tmp_path, {"x": b""})
    data = file.read_bytes()
    file.write_bytes(data.replace(b"x", b""))  # of the length that it says it has
    with pytest.raises(IntegrityError):
        unpack([file])
    nameless = bytearray(data)
    at = data.rindex(b"PK\x01\x02")
    nameless[at + 28 : at + 30] = b"\0\0"  # the length of the name, in the directory
    nameless[at + 46 :] = data[at + 47 :]
    file.write_bytes(nameless)
    with pytest.raises(IntegrityError):
        unpack([file])


def test_wheels_may_share_a_file_that_is_the_same(tmp_path: Path) -> None:
    first = wheel(tmp_path, {"nvidia/__init__.py": b"", "nvidia/a.py": b""})
    second = wheel(tmp_path, {"nvidia/__init__.py": b"", "nvidia/b.py": b""})
    assert len(unpack_to([first, second], tmp_path / "out")) == 6
    other = wheel(tmp_path, {"nvidia/__init__.py": b"X = 1\n"})
    with pytest.raises(IntegrityError, match="nvidia/__init__"):
        unpack([first, other])


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", "./a", "a\\b", "x" * 2000, "/".join("d" * 100)]
)
def test_a_path_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    file = wheel(tmp_path, {name: b""})
    with pytest.raises(IntegrityError):
        unpack_to([file], tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    for members in ({"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}):
        folder = tmp_path / next(iter(members)).replace("/", "-")
        folder.mkdir()
        with pytest.raises(IntegrityError, match="a file and of a folder"):
            unpack_to([wheel(folder, members)], folder / "out")


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_archive_is_an_error_of_ours(tmp_path: Path, compression: int) -> None:
    members = {f"a/{i}.py": b"def f(x):\n    return x\n" * 40 for i in range(4)}
    file = wheel(tmp_path, members, compression)
    data, rng, refused = file.read_bytes(), random.Random(compression), 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 40))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        file.write_bytes(changed[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            unpack([file])
        except IntegrityError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "source",
    [b"x =", b"\0", b"\xff\xfe", b"x = " + b"-" * 100_000 + b"1", b"x = " + b"a+" * 3000 + b"a",
     b"(" * 5000],
)  # fmt: skip
def test_a_source_that_python_does_not_take_stays_as_it_is(source: bytes) -> None:
    def deeper(levels: int) -> bytes | None:
        return byte_code(source, "a.py") if levels == 0 else deeper(levels - 1)

    assert byte_code(source, "a.py") == deeper(300)  # wherever it is called from
