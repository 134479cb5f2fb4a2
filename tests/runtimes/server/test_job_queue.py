"""The queue in front of the model: turns, bounds, cancellation, superseding, failure and stop."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimes.errors import BusyError, Cancelled, StarpackError, StoppingError, Superseded
from runtimes.generation.completion import Chunk, join
from runtimes.generation.runtime import GenerateOptions
from runtimes.server.job_queue import PROBE, Job, JobQueue
from runtimes.server.metrics import Metrics
from runtimes.server.request import PreparedSequence
from tests.support.runtime_toys import toy_runtime
from tests.support.serving import wait_until

PROMPT = (40, 41, 42)


class Gate:
    """Holds the toy within a forward call while there is no permit for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._permits = math.inf
        self._holds = False
        self.fault: Exception | None = None

    def __call__(self) -> None:
        with self._changed:
            self._holds = self._permits == 0
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits > 0, 10)
            self._permits -= 1
            self._holds = False
        if self.fault is not None:
            raise self.fault

    def permit(self, calls: float) -> None:
        """Let so many calls through; 0 closes it, infinity opens it."""
        with self._changed:
            self._permits = calls
            self._changed.notify_all()

    def wait_until_it_holds(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._holds and self._permits == 0, 5)


class Bench:
    """An engine over a toy, and what its jobs were told."""

    def __init__(self, folder: Path, queue_jobs: int = 4) -> None:
        self.runtime = toy_runtime(folder, context_tokens=400)
        self.gate = Gate()
        self.runtime.backend.within_forward = self.gate
        self.metrics = Metrics()
        self.queue = JobQueue(self.runtime, self.metrics, queue_jobs)
        self.queue.start()
        self.told: dict[str, list] = {}
        self.ended: list[str] = []

    def ask(self, label: str, /, client="me", tokens: int = 2, runs: int = 1, **how) -> Job:
        self.told[label] = []

        def emit(event: object) -> None:
            self.told[label].append(event)
            if event is None or isinstance(event, Exception):
                self.ended.append(label)

        run = PreparedSequence(PROMPT, GenerateOptions(tokens, speculate=False))
        job = Job(client, (run,) * runs, emit, **how)
        self.queue.submit(job)
        return job

    def hold(self) -> None:
        """Have a job running, and stopped in the middle of its prompt."""
        self.gate.permit(0)
        self.ask("held", client="holder")
        self.gate.wait_until_it_holds()

    def release(self, *names: str) -> None:
        self.gate.permit(math.inf)
        wait_until(lambda: set(names) <= set(self.ended))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.gate.permit(math.inf)
    bench.queue.stop(5)


def test_a_job_gets_its_chunks_and_an_end(bench):
    bench.ask("a", tokens=3, runs=2)
    bench.release("a")
    *events, end = bench.told["a"]
    assert end is None
    assert [run for run, _ in events] == sorted(run for run, _ in events)
    for run in (0, 1):
        done = join(item for number, item in events if number == run)
        assert (len(done.ids), done.finish.reason) == (3, "length")
    assert done.finish.timings.reused_tokens == len(PROMPT) - 1


def test_clients_take_turns(bench):
    bench.hold()
    for name, client in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
        bench.ask(name, client)
    bench.release("a1", "a2", "a3", "b1")
    assert bench.ended == ["held", "a1", "b1", "a2", "a3"]


def test_the_queue_has_a_bound_and_says_when_to_come_back(bench):
    bench.hold()
    for i in range(4):
        bench.ask(f"j{i}", client=str(i))
    with pytest.raises(BusyError) as caught:
        bench.ask("one too many")
    assert caught.value.retry_after_s >= 1
    assert bench.queue.waiting_jobs == 4
    bench.release("j0", "j3")
    bench.ask("later")
    bench.release("later")


def test_a_running_job_ends_within_a_token_of_being_cancelled(bench):
    calls = bench.runtime.backend.calls
    bench.gate.permit(0)
    job = bench.ask("a", tokens=200)
    bench.gate.wait_until_it_holds()
    bench.gate.permit(5)
    bench.gate.wait_until_it_holds()  # in the middle of a token
    before = len(calls)
    assert before == 6
    bench.queue.withdraw(job)
    bench.release("a")
    assert isinstance(bench.told["a"][-1], Cancelled)
    assert len(calls) == before  # the token that was being computed was the last


def test_a_waiting_job_that_is_withdrawn_costs_nothing(bench):
    bench.hold()
    job = bench.ask("a", client="gone")
    bench.queue.withdraw(job)
    assert bench.queue.waiting_jobs == 0
    bench.queue.withdraw(job)  # twice is nothing
    bench.ask("b")
    bench.release("held", "b")
    assert bench.told["a"] == [] and bench.ended == ["held", "b"]


def test_a_newer_request_takes_the_place_of_its_client_s_older_ones(bench):
    bench.hold()
    for i in range(4):
        bench.ask(f"old{i}", client="a" if i else "b")
    bench.ask("new", client="a", supersede=True)  # the queue is full, but three of it are its own
    assert bench.ended == ["old1", "old2", "old3"]
    bench.release("old0", "new")
    assert all(isinstance(bench.told[f"old{i}"][-1], Superseded) for i in (1, 2, 3))
    assert bench.told["old0"][-1] is None and bench.told["new"][-1] is None


def test_it_takes_the_place_of_the_running_one_too(bench):
    bench.hold()
    bench.ask("new", client="holder", supersede=True)
    bench.release("held", "new")
    assert isinstance(bench.told["held"][-1], Superseded)
    assert bench.told["new"][-1] is None


def test_what_has_another_name_stays(bench):
    bench.hold()
    bench.ask("theirs", client="a", name="their editor")
    bench.ask("mine", client="a", name="my editor")
    bench.ask("mine again", client="a", name="my editor", supersede=True)
    bench.release("theirs", "mine again")
    assert isinstance(bench.told["mine"][-1], Superseded)
    assert bench.told["theirs"][-1] is None
    assert bench.ended.index("theirs") < bench.ended.index("mine again")


def test_superseding_does_not_pass_the_bound_for_others(bench):
    bench.hold()
    for i in range(4):
        bench.ask(f"j{i}", client=str(i))
    with pytest.raises(BusyError):
        bench.ask("more", client="new here", supersede=True)


def test_time_limits_count_the_wait(bench):
    bench.hold()
    bench.ask("late", limit_s=0.01)
    threading.Event().wait(0.02)
    bench.release("late")
    assert isinstance(bench.told["late"][-1], BusyError)
    bench.gate.permit(0)
    bench.ask("slow", tokens=200, limit_s=0.2)
    bench.gate.wait_until_it_holds()
    threading.Event().wait(0.25)
    bench.release("slow")
    assert bench.told["slow"][-2][1].reason == "time"


def test_a_failure_is_told_and_the_next_job_is_served(bench):
    bench.ask("a")
    bench.release("a")
    assert bench.queue.is_healthy and bench.queue.last_token_at is not None
    bench.gate.fault = MemoryError("no room")
    bench.ask("b")
    bench.release("b")
    error = bench.told["b"][-1]
    assert isinstance(error, StarpackError) and "no room" not in str(error)
    assert not bench.queue.is_healthy and bench.queue.is_alive
    bench.gate.fault = None
    bench.ask("c")
    bench.release("c")
    assert bench.told["c"][-1] is None and bench.queue.is_healthy


def test_a_probe_goes_on_from_what_is_held_and_leaves_it(bench):
    bench.ask("a", tokens=3)
    bench.release("a")
    held = bench.runtime.held_ids
    calls = len(bench.runtime.backend.calls)
    bench.ask("probe", client=PROBE)
    bench.release("probe")
    assert isinstance(bench.told["probe"][0][1], Chunk) and bench.told["probe"][-1] is None
    assert bench.runtime.held_ids == held
    assert bench.runtime.backend.calls[calls:] == [1]


def test_a_probe_of_a_fresh_model_and_past_a_full_queue(bench):
    bench.hold()
    for i in range(4):
        bench.ask(f"j{i}", client=str(i))
    bench.ask("probe", client=PROBE)
    bench.release("probe")
    assert bench.told["probe"][-1] is None


def test_stop_refuses_what_waits_and_cancels_what_runs(bench):
    bench.hold()
    bench.ask("waiting")
    thread = threading.Thread(target=bench.queue.stop, args=(5,))
    thread.start()
    wait_until(lambda: "waiting" in bench.ended)
    bench.release("held")
    thread.join(5)
    assert not thread.is_alive() and not bench.queue.is_alive
    assert all(isinstance(bench.told[n][-1], StoppingError) for n in ("held", "waiting"))
    with pytest.raises(StoppingError):
        bench.ask("too late")


def test_an_engine_that_never_started_can_be_stopped(tmp_path):
    JobQueue(toy_runtime(tmp_path), Metrics(), 1).stop(1)
