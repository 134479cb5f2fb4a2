"""Part kernels-gptqmodel: GPTQModel's kernels on the same files, each in a process of its own.

GPTQModel patches other libraries when it is imported, so it has an environment of its own, that of
`make test-peers`, or --peer PYTHON. nvcc compiles most of its kernels when they are first used,
which can take longer than there is time; it keeps what was compiled, and another run finds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_check.kernel_table import KERNELS, Capability, Kernel
from benchmarks.gpu_check.product_times import MARK, ROWS
from benchmarks.gpu_check.records import TOY, Job, Keep, KernelTime, Missing, NotRun
from benchmarks.gpu_check.weights import model_of, write_gptq

REMEDY = (
    "`make build/peers/.installed`, or --peer with a Python that has GPTQModel 7.6 and a CUDA "
    "build of torch; all kernels but GPTQ_TRITON and GPTQ_TORCH need nvcc as well"
)
# Six layers of it in 4 bits, 290 MB, are beyond the caches of all but a few cards.
MODEL, LAYERS, VOCAB = "3b", 6, 1024
LEAST_S, START_S = 10.0, 60.0  # guessed: what a kernel has to have, and what it may take at first
HAS_IT = "import importlib.util, sys; sys.exit(importlib.util.find_spec('gptqmodel') is None)"


def missing(job: Job) -> Missing | None:
    """What has to be here for this part and is not."""
    if job.peer is None:
        return Missing("there is no environment with GPTQModel", REMEDY)
    try:
        found = subprocess.run([job.peer, "-c", HAS_IT], capture_output=True, check=False)
    except OSError as error:
        return Missing(f"{job.peer} cannot be run: {error}", REMEDY)
    return Missing(f"{job.peer} has no GPTQModel", REMEDY) if found.returncode else None


def run(job: Job, keep: Keep) -> None:
    """Every kernel of GPTQModel's that the device is for."""
    started = time.monotonic()
    model = model_of(TOY) if job.toy else model_of(MODEL, LAYERS)
    small = replace(model.geometry, vocab=min(VOCAB, model.geometry.vocab))
    folder = write_gptq(replace(model, geometry=small), "w4g128", job.work / "gptq")
    capability = _capability(job)
    kernels = [kernel for kernel in KERNELS.values() if kernel.owner == "gptqmodel"]
    if job.toy:  # the only one that a CPU runs without compiling
        kernels = [KERNELS["GPTQ_TORCH"]]
    for at, kernel in enumerate(kernels):
        if capability is not None and not kernel.runs_on(capability):
            here = "{}.{}".format(*capability)
            what = f"the GPU has compute capability {here}, and it runs on {kernel.where}"
            keep(NotRun(kernel.name, what, f"a GPU of another kind ({kernel.why})", failed=False))
            continue
        left = job.limit_s - (time.monotonic() - started) - LEAST_S
        limit = max(LEAST_S, min(left, max(START_S, left / (len(kernels) - at))))
        for finding in run_kernel(kernel, folder, job, limit):
            keep(finding)


def run_kernel(kernel: Kernel, folder: Path, job: Job, limit_s: float) -> list[KernelTime | NotRun]:
    """One kernel in its process: a finding for each number of rows, or why there is none."""
    rows = ROWS[:2] if job.toy else ROWS
    words = [str(folder), kernel.name, job.provider, json.dumps(rows)]
    environment = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [job.peer, "-m", "benchmarks.gpu_check.peer_child", *words],
            capture_output=True, text=True, check=False, timeout=limit_s, env=environment,
            cwd=folder,  # GPTQModel leaves its logs where it is run
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        what = f"it was not compiled and timed within {limit_s:.0f} s"
        remedy = "--parts kernels-gptqmodel --limit kernels-gptqmodel=3600"
        return [NotRun(kernel.name, what, remedy, failed=False)]
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not found:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        what = f"it ended with code {done.returncode}: {last}"
        return [NotRun(kernel.name, what, "", failed=True)]
    times = json.loads(found[-1].removeprefix(MARK))
    return [KernelTime(kernel.name, TOY if job.toy else MODEL, *row) for row in times]


def _capability(job: Job) -> Capability | None:
    if job.provider != "cuda":
        return None
    import torch

    return torch.cuda.get_device_capability(0)
