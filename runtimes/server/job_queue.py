"""One thread in front of the model: a fair, bounded queue of jobs, cancelled within a token.

A backend holds one sequence, so jobs run one after the other; what a job's prompt has in common
with what the backend holds is not computed again. Clients take turns: each has a queue of its own,
and after one of its jobs it is behind the others that wait. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from runtimes.errors import (
    BusyError,
    Cancelled,
    StarpackError,
    StoppingError,
    Superseded,
    UsageError,
)
from runtimes.generation.completion import Chunk, Finish, GenerateOptions
from runtimes.generation.runtime import Runtime
from runtimes.generation.sampling import TokenLogprobs
from runtimes.server.metrics import Metrics
from runtimes.server.request import PreparedSequence

logger = logging.getLogger("starpack.serve")

FIRST_JOB_S = 2.0  # guessed: how long a job takes, before one has been measured
SMOOTHING = 0.2  # guessed: weight of the latest job in that figure
PROBE = "probe"  # the client whose jobs have no runs: each asks for one token, as a sign of life

Item = Chunk | Finish | tuple[TokenLogprobs, ...]
"""What a run yields: log-probabilities of its prompt, if wanted; chunks; how it ended."""
SequenceItem = tuple[int, Item]
Event = SequenceItem | Exception | None
"""(run, item); an error, which is the last; None at the end."""


class Job:
    """Sequences that one client has asked for together. `emit` is called by the engine's thread."""

    def __init__(
        self,
        client: str,
        sequences: tuple[PreparedSequence, ...],
        emit: Callable[[Event], None],
        *,
        limit_s: float = math.inf,
        supersede: bool = False,
        name: str = "",
    ) -> None:
        """`client` takes turns with others. `limit_s` is for waiting and running together.

        supersede: take the place of the client's jobs of the same `name`, which it chooses.
        """
        self.client = client
        self.name = name
        self.sequences = sequences
        self.emit = emit
        self.supersede = supersede
        self.asked_at = time.monotonic()
        self.deadline = self.asked_at + limit_s
        self._cancelled: Exception | None = None

    def cancel(self, error: Exception | None = None) -> None:
        """End it after the token, or the chunk of the prompt, that is being computed."""
        self._cancelled = self._cancelled or error or Cancelled("the client went away")

    def replaces(self, older: Job) -> bool:
        """Whether `older` has to give way to this one."""
        return self.supersede and (self.client, self.name) == (older.client, older.name)

    @property
    def cancelled(self) -> Exception | None:
        """Why it was cancelled."""
        return self._cancelled


class JobQueue:
    """The queue and its thread. `start` it, `submit` jobs, `stop` it; the runtime is not closed."""

    def __init__(self, runtime: Runtime, metrics: Metrics, queue_jobs: int) -> None:
        """`queue_jobs` may wait, beside the one that runs."""
        self._runtime = runtime
        self._metrics = metrics
        self.max_waiting = queue_jobs
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by client; next is first
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._job_s = FIRST_JOB_S
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.last_token_at: float | None = None  # time.monotonic(), of the latest token
        self.is_healthy = True  # no failure of the engine since that token

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue, in the place of its client's older ones if it supersedes them.

        Raises BusyError where the queue is full, StoppingError.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError("the server is being stopped")
            replaced = [older for older in self._waiting.get(job.client, ()) if job.replaces(older)]
            if job.client != PROBE:
                self.check_capacity(len(replaced))
            queue = self._waiting.setdefault(job.client, deque())
            for older in replaced:
                queue.remove(older)
            queue.append(job)
            if self._running is not None and job.replaces(self._running):
                self._running.cancel(_superseded())
            self._changed.notify()
        for older in replaced:
            older.emit(_superseded())

    def check_capacity(self, replaced_jobs: int = 0) -> None:
        """Raise BusyError where the queue is full, but for those jobs that are to be replaced."""
        if self.waiting_jobs - replaced_jobs >= self.max_waiting:
            raise BusyError(
                f"{self.waiting_jobs} requests are waiting already",
                retry_after_s=self._retry_after_s(),
                remedy="try again later, or start the server with a longer --queue",
            )

    def withdraw(self, job: Job) -> None:
        """Cancel `job`; if it still waits it leaves the queue at once."""
        with self._changed:
            job.cancel()
            queue = self._waiting.get(job.client, deque())
            if job in queue:
                queue.remove(job)
                if not queue:
                    del self._waiting[job.client]

    @property
    def waiting_jobs(self) -> int:
        """How many wait, whoever's they are."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    @property
    def is_running(self) -> bool:
        """Whether a job sequences now."""
        return self._running is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there to take jobs."""
        return self._thread.is_alive() and not self._stopping

    def _probe_run(self) -> PreparedSequence:
        """One token that goes on from what the engine holds, and so disturbs nobody's prefix."""
        held = self._runtime.held_ids[: self._runtime.backend.context_tokens - 1]
        options = GenerateOptions(max_tokens=1, speculate=False)
        return PreparedSequence(held or (self._runtime.special_ids.endoftext,), options)

    def stop(self, patience_s: float) -> None:
        """Refuse what waits, cancel what sequences, and wait for the thread, but not for ever."""
        with self._changed:
            self._stopping = True
            refused = [job for queue in self._waiting.values() for job in queue]
            self._waiting.clear()
            if self._running is not None:
                self._running.cancel(StoppingError("the server was stopped"))
            self._changed.notify()
        for job in refused:
            job.emit(StoppingError("the server was stopped"))
        if self._thread.ident is not None:
            self._thread.join(patience_s)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = time.monotonic()
            self._metrics.waited(started - job.asked_at)
            try:
                self._serve(job)
            finally:
                with self._changed:
                    self._running = None
                    self._job_s += SMOOTHING * (time.monotonic() - started - self._job_s)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            client, queue = self._waiting.popitem(last=False)
            self._running = queue.popleft()
            if queue:
                self._waiting[client] = queue  # behind the others
            return self._running

    def _serve(self, job: Job) -> None:
        """Run a job to its end; whatever happens, its last event says so."""
        try:
            if time.monotonic() >= job.deadline:
                raise BusyError(
                    "the request waited for longer than it may take",
                    retry_after_s=self._retry_after_s(),
                )
            sequences = (self._probe_run(),) if job.client == PROBE else job.sequences
            for i, sequence in enumerate(sequences):
                for event in self._compute(job, sequence):
                    job.emit((i, event))
                if job.cancelled is not None:
                    raise job.cancelled
            job.emit(None)
        except (Cancelled, BusyError, StoppingError, UsageError) as error:  # no fault of the engine
            job.emit(error)
        except Exception as error:
            self.is_healthy = False  # until a token has come again
            self._metrics.engine_error()
            if not isinstance(error, StarpackError):
                logger.exception("the engine failed")
                error = StarpackError("the engine failed", remedy="see the server's log")
            job.emit(error)

    def _compute(self, job: Job, sequence: PreparedSequence) -> Iterator[Item]:
        def cancelled() -> bool:
            return job.cancelled is not None

        if sequence.scored:
            yield self._scores(job, sequence)
        options = _within(sequence.options, job.deadline - time.monotonic())
        started = last = time.monotonic()
        is_first = True
        for item in self._runtime.run(sequence.ids, options, cancelled=cancelled):
            now = time.monotonic()
            if isinstance(item, Chunk) or item.reason == "stop":  # a control id is a token, too
                self.last_token_at, self.is_healthy = now, True
            if isinstance(item, Finish):
                timings = item.timings
                self._metrics.run(
                    timings.prompt_tokens, timings.reused_tokens, timings.generated_tokens
                )
            elif item.ids:
                if is_first:
                    self._metrics.first_token(now - started)
                    is_first = False
                else:
                    self._metrics.tokens(now - last, len(item.ids))
                last = now
            yield item

    def _scores(self, job: Job, sequence: PreparedSequence) -> tuple[TokenLogprobs, ...]:
        def ended() -> bool:
            return job.cancelled is not None or time.monotonic() >= job.deadline

        top = sequence.options.logprobs or 0
        try:
            return tuple(self._runtime.token_scores(sequence.ids, top, cancelled=ended))
        except Cancelled as error:
            raise job.cancelled or BusyError(
                "the log-probabilities of the prompt take longer than a request may",
                retry_after_s=self._retry_after_s(),
                remedy="ask for fewer choices of a shorter prompt",
            ) from error

    def _retry_after_s(self) -> int:
        """An estimate of when a place is free: the jobs before it, at the recent pace."""
        return max(1, math.ceil(self._job_s * (self.waiting_jobs + self.is_running)))


def _within(options: GenerateOptions, left_s: float) -> GenerateOptions:
    """`options`, to end in `left_s` at the latest."""
    if left_s == math.inf:
        return options
    limit_s = min(max(left_s, 1e-3), options.max_time_s or math.inf)
    return replace(options, max_time_s=limit_s)


def _superseded() -> Superseded:
    return Superseded("a newer request of the same client has taken this one's place")
