"""Prompt in, completion out: everything that does not depend on the format, once for all formats.

Builds prompts, lets one request at a time at the backend, and answers. Knows nothing of files,
bundles or engines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from runtimes.backends.call_costs import Clock, RowCosts
from runtimes.contract import Backend, IsCancelled, SpecialIds, never_cancelled
from runtimes.errors import Cancelled, ContextError, IntegrityError, UsageError
from runtimes.generation.completion import (
    DEFAULTS,
    Chunk,
    Completion,
    Finish,
    GenerateOptions,
    Timings,
    join,
)
from runtimes.generation.decode_loop import Progress, Request
from runtimes.generation.prefix_cache import PrefixCache
from runtimes.generation.sampling import TokenLogprobs, token_logprobs
from runtimes.prompts.fim import NO_CONTEXT, Context, generate_ids, infill_ids
from runtimes.prompts.tokenizer import Tokenizer
from runtimes.trust.verify import no_progress

__all__ = ["Chunk", "Completion", "Finish", "GenerateOptions", "Runtime", "Timings"]


class Runtime:
    """An open model. Owns its backend; close it, or use it in a `with` block.

    One request at a time: a lock makes the requests of other threads wait. A stream takes it with
    its first chunk and holds it until it is exhausted or closed; another request by the thread
    that holds it would wait for ever, so it is a UsageError. However a request ends (an error,
    KeyboardInterrupt, a stream closed early), the next one starts from a valid state.

    Law: ids and text depend on the prompt and the options, never on earlier requests, on how the
    prompt was chunked, or on speculation. It holds to the bit where the engine gives equal logits
    however ids are grouped into calls; most round differently for different groups, which can
    turn a choice between two ids that are all but equal. With speculation the groups follow what
    calls take, so such a choice may fall otherwise the next time. `reproducible` holds those to it
    too: ids always come in the same groups, for which nothing is guessed, and of earlier requests
    only full chunks of their prompts are reused.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        special_ids: SpecialIds,
        reproducible: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        """`clock` times forward calls; the length of guesses follows from it.

        A `reproducible` runtime needs a backend that was opened so. Raises IntegrityError where the
        tokenizer has ids that the model lacks.
        """
        if tokenizer.vocab_size > backend.vocab_size:
            raise IntegrityError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {backend.vocab_size}",
                expected="no more tokens than the model has",
                remedy="use the tokenizer.json that came with the checkpoint",
            )
        self.backend = backend
        self.tokenizer = tokenizer
        self.special_ids = special_ids
        self.reproducible = reproducible
        self._cache = PrefixCache(backend, reproducible, RowCosts(clock))
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread that took the lock
        self._closed = False

    def generate(
        self,
        prompt: str,
        options: GenerateOptions = DEFAULTS,
        context: Context = NO_CONTEXT,
        *,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
    ) -> Completion:
        """Continue `prompt`. Errors as in `run`."""
        return join(
            self.stream_generate(prompt, options, context, progress=progress, cancelled=cancelled)
        )

    def stream_generate(
        self,
        prompt: str,
        options: GenerateOptions = DEFAULTS,
        context: Context = NO_CONTEXT,
        *,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
    ) -> Iterator[Chunk | Finish]:
        """Law: `join(stream_generate(...)) == generate(...)`, but for the timings."""
        ids = generate_ids(self.tokenizer.encode, self.special_ids, prompt, context)
        return self.run(ids, options, progress=progress, cancelled=cancelled)

    def infill(
        self,
        prefix: str,
        suffix: str,
        options: GenerateOptions = DEFAULTS,
        context: Context = NO_CONTEXT,
        *,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
    ) -> Completion:
        """What goes between `prefix` and `suffix`. Errors as in `run`."""
        return join(
            self.stream_infill(
                prefix, suffix, options, context, progress=progress, cancelled=cancelled
            )
        )

    def stream_infill(
        self,
        prefix: str,
        suffix: str,
        options: GenerateOptions = DEFAULTS,
        context: Context = NO_CONTEXT,
        *,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
    ) -> Iterator[Chunk | Finish]:
        """Law: `join(stream_infill(...)) == infill(...)`, but for the timings."""
        ids = infill_ids(self.tokenizer.encode, self.special_ids, prefix, suffix, context)
        return self.run(ids, options, progress=progress, cancelled=cancelled)

    def run(
        self,
        ids: Sequence[int],
        options: GenerateOptions = DEFAULTS,
        *,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
    ) -> Iterator[Chunk | Finish]:
        """Continue `ids`: what all the others come down to. Generation starts with the first chunk.

        Raises at once UsageError for an empty prompt or an id outside the vocabulary, and
        ContextError for a prompt that fills the context; with the first chunk UsageError for a
        runtime that is closed, or busy in this thread; later whatever the engine meets.
        """
        self._check_prompt(ids, options)
        if self.reproducible:
            options = replace(options, speculate=False)
        return self._serve(list(ids), options, progress, cancelled)

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Natural log-probability of each id but the first, given those before; float64 (T-1,)."""
        return np.array([entry.logprob for entry in self.token_scores(ids)], np.float64)

    def token_scores(
        self, ids: Sequence[int], top: int = 0, *, cancelled: IsCancelled = never_cancelled
    ) -> list[TokenLogprobs]:
        """As `score`, with the `top` likeliest ids at each place; raises Cancelled."""
        self._check_prompt(ids, GenerateOptions(max_tokens=0))
        result: list[TokenLogprobs] = []
        with self._alone():
            self._cache.clear()
            for start in range(0, len(ids) - 1, self.backend.chunk_tokens):
                if cancelled():
                    raise Cancelled("scoring was cancelled")
                chunk = list(ids[start : start + self.backend.chunk_tokens])
                rows = self._cache.forward(chunk, last_only=False)  # (chunk, vocab)
                following = ids[start + 1 : start + 1 + len(chunk)]
                # the last id may be in the chunk: nothing follows it
                for row, next_id in zip(rows[: len(following)], following, strict=True):
                    result.append(token_logprobs(row, next_id, top))
        return result

    def cache_sequences(self, count: int) -> None:
        """Keep `count` sequences between requests; each takes as much memory as the KV cache.

        Where the backend cannot copy a sequence, the last one alone is kept.
        """
        self._cache.max_sequences = count

    @property
    def saved_tokens(self) -> tuple[int, ...]:
        """Lengths of the sequences that are kept beside the last one."""
        return self._cache.saved_tokens

    @property
    def held_ids(self) -> tuple[int, ...]:
        """What the backend holds: as much of the next prompt as agrees with it costs nothing."""
        return self._cache.ids

    @property
    def row_costs(self) -> RowCosts:
        """What forward calls of this model have taken here."""
        return self._cache.costs

    def close(self) -> None:
        """Give the model's memory back, after any request of another thread. Safe to call twice."""
        if self._holder == threading.get_ident():  # a stream of ours that nobody will finish
            self._close()
        else:
            with self._lock:
                self._close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self.backend.close()

    def _serve(
        self,
        ids: list[int],
        options: GenerateOptions,
        progress: Progress,
        cancelled: IsCancelled,
    ) -> Iterator[Chunk | Finish]:
        with self._alone():
            request = Request(
                self.backend,
                self._cache,
                self.tokenizer,
                self.special_ids.stops,
                ids,
                options,
                progress,
                cancelled,
            )
            for item in request.stream():
                yield item
                self._check_open()  # it may have been closed while the stream was waiting

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock, and the model open."""
        if self._holder == threading.get_ident():
            raise UsageError(
                "this thread has a stream open, and the model serves one request at a time",
                remedy="exhaust or close the stream first",
            )
        with self._lock:
            self._check_open()
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed", remedy="open the bundle again")

    def _check_prompt(self, ids: Sequence[int], options: GenerateOptions) -> None:
        if len(ids) == 0:
            raise UsageError(
                "the prompt is empty", remedy="give at least one character, or a repository's name"
            )
        vocab_size = self.backend.vocab_size
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise UsageError("an id is outside the vocabulary", expected=f"0 to {vocab_size - 1}")
        context = self.backend.context_tokens
        available = context - min(1, options.max_tokens)
        if len(ids) > available:
            raise ContextError(
                f"the prompt has {len(ids)} tokens",
                expected=f"at most {available}, in a context of {context} tokens",
                remedy="send less, or open the model with a larger context",
            )
