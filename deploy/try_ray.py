"""Try the Ray application on a cluster of this machine alone: `make test-ray`.

Two nodes, each a raylet with its own workers, on ports of the loopback interface. Two replicas
that fit on no node together: requests come from both, with the answer of the bundle opened here;
more load makes more replicas; a client that goes away ends its request; a replica that dies is
replaced. Prints what it saw; an assertion that fails ends it with code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import HTTPOptions

from deploy.ray_app import KEY_VARIABLE, build
from runtimes.bundle.open import OpenOptions, open_bundle
from runtimes.generation.completion import GenerateOptions

PROMPTS = [f"def function_{i}(x):\n    return" for i in range(24)]
TOKENS = 24
PATIENCE_S = 180  # guessed: Ray waits 30 s before it adds a replica, and a replica starts in 10
LONG = {"prompt": "import os\n", "max_tokens": 1000, "stream": True, "seed": 1, "temperature": 1}


def main() -> None:
    """Everything, on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=8799)
    words = parser.parse_args()
    key = os.environ[KEY_VARIABLE] = secrets.token_urlsafe(32)
    options = GenerateOptions(max_tokens=TOKENS)
    with open_bundle(words.bundle, OpenOptions(threads=1)) as runtime:
        expected = [runtime.generate(prompt, options).text for prompt in PROMPTS]
    small = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=words.port))
        arguments = {"bundle": str(words.bundle.resolve()), "most_replicas": "2"}
        serve.run(build(arguments), name="starpack", route_prefix="/")
        base = f"http://127.0.0.1:{words.port}"
        headers = {"authorization": f"Bearer {key}"}
        print(json.dumps(asyncio.run(_try(base, headers, expected)), indent=2))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


async def _try(base: str, headers: dict[str, str], expected: list[str]) -> dict[str, object]:
    """What was seen."""
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=120) as client:
        assert (await client.post("/v1/completions", json={}, headers={"authorization": ""})
                ).status_code == 401  # fmt: skip
        assert (await client.get("/ready")).json() == {"status": "ready"}
        alone = _running()
        await _all_right(client, expected[:4])
        # enough at a time, for long enough, that a second replica is started
        await _until(lambda: _running() == 2, lambda: _all_right(client, expected))
        both = _running()
        await _all_right(client, expected)
        started = time.monotonic()
        await client.post("/v1/completions", json=LONG)
        whole_s = time.monotonic() - started
        gone_s = await _goes_away(client)
        victim = _actors()[0]
        ray.kill(ray.get_actor(victim, namespace="serve"))
        some = PROMPTS[:8]  # what is on its way to a replica that dies may fail
        await _until(
            lambda: victim not in _actors() and _running() == 2,
            lambda: asyncio.gather(*(_ask(client, prompt) for prompt in some)),
        )
        await _all_right(client, expected)
    return {
        "ray": ray.__version__,
        "nodes": len(ray.nodes()),  # of one processor each, which is what a replica takes
        "replicas_before_and_under_load": [alone, both],
        "a_long_stream_s": round(whole_s, 2),
        "free_after_four_of_them_were_left_s": round(gone_s, 2),
        "replaced_after_a_kill": True,
        "answers_equal_to_the_bundle_alone": True,
    }


async def _until(true: Callable[[], bool], load: Callable[[], Awaitable[object]]) -> None:
    ended = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ended, "it did not happen in time"
        await load()


async def _ask(client: httpx.AsyncClient, prompt: str) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": TOKENS}
    return await client.post("/v1/completions", json=body)


async def _all_right(client: httpx.AsyncClient, expected: list[str]) -> None:
    answers = await asyncio.gather(*(_ask(client, prompt) for prompt in PROMPTS[: len(expected)]))
    assert [a.status_code for a in answers] == [200] * len(answers), [a.text for a in answers]
    assert [a.json()["choices"][0]["text"] for a in answers] == expected


async def _goes_away(client: httpx.AsyncClient) -> float:
    """Leave streams at their first event; seconds until every replica has nothing to do."""
    for _ in range(4):
        async with client.stream("POST", "/v1/completions", json=LONG) as stream:
            await anext(stream.aiter_lines())
    started = time.monotonic()
    body = {"prompt": PROMPTS[0], "max_tokens": 1}
    answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(4)))
    assert all(answer.status_code == 200 for answer in answers)
    return time.monotonic() - started


def _running() -> int:
    """How many replicas take requests."""
    states = serve.status().applications["starpack"].deployments["Bundle"].replica_states
    return states.get("RUNNING", 0)


def _actors() -> list[str]:
    """The replicas' actors, those that are being started included."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in named if "#Bundle#" in actor["name"])


if __name__ == "__main__":
    main()
