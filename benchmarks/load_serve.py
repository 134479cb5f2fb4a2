"""A server under load on the loopback interface: `python -m benchmarks.load_serve BUNDLE`.

Clients ask without a pause, each greedy request in one of four dialects, whole or streamed, and one
in four goes away in the middle. The queue is shorter than the clients are many, so 429 occurs and
is waited out. It fails (code 1) on any other failure, on an answer that is not the one that the
bundle gives alone, and where the server's memory grows. Bounded: by time, clients and tokens.

Engines round differently when ids are grouped differently (a reused prefix), which may decide
between two ids that are all but equal. How much is measured first: each answer is scored once more
with its ids in one group. An answer that leaves the expected one at a place where the two likeliest
ids are nearer than that counts as a tie, not as right. With `--reproducible` the server groups
them alike whatever came before, and nothing but the very answer is right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import httpx
import psutil

from benchmarks.serving import served
from runtimes.bundle.open import OpenOptions, open_bundle
from runtimes.generation.completion import GenerateOptions, join
from runtimes.generation.runtime import Runtime
from runtimes.prompts.fim import generate_ids, infill_ids

TOKENS = 32
PROMPTS = 48
QUEUE = 24
LEAVE = 0.25  # share of requests that are left
LEAVE_S = 0.4  # at most so long after they were sent
SETTLED = 0.2  # the part of the run in which memory may still grow: caches and pools fill
GROWTH_BYTES = 8 * 1024 * 1024  # guessed: below it is the allocator's noise
MIN_BYTES = 4000  # of a file that prompts are cut from: half of it, and what a prompt takes
SOURCES = Path(__file__).parents[1] / "runtimes"


@dataclass(frozen=True, slots=True)
class Case:
    """A request and what the model alone answers.

    gaps: for each token of `text`, the character at which it begins, and how many nats the
    likeliest id was ahead of the next. rounding_nats: most that a log-probability of the answer
    moved when its ids came in one group; 0 where they always come in the same ones.
    """

    prefix: str
    suffix: str | None
    text: str
    gaps: tuple[tuple[int, float], ...]
    rounding_nats: float


@dataclass(slots=True)
class Seen:
    """What happened. whole_s: of completed requests, waiting included."""

    outcomes: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)


def cases(bundle: Path, threads: int, reproducible: bool) -> list[Case]:
    """Pieces of our own code, half of them with a gap, answered alone."""
    chance = random.Random(7)
    files = [file for file in sorted(SOURCES.glob("*.py")) if file.stat().st_size > MIN_BYTES]
    found = []
    with open_bundle(bundle, OpenOptions(threads=threads, reproducible=reproducible)) as runtime:
        for number in range(PROMPTS):
            text = chance.choice(files).read_text(encoding="utf-8")
            start = chance.randrange(len(text) // 2)
            middle = start + chance.randrange(20, 1200)  # an empty suffix would be none at all
            prefix, suffix = text[start:middle], text[middle + 40 : middle + 240]
            found.append(_case(runtime, prefix, suffix if number % 2 else None))
    return found


def _case(runtime: Runtime, prefix: str, suffix: str | None) -> Case:
    encode, special = runtime.tokenizer.encode, runtime.special_ids
    if suffix is None:
        ids = generate_ids(encode, special, prefix)
    else:
        ids = infill_ids(encode, special, prefix, suffix)
    answer = join(runtime.run(ids, GenerateOptions(max_tokens=TOKENS, logprobs=2)))
    gaps, at = [], 0
    for entry in answer.logprobs:
        (_, first), (_, second) = entry.top[:2]
        gaps.append((at, first - second))
        at += len(runtime.tokenizer.decode([entry.id]))
    moved = [0.0]
    if not runtime.reproducible:
        again = runtime.score([*ids, *answer.ids])[len(ids) - 1 :]
        pairs = zip(answer.logprobs, again, strict=True)
        moved += [abs(entry.logprob - other) for entry, other in pairs]
    return Case(prefix, suffix, answer.text, tuple(gaps), max(moved))


def request_of(case: Case, dialect: int, stream: bool) -> tuple[str, dict[str, object]]:
    """Path and body."""
    prefix, suffix = case.prefix, case.suffix
    if dialect == 0:
        body = {"prompt": prefix, "suffix": suffix, "max_tokens": TOKENS}
        return "/v1/completions", body | {"temperature": 0, "stream": stream}
    if dialect == 1 and suffix is None:
        body = {"prompt": prefix, "n_predict": TOKENS, "temperature": 0}
        return "/completion", body | {"stream": stream}
    if dialect == 1:
        body = {"input_prefix": prefix, "input_suffix": suffix, "n_predict": TOKENS}
        return "/infill", body | {"temperature": 0, "stream": stream}
    if dialect == 2:
        options = {"num_predict": TOKENS, "temperature": 0}
        body = {"model": "any", "prompt": prefix, "suffix": suffix or "", "options": options}
        return "/api/generate", body | {"stream": stream}
    body = {"prompt": prefix} if suffix is None else {"prefix": prefix, "suffix": suffix}
    name = "complete" if suffix is None else "infill"
    return f"/v1/tasks/{name}", body | {"max_tokens": TOKENS, "temperature": 0, "stream": stream}


def text_of(event: dict[str, object]) -> str:
    """The piece of an answer in an object of any of the dialects."""
    if "choices" in event:
        return "".join(choice["text"] for choice in event["choices"])
    if "error" in event:
        raise ValueError(f"an error in a stream: {event['error']}")
    return event["content"] if "content" in event else event["response"]


async def ask(client: httpx.AsyncClient, case: Case, dialect: int, stream: bool) -> str | None:
    """The whole answer; None for 429, waited out. Raises ValueError for any other failure."""
    path, body = request_of(case, dialect, stream)
    async with client.stream("POST", path, json=body) as response:
        if response.status_code == 429:
            await asyncio.sleep(min(2.0, float(response.headers["retry-after"])))
            return None
        if response.status_code != 200:
            await response.aread()
            raise ValueError(f"{response.status_code} {response.text[:200]}")
        if not stream:
            await response.aread()
            return text_of(response.json())
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    return "".join(text_of(json.loads(line)) for line in lines if line != "[DONE]")


async def client_of(url: str, number: int, known: list[Case], ends: float, seen: Seen) -> None:
    """One client, until the end."""
    tie_nats = tie_of(known)
    chance = random.Random(number)
    headers = {"x-client-id": f"client {number}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=150) as client:
        while time.monotonic() < ends:
            case, dialect = chance.choice(known), chance.randrange(4)
            stream, leaves = chance.random() < 0.7, chance.random() < LEAVE
            started = time.monotonic()
            try:
                asked = ask(client, case, dialect, stream)
                limit_s = chance.uniform(0, LEAVE_S) if leaves else None
                text = await asyncio.wait_for(asked, limit_s)
            except TimeoutError:
                seen.outcomes["left"] += 1
                continue
            except (ValueError, KeyError, httpx.HTTPError) as error:
                seen.outcomes["failed"] += 1
                seen.problems.append(repr(error)[:300])
                continue
            outcome = "busy" if text is None else verdict(case, text, tie_nats)
            seen.outcomes[outcome] += 1
            if outcome == "wrong":
                seen.problems.append(f"{case.text!r} became {text!r}")
            if text is not None:
                seen.whole_s.append(time.monotonic() - started)


def verdict(case: Case, text: str, tie_nats: float) -> str:
    """right, tie or wrong."""
    if text == case.text:
        return "right"
    pairs = zip(text, case.text, strict=False)
    differs = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    # the token that differs may begin before the first character that does
    near = [gap for at, gap in case.gaps if at <= differs][-1:]
    return "tie" if near and near[0] < tie_nats else "wrong"


def tie_of(known: list[Case]) -> float:
    """Two ids that are nearer than this may change places: each moves by as much as was seen."""
    return 2 * max(case.rounding_nats for case in known)


async def watch(process: psutil.Process, ends: float, seen: Seen) -> None:
    """The server's resident memory, each second."""
    while time.monotonic() < ends:
        seen.rss_bytes.append(process.memory_info().rss)
        await asyncio.sleep(1)


async def load(url: str, pid: int, known: list[Case], seconds: float, clients: int) -> Seen:
    """All clients at once."""
    seen = Seen()
    ends = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(psutil.Process(pid), ends, seen))
        for number in range(clients):
            group.create_task(client_of(url, number, known, ends, seen))
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        ready = await client.get("/ready")
        if ready.status_code != 200:
            seen.problems.append(f"not ready at the end: {ready.text}")
    return seen


def main() -> None:
    """Run it, print what was seen as JSON, and say by the exit code whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reproducible", action="store_true")
    words = parser.parse_args()
    known = cases(words.bundle, words.threads, words.reproducible)
    flags = ["--queue", str(QUEUE), "--threads", str(words.threads)]
    flags += ["--reproducible"] * words.reproducible
    with served(words.bundle, *flags) as (url, process):
        seconds = 60 * words.minutes
        seen = asyncio.run(load(url, process.pid, known, seconds, words.clients))
    settled = seen.rss_bytes[int(SETTLED * len(seen.rss_bytes)) :]
    fifth = max(1, len(settled) // 5)
    growth = statistics.median(settled[-fifth:]) - statistics.median(settled[:fifth])
    if growth > GROWTH_BYTES:
        seen.problems.append(f"memory grew by {growth} bytes")
    memory_mib = [round(rss / 2**20, 1) for rss in seen.rss_bytes]
    quantiles = statistics.quantiles(seen.whole_s, n=20)
    report = {
        "minutes": words.minutes,
        "clients": words.clients,
        "reproducible": words.reproducible,
        "tie_nats": round(tie_of(known), 4),
        "outcomes": dict(seen.outcomes),
        "whole_answer_p50_s": round(statistics.median(seen.whole_s), 3),
        "whole_answer_p95_s": round(quantiles[18], 3),
        "rss_mib": memory_mib[:: max(1, len(memory_mib) // 20)],
        "rss_growth_mib": round(growth / 2**20, 2),
        "problems": seen.problems[:20],
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    raise SystemExit(bool(seen.problems))


if __name__ == "__main__":
    main()
