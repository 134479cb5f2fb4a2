"""Installing: checked before it runs, whole or not at all, and the version before stays."""

from __future__ import annotations

import grp
import json
import os
import pwd
import py_compile
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runtimes.bundle.open import verify_files
from runtimes.trust.installed.versions import Installation
from runtimes.trust.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME, manifest_hash, read_manifest
from runtimes.trust.verify import TICK_NS
from tests.support.packing import bare_environment, sh, write_bundle

pytestmark = pytest.mark.bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "parts", tmp_path / "packed bundle")  # scripts bear a space


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "newer parts", tmp_path / "newer", weights=b"W" * 800)


def installed(bundle: Path, target: Path) -> Installation:
    done = sh(bundle / "install", "--to", target)
    assert done.returncode == 0, done.stderr
    return Installation(target)


def weights(target: Path) -> bytes:
    """Of the version that runs; asks the installation itself whether it is whole."""
    verified = sh(target / "run", "verify", "--full")
    assert verified.returncode == 0, verified.stderr
    return (target / "current" / "bundle" / "model" / "model.gguf").read_bytes()[:1]


def test_install_and_run(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed here"
    before = {file: file.stat().st_mtime_ns for file in bundle.rglob("*")}
    done = sh(bundle / "install", "--to", target)
    assert done.returncode == 0, done.stderr
    assert "copying" in done.stderr and "unpacking" in done.stderr and "trying" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in bundle.rglob("*")} == before
    assert {file.name for file in target.iterdir()} == {"current", "run", "versions"}
    shutil.rmtree(bundle)  # the installation stands alone
    (tmp_path / "link").symlink_to(target / "run")
    helped = sh(tmp_path / "link", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "infill" in helped.stdout and "rollback" in helped.stdout
    version = Installation(target).current()
    verify_files(version.bundle, read_manifest(version.bundle))  # no bytecode was left
    shown = sh(target / "run", "verify", "--json")
    assert json.loads(shown.stdout)["files"] == len(read_manifest(version.bundle).files) + 3


def test_an_upgrade_takes_over_and_rollback_gives_back(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    installation = installed(bundle, target)
    first = installation.current()
    assert "no earlier version" in sh(target / "run", "rollback").stderr
    installed(newer, target)
    assert weights(target) == b"W"
    assert {v.name for v in installation.complete()} == {first.name, installation.current().name}
    for expected in (b"w", b"W", b"w"):
        done = sh(target / "run", "rollback")
        assert (done.returncode, done.stderr) == (0, "")
        assert weights(target) == expected
    # a third version takes the place of the one that does not run
    third = write_bundle(tmp_path / "third parts", tmp_path / "third", weights=b"3" * 900)
    installed(third, target)
    assert weights(target) == b"3"
    assert installation.previous() == first
    assert len(installation.complete()) == 2
    assert {file.name for file in target.iterdir()} == {"current", "run", "versions"}


def test_the_same_version_is_checked_and_not_installed_twice(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    installation = installed(bundle, target)
    first = installation.current()
    done = sh(bundle / "install", "--to", target)
    assert done.returncode == 0 and "installed already" in done.stderr
    assert installation.current() == first
    damage(first.packages / "demo_package" / "__init__.py")
    done = sh(bundle / "install", "--to", target)
    assert done.returncode == 0 and "it is damaged" in done.stderr
    assert installation.current().name == f"{first.name}-2"
    assert weights(target) == b"w"


def test_rollback_to_a_damaged_version_is_refused(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    damaged = installed(bundle, target).current()
    installed(newer, target)
    damage(damaged.bundle / "tokenizer.json")
    refused = sh(target / "run", "rollback", "--json")
    assert refused.returncode == 5 and "tokenizer.json" in json.loads(refused.stdout)["where"]
    assert weights(target) == b"W"


def test_rollback_works_where_the_current_version_is_damaged(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    older = installed(bundle, target).current()
    damage(installed(newer, target).current().bundle / "runtimes" / "cli" / "main.py")
    assert sh(target / "run", "verify").returncode == 5
    back = sh(target / "run", "rollback", "--json")
    assert back.returncode == 0 and json.loads(back.stdout) == {"current_version": older.name}
    assert weights(target) == b"w"


@pytest.mark.parametrize("path", ["start.py", "runtimes/trust/verify.py", "bundle.json", "."])
def test_rollback_works_where_nothing_of_the_current_version_can_run(
    bundle: Path, newer: Path, tmp_path: Path, path: str
) -> None:
    target = tmp_path / "target"
    installed(bundle, target)
    place = installed(newer, target).current().bundle / path
    shutil.rmtree(place) if path == "." else place.write_bytes(b"")
    assert sh(target / "run", "verify").returncode == 5
    back = sh(target / "run", "rollback")
    assert back.returncode == 0, back.stderr
    assert weights(target) == b"w"
    forward = sh(target / "run", "rollback")  # to what is damaged
    assert forward.returncode == 5
    assert weights(target) == b"w"
    installed(newer, target)
    assert weights(target) == b"W"
    assert sh(target / "run", "rollback").returncode == 0  # the damaged one is not remembered
    assert weights(target) == b"w"


def test_a_damaged_run_is_written_anew(bundle: Path, newer: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    installed(bundle, target)
    before = (target / "run").read_bytes()
    for spoil in (
        lambda run: run.unlink(),
        lambda run: run.write_bytes(b""),
        lambda run: (run.unlink(), run.symlink_to("/bin/true")),
        lambda run: (run.unlink(), os.mkfifo(run)),
        lambda run: (run.unlink(), (run / "full").mkdir(parents=True)),
    ):
        spoil(target / "run")
        installed(bundle, target)
        assert (target / "run").read_bytes() == before
        assert weights(target) == b"w"


def test_only_an_installation_is_changed(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    refused = sh(bundle / "install", "--to", target)
    assert (refused.returncode, (target / "thesis.txt").read_text()) == (2, "precious")
    (target / "thesis.txt").unlink()
    (target / "versions").mkdir()
    (target / "versions" / "of my thesis").write_text("precious")
    assert sh(bundle / "install", "--to", target).returncode == 2
    (target / "versions" / "of my thesis").unlink()
    target.chmod(0o777)
    refused = sh(bundle / "install", "--to", target)
    assert refused.returncode == 5 and "chmod go-w" in refused.stderr
    target.chmod(0o755)
    installed(bundle, target)
    assert sh(bundle / "install", "--to", bundle / "inside").returncode == 2
    with Installation(target).locked():
        refused = sh(bundle / "install", "--to", target)
    assert refused.returncode == 1 and "another install" in refused.stderr


def damage(file: Path) -> None:
    """Change the last byte, or an empty file into one of a byte."""
    data = bytearray(file.read_bytes() or b"\0")
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "path",
    [
        "start.py",  # the files of the checker
        "runtimes/__init__.py",
        "runtimes/contract.py",
        "runtimes/cli/main.py",  # one that is checked by them
        "argparse.py",  # one that Python has too
        "msvcrt.py",  # one that subprocess looks for, and Linux does not have
        "runtimes/verify/__init__.py",  # what Python takes for a module before verify.py
        "runtimes/__pycache__/verify.pyc",  # and in its place, if it is new enough
    ],
)
def test_no_code_of_the_bundle_is_run_before_the_check(
    bundle: Path, tmp_path: Path, path: str
) -> None:
    target, ran = tmp_path / "target", tmp_path / "ran"
    version = installed(bundle, target).current()
    for folder, command in (
        (version.bundle, (target / "run", "verify")),
        (bundle, (bundle / "install", "--to", tmp_path / "other")),
    ):
        add_code(folder, path, f"\nopen({str(ran)!r}, 'w')\n", tmp_path)
        refused = sh(*command)
        assert refused.returncode == 5, refused.stderr
        assert str(folder / path.removesuffix("/__init__.py").removesuffix("/verify.pyc")) in (
            refused.stderr
        )
    assert not ran.exists()


def add_code(folder: Path, path: str, code: str, scratch: Path) -> None:
    """To a file that may not be there; or as compiled code for the module of that name."""
    file = folder / path
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".py":
        with file.open("a") as stream:
            stream.write(code)
        return
    source = scratch / "source.py"
    source.write_text(code)
    py_compile.compile(
        str(source),
        cfile=str(file.with_suffix(f".{sys.implementation.cache_tag}.pyc")),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def test_no_package_is_run_before_the_check(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    packages = installed(bundle, target).current().packages
    (compiled,) = packages.glob("demo_package/__pycache__/*.pyc")
    for file in (compiled, packages / "demo_package" / "__init__.py", packages / "numpy.py"):
        before = file.read_bytes() if file.exists() else None
        file.write_bytes((before or b"") + b"#")
        refused = sh(target / "run", "verify")
        assert refused.returncode == 5 and str(file) in refused.stderr
        file.unlink() if before is None else file.write_bytes(before)
    assert sh(target / "run", "verify").returncode == 0


def test_what_was_checked_is_not_read_again_until_it_is_touched(
    bundle: Path, tmp_path: Path
) -> None:
    version = installed(bundle, tmp_path / "target").current()
    read: list[int] = []

    def progress(done: int, total: int) -> None:
        read.append(total)

    time.sleep(0.2)  # what was changed just now is not remembered
    version.verify(progress=progress)
    read.clear()
    version.verify(progress=progress)
    assert read == []
    file = version.bundle / "model" / "model.gguf"
    info = file.stat()
    damage(file)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))  # size, time and inode as before
    with pytest.raises(Exception, match="has changed"):
        version.verify()
    file.write_bytes(b"w" * 700)
    version.verify(progress=progress)
    assert set(read) == {700}
    read.clear()
    version.verify(full=True, progress=progress)
    assert len(set(read)) == 2  # the bundle, and its packages


def test_a_full_check_finds_what_rots_on_the_disk_and_it_stays_found(
    bundle: Path, tmp_path: Path
) -> None:
    version = installed(bundle, tmp_path / "target").current()
    time.sleep(2 * TICK_NS / 1e9)  # what was hashed right after it was written is not remembered
    assert sh(tmp_path / "target" / "run", "verify").returncode == 0
    file, cache = version.bundle / "tokenizer.json", version.folder / "checked-bundle.json"
    known = json.loads(cache.read_text())
    before = f"{file.stat().st_ino}:"
    damage(file)
    info = file.stat()
    # as if nobody had written: the file's stamp of now, with the hash of what was there
    (stamp,) = [stamp for stamp in known if stamp.startswith(before)]
    fooled = f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"
    cache.write_text(json.dumps(known | {fooled: known[stamp]}))
    assert sh(tmp_path / "target" / "run", "verify").returncode == 0
    for flags in (["--full"], []):
        refused = sh(tmp_path / "target" / "run", "verify", *flags)
        assert refused.returncode == 5 and str(file) in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_nothing_is_done_in_a_folder_of_somebody_else(bundle: Path, tmp_path: Path) -> None:
    """Or they would put their own in the place of what is about to be tried."""
    target = tmp_path / "target"
    for theirs in (target, target / "versions"):
        (target / "versions").mkdir(parents=True, exist_ok=True)
        os.chown(theirs, 12345, -1)
        refused = sh(bundle / "install", "--to", target)
        assert refused.returncode == 2 and "do it as that user" in refused.stderr
        assert "copying" not in refused.stderr
        os.chown(theirs, 0, -1)
    (target / "versions").mkdir(exist_ok=True)
    (target / "versions").chmod(0o777)
    refused = sh(bundle / "install", "--to", target)
    assert refused.returncode == 5 and "copying" not in refused.stderr


def test_nothing_is_done_below_a_folder_that_others_may_change(
    bundle: Path, tmp_path: Path
) -> None:
    """They would move the whole installation away, and put theirs in its place."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    refused = sh(bundle / "install", "--to", above / "target")
    assert refused.returncode == 5 and str(above) in refused.stderr
    assert "copying" not in refused.stderr
    above.chmod(0o775)  # by a group of that user alone
    private = grp.getgrgid(above.stat().st_gid).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    done = sh(bundle / "install", "--to", above / "target")
    assert done.returncode == (0 if private else 5), done.stderr
    above.chmod(0o1777)  # sticky, as /tmp is: what is in it stays its owner's
    assert sh(bundle / "install", "--to", above / "target").returncode == 0
    if os.geteuid() == 0:
        above.chmod(0o755)
        os.chown(above, 12345, -1)
        refused = sh(bundle / "install", "--to", above / "target")
        assert refused.returncode == 5 and "name another folder" in refused.stderr
        os.chown(above, 0, 12345)
        above.chmod(0o775)
        assert sh(bundle / "install", "--to", above / "target").returncode == 5


def test_what_is_deleted_keeps_the_modes_of_its_other_names(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    target, secret = tmp_path / "target", tmp_path / "secret"
    installed(bundle, target)
    secret.write_text("secret")
    secret.chmod(0o600)
    left = target / "versions" / "x.partial"
    (left / "closed").mkdir(parents=True)
    os.link(secret, left / "closed" / "name")
    (left / "closed").chmod(0)
    installed(newer, target)
    assert not left.exists() and secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["a file", "a link", "a folder"])
def test_a_name_like_a_version_does_not_stop_upgrades(
    bundle: Path, newer: Path, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "target"
    installed(bundle, target)
    odd = target / "versions" / ("0" * 12)
    match what:
        case "a file":
            odd.touch()
        case "a link":
            odd.symlink_to(tmp_path)
        case "a folder":
            (odd / "full").mkdir(parents=True)
    installed(newer, target)
    installed(bundle, target)
    assert len(list((target / "versions").iterdir())) == 2


def test_a_lost_folder_of_versions_is_made_anew(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    installed(bundle, target)
    shutil.rmtree(target / "versions")
    assert sh(target / "run", "verify").returncode == 5
    installed(bundle, target)
    assert weights(target) == b"w"


def test_a_second_first_install_takes_nothing_from_the_first(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "versions").mkdir(parents=True)
    with Installation(target).locked():
        assert sh(bundle / "install", "--to", target).returncode == 1
        assert (target / "versions").is_dir()


@pytest.mark.parametrize("name", ["", "a\n"])
def test_a_folder_that_cannot_be_started_from_is_refused(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    refused = sh(bundle / "install", "--to", name and tmp_path / name)
    assert refused.returncode == 2 and "a folder of the name" in refused.stderr


def test_a_python_that_is_named_is_used_or_none(bundle: Path, tmp_path: Path) -> None:
    refused = sh(bundle / "install", "--to", tmp_path / "target", PYTHON="/bin/false")
    assert refused.returncode == 7
    odd = tmp_path / "a\nb"
    odd.mkdir()
    (odd / "python").symlink_to(sys.executable)
    assert (
        sh(bundle / "install", "--to", tmp_path / "t", PYTHON=str(odd / "python")).returncode == 0
    )


def test_a_place_that_cannot_be_written_is_explained(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = sh(bundle / "install", "--to", tmp_path / "file" / "target")
    assert refused.returncode == 1
    assert "cannot install: " in refused.stderr and "remedy: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_interrupted_install_leaves_nothing(tmp_path: Path) -> None:
    code = "import time\ntime.sleep(60)\n"  # the last phase lasts until it is interrupted
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle", code=code)
    with subprocess.Popen(
        [bundle / "install", "--to", tmp_path / "target"],
        stderr=subprocess.PIPE,
        text=True,
        env=bare_environment(),
        start_new_session=True,
        # a shell that starts us in the background has us, and our children, ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        said = next(line for line in process.stderr if "trying" in line)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130
    assert said.startswith("install: trying") and "interrupted" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("target*"))


def test_changed_bundle_is_not_installed(bundle: Path, tmp_path: Path) -> None:
    damage(bundle / "model" / "model.gguf")
    for flags in (["--to", tmp_path / "target"], ["--check"]):
        refused = sh(bundle / "install", *flags)
        assert refused.returncode == 5
        assert str(bundle / "model" / "model.gguf") in refused.stderr
    assert not list(tmp_path.glob("target*"))


@pytest.mark.parametrize(
    "path",
    [
        "bundle.json",
        "bundle.json.sha256",
        "bundle.json.sig",
        "start.py",
        "runtimes/trust/verify.py",
        "model/model.gguf",
        "delta.json",
    ],
)
def test_a_pipe_in_a_bundle_is_refused_at_once(bundle: Path, tmp_path: Path, path: str) -> None:
    (bundle / path).unlink(missing_ok=True)
    os.mkfifo(bundle / path)
    for flags in (["--to", tmp_path / "target"], ["--check"]):
        refused = subprocess.run(
            [bundle / "install", *flags], capture_output=True, text=True, timeout=60,
            env=bare_environment(), check=False,
        )  # fmt: skip
        assert refused.returncode == 5 and str(bundle / path) in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not list(tmp_path.glob("target*"))


def test_a_bundle_is_verified_without_installing(bundle: Path) -> None:
    done = sh(bundle / "install", "--check")
    assert done.returncode == 0, done.stderr
    sha256 = (bundle / MANIFEST_HASH_NAME).read_text().split()[0]
    count = len(read_manifest(bundle).files)
    expected = f"OK: {count} files verified; SHA-256 of bundle.json: {sha256}\n"
    assert done.stdout == expected


def test_packages_that_cannot_be_loaded_are_not_installed(tmp_path: Path) -> None:
    code = "raise ImportError('libgomp.so.1: no file')"
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle", code=code)
    refused = sh(bundle / "install", "--to", tmp_path / "target")
    assert refused.returncode == 7
    assert "libgomp.so.1: no file" in refused.stderr
    assert not (tmp_path / "target").exists()


def test_run_before_install_says_so(bundle: Path) -> None:
    refused = sh(bundle / "run", "generate", "x")
    assert refused.returncode == 7
    assert "./install --to DIR" in refused.stderr


def test_a_python_that_is_gone_is_named(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    python = target.parent / "a python"  # scripts bear a space
    python.symlink_to(sys.executable)
    installation = installed(bundle, target)
    root = installation.root()
    manifest = installation.current().verify().manifest
    installation.switch(replace(root, current=replace(root.current, python=str(python))), manifest)
    assert sh(target / "run", "verify").returncode == 0
    python.unlink()
    refused = sh(target / "run", "verify")
    assert refused.returncode == 7 and str(python) in refused.stderr
    assert f"./install --to '{target}'" in refused.stderr
    assert sh(bundle / "install", "--to", target).returncode == 0  # what it says helps
    assert sh(target / "run", "verify").returncode == 0


@pytest.mark.parametrize(("name", "value"), [("machine", "pdp11"), ("python", "2.7")])
def test_install_for_another_machine_says_so(
    bundle: Path, tmp_path: Path, name: str, value: str
) -> None:
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["versions"][f"wheels_{name}"] = value
    data = json.dumps(manifest).encode()
    (bundle / MANIFEST_NAME).write_bytes(data)
    (bundle / MANIFEST_HASH_NAME).write_bytes(manifest_hash(data))
    refused = sh(bundle / "install", "--to", tmp_path / "target")
    assert refused.returncode == 7
    assert value in refused.stderr


def test_without_the_right_python_the_one_that_is_needed_is_named(
    bundle: Path, tmp_path: Path
) -> None:
    python = "{}.{}".format(*sys.version_info)
    refused = sh(bundle / "install", "--to", tmp_path / "x", PYTHON="/bin/false", PATH="/nowhere")
    if refused.returncode == 127:  # dirname, which `install` needs
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "dirname").symlink_to(shutil.which("dirname"))
        path = str(tmp_path / "bin")
        command = [shutil.which("sh"), str(bundle / "install"), "--to", str(tmp_path / "x")]
        environment = {"PATH": path}
        refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 7
    assert f"Python {python}, which was not found" in refused.stderr
    assert f"PYTHON=/path/to/python{python}" in refused.stderr
