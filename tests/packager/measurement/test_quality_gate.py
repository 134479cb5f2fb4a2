"""The gate's figures: nothing lost reads as nothing lost, and what is lost shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import Reference
from packager.checkpoint.tensors import open_tensors
from packager.core.errors import UsageError
from packager.core.settings import SampleSize
from packager.formats.gguf import format as gguf
from packager.measurement.infill_samples import builtin_texts
from packager.measurement.quality_gate import assess, wilson
from tests.support.gguf_models import open_backend
from tests.support.reference import eager_logits
from tests.support.tiny import write_checkpoint

SAMPLE_SIZE = SampleSize(text_tokens=512, block_tokens=96, samples_per_kind=4, middle_tokens=96)


class Changed:
    """A backend whose logits are changed by `change`."""

    def __init__(self, backend, change):
        self.backend, self.change = backend, change

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def forward(self, ids, last_only=True):
        return self.change(self.backend.forward(ids, last_only))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    return read_checkpoint(write_checkpoint(folder, window=96, context=8192, layers=1))


@pytest.fixture(scope="module")
def reference(checkpoint):
    return Reference(checkpoint, open_tensors(checkpoint))


@pytest.fixture(scope="module")
def backend(checkpoint, tmp_path_factory):
    """Float32 weights: what llama.cpp itself rounds is some 1e-7 nats."""
    path = tmp_path_factory.mktemp("gguf") / "f32"
    gguf.convert(checkpoint, gguf.variant("F32"), path)
    opened = open_backend(path, checkpoint, context=8192, flash_attention=False)
    yield opened
    opened.close()


def test_float32_loses_nothing(reference, backend):
    quality = assess(reference, backend, builtin_texts(), SAMPLE_SIZE)
    for score in (quality.inside, quality.past):
        assert score.mean_nats < 1e-5 and score.p99_nats < 1e-4
        assert score.agreement.middle > 0.99
        assert score.perplexity == pytest.approx(score.reference_perplexity, rel=1e-3)
    assert quality.past.positions >= 512
    assert {h.kind for h in quality.fim} == {"single-line", "multi-line", "random-span"}
    assert (
        sum(score.same_as_checkpoint for score in quality.fim) > 2.5
    )  # of 3; a tie may go either way
    for score in quality.fim:
        assert score.exact == score.reference_exact
        assert 0 <= score.similarity < 1


def test_other_choices_show_in_every_figure(reference, backend):
    quality = assess(reference, Changed(backend, np.negative), builtin_texts(), SAMPLE_SIZE)
    assert quality.divergence_nats > 1
    assert quality.agreement < 0.05
    assert quality.inside.perplexity > quality.inside.reference_perplexity
    assert all(score.same_as_checkpoint == 0 for score in quality.fim)


def test_figures_by_hand(checkpoint, reference, backend):
    """Perplexity and divergence against a plain computation with transformers."""
    even = Changed(backend, np.zeros_like)
    quality = assess(reference, even, builtin_texts(), SAMPLE_SIZE)
    assert quality.inside.perplexity == pytest.approx(checkpoint.geometry.vocab)
    text = dict(builtin_texts())["inventory.py"]
    one = assess(reference, even, [("inventory.py", text)], SAMPLE_SIZE)
    tokenizer_ids = [0, *_encode(checkpoint, text)][:96]
    logits = eager_logits(checkpoint.path, np.array(tokenizer_ids)).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(np.exp(logits[:-1]) * logits[:-1]).sum(-1)
    expected = math.log(checkpoint.geometry.vocab) - entropy
    assert one.inside.mean_nats == pytest.approx(expected.mean(), rel=1e-4)
    losses = -logits[np.arange(95), tokenizer_ids[1:]]
    assert one.inside.reference_perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-4)


def _encode(checkpoint, text):
    from runtimes.prompts.tokenizer import Tokenizer

    return Tokenizer(checkpoint.path / "tokenizer.json", checkpoint.special_ids).encode(text)


def test_wilsons_interval():
    # by hand, at 95 %: the known values for 8 of 10 and for 0 of 10
    assert wilson(8, 10).low == pytest.approx(0.4902, abs=1e-4)
    assert wilson(8, 10).high == pytest.approx(0.9433, abs=1e-4)
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)


def test_no_text_is_an_error(reference, backend):
    with pytest.raises(UsageError, match="no text"):
        assess(reference, backend, [("a.py", "")], SAMPLE_SIZE)
