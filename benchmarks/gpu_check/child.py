"""A part in a process of its own: `python -m benchmarks.gpu_check.child JOB FILE`.

Writes the file anew after each finding, so that a process that is ended loses none. The file then
says "unfinished", which the runner knows what to do with.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from benchmarks.gpu_check.parts import PARTS
from benchmarks.gpu_check.records import FAILED, MEASURED, NOT_RUN, Finding, Job, Outcome
from benchmarks.gpu_check.trying import held_bytes
from packager.core.atomic import write_json
from packager.core.record_store import from_plain, to_plain
from runtimes.errors import StarpackError

UNFINISHED = "unfinished"
PACKAGES = (
    "torch", "triton", "gptqmodel", "llama_cpp_python", "onnxruntime", "onnxruntime-gpu", "numpy",
)  # fmt: skip


class Keeper:
    """An outcome on disk that grows. Call it with a finding."""

    def __init__(self, file: Path, part: str) -> None:
        self.file, self.started = file, time.perf_counter()
        self.outcome = Outcome(part, UNFINISHED, versions=versions())

    def __call__(self, finding: Finding) -> None:
        self.write(findings=(*self.outcome.findings, to_plain(finding)))

    def write(self, **changes: object) -> None:
        """The outcome with these fields, whole or not at all."""
        seconds = round(time.perf_counter() - self.started, 1)
        self.outcome = replace(self.outcome, seconds=seconds, **changes)
        write_json(self.file, to_plain(self.outcome))


def versions() -> dict[str, str]:
    """Of what this interpreter has that matters here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def run(job: Job, file: Path) -> Outcome:
    """Run the part here; whatever it raises becomes its outcome."""
    keeper = Keeper(file, job.part)
    job = replace(job, held_bytes=held_bytes(job.provider))
    try:
        part = importlib.import_module(f"benchmarks.gpu_check.{PARTS[job.part].module}")
        missing = part.missing(job)
        if missing is not None:
            keeper.write(status=NOT_RUN, what=missing.what, remedy=missing.remedy)
            return keeper.outcome
        keeper.write()
        part.run(job, keeper)
    except StarpackError as error:
        keeper.write(status=FAILED, what=error.what, remedy=error.remedy or "")
    except Exception as error:  # engines and drivers have classes of their own
        lines = str(error).strip().splitlines() or [""]
        keeper.write(status=FAILED, what=f"{type(error).__name__}: {lines[0][:300]}")
        raise
    else:
        keeper.write(**judged(keeper.outcome))
    return keeper.outcome


def judged(outcome: Outcome) -> dict[str, str]:
    """The status of a part that came to its end, by what it found."""
    absent = [f for f in outcome.findings if f["kind"] == "not run"]
    if len(absent) < len(outcome.findings):
        return {"status": MEASURED}
    failed = [f for f in absent if f["failed"]]
    first = (failed or absent or [{"what": "it found nothing", "remedy": ""}])[0]
    status = NOT_RUN if absent and not failed else FAILED
    return {"status": status, "what": first["what"], "remedy": first["remedy"]}


if __name__ == "__main__":
    run(from_plain(Job, json.loads(sys.argv[1])), Path(sys.argv[2]))
