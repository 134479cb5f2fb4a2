"""Killed at any moment, packing and installing leave nothing that passes for what it is not.

Half of the kills come at a random moment, half before a random one of the operations on files, so
that the short steps at the end are hit as often as the long ones before. STARPACK_KILLS=200 makes
more of them.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.bundle.split_archive import write_files
from packager.core.errors import StarpackError
from runtimes.trust.installed.versions import Installation
from runtimes.trust.manifest import manifest_bytes, read_manifest
from runtimes.trust.verify import verify_files
from tests.support.packing import bare_environment, sh, write_bundle

pytestmark = pytest.mark.bundle

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("STARPACK_KILLS", "40"))
# argv: how many operations to survive; prints how many there were to a process that survives all.
SUICIDAL = """
import atexit, os, runpy, signal, sys
left = limit = int(sys.argv.pop(1))
watched = {"open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename",
           "os.rmdir", "os.scandir", "os.symlink", "os.truncate", "shutil.copyfile"}
def hook(event, arguments):
    global left
    if event in watched:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
atexit.register(lambda: print("operations:", limit - left, flush=True))
"""
INSTALL = (
    SUICIDAL
    + """
sys.argv[:1] = [sys.argv[1] + "/start.py", "install"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
)
PACK = (
    SUICIDAL
    + """
from pathlib import Path
from packager.bundle.split_archive import write_files
from tests.support.packing import pack_parts
parts, out, archive = map(Path, sys.argv[1:])
pack_parts(parts, out)
write_files(out, archive, None)
"""
)


class Killer:
    """Runs one kind of command again and again, and kills it."""

    def __init__(self, code: str, seed: int) -> None:
        self.code = code
        self.rng = random.Random(seed)
        self.results: Counter[str] = Counter()
        self.operations, self.seconds = 0, 0.0

    def measure(self, *arguments: object) -> None:
        """Run once to the end: how long it takes, in seconds and in operations."""
        started = time.monotonic()
        process = self._start(10**9, arguments)
        out, err = process.communicate()
        assert process.returncode == 0, err
        self.seconds = time.monotonic() - started
        self.operations = int(out.rsplit("operations:", 1)[1])
        assert self.operations > 100

    def kill(self, *arguments: object) -> None:
        """Run, and kill at a random moment or operation."""
        by_time = self.rng.random() < 0.5
        limit = 10**9 if by_time else self.rng.randint(1, self.operations)
        process = self._start(limit, arguments)
        try:
            _, err = process.communicate(timeout=self.rng.random() * self.seconds * 1.1
                                         if by_time else 60)  # fmt: skip
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
        self.results["finished" if process.returncode == 0 else "killed"] += 1

    def _start(self, limit: int, arguments: tuple[object, ...]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-B", "-c", self.code, str(limit), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=bare_environment() | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )


def sha256(bundle: Path) -> str:
    return hashlib.sha256(manifest_bytes(bundle)).hexdigest()


def enough(killer: Killer, kills: int, step: Callable[[], None]) -> None:
    """Take steps until so many have been killed; one may also have come too late."""
    while killer.results["killed"] < kills:
        step()
        assert killer.results["finished"] < 10 + 3 * kills


def test_a_killed_install_leaves_a_whole_version_running(tmp_path: Path) -> None:
    bundles = [
        write_bundle(
            tmp_path / f"parts {i}", tmp_path / f"bundle {i}", weights=bytes([i]) * 300_000
        )
        for i in range(3)
    ]
    known = [sha256(bundle)[:12] for bundle in bundles]
    target = tmp_path / "target"
    assert sh(bundles[0] / "install", "--to", target).returncode == 0
    installation = Installation(target)
    killer = Killer(INSTALL, seed=1)
    killer.measure(bundles[1], "--to", target)

    def step() -> None:
        before = installation.current()
        # may be the version before, which is only switched to; or an older one has to go
        newer = killer.rng.choice([b for b in bundles if sha256(b)[:12] != before.name])
        killer.kill(newer, "--to", target)
        current = installation.current()
        assert current is not None and current.name in known
        if killer.results["killed"] % 10 == 0:
            assert sh(target / "run", "verify", "--full").returncode == 0
        for version in installation.complete():  # whatever has a name is whole, current or not
            version.verify(full=True)
            assert sha256(version.bundle)[:12] == version.name

    enough(killer, KILLS // 2, step)
    # and what was left behind is gone after an install that is let to finish
    assert sh(bundles[0] / "install", "--to", target).returncode == 0
    assert len(list(installation.versions.iterdir())) <= 2


def test_a_killed_first_install_is_no_installation(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle")
    killer = Killer(INSTALL, seed=2)
    killer.measure(bundle, "--to", tmp_path / "measured")
    target = tmp_path / "target"
    for _ in range(max(4, KILLS // 10)):
        killer.kill(bundle, "--to", target)
        if Installation(target).current() is None:
            assert sh(bundle / "run", "verify").returncode == 7
        else:
            assert sh(target / "run", "verify").returncode == 0
            shutil.rmtree(target)
    assert sh(bundle / "install", "--to", target).returncode == 0


def test_a_killed_pack_leaves_nothing_that_verifies_falsely(tmp_path: Path) -> None:
    parts = [tmp_path / f"parts {i}" for i in range(2)]
    known, archives = set(), set()
    for i, folder in enumerate(parts):
        write_bundle(folder, tmp_path / f"whole {i}", weights=bytes([i]) * 300_000)
        write_files(tmp_path / f"whole {i}", tmp_path / f"whole {i}.tar", None)
        known.add(sha256(tmp_path / f"whole {i}"))
        archives.add((tmp_path / f"whole {i}.tar").read_bytes())
    work = tmp_path / "work"
    out, archive = work / "bundle", work / "bundle.tar"
    killer = Killer(PACK, seed=3)
    killer.measure(parts[0], out, archive)

    def step() -> None:
        killer.kill(parts[killer.rng.randrange(2)], out, archive)
        for manifest in work.rglob("bundle.json"):  # under any name, left-overs as well
            try:
                verify_files(manifest.parent, read_manifest(manifest.parent))
            except StarpackError:
                assert manifest.parent != out
            else:
                assert sha256(manifest.parent) in known
        assert not archive.exists() or archive.read_bytes() in archives
        for left_over in work.glob("*.partial"):
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()

    enough(killer, KILLS // 2, step)
