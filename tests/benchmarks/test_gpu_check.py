"""The GPU check's runner: parts in processes, limits, resuming, crashes, what survives them."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import child, runner
from benchmarks.gpu_check.child import Keeper
from benchmarks.gpu_check.parts import PARTS, TOTAL_S
from benchmarks.gpu_check.records import (
    FAILED,
    MEASURED,
    NOT_RUN,
    OUT_OF_TIME,
    Job,
    Outcome,
)
from benchmarks.gpu_check.runner import Plan, read_outcome, run_all, run_part
from packager.core.errors import DeviceError
from packager.core.record_store import to_plain
from tests.support.gpu_samples import ABSENT, FACTS, FINDING, job, measure, processes


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(FACTS, tmp_path / "state", "cuda", 1, parts=("gptq-exact", "kernels"))


def outcomes(plan: Plan) -> dict[str, Outcome]:
    return {outcome.part: outcome for outcome in run_all(plan, lambda text: None)}


# Resuming


def test_what_was_measured_is_not_measured_again(plan, monkeypatch):
    plan.state.mkdir()
    started = processes(monkeypatch, measure)
    first = outcomes(plan)
    assert list(first) == list(PARTS)
    assert [p for p, o in first.items() if o.status == MEASURED] == list(plan.parts) == started
    assert {o.status for p, o in first.items() if p not in plan.parts} == {NOT_RUN}
    assert outcomes(plan) == first and len(started) == 2
    assert outcomes(replace(plan, again=frozenset(["kernels"]))).keys() == first.keys()
    assert started == ["gptq-exact", "kernels", "kernels"]
    # one that is not asked for is not measured again either, and what is known of it is shown
    other = replace(plan, parts=("gptq-3b",), again=frozenset(["kernels"]))
    assert outcomes(other)["kernels"].status == MEASURED
    assert started[3:] == ["gptq-3b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": replace(FACTS, driver="580.1")},
        {"facts": replace(FACTS, code_sha256="b" * 64)},
        {"facts": replace(FACTS, versions={"torch": "2.14.0"})},
        {"provider": "cpu"},
        {"pythons": {"kernels": "/other/python"}},
    ],
    ids=["driver", "code", "versions", "provider", "interpreter"],
)
def test_what_a_figure_depends_on_makes_it_out_of_date(plan, changes):
    assert plan.file("kernels") == replace(plan).file("kernels")
    assert plan.file("kernels") != replace(plan, **changes).file("kernels")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"part": "kernels"}', '{"odd": 1}'])
def test_a_damaged_outcome_is_measured_again(plan, monkeypatch, text):
    plan.state.mkdir()
    started = processes(monkeypatch, measure)
    plan.file("kernels").write_text(text)
    assert read_outcome(plan.file("kernels")) is None
    outcomes(plan)
    assert started == ["gptq-exact", "kernels"]


def test_what_failed_is_tried_again(plan, monkeypatch):
    plan.state.mkdir()
    started = processes(monkeypatch, lambda asked, keeper: 1)
    found = outcomes(plan)
    assert {found[part].status for part in plan.parts} == {FAILED}
    assert len(started) == 2
    outcomes(plan)
    assert len(started) == 4


# Ends that are not a part's own


def test_what_a_part_found_survives_its_limit(plan, monkeypatch):
    plan.state.mkdir()

    def too_long(asked: Job, keeper: Keeper) -> int:
        keeper(FINDING)
        raise subprocess.TimeoutExpired("part", 30)

    processes(monkeypatch, too_long)
    found = run_part(plan, "kernels", 90, plan.file("kernels"))
    assert (found.status, found.findings) == (OUT_OF_TIME, (to_plain(FINDING),))
    assert found.what == "it took more than 90 s" and "--limit kernels=360" in found.remedy
    assert "run it again" in run_part(plan, "kernels", 30, plan.file("kernels")).remedy
    found = run_part(plan, "kernels", 90, plan.file("kernels"))
    assert read_outcome(plan.file("kernels")) == found
    assert not list(plan.state.glob("*.work"))


@pytest.mark.parametrize(("code", "how"), [(-11, "signal 11"), (3, "code 3")])
def test_a_crash_is_told_with_its_last_words(plan, monkeypatch, code, how):
    plan.state.mkdir()

    def crash(asked: Job, keeper: Keeper) -> int:
        keeper(FINDING)
        return code

    processes(monkeypatch, crash)
    found = run_part(plan, "kernels", 30, plan.file("kernels"))
    assert (found.status, len(found.findings)) == (FAILED, 1)
    assert found.what == f"its process ended with {how}: the last line"
    assert "kernels.log" in found.remedy
    assert not list(plan.state.glob("*.work"))


def test_parts_that_have_no_time_left_are_for_the_next_run(plan, monkeypatch):
    plan.state.mkdir()
    started = processes(monkeypatch, measure)
    found = outcomes(replace(plan, total_s=5.0))
    assert not started and found["kernels"].status == OUT_OF_TIME
    assert "run it again" in found["kernels"].remedy
    assert outcomes(plan)["kernels"].status == MEASURED
    half = PARTS["kernels"].limit_s / 2
    again = frozenset(["kernels"])
    for total, status in ((half - 5, OUT_OF_TIME), (half + 5, MEASURED)):
        more = replace(plan, total_s=total, parts=("kernels",), again=again)
        assert outcomes(more)["kernels"].status == status


def test_the_whole_check_takes_less_than_ten_minutes():
    assert TOTAL_S < 600
    assert all(part.limit_s <= TOTAL_S / 3 for part in PARTS.values())


def test_a_process_and_what_it_started_are_ended_at_the_limit(tmp_path):
    log = tmp_path / "log"
    script = "sleep 60 & echo $!; echo $$; wait"
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        runner._wait(["sh", "-c", script], log, {}, 0.5)
    assert time.monotonic() - started < 20
    for pid in map(int, log.read_text().split()):
        assert gone(pid)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_process_has_the_one_gpu_and_our_code(tmp_path):
    script = "import os, benchmarks.gpu_check; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    environment = {"CUDA_VISIBLE_DEVICES": "3"}
    assert runner._wait([sys.executable, "-c", script], tmp_path / "log", environment, 60) == 0
    assert (tmp_path / "log").read_text() == "3\n"


# The child


def test_the_childs_outcome_grows_on_disk(tmp_path):
    keeper = Keeper(tmp_path / "kernels.json", "kernels")
    keeper(FINDING)
    found = read_outcome(keeper.file)
    assert (found.status, found.findings) == (child.UNFINISHED, (to_plain(FINDING),))
    keeper(ABSENT)
    assert [f["kind"] for f in read_outcome(keeper.file).findings] == ["kernel", "not run"]
    assert "numpy" in found.versions


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([FINDING, ABSENT], MEASURED),
        ([ABSENT], NOT_RUN),
        ([ABSENT, replace(ABSENT, failed=True)], FAILED),
        ([], FAILED),
    ],
)
def test_a_part_is_measured_where_anything_was(findings, status):
    outcome = Outcome("kernels", child.UNFINISHED, findings=tuple(map(to_plain, findings)))
    assert child.judged(outcome)["status"] == status


@pytest.mark.torch
def test_what_is_missing_or_raises_becomes_the_outcome(tmp_path, monkeypatch):
    asked = job("kernels-gptqmodel", tmp_path / "work")
    found = child.run(asked, tmp_path / "one.json")
    assert (found.status, "GPTQModel" in found.what) == (NOT_RUN, True) and found.remedy
    from benchmarks.gpu_check import peer_kernels

    monkeypatch.setattr(peer_kernels, "missing", lambda asked: None)

    def refuse(asked: Job, keep: Any) -> None:
        raise DeviceError("no memory", remedy="more of it")

    monkeypatch.setattr(peer_kernels, "run", refuse)
    found = child.run(asked, tmp_path / "two.json")
    assert (found.status, found.what, found.remedy) == (FAILED, "no memory", "more of it")

    def fault(asked: Job, keep: Any) -> None:
        keep(FINDING)
        raise RuntimeError("CUDA error: an illegal memory access\nmore of it")

    monkeypatch.setattr(peer_kernels, "run", fault)
    with pytest.raises(RuntimeError):  # so that the log has where
        child.run(asked, tmp_path / "three.json")
    found = read_outcome(tmp_path / "three.json")
    assert found.status == FAILED and len(found.findings) == 1
    assert found.what == "RuntimeError: CUDA error: an illegal memory access"
