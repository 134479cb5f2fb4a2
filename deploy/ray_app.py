"""A Ray Serve application: what `run serve` serves, from one bundle, as replicas on many machines.

    serve run deploy.ray_app:build bundle=/opt/starcoder2/bundle threads=8 most_replicas=4

Each replica opens the bundle by itself, so the path must be there on every node, and has a queue
of its own. Ray starts and stops replicas with the load, sends requests to the least busy, and
replaces a replica that no longer gives tokens. See README.md beside this file.
"""

from __future__ import annotations

import os
from pathlib import Path

from ray import serve

from runtimes.bundle.open import OpenOptions, open_bundle
from runtimes.errors import UsageError
from runtimes.server.app import PROBE_S, Settings, create_app
from runtimes.server.http.guard import Access
from runtimes.server.job_queue import PROBE
from runtimes.server.request import ServerDefaults
from runtimes.server.service import Service, served_model
from runtimes.server.stream import JobStream
from runtimes.trust.manifest import read_manifest

KEY_VARIABLE = "STARPACK_API_KEY"
QUEUE_JOBS = 32  # as `run serve`: past it, 429 and Retry-After
# Guessed: more than one request at a replica means that somebody waits, so another is worth its
# memory. Ray itself may pass on as many as the queue holds, or its own 503 would come before 429.
TARGET_REQUESTS = 2
MAX_REQUESTS = QUEUE_JOBS + TARGET_REQUESTS


@serve.deployment(
    max_ongoing_requests=MAX_REQUESTS,
    health_check_period_s=10,
    health_check_timeout_s=2 * PROBE_S,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class Bundle:
    """One replica."""

    def __init__(self, bundle: str, threads: int, keys: tuple[str, ...]) -> None:
        folder = Path(bundle)
        self._runtime = open_bundle(folder, OpenOptions(threads=threads))
        model = served_model(folder, read_manifest(folder), self._runtime, None)
        self._service = Service(self._runtime, model, ServerDefaults(), queue_jobs=QUEUE_JOBS)
        self._settings = Settings(access=Access(keys))

    def __serve_build_asgi_app__(self) -> object:
        """The application; Ray runs its lifespan, which starts the engine and stops it."""
        return create_app(self._service, self._settings)

    async def check_health(self) -> None:
        """Healthy is a replica with a real token to show; an error makes Ray replace it."""
        if not self._service.is_fresh:
            async with JobStream(self._service.queue, PROBE, (), limit_s=PROBE_S) as talk:
                while await talk.next() is not None:
                    pass


def build(arguments: dict[str, str]) -> serve.Application:
    """The application of `bundle=FOLDER`, and of `threads`, `least_replicas`, `most_replicas`."""
    allowed = {"bundle", "threads", "least_replicas", "most_replicas"}
    if "bundle" not in arguments or arguments.keys() - allowed:
        raise UsageError(
            f"the arguments are {sorted(arguments)}", expected="bundle, and of " + str(allowed)
        )
    keys = tuple(os.environ.get(KEY_VARIABLE, "").split())
    if not keys:
        raise UsageError(
            "anybody who reaches the cluster could use the model", remedy=f"set {KEY_VARIABLE}"
        )
    threads = int(arguments.get("threads", 1))
    scaling = {
        "min_replicas": int(arguments.get("least_replicas", 1)),
        "max_replicas": int(arguments.get("most_replicas", 1)),
        "target_ongoing_requests": TARGET_REQUESTS,
    }
    options = {"num_cpus": threads}
    replica = Bundle.options(autoscaling_config=scaling, ray_actor_options=options)
    return replica.bind(arguments["bundle"], threads, keys)
