"""Selection: the best that fits, and for every other one the reason and the least change."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.core.errors import NothingFits, QualityError, UsageError
from packager.core.records import Budget, Interval, Limit, Variant, Workload
from packager.selection.selector import available_bytes
from tests.support.candidates import FINE, GIB, MIDDLE, SMALL, candidate, choose


def test_the_best_quality_wins_and_the_others_say_why_not():
    selection = choose()
    assert selection.chosen is FINE
    assert [r.candidate for r in selection.rejected] == [MIDDLE, SMALL]
    assert selection.rejected[0].reason == "it fits, and gguf-F16 is better in quality"


def test_what_nobody_could_tell_apart_is_decided_by_time():
    twin = candidate("BF16", 5e-4, 6.0, 0.03)
    assert choose((FINE, twin)).chosen is twin


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [("quality", FINE), ("latency", SMALL), ("memory", SMALL), ("throughput", SMALL)],
)
def test_a_preference_comes_before_quality(prefer, chosen):
    assert choose(prefer=prefer).chosen is chosen
    with pytest.raises(UsageError, match="unknown preference"):
        choose(prefer="colour")


@pytest.mark.parametrize(
    ("budget", "memory", "chosen", "limits"),
    [
        (Budget(), 4 * GIB, MIDDLE, {"memory"}),
        (Budget(memory_bytes=3 * GIB), 24 * GIB, MIDDLE, {"memory"}),
        (Budget(memory_reserve_bytes=GIB), 3 * GIB, SMALL, {"memory"}),
        (Budget(per_token_s=Limit(0.03, 0.05)), 24 * GIB, MIDDLE, {"per token"}),
        (Budget(first_token_s=Limit(0.3, 0.4)), 24 * GIB, SMALL, {"first token"}),
        (Budget(completion_s=Limit(0.4, 0.6)), 24 * GIB, SMALL, {"completion"}),
        (Budget(divergence_nats=1e-3), 24 * GIB, FINE, {"quality"}),
        (Budget(agreement=0.99), 24 * GIB, FINE, {"quality"}),
    ],
)
def test_every_limit_decides(budget, memory, chosen, limits):
    selection = choose(budget=budget, memory=memory)
    assert selection.chosen is chosen
    assert {r.limit for r in selection.rejected} <= limits | {"order"}
    assert any(r.limit in limits and r.ratio > 1 for r in selection.rejected)


def test_the_upper_bound_of_an_interval_counts():
    wide = dataclasses.replace(MIDDLE, memory_bytes=Interval(1 * GIB, 2 * GIB, 5 * GIB))
    with pytest.raises(NothingFits, match=r"up to 5\.00 GiB"):
        choose((wide,), memory=4 * GIB)
    slow_tail = dataclasses.replace(MIDDLE, per_token_s=Limit(0.01, 0.9))
    with pytest.raises(NothingFits, match=r"900 ms \(p90\)"):
        choose((slow_tail,), Budget(per_token_s=Limit(0.02, 0.1)))


def test_nothing_fits_lists_the_nearest_miss_first_with_the_least_change():
    def at_context(wanted, tokens):
        memory = 1.5 * GIB + tokens * 65_536
        return dataclasses.replace(wanted, memory_bytes=Interval(memory, memory, memory))

    with pytest.raises(NothingFits) as caught:
        choose(memory=int(1.9 * GIB), at_context=at_context)
    text = str(caught.value)
    assert text.index("gguf-Q4_K_M:") < text.index("gguf-Q8_0:") < text.index("gguf-F16:")
    assert "reduce the context to 4096 tokens, or add 0.10 GiB of memory" in text
    assert [r.candidate for r in caught.value.rejected] == [SMALL, MIDDLE, FINE]


def test_a_time_that_is_missed_says_what_length_would_do():
    work = Workload(prompt_tokens=1000, output_tokens=100, warm_prefix_tokens=200)
    with pytest.raises(NothingFits, match="reduce the new tokens of prompt from 800 to about 400"):
        choose((SMALL,), Budget(workload=work, first_token_s=Limit(0.1, 1.0)))


def test_another_recipe_or_a_smaller_model_is_named_where_one_fits():
    big = candidate("Q4_K_M", None, 9.0, name="7b gguf-Q4_K_M", model="7b", parameters=7)
    selection = choose((FINE, SMALL, big), memory=4 * GIB)
    remedies = {r.candidate.name: r.remedy for r in selection.rejected}
    assert remedies["gguf-F16"].startswith("use gguf-Q4_K_M")
    assert remedies["7b gguf-Q4_K_M"].startswith("use the smaller gguf-Q4_K_M")


def test_the_larger_model_comes_first_and_bits_stand_for_quality_that_is_not_known():
    def planned(model, parameters, bits):
        variant = Variant("gguf", "Q", bits, None)
        return candidate("Q", None, 2.0, model=model, parameters=parameters, variant=variant)

    best = planned("7b", 7, 4.5)
    assert choose((planned("3b", 3, 8.5), best, planned("7b", 7, 4.0))).chosen is best


def test_the_gate_blocks_below_the_floor_and_an_override_is_recorded():
    floor = Budget(divergence_nats=1e-3)
    with pytest.raises(QualityError, match="no artifact passes") as caught:
        choose((SMALL, MIDDLE), floor)
    assert caught.value.exit_code == 4
    selection = choose((SMALL, MIDDLE), floor, accept=["quality"])
    assert selection.chosen is MIDDLE
    assert selection.overrides == (
        "quality: it diverges by 0.002 nats from the checkpoint, and the floor is 0.001",
    )
    assert choose((FINE,), floor, accept=["quality"]).overrides == ()


def test_what_is_not_proved_is_never_chosen():
    lost = dataclasses.replace(FINE, blocked="it does not keep the window")
    assert choose((lost, SMALL)).chosen is SMALL
    with pytest.raises(QualityError, match="does not keep the window"):
        choose((lost,), accept=["quality", "uncalibrated"])


def test_an_estimate_out_of_its_scope_has_to_be_accepted():
    far = dataclasses.replace(SMALL, unreliable="Pascal: published figures differ by 100 %")
    with pytest.raises(NothingFits, match="accept-uncalibrated"):
        choose((far,))
    selection = choose((far,), accept=["uncalibrated"])
    assert selection.overrides == ("uncalibrated: Pascal: published figures differ by 100 %",)


def test_what_has_no_kernel_is_never_accepted():
    lost = dataclasses.replace(SMALL, unsupported="the device has no bfloat16")
    with pytest.raises(NothingFits, match="no bfloat16") as caught:
        choose((lost,), accept=["uncalibrated", "quality"])
    assert "another recipe or device" in str(caught.value.expected)
    assert "accept-uncalibrated" not in str(caught.value.expected)


def test_a_context_that_cannot_be_opened():
    with pytest.raises(NothingFits, match="32768 are wanted"):
        choose(budget=Budget(context_tokens=32_768))


@given(
    st.lists(st.tuples(st.floats(0.5, 8), st.floats(0, 0.1), st.floats(0.001, 0.1)), min_size=1),
    st.floats(0.5, 8),
)
def test_the_chosen_one_fits_and_nothing_that_fits_is_better(rows, gib):
    candidates = [candidate(f"r{i}", n, g, s) for i, (g, n, s) in enumerate(rows)]
    memory = int(gib * GIB)
    fitting = [c for c in candidates if c.memory_bytes.high <= memory]
    try:
        selection = choose(candidates, memory=memory)
    except NothingFits as error:
        assert not fitting and len(error.rejected) == len(candidates)
        return
    assert selection.chosen in fitting
    assert len(selection.rejected) == len(candidates) - 1
    floor = min(max(c.divergence_nats, 1e-3) for c in fitting)
    assert max(selection.chosen.divergence_nats, 1e-3) == floor


def test_available_is_what_is_left_of_the_smaller_limit():
    assert available_bytes(Budget(memory_reserve_bytes=2), 10) == 8
    assert available_bytes(Budget(memory_reserve_bytes=2, memory_bytes=5), 10) == 5
