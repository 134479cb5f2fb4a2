"""20,000 inputs, the same each time; what was found before; and that faults are found at all."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.fuzz.target import CORPUS, names

pytestmark = [pytest.mark.slow, pytest.mark.torch]

ROOT = Path(__file__).parents[2]
# Findings that still are some: TARGET/FILE to the reason.
UNMENDED: dict[str, str] = {}


def python(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    done = python("tests.fuzz", "--inputs", 20_000, "--seed", 1, "--found", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["targets"]
    assert [row["target"] for row in rows] == names()
    assert sum(row["inputs"] for row in rows) >= 20_000
    for row in rows:  # or it has not come far
        assert row["accepted"] > 10 < row["refused"], row


@cache
def replayed(target: str, folder: Path) -> dict[str, list[str]]:
    """File of the corpus to (verdict, detail)."""
    (folder / target).mkdir()
    found = folder / "found"
    done = python(
        "tests.fuzz.worker", target, "--replay", "--work", folder / target, "--found", found
    )
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=UNMENDED[name], strict=True))
        if name in UNMENDED
        else name
        for name in sorted(p.relative_to(CORPUS).as_posix() for p in CORPUS.glob("*/*"))
    ],
)
def test_what_was_found_before_is_mended(file: str, work: Path) -> None:
    target, _, name = file.partition("/")
    verdict, detail = replayed(target, work)[name]
    assert verdict != "finding", detail


def test_the_corpus_and_its_list_belong_together() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= set(names())
    assert all((CORPUS / name).is_file() for name in UNMENDED)


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    runs = [
        python(
            *("tests.fuzz", "--inputs", 300, "--seed", 5, "--targets", "config", "--json"),
            *("--found", tmp_path),
        )
        for _ in range(2)
    ]
    one, other = (
        [json.loads(run.stdout)["targets"][0][k] for k in ("accepted", "refused")] for run in runs
    )
    assert one == other and sum(one) == 300


FAULTY = """
import json, os, socket, subprocess, sys, tempfile
from pathlib import Path
from types import SimpleNamespace
from runtimes.errors import UsageError
from tests.fuzz import judge
from tests.fuzz.target import Wrong

judge.MAX_CPU_S, judge.MAX_BYTES = 0.5, 100 << 20
kept = []

def run(data, folder):
    outside = folder.parents[1] / "victim"
    match data.decode():
        case "accepted": (folder / "mine").write_text("x")
        case "refused": raise UsageError("no")
        case "raises": [][0]
        case "accepts wrongly": raise Wrong("it should not", data)
        case "changes a mode": outside.chmod(0o666)
        case "follows a link": (folder / "l").symlink_to(outside); (folder / "l").chmod(0o666)
        case "writes": outside.write_text("x")
        case "writes, and hides it":
            try: outside.write_text("x")
            except BaseException: pass
        case "removes": outside.unlink()
        case "removes by a descriptor": os.remove("victim", dir_fd=os.open(outside.parent, 0))
        case "makes by a descriptor": os.mkdir("new", dir_fd=os.open(outside.parent, 0))
        case "accepted, by a descriptor":
            os.mkdir("new", 0o755, dir_fd=os.open(folder, 0))
            os.rename("new", "newer", src_dir_fd=os.open(folder, 0), dst_dir_fd=os.open(folder, 0))
        case "moves by a descriptor":
            (folder / "m").write_text("x")
            os.rename(folder / "m", "victim", dst_dir_fd=os.open(outside.parent, 0))
        case "moves": (folder / "m").write_text("x"); os.rename(folder / "m", outside)
        case "leaves something": Path("left").write_text("x")
        case "runs": subprocess.run(["true"])
        case "connects": socket.create_connection(("127.0.0.1", 9))
        case "hangs":
            while True: pass
        case "hangs, and hides it":
            try:
                while True: pass
            except BaseException: pass
        case "takes memory": kept.append(b"x" * (200 << 20))
        case "asks for too much": bytearray(1 << 46)

base = Path(tempfile.mkdtemp())
(base / "victim").write_text("mine")
(base / "victim").chmod(0o600)
(base / "base").mkdir()
judge_of = judge.Judge(SimpleNamespace(run=run), base / "base")
judge_of.install()
for word in sys.argv[1:]:
    outcome = judge_of.judge(word.encode())
    print(json.dumps([word, outcome.verdict, outcome.kind]))
    if word == "leaves something": os.remove("left")
victim = base / "victim"
assert victim.read_text() == "mine" and victim.stat().st_mode & 0o777 == 0o600
"""
FAULTS = (
    "raises", "accepts wrongly", "changes a mode", "follows a link", "writes",
    "writes, and hides it", "removes", "removes by a descriptor", "makes by a descriptor",
    "moves", "moves by a descriptor", "leaves something",
    "runs", "connects", "hangs", "hangs, and hides it", "takes memory", "asks for too much",
)  # fmt: skip


def test_each_kind_of_fault_is_found_before_it_does_harm() -> None:
    right = {"accepted": "accepted", "accepted, by a descriptor": "accepted", "refused": "refused"}
    words = (*right, *FAULTS)
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts = {word: verdict for word, verdict, _ in map(json.loads, done.stdout.splitlines())}
    expected = dict.fromkeys(FAULTS, "finding") | right
    assert verdicts == expected
