"""What HTTP adds, and what a warm prefix saves: `python -m benchmarks.overhead_serve BUNDLE`.

The same ids go to the bundle opened in this process and to a server of it in another, in turns:
one token of a prompt that is held already, and a long sampled answer, the same on either side.
HTTP's part per request is the difference of the first, per token that of the second. Then, over
HTTP, the first token of a prompt that is new, of one whose last quarter is, and of one whose last
id is. Medians, and ratios of them, as JSON; the slower of two engines a model has, the smaller
the ratios, so a model as small as the demo shows the worst of it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import httpx

from benchmarks.serving import served
from runtimes.bundle import open_bundle
from runtimes.completion import GenerateOptions, join
from runtimes.runtime import Runtime
from runtimes.sampling import Sampling

PROMPT_TOKENS, NEW_TOKENS = 1024, 256  # specified: the workload that latencies are stated for
ANSWER_TOKENS = 256
PLAIN_IDS = range(300, 4000)  # of any StarCoder2 tokenizer: neither control ids nor single bytes
CHANCE = random.Random(3)


def prompt(tokens: int) -> list[int]:
    """Ids that nobody has asked for yet."""
    return CHANCE.choices(PLAIN_IDS, k=tokens)


def http_s(client: httpx.Client, ids: list[int], tokens: int, seed: int) -> tuple[float, float]:
    """Seconds to the first event and to the end of a stream of just so many tokens."""
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
    assert ends[0]["starpack"]["timings"][0]["generated_tokens"] == tokens, "it ended early"
    return first_s, whole_s


def own_s(runtime: Runtime, ids: list[int], tokens: int, seed: int) -> float:
    """Seconds of the same in this process."""
    options = GenerateOptions(max_tokens=tokens, sampling=Sampling(temperature=1.0, seed=seed))
    started = time.perf_counter()
    answer = join(runtime.run(ids, options))
    took_s = time.perf_counter() - started
    assert len(answer.ids) == tokens, "it ended early"
    return took_s


def lasting(runtime: Runtime, ids: list[int]) -> int:
    """A seed with which the model does not end before ANSWER_TOKENS."""
    for seed in range(1000):
        options = GenerateOptions(ANSWER_TOKENS, Sampling(temperature=1.0, seed=seed))
        if len(join(runtime.run(ids, options)).ids) == ANSWER_TOKENS:
            return seed
    raise SystemExit("the model always ends early")


def layer(runtime: Runtime, client: httpx.Client, rounds: int) -> dict[str, object]:
    """Both ways in turns."""
    times: dict[str, list[float]] = {name: [] for name in ("one", "one_http", "many", "many_http")}
    for _ in range(rounds):
        ids = prompt(64)
        seed = lasting(runtime, ids)
        http_s(client, ids, 1, seed)  # from here on both hold the prompt
        times["one"].append(own_s(runtime, ids, 1, seed))
        times["one_http"].append(http_s(client, ids, 1, seed)[1])
        times["many"].append(own_s(runtime, ids, ANSWER_TOKENS, seed))
        times["many_http"].append(http_s(client, ids, ANSWER_TOKENS, seed)[1])
    median = {name: statistics.median(values) for name, values in times.items()}
    steps = ANSWER_TOKENS - 1
    own, over_http = ((median[f"many{way}"] - median[f"one{way}"]) / steps for way in ("", "_http"))
    return {
        "request_added_ms": 1000 * (median["one_http"] - median["one"]),
        "request_ratio": median["one_http"] / median["one"],
        "token_ms": 1000 * own,
        "token_added_ms": 1000 * (over_http - own),
        "token_ratio": over_http / own,
        "answer_of_256_ratio": median["many_http"] / median["many"],
    }


def warmth(client: httpx.Client, rounds: int) -> dict[str, object]:
    """First tokens over HTTP."""
    cold, warm, hot = [], [], []
    for _ in range(rounds):
        ids = prompt(PROMPT_TOKENS)
        cold.append(http_s(client, ids, 1, 0)[0])
        ids = ids[:-NEW_TOKENS] + prompt(NEW_TOKENS)
        warm.append(http_s(client, ids, 1, 0)[0])
        ids = ids[:-1] + prompt(1)
        hot.append(http_s(client, ids, 1, 0)[0])
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
        open_bundle(words.bundle, threads=words.threads) as runtime,
    ):
        report = layer(runtime, client, words.rounds) | warmth(client, words.rounds)
    rounded = {name: float(f"{value:.3g}") for name, value in report.items()}
    print(json.dumps({"rounds": words.rounds, "threads": words.threads} | rounded, indent=2))


if __name__ == "__main__":
    main()
