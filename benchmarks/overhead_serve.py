"""What HTTP adds, and what a warm prefix saves: `python -m benchmarks.overhead_serve BUNDLE`.

The same ids go to the bundle opened in this process and to a server of it in another, in turns:
one token of a prompt that is held already, and a long sampled answer.
HTTP's part per request is the difference of the first, per token that of the second. Then, over
HTTP, the first token of a prompt that is new, of one whose last quarter is, and of one whose last
id is. Medians, and ratios of them, as JSON. HTTP takes the same time before any model, so its
ratios are the worst before one as small as the demo.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.serving import served
from runtimes.bundle.open import OpenOptions, open_bundle
from runtimes.generation.completion import GenerateOptions, join
from runtimes.generation.runtime import Runtime
from runtimes.generation.sampling import Sampling

PROMPT_TOKENS, NEW_TOKENS = 1024, 256  # specified: the workload that latencies are stated for
ANSWER_TOKENS = 256
PLAIN_IDS = range(300, 4000)  # of any StarCoder2 tokenizer: neither control ids nor single bytes
CHANCE = random.Random(3)


class Took(NamedTuple):
    """Seconds to the first event or token and to the end, and how many tokens there were."""

    first_s: float | None
    whole_s: float
    tokens: int


def prompt(tokens: int) -> list[int]:
    """Ids that nobody has asked for yet."""
    return CHANCE.choices(PLAIN_IDS, k=tokens)


def over_http(client: httpx.Client, ids: list[int], tokens: int, seed: int) -> Took:
    """A stream of at most so many tokens."""
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 1, "seed": seed, "stream": True}
    started = time.perf_counter()
    first_s, lines = None, []
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line and first_s is None:
                first_s = time.perf_counter() - started
            lines.append(line)
    whole_s = time.perf_counter() - started
    ends = [json.loads(line[6:]) for line in lines if '"finish_reason":"' in line]
    return Took(first_s, whole_s, ends[0]["starpack"]["timings"][0]["generated_tokens"])


def in_process(runtime: Runtime, ids: list[int], tokens: int, seed: int) -> Took:
    """The same without a server."""
    options = GenerateOptions(max_tokens=tokens, sampling=Sampling(temperature=1.0, seed=seed))
    started = time.perf_counter()
    timings = join(runtime.run(ids, options)).finish.timings
    return Took(timings.first_token_s, time.perf_counter() - started, timings.generated_tokens)


def layer(runtime: Runtime, client: httpx.Client, rounds: int) -> dict[str, object]:
    """Both ways in turns. A model may end early, each way at another token: so per token."""
    ways = {"own": partial(in_process, runtime), "http": partial(over_http, client)}
    request_s: dict[str, list[float]] = {way: [] for way in ways}
    token_s: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(rounds):
        ids = prompt(64)
        for way, ask in ways.items():
            ask(ids, 1, seed)  # from here on the prompt is held
            one = ask(ids, 1, seed)
            many = ask(ids, ANSWER_TOKENS, seed)
            request_s[way].append(one.whole_s)
            if many.tokens > ANSWER_TOKENS // 4:
                token_s[way].append((many.whole_s - one.whole_s) / (many.tokens - 1))
    request = {way: statistics.median(values) for way, values in request_s.items()}
    token = {way: statistics.median(values) for way, values in token_s.items()}
    return {
        "request_ms": 1000 * request["own"],
        "request_added_ms": 1000 * (request["http"] - request["own"]),
        "request_ratio": request["http"] / request["own"],
        "token_ms": 1000 * token["own"],
        "token_added_ms": 1000 * (token["http"] - token["own"]),
        "token_ratio": token["http"] / token["own"],
    }


def warmth(client: httpx.Client, rounds: int) -> dict[str, object]:
    """First tokens over HTTP."""
    cold, warm, hot = [], [], []
    for _ in range(rounds):
        ids = prompt(PROMPT_TOKENS)
        cold.append(over_http(client, ids, 1, 0).first_s)
        ids = ids[:-NEW_TOKENS] + prompt(NEW_TOKENS)
        warm.append(over_http(client, ids, 1, 0).first_s)
        ids = ids[:-1] + prompt(1)
        hot.append(over_http(client, ids, 1, 0).first_s)
    medians = [statistics.median(values) for values in (cold, warm, hot)]
    return {
        "cold_first_token_ms": 1000 * medians[0],
        "last_256_new_over_cold": medians[1] / medians[0],
        "last_one_new_over_cold": medians[2] / medians[0],
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    with (
        served(words.bundle, "--threads", str(words.threads)) as (url, _),
        httpx.Client(base_url=url, timeout=120) as client,
        open_bundle(words.bundle, OpenOptions(threads=words.threads)) as runtime,
    ):
        report = layer(runtime, client, words.rounds) | warmth(client, words.rounds)
    rounded = {name: float(f"{value:.3g}") for name, value in report.items()}
    print(json.dumps({"rounds": words.rounds, "threads": words.threads} | rounded, indent=2))


if __name__ == "__main__":
    main()
