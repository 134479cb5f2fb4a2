"""A served model: its runtime and its queue.

Prepares requests, and reports how things stand. Knows nothing of HTTP or dialects.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from runtimes.contract import IsCancelled, never_cancelled
from runtimes.errors import UsageError
from runtimes.generation.completion import GenerateOptions
from runtimes.generation.runtime import Runtime
from runtimes.host.limits import resident_bytes
from runtimes.prompts.tokenizer import utf8
from runtimes.server.job_queue import JobQueue
from runtimes.server.metrics import Metrics
from runtimes.server.prompt_budget import fit_prompt
from runtimes.server.request import (
    CompletionRequest,
    IdsPrompt,
    Model,
    PreparedRequest,
    PreparedSequence,
    ServerDefaults,
)
from runtimes.trust.manifest import MANIFEST_NAME, Manifest

MAX_RUNS = 16  # guessed: prompts x choices of one request; more is a batch, not an editor
FRESH_S = 30.0  # guessed: a token as young as this shows that the model answers


class Service:
    """What every dialect uses. Owns its queue, not its runtime."""

    def __init__(
        self,
        runtime: Runtime,
        model: Model,
        defaults: ServerDefaults,
        *,
        queue_jobs: int = 32,
        slots: int = 1,
    ) -> None:
        """slots: sequences that are cached between requests; see Runtime.cache_sequences."""
        self.runtime, self.slots = runtime, slots
        runtime.cache_sequences(slots)
        self.model = model
        self.defaults = defaults
        self.metrics = Metrics()
        self.queue = JobQueue(runtime, self.metrics, queue_jobs)

    def prepare(
        self, request: CompletionRequest, cancelled: IsCancelled = never_cancelled
    ) -> PreparedRequest:
        """Lay the prompts out and encode them; raises UsageError, ContextError, Cancelled.

        May take a moment for a long prompt: not for an event loop's thread.
        """
        if len(request.prompts) * request.choices > MAX_RUNS:
            raise UsageError(
                f"the request asks for {len(request.prompts) * request.choices} completions",
                expected=f"at most {MAX_RUNS}, prompts times choices",
            )
        sequences, budgets = [], []
        for prompt in request.prompts:
            if isinstance(prompt, IdsPrompt):
                self.check_ids(prompt.ids)
            ids, budget = fit_prompt(
                prompt,
                self.runtime.tokenizer,
                self.runtime.special_ids,
                self.runtime.backend.context_tokens,
                request.options.max_tokens,
                request.over_context or self.defaults.over_context,
                self.defaults,
                cancelled,
            )
            budgets.append(budget)
            sequences += [
                PreparedSequence(ids, _choice(request, i), request.scored)
                for i in range(request.choices)
            ]
        return PreparedRequest(request, tuple(sequences), tuple(budgets))

    def tokenize(self, text: str, most: int, cancelled: IsCancelled) -> list[int]:
        """The ids of a text; raises UsageError for more than `most`, Cancelled."""
        tokenizer = self.runtime.tokenizer
        ids: list[int] = []
        if tokenizer.bound.min_tokens(utf8(text)) <= most:
            for part in tokenizer.encode_slices(text, cancelled):
                ids += part
                if len(ids) > most:
                    break
            else:
                return ids
        raise UsageError(
            f"the text has more than {most} tokens", expected="a text that a context can hold"
        )

    def check_ids(self, ids: tuple[int, ...]) -> None:
        """Raise UsageError where an id is none of the tokenizer's."""
        tokens = self.runtime.tokenizer.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < tokens:
            raise UsageError("an id is outside the vocabulary", expected=f"0 to {tokens - 1}")

    @property
    def is_fresh(self) -> bool:
        """Whether a real token has come lately, and no failure since."""
        engine, at = self.queue, self.queue.last_token_at
        young = at is not None and time.monotonic() - at < FRESH_S
        return engine.is_alive and engine.is_healthy and young

    def gauges(self) -> dict[str, tuple[str, float]]:
        """How things stand, for the metrics: name to (help, value)."""
        memory = self.runtime.backend.memory_bytes()
        return {
            "queue_waiting": ("requests that wait", self.queue.waiting_jobs),
            "queue_running": ("requests that run", int(self.queue.is_running)),
            "ready": ("1 if a token has come lately", int(self.is_fresh)),
            "weights_bytes": ("memory, as the engine reports it", memory.weights_bytes),
            "key_values_bytes": ("memory, as the engine reports it", memory.key_values_bytes),
            "compute_bytes": ("memory, as the engine reports it", memory.compute_bytes),
            "resident_bytes": ("memory of this process", resident_bytes()),
        }


def served_model(bundle: Path, manifest: Manifest, runtime: Runtime, name: str | None) -> Model:
    """What to tell about the model of a bundle; `name` in place of its own."""
    licences = manifest.provenance.get("licences") or ()
    file = bundle / MANIFEST_NAME
    return Model(
        name=name or str(manifest.provenance.get("model") or "starcoder2"),
        format=manifest.format,
        recipe=manifest.recipe,
        window_tokens=manifest.window.size_tokens,
        context_tokens=runtime.backend.context_tokens,
        vocab_size=manifest.vocab_size,
        layers=manifest.layers,
        size_bytes=manifest.artifact_bytes,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        modified_s=file.stat().st_mtime,
        token_bytes=runtime.tokenizer.token_bytes,
        licences=tuple(
            (str(path), (bundle / str(path)).read_text(encoding="utf-8", errors="replace"))
            for path in licences
        ),
    )


def _choice(request: CompletionRequest, index: int) -> GenerateOptions:
    """Each choice of a prompt has a seed of its own, the first the one that was asked for."""
    sampling = request.options.sampling
    seed = (sampling.seed + index) % 2**64
    return replace(request.options, sampling=replace(sampling, seed=seed))
