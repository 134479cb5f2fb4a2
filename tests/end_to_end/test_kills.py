"""Killed at any moment, no command leaves what passes for what it is not; a rerun makes it good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.bundle, pytest.mark.engine]

ROOT = Path(__file__).parents[2]
KILLS = 100


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_hundred_kills(tmp_path: Path) -> None:
    keep = tmp_path / "kills.json"
    for count in (KILLS // 4, KILLS):  # the second goes on with the count of the first
        done = python(
            "-m", "tests.support.kills", "--count", count, "--seed", 1, "--keep", keep, "--json"
        )
        found = json.loads(done.stdout)
        assert done.returncode == 0, [line for row in found["verbs"] for line in row["bad"]]
        assert sum(row["kills"] for row in found["verbs"]) == count
    assert {row["verb"] for row in found["verbs"]} == {
        "convert", "pack", "archive", "archive --split", "unpack", "install", "upgrade", "rollback"
    }  # fmt: skip
    assert all(row["kills"] > 5 and row["reruns"] > 0 for row in found["verbs"])


TORN = """
import sys
from pathlib import Path
from tests.support.kills import __main__ as kills
from tests.support.kills.mortal import Command
from tests.support.kills.verbs import VERBS, Verb

class Torn(Verb):
    name = "torn"
    def command(self):
        def run():
            for name in ("one", "two") * 20:
                with open(self.out / name, "w") as stream:
                    stream.write(self.variety)
                    stream.flush()
            return 0
        return Command(self.work / "log", run)

class Littering(Verb):
    name = "littering"
    def command(self):
        def run():
            partial = self.out / f"{self.variety}{id(object())}.{__import__('os').getpid()}.partial"
            for _ in range(20):
                partial.write_text(self.variety)
            partial.rename(self.out / "result")
            return 0
        return Command(self.work / "log", run)

VERBS.update({verb.name: verb for verb in (Torn, Littering)})
sys.argv[1:] = ["--count", "40", "--seed", "1", "--verbs", sys.argv[1], "--json"]
sys.exit(kills.main())
"""


@pytest.mark.parametrize(
    ("verb", "what"), [("torn", "which no whole run writes"), ("littering", "a rerun: ")]
)
def test_what_is_half_made_or_left_behind_is_found(
    verb: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = python("-c", TORN, verb)
    assert done.returncode == 1, done.stderr
    (row,) = json.loads(done.stdout)["verbs"]
    assert any(what in line for line in row["bad"])
