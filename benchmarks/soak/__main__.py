"""A server under attack for as long as you like: `python -m benchmarks.soak BUNDLE --minutes 60`.

The bundle is installed and served from there, under a supervisor that stops it for moments and, in
the first half, kills and restarts it. 64 clients ask without a pause and behave badly in between:
they leave, reset, read slowly, send half of a request or nothing, or megabytes. It fails (code 1)
where an answer that came whole is not the one that the same request has alone, where one failed
without a kill, where memory or descriptors grow in the second half, and on any traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.clients import Case, Client, Seen, answer_alone
from benchmarks.soak.supervised import Sample, Supervised

CASES = 48
MIN_CHARACTERS, MAX_CHARACTERS = 20, 1200  # of a prefix
SUFFIX_CHARACTERS = 200
GROWTH_BYTES = 16 * 1024 * 1024  # guessed: the allocator's noise with megabytes in flight
JUDGED_SAMPLES = 120  # a minute of one process; in less than that, caches and pools still fill
SPARE_DESCRIPTORS = 3  # guessed: at rest at the end, over those at rest at the start
REST_S = 12.0  # until the server has closed what nobody uses: 10 s for a head
SOURCES = Path(__file__).parents[2] / "packager"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how many, how often disturbed, and how long prompts may be."""

    seconds: float
    clients: int
    every_s: float = 15.0
    max_characters: int = MAX_CHARACTERS


def questions(max_characters: int) -> list[Case]:
    """Pieces of our own code, half of them with a gap."""
    chance = random.Random(7)
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(SOURCES.rglob("*.py")))
    found = []
    for number in range(CASES):
        start = chance.randrange(len(text) - 2 * MAX_CHARACTERS)
        end = start + chance.randrange(MIN_CHARACTERS, max_characters)
        suffix = text[end + 40 : end + 40 + min(SUFFIX_CHARACTERS, max_characters)]
        found.append(Case(text[start:end], suffix if number % 2 else None))
    return found


async def soak(server: Supervised, plan: Plan) -> dict[str, object]:
    """Run it; the report, with its verdict."""
    await server.start()
    known = [await answer_alone(server.port, case) for case in questions(plan.max_characters)]
    server.sample()
    before = server.samples[-1]
    seen = Seen()
    started = time.monotonic()
    ends = started + plan.seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(server.watch(ends))
        group.create_task(server.disturb(started + plan.seconds / 2, ends, plan.every_s))
        for number in range(plan.clients):
            group.create_task(Client(server, known, seen, number).run(ends))
    await asyncio.sleep(REST_S)
    server.sample()
    again = [await answer_alone(server.port, case) for case in known]
    seen.problems += [f"at the end: {a!r}" for a, b in zip(again, known, strict=True) if a != b]
    return report(server, plan, seen, before)


def report(server: Supervised, plan: Plan, seen: Seen, before: Sample) -> dict[str, object]:
    """What was seen, and whether it held. Stops the server first."""
    server.stop()
    last = [sample for sample in server.samples if sample.process == server.started]
    rest, loaded = last[-1], last[len(last) // 5 : -1] or last  # caches and pools fill first
    fifth = max(1, len(loaded) // 5)
    growth = statistics.median(s.rss_bytes for s in loaded[-fifth:]) - statistics.median(
        s.rss_bytes for s in loaded[:fifth]
    )
    tracebacks = server.log.read_text(encoding="utf-8", errors="replace").count("Traceback")
    problems = [*server.problems, *seen.problems]
    is_judged = len(last) >= JUDGED_SAMPLES
    if is_judged and growth > GROWTH_BYTES:
        problems.append(f"memory grew by {growth / 2**20:.1f} MiB")
    if rest.descriptors > before.descriptors + SPARE_DESCRIPTORS:
        problems.append(f"descriptors: {before.descriptors} before, {rest.descriptors} after")
    if tracebacks:
        problems.append(f"{tracebacks} tracebacks in the server's log")
    if not seen.outcomes["right"]:
        problems.append("no answer was compared")
    return {
        "verdict": "failed" if problems else "held",
        "minutes": round(plan.seconds / 60, 2),
        "clients": plan.clients,
        "outcomes": dict(seen.outcomes.most_common()),
        "kills": server.kills,
        "pauses": server.pauses,
        "rss_mib": {
            "at rest before": _mib(before.rss_bytes),
            "under load": [_mib(s.rss_bytes) for s in loaded[:: max(1, len(loaded) // 10)]],
            "growth": round(growth / 2**20, 1),
            "growth is judged": is_judged,
            "at rest after": _mib(rest.rss_bytes),
        },
        "descriptors": {
            "at rest before": before.descriptors,
            "most": max(s.descriptors for s in server.samples),
            "at rest after": rest.descriptors,
        },
        "threads": {"most": max(s.threads for s in server.samples), "after": rest.threads},
        "health_s": {
            "median": round(statistics.median(seen.health_s or [0]), 3),
            "worst": round(max(seen.health_s or [0]), 3),
        },
        "tracebacks": tracebacks,
        "problems": problems[:20],
    }


def _mib(size_bytes: int) -> float:
    return round(size_bytes / 2**20, 1)


def free_port() -> int:
    """One that the same server can have again and again."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


def main(words: Sequence[str] | None = None) -> int:
    """Install, serve, run, print the report as JSON; 1 where it did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    if not (args.bundle / "install").is_file():
        raise SystemExit(f"there is no bundle in {args.bundle}; `make bundle` makes one")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        target = Path(folder, "installed")
        install = [str(args.bundle / "install"), "--to", str(target)]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        command = [str(target / "run"), "serve", "--port", str(port), "--reproducible",
                   "--threads", str(args.threads), "--quiet"]  # fmt: skip
        server = Supervised(command, port, Path(folder, "log"))
        try:
            found = asyncio.run(soak(server, Plan(60 * args.minutes, args.clients)))
        finally:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()
    print(json.dumps(found, indent=2))
    return int(found["verdict"] != "held")


if __name__ == "__main__":
    raise SystemExit(main())
