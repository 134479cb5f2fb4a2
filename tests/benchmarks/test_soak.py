"""The soak, for seconds and on a toy: it holds; and each kind of fault makes it fail."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak.clients import Case, Seen
from benchmarks.soak.supervised import Sample, Supervised

TOY_CHARACTERS = 100  # of a prefix and of a suffix: a token each, in a context of 400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Supervised]:
    """The toy in a process of its own, not started."""
    port = soak.free_port()
    command = [sys.executable, "-m", "tests.support.serve_toy", str(port)]
    server = Supervised(command, port, tmp_path / "log")
    yield server
    if server.process is not None and server.process.poll() is None:
        server.process.kill()
        server.process.wait()


@pytest.mark.slow
def test_twenty_seconds_of_it(server: Supervised) -> None:
    plan = soak.Plan(20, 64, every_s=2.0, max_characters=TOY_CHARACTERS)
    found = asyncio.run(soak.soak(server, plan))
    assert found["problems"] == [] and found["verdict"] == "held"
    assert found["kills"] > 0 and found["pauses"] > 0 and server.started == found["kills"] + 1
    outcomes = found["outcomes"]
    assert outcomes["right"] > 50 and outcomes["left"] and outcomes["reset"]
    assert "wrong" not in outcomes and "failed" not in outcomes


def a_run(server: Supervised, seen: Seen, *samples: Sample) -> dict[str, object]:
    """The report of a run that was seen so."""
    server.log.touch()
    server.started = 1
    server.samples = list(samples)
    return soak.report(server, soak.Plan(20, 64), seen, samples[0])


GOOD = Seen(health_s=[0.1])
GOOD.outcomes["right"] = 1
FLAT = [Sample(1, 100 << 20, 12, 8)] * soak.JUDGED_SAMPLES


def test_a_run_without_a_fault_holds(server: Supervised) -> None:
    assert a_run(server, GOOD, *FLAT)["verdict"] == "held"


@pytest.mark.parametrize("fault", ["memory", "descriptors", "traceback", "wrong", "nothing"])
def test_each_fault_fails_the_run(server: Supervised, fault: str) -> None:
    samples, seen = list(FLAT), GOOD
    if fault == "memory":
        samples = [Sample(1, (100 + i) << 20, 12, 8) for i in range(soak.JUDGED_SAMPLES)]
    if fault == "descriptors":
        samples[-1] = Sample(1, 100 << 20, 30, 8)
    if fault == "traceback":
        server.log.write_text("Traceback (most recent call last):\n")
    if fault == "wrong":
        seen = Seen(GOOD.outcomes, ["'a' became 'b'"])
    if fault == "nothing":
        seen = Seen()
    found = a_run(server, seen, *samples)
    assert found["verdict"] == "failed" and len(found["problems"]) == 1


def test_an_answer_that_is_another_is_wrong(server: Supervised) -> None:
    seen = Seen()
    client = soak.Client(server, [], seen, 0)
    assert client._judge(Case("a", None, "b"), "b") == "right" and not seen.problems
    assert client._judge(Case("a", None, "b"), "bb") == "wrong" and seen.problems
