"""Whatever somebody changes in an installation, but DIR/run itself, is found before it acts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtimes.trust.bootstrap import checker_files
from runtimes.trust.installed.package_list import PackageList
from runtimes.trust.installed.packages import byte_code
from runtimes.trust.installed.versions import Installation
from runtimes.trust.verify import TICK_NS, HashCache
from tests.support.packing import bare_environment, sh, write_bundle

pytestmark = pytest.mark.bundle

CODE = "def f(x):\n    return x in {'a', 'b', 'c'}\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return write_bundle(folder / "parts", folder / "bundle", code=CODE)


@pytest.fixture(scope="module")
def pristine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pristine") / "installed"
    assert sh(bundle / "install", "--to", target).returncode == 0
    return target


@pytest.fixture
def target(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "installed", symlinks=True))


def version(target: Path) -> Path:
    return Installation(target).current().folder


def move_and_link(place: Path, elsewhere: Path) -> None:
    place.rename(elsewhere)
    place.symlink_to(elsewhere)


def forge_packages(folder: Path) -> None:
    """Change a package, its byte code and the list of all, as whoever can write there could."""
    module = folder / "packages" / "demo_package" / "__init__.py"
    code = module.read_bytes() + b"print('forged')\n"
    module.write_bytes(code)
    (compiled,) = module.parent.glob("__pycache__/*.pyc")
    compiled.write_bytes(byte_code(code, "demo_package/__init__.py"))
    value = json.loads((folder / "packages.json").read_text())
    for entry in value["files"]:
        data = (folder / "packages" / entry["path"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "packages.json").write_text(json.dumps(value))


def no_packages(folder: Path) -> None:
    (folder / "packages.json").write_bytes(PackageList(()).data)
    shutil.rmtree(folder / "packages" / "demo_package")


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "a planted command": lambda v, t: (v / "bundle/runtimes/cli.py").write_text("print('PWNED')"),
    "a changed checker": lambda v, t: (v / "bundle/runtimes/trust/verify.py").write_text("x = 1"),
    "a changed start": lambda v, t: (v / "bundle/start.py").write_text("print('PWNED')"),
    "a truncated checker": lambda v, t: os.truncate(v / "bundle/runtimes/trust/verify.py", 100),
    "a checker of no text": lambda v, t: (v / "bundle/runtimes/contract.py").write_bytes(b"\xff"),
    "a missing start": lambda v, t: (v / "bundle/start.py").unlink(),
    "a missing manifest": lambda v, t: (v / "bundle/bundle.json").unlink(),
    "a missing list": lambda v, t: (v / "packages.json").unlink(),
    "a cut list": lambda v, t: os.truncate(v / "packages.json", 100),
    "a missing version": lambda v, t: v.rename(t / "elsewhere"),
    "a checker of its own": lambda v, t: (v / "checker").mkdir(),
    "a program as a memory": lambda v, t: shutil.copy("/bin/true", v / "checked-x.json"),
    "a file beside": lambda v, t: (v / "sitecustomize.py").write_text("print('PWNED')"),
    "a pipe beside": lambda v, t: os.mkfifo(v / "pipe"),
    "a link beside": lambda v, t: (v / "link").symlink_to(t),
    "an empty folder": lambda v, t: (v / "bundle/runtimes/empty").mkdir(),
    "an empty folder of packages": lambda v, t: (v / "packages/onnxruntime").mkdir(),
    "a bundle elsewhere": lambda v, t: move_and_link(v / "bundle", t / "bundle"),
    "packages elsewhere": lambda v, t: move_and_link(v / "packages", t / "packages"),
    "a version elsewhere": lambda v, t: move_and_link(v, t / "version"),
    "versions elsewhere": lambda v, t: move_and_link(v.parent, t / "elsewhere"),
    "forged packages": lambda v, t: forge_packages(v),
    "no packages": lambda v, t: no_packages(v),
    "a forged manifest": lambda v, t: (v / "bundle/bundle.json").write_text("{}"),
}
PIPES = [
    "packages.json",
    "checked-bundle.json",
    "checked-packages.json",
    "bundle/bundle.json",
    "bundle/bundle.json.sha256",
    "bundle/bundle.json.sig",
    "bundle/start.py",
    "bundle/runtimes/errors.py",
    "bundle/runtimes/trust/zz.py",
    "packages/demo_package/__init__.py",
]


def pipe(path: str) -> Callable[[Path, Path], object]:
    def change(folder: Path, _: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        os.mkfifo(folder / path)

    return change


CHANGES |= {f"a pipe as {path}": pipe(path) for path in PIPES}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_before_it_acts_and_reinstalling_repairs_it(
    bundle: Path, target: Path, tmp_path: Path, name: str
) -> None:
    CHANGES[name](version(target), tmp_path)
    for words in (["verify"], ["verify", "--full"], ["verify", "--json"], ["licence"]):
        refused = run(target, *words)
        said = refused.stdout + refused.stderr
        assert refused.returncode == 5, said
        assert "Traceback" not in said and "PWNED" not in said
        assert "rollback" in said and "./install --to" in said
    if name == "versions elsewhere":
        assert run_install(bundle, target).returncode == 2  # that is no installation
        return
    assert run_install(bundle, target).returncode == 0
    assert run(target, "verify", "--full").returncode == 0


def run(target: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A pipe that is waited for must not hold up the tests."""
    return subprocess.run(
        [target / "run", *words], capture_output=True, text=True, timeout=60,
        env=bare_environment(), check=False,
    )  # fmt: skip


def run_install(bundle: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [bundle / "install", "--to", target], capture_output=True, text=True, timeout=60,
        env=bare_environment(), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("spoil", ["missing", "empty", "cut", "a pipe", "a folder", "a link"])
def test_no_file_of_ours_ends_in_a_traceback(target: Path, tmp_path: Path, spoil: str) -> None:
    bundle = version(target) / "bundle"
    paths = checker_files(p.relative_to(bundle).as_posix() for p in bundle.rglob("*.py"))
    paths = [*paths[::5], "bundle.json", "bundle.json.sha256", "tokenizer.json", "../packages.json"]
    for path in paths:
        file, aside = bundle / path, tmp_path / "aside"
        file.rename(aside)
        match spoil:
            case "empty":
                file.touch()
            case "cut":
                file.write_bytes(aside.read_bytes()[:-1])
            case "a pipe":
                os.mkfifo(file)
            case "a folder":
                file.mkdir()
            case "a link":
                file.symlink_to(aside)
        refused = run(target, "verify")
        assert (refused.returncode, "Traceback" in refused.stderr) == (5, False), (path, refused)
        file.rmdir() if spoil == "a folder" else file.unlink(missing_ok=True)
        aside.rename(file)
    assert run(target, "verify").returncode == 0


def remember(folder: Path, path: str, code: str) -> None:
    """Change a file of the same size, and forge the memory of its hash, as its owner could."""
    file = folder / "bundle" / path
    size = file.stat().st_size
    file.write_text(code + "\n" + "#" * (size - len(code) - 1))
    files = json.loads((folder / "bundle" / "bundle.json").read_text())["files"]
    (sha256,) = [entry["sha256"] for entry in files if entry["path"] == path]
    info, cache = file.stat(), folder / "checked-bundle.json"
    known = json.loads(cache.read_text()) if cache.exists() else {}
    stamp = f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"
    cache.write_text(json.dumps(known | {stamp: sha256}))


def test_a_full_check_runs_nothing_that_a_memory_alone_vouches_for(
    bundle: Path, target: Path
) -> None:
    code = "def main(*_):\n    print('PWNED')\n    return 0\n"
    remember(version(target), "runtimes/cli/main.py", code)
    refused = run(target, "verify", "--full")
    assert refused.returncode == 5 and "PWNED" not in refused.stdout
    shutil.copy(bundle / "runtimes/cli/main.py", version(target) / "bundle/runtimes/cli/main.py")
    code = "def verify(args, call):\n    print('PWNED')\n"
    remember(version(target), "runtimes/cli/verify.py", code)
    for words in (["--lic", "verify", "--full"], ["--licence", "verify", "--full"]):
        assert "PWNED" not in run(target, *words).stdout


def test_rollback_reads_every_byte_and_takes_no_other_script(
    bundle: Path, target: Path, tmp_path: Path
) -> None:
    newer = write_bundle(tmp_path / "parts", tmp_path / "newer", weights=b"n" * 900, code=CODE)
    assert run_install(newer, target).returncode == 0
    before = (target / "run").read_bytes()
    older = Installation(target).previous().folder
    remember(older, "run", "#!/bin/sh\npinned=\nearlier=\nkey=\necho PWNED; exit 0")
    assert run(target, "rollback").returncode == 5
    assert (target / "run").read_bytes() == before


def test_a_wrong_memory_costs_time_and_no_more(target: Path) -> None:
    cache = version(target) / "checked-bundle.json"
    time.sleep(2 * TICK_NS / 1e9)
    assert run(target, "verify").returncode == 0
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
    for words in (["verify"], ["verify", "--full"], ["verify"]):
        assert run(target, *words).returncode == 0


@pytest.mark.parametrize("plant", ["a link", "a pipe", "a name of run"])
def test_a_memory_is_written_through_nothing(target: Path, tmp_path: Path, plant: str) -> None:
    outside, before = tmp_path / "outside", (target / "run").read_bytes()
    outside.write_text("precious")
    partial = version(target) / "checked-bundle.json.partial"
    match plant:
        case "a link":
            partial.symlink_to(outside)
        case "a pipe":
            os.mkfifo(partial)
        case "a name of run":
            os.link(target / "run", partial)
    cache = HashCache(version(target) / "checked-bundle.json", fresh=True)
    cache.put(outside.stat(), "0" * 64, time.time_ns() + 10**12)
    cache.save()
    assert (outside.read_text(), (target / "run").read_bytes()) == ("precious", before)
    assert run(target, "verify").returncode == 0


@pytest.mark.parametrize("umask", ["002", "000", "077"])
def test_a_start_in_any_umask_leaves_what_the_next_one_accepts(target: Path, umask: str) -> None:
    time.sleep(2 * TICK_NS / 1e9)
    for words in ("verify --full", "verify"):
        command = f'umask {umask}; exec "$0" {words}'
        done = subprocess.run(["sh", "-c", command, target / "run"], env=bare_environment())
        assert done.returncode == 0


def test_folders_without_end_are_refused_and_repaired(
    bundle: Path, target: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", target], check=True))
    place = os.open(version(target) / "packages", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        place, above = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(place)
    refused = run(target, "verify")
    assert refused.returncode == 5 and "Traceback" not in refused.stderr
    assert run_install(bundle, target).returncode == 0
    assert run(target, "verify", "--full").returncode == 0
    assert len(list((target / "versions").iterdir())) == 1


def test_a_pipe_that_somebody_holds_open_is_no_file(target: Path) -> None:
    file = version(target) / "bundle" / "start.py"
    file.unlink()
    os.mkfifo(file)
    held = os.open(file, os.O_RDWR)  # so that reading it would find nothing, and no end
    refused = run(target, "verify")
    os.close(held)
    assert refused.returncode == 5 and "Traceback" not in refused.stderr


def test_names_that_are_no_text_are_told_in_any_locale(target: Path) -> None:
    odd = os.fsencode(version(target) / "bundle") + b"/x\xff\n  remedy: trust me"
    Path(os.fsdecode(odd)).touch()
    for words in (["verify"], ["verify", "--json"]):
        refused = run(target, *words)
        said = refused.stdout + refused.stderr
        assert refused.returncode == 5 and "Traceback" not in said
        assert "\n  remedy: trust me" not in said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_is_no_matter(target: Path, closed: str) -> None:
    command = f'exec "$0" verify {closed}'
    done = subprocess.run(["sh", "-c", command, target / "run"], env=bare_environment())
    assert done.returncode == 0


def test_another_release_of_python_does_not_look_like_damage(target: Path) -> None:
    """As where the system has updated the interpreter since: other byte code, the same sources."""
    folder = version(target)
    packages = PackageList.read((folder / "packages.json").read_bytes())
    (compiled,) = folder.glob("packages/demo_package/__pycache__/*.pyc")
    compiled.write_bytes(data := compiled.read_bytes() + b"other")
    entries = [
        replace(e, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        if e.path.endswith(".pyc")
        else e
        for e in packages.files
    ]
    older = PackageList(tuple(entries), "3.11.0 of long ago")
    (folder / "packages.json").write_bytes(older.data)
    sha256 = hashlib.sha256(older.data).hexdigest()
    pinned = Installation(target).root().current
    script = (target / "run").read_text().replace(pinned.packages_sha256, sha256)
    (target / "run").write_text(script)
    done = run(target, "verify", "--full")
    assert done.returncode == 0 and "another release of Python" in done.stderr


@pytest.mark.parametrize("place", ["current", "versions/run.partial", "versions/current.partial"])
def test_what_lies_in_the_way_stops_neither_rollback_nor_install(
    bundle: Path, target: Path, tmp_path: Path, place: str
) -> None:
    newer = write_bundle(tmp_path / "parts", tmp_path / "newer", weights=b"n" * 900, code=CODE)
    assert run_install(newer, target).returncode == 0
    (target / place).unlink(missing_ok=True)
    (target / place / "within").mkdir(parents=True)
    assert run(target, "rollback").returncode == 0
    (target / place).mkdir(parents=True, exist_ok=True)
    assert run_install(newer, target).returncode == 0
    assert run(target, "verify", "--full").returncode == 0


def test_a_stray_file_is_named(bundle: Path, target: Path) -> None:
    (target / "versions" / "notes.txt").touch()
    refused = run_install(bundle, target)
    assert refused.returncode == 2 and "notes.txt" in refused.stderr


def test_rollback_has_a_help(target: Path) -> None:
    assert "go back" in run(target, "rollback", "--help").stdout
    assert run(target, "rollback", "--bogus").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_only_the_owner_installs_and_goes_back(bundle: Path, target: Path, tmp_path: Path) -> None:
    newer = write_bundle(tmp_path / "parts", tmp_path / "newer", weights=b"n" * 900, code=CODE)
    assert run_install(newer, target).returncode == 0
    for folder, names, files in os.walk(target):
        for name in [".", *names, *files]:
            os.chown(Path(folder, name), 12345, -1, follow_symlinks=False)
    for refused in (run(target, "rollback"), run_install(bundle, target)):
        assert refused.returncode == 2 and "do it as that user" in refused.stderr
    assert run(target, "verify").returncode == 0
    os.chown(target, 0, -1)  # the folder alone: what is in it is still theirs
    assert run_install(bundle, target).returncode == 2


def test_the_link_for_people_leads_nothing_astray(target: Path, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (target / "current").unlink()
    (target / "current").symlink_to(tmp_path / "evil")
    assert run(target, "verify").returncode == 0


PARTS = "|run|versions|V|V/bundle|V/packages.json|V/packages/demo_package|V/bundle/tokenizer.json"


@pytest.mark.parametrize("part", PARTS.split("|"))
def test_what_others_may_write_to_is_refused_with_a_remedy_that_works(
    target: Path, part: str
) -> None:
    place = target / part.replace("V", f"versions/{version(target).name}")
    before = place.stat().st_mode
    for bits in (0o002, 0o020):
        place.chmod(before | bits)
        refused = run(target, "verify")
        assert refused.returncode == 5 and str(place) in refused.stderr
        (remedy,) = [line for line in refused.stderr.splitlines() if "remedy: " in line]
        command = remedy.split("remedy: ")[1].split(",")[0]
        assert command.startswith("chmod go-w ")
        subprocess.run(command, shell=True, check=True)
        assert run(target, "verify").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_somebody_else_owns_is_refused(target: Path) -> None:
    for place in (version(target) / "bundle" / "tokenizer.json", target / "versions"):
        os.chown(place, 12345, -1)
        refused = run(target, "verify")
        assert refused.returncode == 5 and "user 12345 owns it" in refused.stderr
        os.chown(place, 0, -1)
    assert run(target, "verify").returncode == 0
    for folder, names, files in os.walk(target):  # all of it given to a user who runs it
        for name in [".", *names, *files]:
            os.chown(Path(folder, name), 12345, -1, follow_symlinks=False)
    assert run(target, "verify").returncode == 0


@pytest.mark.parametrize("umask", ["000", "777"])
def test_modes_are_set_whatever_the_umask(bundle: Path, tmp_path: Path, umask: str) -> None:
    target = tmp_path / "installed"
    done = subprocess.run(
        ["sh", "-c", f'umask {umask}; exec "$0" --to "$1"', bundle / "install", target],
        capture_output=True, text=True, env=bare_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    programs = {"run", "install"}
    for file in [target, *target.rglob("*")]:
        if not file.is_symlink():
            expected = 0o755 if file.is_dir() or file.name in programs else 0o644
            assert file.stat().st_mode & 0o7777 == expected, file


def test_two_installs_are_the_same_bytes(bundle: Path, pristine: Path, tmp_path: Path) -> None:
    target = tmp_path / "another place"
    environment = {"PYTHONHASHSEED": "7"}
    assert sh(bundle / "install", "--to", target, **environment).returncode == 0
    found = [
        {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file() and not file.name.startswith("checked-")
        }
        for folder in (pristine, target)
    ]
    assert found[0] == found[1]
    assert any(name.endswith(".pyc") for name in found[0])


def test_byte_code_is_what_python_takes_in_place_of_the_source(target: Path) -> None:
    packages = version(target) / "packages"
    module = packages / "demo_package" / "__init__.py"
    code = (
        f"import sys; sys.path.insert(0, {str(packages)!r}); import demo_package; "
        "print(demo_package.f('a'), demo_package.f.__code__.co_filename)"
    )
    words = [shutil.which("python3"), "-I", "-B", "-v", "-c", code]
    python = Installation(target).root().current.python
    done = subprocess.run([python, *words[1:]], capture_output=True, text=True, check=True)
    assert done.stdout == f"True {module}\n"
    assert "matches" in done.stderr and "__pycache__/__init__" in done.stderr


def test_full_verification_needs_no_list_to_know_the_packages(bundle: Path, target: Path) -> None:
    folder = version(target)
    forge_packages(folder)
    root = Installation(target).root()
    sha256 = hashlib.sha256((folder / "packages.json").read_bytes()).hexdigest()
    script = (target / "run").read_text().replace(root.current.packages_sha256, sha256)
    (target / "run").write_text(script)  # as if `run` vouched for it
    assert run(target, "verify").returncode == 0
    refused = run(target, "verify", "--full")
    assert refused.returncode == 5 and "wheels unpack to" in refused.stderr


def test_the_list_of_packages_is_that_of_the_wheels(bundle: Path, target: Path) -> None:
    packages = PackageList.read((version(target) / "packages.json").read_bytes())
    listed = {entry.path: entry for entry in packages.files}
    (wheel,) = (bundle / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert listed.pop(name).sha256 == hashlib.sha256(archive.read(name)).hexdigest()
    assert [path.split("/")[:2] for path in listed] == [["demo_package", "__pycache__"]]
