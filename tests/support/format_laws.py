"""What must hold for every format's backend, asked in the same way of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import Reference
from packager.checkpoint.tensors import open_tensors
from packager.core.records import Checkpoint
from packager.measurement.window_proof import proof_sample, prove_window, reach
from runtimes.contract import Backend
from runtimes.errors import RewindError
from runtimes.generation.prefix_cache import PrefixCache
from runtimes.host.limits import resident_bytes
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint

SHAPES = {
    "window-divides-nothing": dict(
        window=37, layers=3, hidden=256, heads=4, kv_heads=2, ffn=512, seed=1
    ),
    "12-heads-per-kv": dict(
        window=24, layers=2, hidden=384, heads=12, kv_heads=1, ffn=256, seed=2, rope_theta=1e5
    ),
    "untied-bf16": dict(
        window=64, layers=2, hidden=256, heads=8, kv_heads=4, ffn=512, seed=3, tied=False,
        dtype="bfloat16", shards=3,
    ),
}  # fmt: skip

Open = Callable[..., Backend]
"""open(checkpoint, context=N, chunk_tokens=N): the backend of a float32 variant of it."""


def logits_of(backend: Backend, ids: np.ndarray, chunk: int) -> np.ndarray:
    """Logits (T, vocab) of ids (T,), taken in `chunk` at a time."""
    parts = [ids[i : i + chunk].tolist() for i in range(0, len(ids), chunk)]
    return np.concatenate([backend.forward(part, last_only=False) for part in parts])


def rms(x: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(x).mean()))


def check_proof(checkpoint: Checkpoint, backend: Backend) -> None:
    """The window proof holds, and clearly: full attention is far away."""
    sample = proof_sample(checkpoint, "def f(x):\n    return x + 1\n" * 200)
    proof = prove_window(Reference(checkpoint, open_tensors(checkpoint)), backend, sample)
    backend.close()
    assert proof.holds
    assert proof.beyond_reach == 0
    assert proof.from_full_nats > 5 * proof.past_nats


def check_reach(folder: Path, open_backend: Open) -> None:
    """The token L(W - 1) back changes the logits; the one before it changes not one bit."""
    shape = dict(window=8, layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, context=256)
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **shape))
    for chunk in (1, 5, 64):
        backend = open_backend(checkpoint, context=256, chunk_tokens=chunk)
        at_reach, beyond = reach(checkpoint, backend)
        backend.close()
        assert at_reach > 0
        assert beyond == 0


# As the published models have it, on a model that is tiny otherwise.
REAL_WINDOW = dict(
    window=4096, layers=2, hidden=128, heads=4, kv_heads=2, ffn=256, context=16_384, seed=6
)
REAL_IDS = np.random.default_rng(6).integers(40, 320, 4700)
SHORT_CALLS = {"1": [1] * 40, "2-63": [2, 3, 7, 16, 31, 32, 62, 63], "blocks": [128, 100, 64]}


def errors_at_a_real_window(backend: Backend, reference: np.ndarray) -> dict[str, list[float]]:
    """Kind of call to the error's root mean square: near the window's end, and past it.

    A generated token is a call of one, a checked guess or a prompt's tail one of a few, and engines
    have other kernels for those than for blocks.
    """
    errors: dict[str, list[float]] = {kind: [] for kind in SHORT_CALLS}
    for start in (3800, 4400):
        for kind, counts in SHORT_CALLS.items():
            backend.rewind(0)
            while backend.position < start:
                end = min(start, backend.position + backend.chunk_tokens)
                backend.forward(REAL_IDS[backend.position : end].tolist())
            found = []
            for count in counts:
                at = backend.position
                logits = backend.forward(REAL_IDS[at : at + count].tolist(), last_only=False)
                found.append(logits - reference[at : at + count])
            errors[kind].append(rms(np.concatenate(found)))
    return errors


def largest(x: np.ndarray) -> float:
    """The largest size of any value."""
    return float(np.abs(x).max())


def check_interrupts(
    backend: Backend,
    ids: np.ndarray,
    reference: np.ndarray,
    computing: tuple[object, str],
    size: Callable[[np.ndarray], float],
    most: float,
) -> None:
    """A call that Ctrl-C ends counts for nothing, and the next ones are right.

    computing: the object and the name of what computes in it. The error's `size` is below `most`.
    """
    compute = getattr(*computing)

    def interrupted(*arguments: object) -> None:
        compute(*arguments)
        raise KeyboardInterrupt  # the ids are in the cache, but nobody has counted them

    for held in (0, 50):
        backend.rewind(0)
        if held:
            backend.forward(ids[:held].tolist())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*computing, interrupted)
            with pytest.raises(KeyboardInterrupt):
                backend.forward(ids[held : held + 20].tolist())
        assert backend.position == held
        logits = backend.forward(ids[held : held + 30].tolist())
        assert size(logits[-1] - reference[held + 29]) < most
    backend.close()


def check_rewinds(checkpoint: Checkpoint, backend: Backend, most_rms: float) -> None:
    """Forward and rewind at random for many windows: like a fresh run of what is held."""
    rng = np.random.default_rng(7)
    held: list[int] = []
    rewound = refused = 0
    while len(held) < 1200:
        count = rng.integers(1, backend.chunk_tokens + 1)
        new = rng.integers(40, checkpoint.geometry.vocab, count).tolist()
        logits = backend.forward(new)
        held += new
        if rewound and rng.random() < 0.05:  # what came since the last rewind, and before it
            expected = eager_logits(checkpoint.path, np.array(held))[-1]
            assert rms(logits[-1] - expected) < most_rms
        if rng.random() < 0.4:
            far = rng.random() < 0.1  # mostly a few ids, at times more than the ring holds
            target = max(0, len(held) - int(rng.integers(1, 400 if far else 12)))
            try:
                backend.rewind(target)
                held = held[:target]
                rewound += 1
            except RewindError:
                refused += 1
    backend.close()
    assert rewound > 30
    assert refused > 0  # the ring did overwrite something, so the law was put to the test


def check_saves(checkpoint: Checkpoint, backend: Backend, *, slack: bool = True) -> None:
    """A saved sequence goes on as if nothing had come between; to the bit.

    slack: what could be rewound can be still; without, that is lost past the window.
    """
    rng = np.random.default_rng(8)
    window = checkpoint.window.size_tokens

    def take(count: int) -> None:
        for start in range(0, count, backend.chunk_tokens):
            size = min(backend.chunk_tokens, count - start)
            backend.forward(rng.integers(40, checkpoint.geometry.vocab, size).tolist())

    for length in (1, window - 1, window, 5 * window + 3):
        backend.rewind(0)
        take(length)
        more = rng.integers(40, checkpoint.geometry.vocab, 3).tolist()
        saved = backend.save()
        position, min_rewind = backend.position, backend.min_rewind
        expected = [backend.forward([i])[-1] for i in more]
        backend.rewind(0)
        take(3 * window)  # another one, which overwrites every cell
        for _ in range(2):  # a copy can be used again
            backend.load(saved)
            assert backend.position == position
            lost = not slack and length > window
            assert min_rewind <= backend.min_rewind <= (position if lost else min_rewind)
            found = [backend.forward([i])[-1] for i in more]
            assert np.array_equal(found, expected)
            backend.rewind(position)
            assert np.array_equal(backend.forward([more[0]])[-1], expected[0])
    backend.close()


def check_same_bits(path: Path, checkpoint: Checkpoint, open_backend: Open) -> None:
    """Prompts in any order, and what is generated after them, as on a fresh backend; to the bit.

    Prompts grow, shrink, change and take turns, and are up to 600 ids long: some windows, and more
    than llama.cpp's ring of 256 cells.
    """
    backend, fresh = (
        open_backend(path, checkpoint, chunk_tokens=16, reproducible=True) for _ in range(2)
    )
    rng, vocab = np.random.default_rng(9), checkpoint.geometry.vocab
    cache, alone = PrefixCache(backend, in_groups=True), PrefixCache(fresh, in_groups=True)
    cache.max_sequences = 3
    texts = rng.integers(40, vocab, (4, 600)).tolist()
    lengths = [150, 300, 450, 600]
    kept_tokens = 0
    for _ in range(40):
        which = rng.integers(len(texts))
        lengths[which] = int(np.clip(lengths[which] + rng.integers(-30, 50), 2, 600))
        wanted = [*texts[which][: lengths[which]], int(rng.integers(40, vocab))]
        kept_tokens += cache.keep_prefix(wanted)
        alone.clear()
        for of in (cache, alone):
            while len(of) < len(wanted):
                logits = of.forward(wanted[len(of) : len(of) + backend.chunk_tokens])
            answers = [logits[-1]] + [of.forward([int(i)])[-1] for i in wanted[:3]]
            if of is cache:
                found = answers
        assert np.array_equal(found, answers)
    assert kept_tokens > 1000
    backend.close()
    fresh.close()


def check_flat_memory(folder: Path, open_backend: Open, key_value_bytes: int) -> None:
    """100,000 positions in the memory of the window, and what comes out is what a fresh run says.

    Far past the window only what it holds matters, since RoPE is relative.
    """
    shape = dict(window=32, layers=1, hidden=64, heads=2, kv_heads=1, ffn=64, context=131_072)
    checkpoint = read_checkpoint(write_checkpoint(folder / "model", **shape))
    backend = open_backend(checkpoint, context=100_000, chunk_tokens=250)
    ids = np.random.default_rng(0).integers(40, 320, 250).tolist()
    for _ in range(4):
        backend.forward(ids)
    before = resident_bytes()
    while backend.position < 100_000:
        logits = backend.forward(ids)
    assert resident_bytes() - before < 8 << 20
    assert abs(backend.memory_bytes().key_values_bytes - key_value_bytes) < 6000
    fresh = open_backend(checkpoint, context=2048, chunk_tokens=250)
    for _ in range(4):
        expected = fresh.forward(ids)
    fresh.close()
    backend.close()
    assert rms(logits - expected) < 0.01
