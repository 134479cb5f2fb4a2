"""From measurements and estimates to what selection compares, and to words."""

from __future__ import annotations

import dataclasses

import pytest

from packager.cli.formatting import measurement_text, selection_text
from packager.core.records import Limit
from packager.core.results import CallFigures, OutOfMemory
from packager.selection.candidates import of_estimate, of_measurement
from tests.support.candidates import ALL, candidate, choose
from tests.support.candidates import GIB as ONE_GIB
from tests.support.samples import ESTIMATE, GIB, MEASUREMENT, PROOF


def of(measurement):
    return of_measurement(measurement, parameters=5, context_tokens=4096)


def test_measured_figures_count_where_there_are_some():
    found = of(MEASUREMENT)
    assert found.evidence == "measured here"
    assert found.memory_bytes.high == 3 * GIB
    assert found.first_token_s == Limit(pytest.approx(0.15), pytest.approx(0.19))
    assert found.per_token_s.p50 == pytest.approx(0.04)  # at the first depth not below the prompt
    assert found.divergence_nats == 0.06 and found.agreement == 0.90  # the worse of inside and past
    assert found.unreliable is None


def test_an_estimate_stands_in_for_a_device_that_is_elsewhere():
    found = of(dataclasses.replace(MEASUREMENT, speed=None))
    assert found.evidence == "specification"
    assert found.memory_bytes == ESTIMATE.memory_bytes
    assert found.per_token_s == Limit(0.03, 0.04)  # the upper bound
    assert found.divergence_nats == 0.06  # still measured
    assert found.unreliable == ESTIMATE.unreliable
    planned = of_estimate(ESTIMATE, parameters=5)
    assert planned.name == "demo gguf-Q4_K_M"
    assert planned.divergence_nats is None


def test_running_out_of_memory_never_fits_what_there_was():
    failed = dataclasses.replace(
        MEASUREMENT, speed=None, out_of_memory=OutOfMemory(GIB, 2 * GIB, "it was ended")
    )
    found = of(failed)
    assert found.memory_bytes.low > 2 * GIB
    assert found.per_token_s is None
    assert "needed more than 1.00 GiB, had 2.00 GiB" in measurement_text(failed)


@pytest.mark.parametrize(
    "verdict, message",
    [("holds", ""), ("fails", "does not keep the window"), ("inconclusive", "too coarse to tell")],
)
def test_what_is_not_proved_is_blocked(verdict, message):
    proof = dataclasses.replace(PROOF, verdict=verdict)
    blocked = of(dataclasses.replace(MEASUREMENT, proof=proof)).blocked
    assert message in blocked and bool(blocked) == bool(message)


def test_an_engine_that_generates_less_exactly_than_it_reads_is_blocked_for_that():
    calls = (CallFigures("1", 4096, 7e-4, 7e-7), CallFigures("2 to 63", 4096, 7e-7, 7e-7))
    proof = dataclasses.replace(PROOF, verdict="fails", calls=calls)
    blocked = of(dataclasses.replace(MEASUREMENT, proof=proof)).blocked
    assert "7.00e-04 nats in calls of 1, 7.00e-07 in a block" in blocked


def test_an_artifact_of_no_use_is_blocked_with_its_reason():
    failed = dataclasses.replace(
        MEASUREMENT, proof=None, quality=None, speed=None, estimate=ESTIMATE, failure="no numbers"
    )
    assert (of(failed).blocked, of(failed).divergence_nats) == ("no numbers", None)
    assert "of no use      no numbers" in measurement_text(failed)


def test_a_measurement_in_words():
    text = measurement_text(MEASUREMENT)
    for part in (
        "gguf-Q4_K_M for card",
        "window proof   holds over 768 positions",
        "perplexity 9.10 (checkpoint 9.00)",
        "10% of 20 exact (checkpoint 15%), 80% as the checkpoint fills them",
        "first token    150 ms to 190 ms for 1024 tokens, 768 of them warm",
        "after 1024 tokens",
        "-25% from the measured time per token",
    ):
        assert part in text


def test_a_selection_in_words():
    selection = choose(ALL, memory=4 * ONE_GIB)
    text = selection_text(selection, explain=False)
    assert text.startswith("chosen for card, budget none, by quality: gguf-Q8_0")
    assert "not gguf-F16: it takes up to 6.00 GiB of memory, and 4.00 GiB is there" in text
    assert "To make it fit: use gguf-Q8_0; or add 2.00 GiB of memory" in text
    many = [candidate(f"r{i}", 0.01 * i, 1.0) for i in range(30)]
    assert "more: see --explain" in selection_text(choose(many), explain=False)
    assert "more: see" not in selection_text(choose(many), explain=True)
