"""What `measure` runs in a process of its own: `python -m packager.measurement.timing_worker JOB`.

Opens the artifact as a bundle would, warms up, and times cold prompts, warm ones, and single steps
at several depths. Writes JSON lines: progress while it runs, and last the result.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packager.core.record_store import from_plain, to_plain
from packager.core.records import Progress, Workload
from packager.core.results import Speed
from packager.measurement.gpu_meter import energy_j
from runtimes import backends
from runtimes.backends.onnx import huge_pages
from runtimes.backends.timing import Steps, go_to, time_prompts, time_steps, warm_up
from runtimes.contract import BackendOptions, Window
from runtimes.errors import DeviceError, RewindError
from runtimes.host.limits import peak_resident_bytes

STEPS = 64  # single-token steps per depth
MAX_PROMPTS, PROMPTS_S = 5, 20.0  # prompts are repeated, within this time
DEPTH_S = 300.0  # a depth that takes longer to reach is left out
OUT_OF_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "cannot allocate")


@dataclass(frozen=True, slots=True)
class Job:
    """What to open and how to load it with work."""

    format: str
    model: Path
    window_tokens: int | None
    options: BackendOptions
    workload: Workload


def run(job: Job, progress: Progress) -> Speed:
    """Time it in this process."""
    backends.load(job.format)  # importing the engine is not counted as loading the model
    started = time.perf_counter()
    backend = backends.open_model(job.format, job.model, Window(job.window_tokens), job.options)
    load_s = time.perf_counter() - started
    huge_pages.wait()
    work, context = job.workload, job.options.context_tokens
    prompt_tokens, warm_tokens = work.prompt_tokens, work.warm_prefix_tokens
    warm_up(backend)
    progress("prompts", 0, MAX_PROMPTS)

    def prompts_s(cached_tokens: int) -> tuple[float, ...]:
        timed = time_prompts(
            backend, prompt_tokens, repeats=MAX_PROMPTS, limit_s=PROMPTS_S,
            cached_tokens=cached_tokens,
        )  # fmt: skip
        return tuple(prompt.seconds for prompt in timed)

    cold_s = prompts_s(0)
    warm_s: tuple[float, ...] = ()
    if warm_tokens:
        with contextlib.suppress(RewindError):  # it cannot go back: every prompt is a cold one
            warm_s = prompts_s(warm_tokens)
    steps: list[Steps] = []
    energies: list[float] = []
    on_gpu = job.options.provider == "cuda"
    depths = depths_of(job.window_tokens, context)
    backend.rewind(0)
    for done, depth in enumerate(depths):
        progress("steps", done, len(depths))
        more = depth - backend.position
        if steps and more * cold_s[0] / prompt_tokens > DEPTH_S:
            break
        go_to(backend, depth)
        before = energy_j() if on_gpu else None
        steps.append(time_steps(backend, STEPS))
        after = energy_j() if on_gpu else None
        if before is not None and after is not None:
            energies.append((after - before) / STEPS)
    memory = backend.memory_bytes()
    return Speed(
        threads=job.options.threads,
        context_tokens=context,
        workload=work,
        load_s=load_s,
        cold_s=cold_s,
        warm_s=warm_s,
        steps=tuple(steps),
        peak_memory_bytes=peak_resident_bytes(),
        energy_j=float(np.mean(energies)) if energies else None,
        **asdict(memory),
    )


def depths_of(window_tokens: int | None, context_tokens: int) -> list[int]:
    """Where steps are timed: at 0, the window and four windows, or as near as the context lets."""
    last = context_tokens - STEPS - 1
    window = window_tokens or context_tokens // 4
    return sorted({min(depth, last) for depth in (0, window, 4 * window)})


def main() -> None:
    """The child's entry: a job as JSON in, JSON lines out."""

    def write(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    job = from_plain(Job, json.loads(sys.argv[1]))
    try:
        speed = run(job, lambda *state: write(progress=state))
    except MemoryError:
        write(out_of_memory="the process could get no more memory")
    except DeviceError as error:
        if not any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
            raise
        write(out_of_memory=error.what)
    else:
        write(speed=to_plain(speed))


if __name__ == "__main__":
    main()
