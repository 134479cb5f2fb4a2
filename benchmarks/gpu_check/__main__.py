"""Measure what a CUDA GPU here does with our engines: `make gpu-check`, under ten minutes.

Whatever was measured before on this GPU, with this code and these versions, is not measured again;
so a run that was ended, or ran out of time, goes on. Writes profiles/measured/DEVICE/DATE.json and
prints it as tables. Ends with 4 where a window is not exact, 1 where something failed, 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.facts import ROOT, Facts, dry_facts, find_facts
from benchmarks.gpu_check.parts import PARTS, TOTAL_S
from benchmarks.gpu_check.records import FAILED, INTERRUPTED, NOT_RUN, OUT_OF_TIME, Outcome
from benchmarks.gpu_check.runner import AGAIN, NOT_ASKED, Interrupted, Plan, read_outcome, run_all
from benchmarks.gpu_check.table import tables
from packager.core.atomic import write_json
from packager.core.errors import Cancelled, QualityError, UsageError
from packager.core.package_data import profiles_folder
from packager.core.record_store import to_plain
from packager.devices.profile_file import check_profile, slug
from packager.engine.wheelhouse import locked
from runtimes.errors import StarpackError

STATE = ROOT / "build" / "gpu-check"
PEERS = ROOT / "build" / "peers" / "bin" / "python"
SCHEMA = 1


def main(words: list[str] | None = None) -> int:
    """Run the parts, write the record, print it; returns the exit code."""
    try:
        return check(parser().parse_args(words))
    except StarpackError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="gpu_check", description=__doc__.split("\n")[0])
    made.add_argument("--parts", help=f"some of {', '.join(PARTS)}")
    made.add_argument(
        "--again", nargs="?", const="all", help="measure anew: all of --parts, or those named"
    )
    made.add_argument("--gpu", type=int, help="which, as nvidia-smi counts; the first visible one")
    made.add_argument("--threads", type=int, help="of the CPU; the physical cores unless given")
    made.add_argument(
        "--python", action="append", default=[], metavar="PART=PATH",
        help="another interpreter for a part, such as one with onnxruntime-gpu",
    )  # fmt: skip
    made.add_argument("--peer", help="a Python with GPTQModel; that of `make test-peers` if any")
    made.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS",
        help="more time for a part, as for compiling kernels, also beyond ten minutes",
    )  # fmt: skip
    made.add_argument("--total", type=float, default=TOTAL_S, help="seconds for all parts")
    made.add_argument(
        "--dry-run", action="store_true", help="try the parts on toys on the CPU; no measurement"
    )
    made.add_argument("--state", type=Path, default=STATE, help="where outcomes are kept")
    made.add_argument("--out", type=Path, help="the record's file; its own place unless given")
    return made


def check(arguments: argparse.Namespace) -> int:
    """As main; raises StarpackError."""
    if arguments.dry_run:
        facts = dry_facts()
    else:
        facts = find_facts(first_visible() if arguments.gpu is None else arguments.gpu)
    limits = {part: _seconds(text) for part, text in _pairs("--limit", arguments.limit).items()}
    chosen = _names("--parts", arguments.parts) or tuple(PARTS)
    again = chosen if arguments.again == "all" else _names("--again", arguments.again)
    plan = Plan(
        facts=facts,
        state=arguments.state / ("dry-run" if arguments.dry_run else slug(facts.name)),
        provider="cpu" if arguments.dry_run else "cuda",
        threads=arguments.threads or facts.threads,
        parts=chosen,
        again=frozenset(again),
        pythons=_interpreters(arguments.python),
        limits_s=limits,
        total_s=max([arguments.total, *limits.values()]),
        peer=arguments.peer or (str(PEERS) if os.access(PEERS, os.X_OK) else None),
    )
    plan.state.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        # two at once would slow each other down
        with locked(plan.state / "lock", lambda *_: say("another check runs: waiting for its end")):
            for outcome in run_all(plan, say):
                outcomes.append(outcome)
    except (Interrupted, KeyboardInterrupt):
        interrupted = True
        done = {outcome.part for outcome in outcomes}
        outcomes += [kept_of(plan, part) for part in PARTS if part not in done]
    record = record_of(plan, outcomes)
    check_profile("measured", record, "what was measured")
    file = arguments.out or place_of(plan)
    write_json(file, record)
    print(tables(record))
    say(f"written: {file}")
    return Cancelled.exit_code if interrupted else exit_code(record)


def first_visible() -> int:
    """The GPU that CUDA_VISIBLE_DEVICES names first, 0 without. Raises UsageError for a UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first and not first.isdecimal():
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES names a GPU as {first!r}",
            expected="a number",
            remedy="give its number with --gpu; `nvidia-smi -L` lists them",
        )
    return int(first or 0)


def say(text: str) -> None:
    """To a person who waits."""
    print(text, file=sys.stderr, flush=True)


def kept_of(plan: Plan, part: str) -> Outcome:
    """What is known of a part that this run did not come to."""
    absent = Outcome(part, NOT_RUN, what=NOT_ASKED)
    if part in plan.parts:
        absent = Outcome(part, INTERRUPTED, what="Ctrl-C", remedy=AGAIN)
    return read_outcome(plan.file(part)) or absent


def record_of(plan: Plan, outcomes: list[Outcome]) -> dict[str, Any]:
    """As profiles/measured.schema.json describes it."""
    return {
        "schema": SCHEMA,
        "dry_run": plan.provider == "cpu",
        "date": datetime.now(UTC).date().isoformat(),
        "facts": _shown(plan.facts),
        "parts": [to_plain(outcome) for outcome in outcomes],
    }


def place_of(plan: Plan) -> Path:
    """profiles/measured/DEVICE/DATE.json; a dry run's record stays in the state folder."""
    if plan.provider == "cpu":
        return plan.state / "record.json"
    date = datetime.now(UTC).date().isoformat()
    return profiles_folder() / "measured" / slug(plan.facts.name) / f"{date}.json"


def exit_code(record: dict[str, Any]) -> int:
    """What the whole run ends with."""
    findings = [f for part in record["parts"] for f in part["findings"]]
    if any(f["kind"] == "exactness" and not f["exact"] for f in findings):
        return QualityError.exit_code
    ended = any(part["status"] in (FAILED, OUT_OF_TIME, INTERRUPTED) for part in record["parts"])
    return int(ended or any(f["kind"] == "not run" and f["failed"] for f in findings))


def _shown(facts: Facts) -> dict[str, Any]:
    """Facts for the record: the device file itself is not repeated."""
    plain = to_plain(facts)
    return {key: value for key, value in plain.items() if key not in ("device", "environment")}


def _names(flag: str, text: str | None) -> tuple[str, ...]:
    names = tuple(filter(None, (text or "").replace(",", " ").split()))
    for name in names:
        _check_part(flag, name)
    return names


def _pairs(flag: str, texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        part, _, value = text.partition("=")
        _check_part(flag, part)
        if not value:
            raise UsageError(f"{flag} {text!r} gives no value", expected=f"{flag} {part}=VALUE")
        found[part] = value
    return found


def _interpreters(texts: list[str]) -> dict[str, str]:
    found = _pairs("--python", texts)
    for path in found.values():
        if not os.access(path, os.X_OK):
            raise UsageError(
                f"--python: {path} cannot be run", expected="the path of a Python interpreter"
            )
    return found


def _check_part(flag: str, name: str) -> None:
    if name not in PARTS:
        raise UsageError(
            f"{flag}: there is no part {name!r}", expected=f"one of {', '.join(PARTS)}"
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"--limit: {text!r} is no time", expected="seconds, such as 600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
