"""Selection: the least divergence that fits, and a reason for every no."""

from __future__ import annotations

import dataclasses
import json

import pytest

from packager.errors import NothingFits, QualityError, UsageError
from packager.records import Budget, Measurement, Speed, Variant, WindowProof
from packager.select import read_budget, select


def measurement(recipe: str, nats: float, memory: int = 100, **speed) -> Measurement:
    proof = WindowProof(32, "32", 512, nats, nats, 1.0, 1.0, 1.0, 62, 1e-3, 0.0, "holds")
    times = dict(first_token_s=0.2, per_token_p50_s=0.01, per_token_p95_s=0.02) | speed
    measured = Speed(2, 1024, 4096, 0.1, *times.values(), 50, 20, 10, memory)
    return Measurement(
        Variant("gguf", recipe, 4.5, None), "0" * 64, 60, "cpu: x", "measured here", proof, measured
    )


FINE, SMALL, FAST = (
    measurement("F16", 1e-6, memory=300),
    measurement("Q4_K_M", 1e-2, memory=100),
    measurement("Q8_0", 1e-3, memory=200, per_token_p95_s=0.005),
)


def test_the_least_divergence_wins_and_the_others_are_explained():
    selection = select([SMALL, FINE, FAST], Budget())
    assert selection.chosen is FINE
    assert [r.variant for r in selection.rejected] == ["gguf-Q8_0", "gguf-Q4_K_M"]
    assert "diverges more: 1.00e-03 nats, not 1.00e-06" in selection.rejected[0].reason


@pytest.mark.parametrize(
    "budget, chosen",
    [
        (Budget(memory_bytes=250), FAST),
        (Budget(memory_bytes=150), SMALL),
        (Budget(per_token_s=0.01), FAST),
        (Budget(divergence_nats=1e-5), FINE),
    ],
)
def test_limits_decide(budget, chosen):
    selection = select([SMALL, FINE, FAST], budget)
    assert selection.chosen is chosen
    assert len({r.variant for r in selection.rejected}) == 2


def test_what_would_make_it_fit_is_said():
    with pytest.raises(NothingFits) as caught:
        select([SMALL], Budget(memory_bytes=10, first_token_s=0.1))
    assert "gguf-Q4_K_M: memory is 100 bytes, the limit 10" in str(caught.value)
    assert "first token is 0.2 s, the limit 0.1" in str(caught.value)


@pytest.mark.parametrize(
    "verdict, message",
    [("fails", "does not keep the window"), ("inconclusive", "too coarse to tell")],
)
def test_what_is_not_proved_is_never_selected(verdict, message):
    proof = dataclasses.replace(SMALL.proof, verdict=verdict)
    with pytest.raises(QualityError, match=message):
        select([FINE, dataclasses.replace(SMALL, proof=proof)], Budget())


def test_a_budget_file_is_read_strictly(tmp_path):
    file = tmp_path / "budget.json"
    file.write_text(json.dumps({"memory_bytes": 5, "per_token_s": 0.5}))
    assert read_budget(file) == Budget(memory_bytes=5, per_token_s=0.5)
    assert read_budget(None) == Budget()
    for text, message in [
        ('{"memory_gb": 5}', "memory_gb"),
        ('{"memory_bytes": -1}', "-1"),
        ('{"memory_bytes": true}', "True"),
        ('{"memory_bytes": NaN}', "nan"),
        ("[1]", "not a JSON object"),
        ("{", "cannot read"),
    ]:
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_budget(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_budget(tmp_path / "none.json")
