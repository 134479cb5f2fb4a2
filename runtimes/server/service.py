"""A served model: its runtime, its queue, and what both may be asked.

Turns an ask into a plan, and says how things stand. Knows nothing of HTTP or dialects.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from runtimes.errors import UsageError
from runtimes.generation.completion import GenerateOptions
from runtimes.generation.runtime import Runtime
from runtimes.host.limits import resident_bytes
from runtimes.server.job_queue import Engine
from runtimes.server.metrics import Metrics
from runtimes.server.prompt_budget import lay_out
from runtimes.server.request import Ask, IdsPrompt, Model, Plan, Rules, Run
from runtimes.trust.manifest import MANIFEST_NAME, Manifest

MOST_RUNS = 16  # guessed: prompts x choices of one request; more is a batch, not an editor
FRESH_S = 30.0  # guessed: a token as young as this shows that the model answers


class Service:
    """What the dialects stand on. Owns its engine, not its runtime."""

    def __init__(
        self, runtime: Runtime, model: Model, rules: Rules, *, queue_jobs: int = 32, slots: int = 1
    ) -> None:
        """slots: sequences that are cached between requests; see Runtime.cache_sequences."""
        self.runtime, self.slots = runtime, slots
        runtime.cache_sequences(slots)
        self.model = model
        self.rules = rules
        self.metrics = Metrics()
        self.engine = Engine(runtime, self.metrics, queue_jobs)

    def plan(self, ask: Ask) -> Plan:
        """Lay the prompts out and encode them; raises UsageError, ContextError.

        May take a moment for a long prompt: not for an event loop's thread.
        """
        if len(ask.prompts) * ask.choices > MOST_RUNS:
            raise UsageError(
                f"the request asks for {len(ask.prompts) * ask.choices} completions",
                expected=f"at most {MOST_RUNS}, prompts times choices",
            )
        runs, fits = [], []
        for prompt in ask.prompts:
            if isinstance(prompt, IdsPrompt):
                self.check_ids(prompt.ids)
            ids, fit = lay_out(
                prompt,
                self.runtime.tokenizer,
                self.runtime.special_ids,
                self.runtime.backend.context_tokens,
                ask.options.max_tokens,
                ask.over_context or self.rules.over_context,
                self.rules,
            )
            fits.append(fit)
            runs += [Run(ids, _choice(ask, i), ask.scored) for i in range(ask.choices)]
        return Plan(ask, tuple(runs), tuple(fits))

    def check_ids(self, ids: tuple[int, ...]) -> None:
        """Raise UsageError where an id is none of the tokenizer's."""
        tokens = self.runtime.tokenizer.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < tokens:
            raise UsageError("an id is outside the vocabulary", expected=f"0 to {tokens - 1}")

    @property
    def is_fresh(self) -> bool:
        """Whether a real token has come lately, and no failure since."""
        engine, at = self.engine, self.engine.last_token_at
        young = at is not None and time.monotonic() - at < FRESH_S
        return engine.is_alive and engine.is_sound and young

    def gauges(self) -> dict[str, tuple[str, float]]:
        """How things stand, for the metrics: name to (help, value)."""
        memory = self.runtime.backend.memory_bytes()
        return {
            "queue_waiting": ("requests that wait", self.engine.waiting_jobs),
            "queue_running": ("requests that run", int(self.engine.is_running)),
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


def _choice(ask: Ask, index: int) -> GenerateOptions:
    """Each choice of a prompt has a seed of its own, the first the one that was asked for."""
    sampling = ask.options.sampling
    seed = (sampling.seed + index) % 2**64
    return replace(ask.options, sampling=replace(sampling, seed=seed))
