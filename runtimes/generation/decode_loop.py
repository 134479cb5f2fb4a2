"""One request from its first chunk to its last: prefill, choose, check, stop, detokenise.

The loop of the runtime. Knows nothing of other requests; the prefix cache has what they left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtimes.contract import Backend, IsCancelled, never_cancelled
from runtimes.generation.completion import Chunk, Finish, FinishReason, GenerateOptions, Timings
from runtimes.generation.prefix_cache import PrefixCache
from runtimes.generation.prompt_lookup import PromptLookup
from runtimes.generation.sampling import Sampler, TokenLogprobs, token_logprobs
from runtimes.prompts.tokenizer import IndentRule, TextStream, Tokenizer
from runtimes.trust.verify import no_progress

Progress = Callable[[int, int], None]
"""progress(done_tokens, total_tokens) of the prompt: before its first chunk and after each."""

# Guessed. A prompt with a time limit comes in smaller chunks, so that the limit is checked more
# often. That costs some speed, so other prompts come in the backend's own chunks.
TIMED_CHUNK_TOKENS = 128


class Request:
    """The state of one request. `stream` may be called once."""

    def __init__(
        self,
        backend: Backend,
        cache: PrefixCache,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        prompt_ids: Sequence[int],
        options: GenerateOptions,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
    ) -> None:
        self._started = time.perf_counter()
        self._backend = backend
        self._cache = cache
        self._stop_ids = stop_ids
        self._options = options
        self._progress = progress
        self._cancelled = cancelled
        self._ids = list(prompt_ids)  # and what is generated, as it comes
        self._prompt_tokens = len(prompt_ids)
        self._max_tokens = min(options.max_tokens, backend.context_tokens - len(prompt_ids))
        self._stream = TextStream(tokenizer.token_bytes, options.stop)
        self._indent = IndentRule(options.min_indent)
        self._has_line_break = False
        self._sampler = Sampler(options.sampling, prompt_ids, backend.vocab_size)
        self._lookup = PromptLookup(prompt_ids) if options.speculate else None
        self._reason: FinishReason | None = None
        self._reused_tokens = 0
        self._prompt_s = 0.0
        self._first_token_s: float | None = None

    def stream(self) -> Iterator[Chunk | Finish]:
        """Serve the request: chunks, and one Finish at the end."""
        logits = self._take_prompt_in()
        self._prompt_s = self._elapsed_s()
        self._check_end()
        guesses: list[int] = []
        while self._reason is None:
            yield self._choose(logits, guesses)
            if self._reason is None and not self._interrupted():
                self._cache.rewind(len(self._ids) - 1)  # forgets the guesses that were wrong
                guesses = self._guess()
                logits = self._cache.forward([self._ids[-1], *guesses], last_only=not guesses)
        yield self._finish()

    def _take_prompt_in(self) -> np.ndarray:
        """Logits after the prompt, (1, vocab); (0, vocab) where the request ended before."""
        logits = np.empty((0, self._backend.vocab_size), np.float32)
        total = len(self._ids)
        chunk_tokens = self._backend.chunk_tokens
        if self._options.max_prompt_s is not None and not self._cache.in_groups:
            chunk_tokens = min(chunk_tokens, TIMED_CHUNK_TOKENS)
        done = self._reused_tokens = self._cache.keep_prefix(self._ids)
        self._progress(done, total)
        while done < total and not self._interrupted() and not self._prompt_is_late(done):
            logits = self._cache.forward(self._ids[done : done + chunk_tokens])
            done = len(self._cache)
            self._progress(done, total)
        return logits

    def _choose(self, logits: np.ndarray, guesses: Sequence[int]) -> Chunk:
        """Choose an id from each row of `logits` (1 + guesses, vocab) while the guesses hold.

        Row i is what the model says after `guesses[:i]`, so it counts only if the sampler, on its
        own, chose just those.
        """
        text = ""  # of the ids, as far as it is certain
        chosen: list[int] = []
        logprobs: list[TokenLogprobs] = []
        for row, guess in zip(logits, [*guesses, None], strict=True):
            token_id = self._sampler.pick(row)
            if token_id in self._stop_ids:
                self._reason = "stop"
                break
            self._take(token_id)
            chosen.append(token_id)
            piece = self._stream.push(token_id)
            self._has_line_break |= "\n" in piece
            text += self._indent.push(piece)
            if self._options.logprobs is not None:
                logprobs.append(token_logprobs(row, token_id, self._options.logprobs))
            self._check_end()
            if self._reason is not None or token_id != guess:
                break
        return Chunk(text, tuple(chosen), tuple(logprobs))

    def _take(self, token_id: int) -> None:
        if self._first_token_s is None:
            self._first_token_s = self._elapsed_s()
        self._ids.append(token_id)
        if self._lookup is not None:
            self._lookup.append(token_id)

    def _guess(self) -> list[int]:
        """Ids to check along with the last one: no more than can be used, taken in and undone."""
        if self._lookup is None:
            return []
        useful = self._max_tokens - self._generated_tokens - 1
        longest = min(useful, self._backend.chunk_tokens - 1, self._cache.slack_tokens)
        return self._lookup.propose(longest, self._cache.costs)

    @property
    def _generated_tokens(self) -> int:
        return len(self._ids) - self._prompt_tokens

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def _check_end(self) -> None:
        if self._indent.ended:
            self._reason = "indent"
        elif self._stream.stopped_by is not None:
            self._reason = "stop_string"
        elif self._reason is None and self._generated_tokens >= self._max_tokens:
            self._reason = "length"

    def _interrupted(self) -> bool:
        limit_s = self._options.max_time_s
        if self._cancelled():
            self._reason = "cancelled"
        elif (limit_s is not None and self._elapsed_s() >= limit_s) or self._decode_is_late():
            self._reason = "time"
        return self._reason is not None

    def _prompt_is_late(self, done_tokens: int) -> bool:
        """Past max_prompt_s, and further than at the start: at least one chunk is taken in."""
        limit_s = self._options.max_prompt_s
        if limit_s is None or done_tokens == self._reused_tokens or self._elapsed_s() < limit_s:
            return False
        self._reason = "time"
        return True

    def _decode_is_late(self) -> bool:
        limit_s, first_s = self._options.max_decode_s, self._first_token_s
        if limit_s is None or first_s is None or not self._has_line_break:
            return False
        return self._elapsed_s() - first_s >= limit_s

    def _finish(self) -> Finish:
        text = self._indent.push(self._stream.finish()) + self._indent.finish()
        self._check_end()  # what was held back may have been a stop string after all
        assert self._reason is not None, "the loop ends when there is a reason"
        first_s = self._first_token_s
        timings = Timings(
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            generated_tokens=self._generated_tokens,
            prompt_s=self._prompt_s,
            first_token_s=first_s,
            decode_s=0.0 if first_s is None else self._elapsed_s() - first_s,
        )
        return Finish(self._reason, timings, self._stream.stopped_by, text)
