"""The commands that are killed, what must hold after each kill, and what a rerun must give.

Nothing of starpack's insides is asked: a folder is compared with that of a run that was let to
finish, and an installation is asked through its own `run verify --full`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from random import Random

from packager.bundle.split_archive import write_files
from packager.cli.main import main as starpack
from packager.core.errors import StarpackError
from runtimes.trust.manifest import MANIFEST_NAME, read_manifest
from runtimes.trust.verify import verify_files
from tests.support.kills.mortal import Command, counting_python
from tests.support.packing import bare_environment, pack_parts, write_bundle
from tests.support.tiny import write_checkpoint

FORMATS = "gguf:Q4_K_M,onnx:int4-g32"
VOLUME_BYTES = 100_000
WEIGHTS_BYTES = 2_000_000  # guessed: some blocks of what is hashed and copied
UNFINISHED = (".partial", ".work")  # documented: nobody takes such a name for a result

Tree = dict[str, str]
"""Path to "mode SHA-256", or to "folder", or to "-> TARGET" for a link."""


class Bad(Exception):
    """What must hold does not."""


def tree(folder: Path, leave_out: tuple[str, ...] = ()) -> Tree:
    """All that is in a folder; {} where there is none."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if leave_out and path.name.startswith(leave_out):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            mode = path.stat().st_mode & 0o7777
            found[name] = f"{mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return found


def expect(found: object, wanted: object, what: str) -> None:
    """Raise Bad, with what differs, unless both are the same."""
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        what += f": {len(keys)} differ, such as {keys[:4]}"
        raise Bad(f"{what}: {[(found.get(k), wanted.get(k)) for k in keys[:2]]}")
    raise Bad(f"{what}: {found!r:.300}, not {wanted!r:.300}")


class Verb:
    """One command, in a folder of its own. The base: outputs that appear in `out`."""

    name: str

    def __init__(self, work: Path) -> None:
        self.work, self.out = work, work / "out"
        work.mkdir(parents=True)
        self.reference: dict[str, Tree] = {}  # by variety, what `out` is after a whole run
        self.variety = ""
        self.prepare()

    def prepare(self) -> None:
        """Make what the command needs."""

    def varieties(self) -> list[str]:
        """Inputs that it is run with in turn, so that one result replaces another."""
        return ["a", "b"]

    def command(self) -> Command:
        """Of the variety at hand."""
        raise NotImplementedError

    def measure(self) -> tuple[float, int]:
        """Run each variety to its end, alone; returns the slowest's seconds and operations."""
        took = []
        for variety in self.varieties():
            self.variety = variety
            self.reset()
            took.append(self.command().finish())
            self.reference[self.variety] = self.state()
        self.reset()
        return max(seconds for seconds, _ in took), max(count for _, count in took)

    def state(self) -> Tree:
        """What a whole run leaves."""
        return tree(self.out)

    def reset(self) -> None:
        """Back to before the first run."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def begin(self, rng: Random) -> None:
        """Choose what to run next; what the last kill has left stays."""
        self.variety = rng.choice(self.varieties())

    def check(self) -> None:
        """After a kill: whatever has a final name is whole. Raises Bad."""
        whole: dict[str, set[str]] = {}
        for wanted in self.reference.values():
            for name, value in wanted.items():
                whole.setdefault(name, set()).add(value)
        for name, value in self.state().items():
            unfinished = any(part.endswith(UNFINISHED) for part in Path(name).parts)
            if not unfinished and value not in whole.get(name, ()):
                raise Bad(f"{name} is {value}, which no whole run writes")

    def finish(self) -> None:
        """A rerun gives what a run that was never killed gives, and nothing is left beside it."""
        self.command().finish()
        expect(self.state(), self.reference[self.variety], "a rerun")


class Convert(Verb):
    """A checkpoint to two formats."""

    name = "convert"

    def prepare(self) -> None:
        write_checkpoint(self.work / "model", layers=2, hidden=64, ffn=256, context=128)

    def varieties(self) -> list[str]:
        return ["a"]

    def command(self) -> Command:
        words = ["convert", str(self.work / "model"), "--formats", FORMATS, "--quiet"]
        return Command(self.work / "log", lambda: starpack([*words, "--out", str(self.out)]))

    def begin(self, rng: Random) -> None:
        """What is converted already would be taken as it is."""
        super().begin(rng)
        if self.state() == self.reference["a"]:
            self.reset()

    def check(self) -> None:
        """Also: a variant is there with all of its files, or not at all."""
        super().check()
        wanted = self.reference["a"]
        for folder in (self.out / "variants").glob("*"):
            if not folder.name.endswith(UNFINISHED):
                within = f"variants/{folder.name}/"
                whole = {
                    n.removeprefix(within): v for n, v in wanted.items() if n.startswith(within)
                }
                expect(tree(folder), whole, folder.name)


class Pack(Verb):
    """Parts to a bundle, which replaces another."""

    name = "pack"

    def prepare(self) -> None:
        for i, name in enumerate(self.varieties()):
            write_bundle(
                self.work / name, self.work / f"bundle {name}", weights=bytes([i]) * WEIGHTS_BYTES
            )

    def command(self) -> Command:
        def run() -> int:
            pack_parts(self.work / self.variety, self.out / "bundle")
            return 0

        return Command(self.work / "log", run)

    def check(self) -> None:
        """A bundle is one of the two, not a mixture; nothing else passes for one, by any name."""
        whole = [tree(self.work / f"bundle {name}") for name in self.varieties()]
        for manifest in self.out.rglob(MANIFEST_NAME):
            bundle = manifest.parent
            try:
                verify_files(bundle, read_manifest(bundle))
            except StarpackError:
                if bundle == self.out / "bundle":
                    raise Bad("a bundle that does not verify") from None
            else:
                if tree(bundle) not in whole:
                    raise Bad(f"{bundle.name} verifies, and is none of the bundles")


class Archive(Pack):
    """A bundle to one file."""

    name = "archive"
    flags: tuple[str, ...] = ()

    def command(self) -> Command:
        words = ["archive", str(self.work / f"bundle {self.variety}"), "--quiet", *self.flags]
        words += ["--out", str(self.out / "bundle.tar")]
        return Command(self.work / "log", lambda: starpack(words))

    def check(self) -> None:
        Verb.check(self)


class Split(Archive):
    """A bundle to volumes: without SHA256SUMS there is no archive, and with it a whole one."""

    name = "archive --split"
    flags = ("--split", str(VOLUME_BYTES))

    def check(self) -> None:
        super().check()
        if (self.out / "SHA256SUMS").exists():
            done = {
                n: v for n, v in self.state().items() if not n.split("/")[0].endswith(UNFINISHED)
            }
            if done not in self.reference.values():
                raise Bad("SHA256SUMS is there, and the volumes are not those of one archive")


class Unpack(Pack):
    """An archive to a bundle, where there is nothing yet."""

    name = "unpack"

    def prepare(self) -> None:
        super().prepare()
        for name in self.varieties():
            write_files(self.work / f"bundle {name}", self.work / f"{name}.tar", None)

    def begin(self, rng: Random) -> None:
        super().begin(rng)
        shutil.rmtree(self.out / "bundle", ignore_errors=True)

    def command(self) -> Command:
        words = ["unpack", str(self.work / f"{self.variety}.tar"), "--quiet"]
        return Command(
            self.work / "log", lambda: starpack([*words, "--out", str(self.out / "bundle")])
        )

    def finish(self) -> None:
        shutil.rmtree(self.out / "bundle", ignore_errors=True)  # it may have been done already
        super().finish()


CACHES = ("checked-",)  # stamps of files, which differ each time


class Install(Pack):
    """A bundle to where nothing is installed."""

    name = "install"

    def prepare(self) -> None:
        super().prepare()
        self.python = counting_python(self.work)

    def command(self) -> Command:
        words = [str(self.work / f"bundle {self.variety}" / "install"), "--to", str(self.target)]
        environment = bare_environment() | {"PYTHON": str(self.python)}
        return Command(self.work / "log", words=words, environment=environment)

    @property
    def target(self) -> Path:
        """Where to."""
        return self.out / "target"

    def state(self) -> Tree:
        """All but the caches; of a version, its name is a hash of its contents."""
        return tree(self.out, CACHES)

    def running(self) -> str | None:
        """The variety that `run` starts, checked to the last byte; None where none is installed."""
        run = self.target / "run"
        if not run.exists():
            return None
        words = [str(run), "verify", "--full", "--json"]
        done = subprocess.run(
            words, capture_output=True, text=True, env=bare_environment(), check=False
        )
        if done.returncode != 0:
            raise Bad(f"what is installed does not run: {done.returncode}: {done.stderr[-500:]}")
        bundle = tree(Path(json.loads(done.stdout)["bundle"]))
        for name in self.varieties():
            if bundle == tree(self.work / f"bundle {name}"):
                return name
        raise Bad("what runs is none of the bundles")

    def begin(self, rng: Random) -> None:
        """A kill may have come too late to keep it from being installed."""
        super().begin(rng)
        if self.running() is not None:
            self.reset()

    def check(self) -> None:
        """Nothing is installed, or the whole of it."""
        if self.running() not in (None, self.variety):
            raise Bad("another bundle runs than the one that was installed")

    def finish(self) -> None:
        super().finish()
        self.reset()


class Upgrade(Install):
    """A bundle to where another one is installed."""

    name = "upgrade"
    before: str | None = None

    def varieties(self) -> list[str]:
        return ["a", "b", "c"]  # so that one is new

    def begin(self, rng: Random) -> None:
        """To another than the one that runs."""
        if not self.target.exists():
            self.variety = "a"
            self.command().finish()
        self.before = self.running()
        self.variety = rng.choice([name for name in self.varieties() if name != self.before])

    def check(self) -> None:
        """The old or the new one runs."""
        if self.running() not in (self.before, self.variety):
            raise Bad(f"{self.running()} runs, neither {self.before} nor {self.variety}")

    def finish(self) -> None:
        """What runs is as if it were alone; beside it there is one more at the most."""
        self.command().finish()
        expect(self.running(), self.variety, "after a rerun there runs")
        folder = self.version()
        files = {n: v for n, v in tree(folder, CACHES).items() if n != "previous"}
        expect(files, self.alone(self.variety), "the version that runs")
        expect((self.target / "current").resolve(), folder.resolve(), "`current` leads to")
        self.tidy()

    def version(self) -> Path:
        """Where the version that runs is, in its own words."""
        words = [str(self.target / "run"), "verify", "--json"]
        done = subprocess.run(
            words, capture_output=True, text=True, env=bare_environment(), check=True
        )
        return Path(json.loads(done.stdout)["bundle"]).parent

    def alone(self, variety: str) -> Tree:
        """The same of a version that was installed where there was nothing."""
        found = self.reference[variety]
        (top,) = (n for n in found if n.startswith("target/versions/") and n.count("/") == 2)
        return {n.removeprefix(f"{top}/"): v for n, v in found.items() if n.startswith(f"{top}/")}

    def tidy(self) -> None:
        """Nothing half made, no third version."""
        names = os.listdir(self.target / "versions")
        left = [n for n in self.state() if Path(n).name.endswith(UNFINISHED)]
        if left or len(names) > 2:
            raise Bad(f"left behind: {left or names}")


class Rollback(Upgrade):
    """Back to the version before, and forth again."""

    name = "rollback"

    def begin(self, rng: Random) -> None:
        """From whichever of the two runs."""
        if not self.target.exists():
            for variety in ("a", "b"):
                self.variety = variety
                super().command().finish()
        self.before = self.running()
        self.variety = "a" if self.before == "b" else "b"

    def measure(self) -> tuple[float, int]:
        """The time of a rollback; it runs on the Python that was installed, which counts not."""
        super().measure()
        self.begin(Random(0))
        return self.rollback().finish()

    def command(self) -> Command:
        return super().command() if self.before is None else self.rollback()

    def rollback(self) -> Command:
        """As its users call it."""
        words = [str(self.target / "run"), "rollback"]
        return Command(self.work / "log", words=words, environment=bare_environment(), counts=False)

    def finish(self) -> None:
        """It goes to the other one, wherever it was left, and back."""
        for _ in range(2):
            self.before = self.running()
            self.variety = "a" if self.before == "b" else "b"
            super().finish()


VERBS = {
    verb.name: verb for verb in (Convert, Pack, Archive, Split, Unpack, Install, Upgrade, Rollback)
}
