"""Timing in a child process: raw values, several depths, and running out of memory as a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.core.errors import DeviceError, UsageError
from packager.core.records import Limit, Workload
from packager.core.results import Speed, percentiles
from packager.formats.gguf import format as gguf
from packager.measurement import timing as measure
from packager.measurement.timing_worker import STEPS, depths_of
from runtimes.backends.timing import Steps
from runtimes.contract import BackendOptions
from tests.support.tiny import write_checkpoint

pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")

OPTIONS = BackendOptions(512, 1)
WORKLOAD = Workload(prompt_tokens=100, output_tokens=10, warm_prefix_tokens=60)
GIB = 1 << 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measure")
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", hidden=256, window=64))
    return checkpoint, gguf.convert(checkpoint, gguf.variant("Q8_0"), folder / "q8")


def run(made, memory_bytes=8 * GIB, options=OPTIONS, **more):
    checkpoint, artifact = made
    return measure.measure_speed(
        artifact, checkpoint, options, workload=WORKLOAD, memory_bytes=memory_bytes, **more
    )


def test_a_run_keeps_every_time(made):
    said = []
    speed = run(made, progress=lambda *state: said.append(state)).speed
    assert speed.workload == WORKLOAD
    assert [steps.depth_tokens for steps in speed.steps] == [0, 64, 256]
    assert all(len(steps.seconds) == STEPS for steps in speed.steps)
    times = [*speed.cold_s, *speed.warm_s, *(s for steps in speed.steps for s in steps.seconds)]
    assert all(0 < second < 30 for second in times)
    assert len(speed.cold_s) == len(speed.warm_s) == 5
    assert 0 < speed.weights_bytes < speed.memory_bytes == speed.peak_memory_bytes < 2 * GIB
    assert {what for what, *_ in said} == {"prompts", "steps"}


def test_out_of_memory_is_a_result(made):
    timing = run(made, memory_bytes=10 << 20)
    assert timing.speed is None
    assert timing.out_of_memory.had_bytes == 10 << 20 < timing.out_of_memory.needed_bytes
    assert "stopped when it took more" in timing.out_of_memory.what


def test_the_devices_own_memory_counts_where_it_has_some(made):
    assert run(made, device_bytes=lambda pid: 12345).speed.memory_bytes == 12345
    assert run(made, device_bytes=lambda pid: 9 * GIB).out_of_memory.needed_bytes == 9 * GIB


def test_the_systems_kill_is_a_result_too(made, monkeypatch):
    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        return 7

    timing = run(made, device_bytes=kill)
    assert timing.out_of_memory.needed_bytes == 7
    assert timing.out_of_memory.what == "the system killed it"


def test_another_failure_is_an_error(made, tmp_path):
    checkpoint, artifact = made
    gone = type(artifact)(artifact.variant, "0" * 64, tmp_path, artifact.files)
    with pytest.raises(DeviceError, match="ended with code 1"):
        run((checkpoint, gone))
    with pytest.raises(UsageError, match="too short to time"):
        run(made, options=BackendOptions(100, 1))


def test_an_interrupt_ends_the_child(made):
    children = []

    def interrupt(pid):
        children.append(pid)
        if len(children) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return 1

    # a shell that runs the tests in the background has told them to ignore interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(made, device_bytes=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _is_alive(children[0]):
        time.sleep(0.01)
    assert not _is_alive(children[0])


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_depths_stay_within_the_context():
    assert depths_of(64, 512) == [0, 64, 256]
    assert depths_of(4096, 16_384) == [0, 4096, 16_384 - STEPS - 1]
    assert depths_of(None, 1000) == [0, 250, 1000 - STEPS - 1]
    assert depths_of(4096, 200) == [0, 200 - STEPS - 1]


def test_the_child_speaks_json_alone(made):
    done = subprocess.run(
        [sys.executable, "-m", "packager.measurement.timing_worker", "{}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and not done.stdout


def test_what_the_figures_mean():
    steps = (Steps(0, (1.0, 2.0, 3.0)), Steps(64, (4.0,)), Steps(256, (5.0,)))
    speed = Speed(1, 512, WORKLOAD, 0.1, (9.0, 11.0), (7.0, 8.0), steps, 1, 2, 3, 4)
    assert speed.first_token_s == Limit(7.5, 7.9)
    assert speed.per_token_s == Limit(5, 5)  # the first depth that is not below 100 tokens
    assert speed.completion_s == Limit(7.5 + 9 * 5, 7.9 + 9 * 5)
    assert percentiles(steps[0].seconds) == Limit(2.0, 2.8)
