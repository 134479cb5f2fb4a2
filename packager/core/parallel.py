"""Independent pieces of work on every core, with a bounded number of them in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def results_in_order(jobs: Iterable[Callable[[], Result]]) -> Generator[Result, None, None]:
    """Run `jobs` and give what they return, in their order; at most two a core are waiting.

    For jobs that leave the interpreter lock to others. Close it (contextlib.closing) before what
    the jobs work on: then no job runs any more, however the loop over it ended.
    """
    workers = len(os.sched_getaffinity(0))
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
