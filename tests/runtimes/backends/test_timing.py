"""One way to time: for doctor and bench, before packing and for a device's calibration."""

from __future__ import annotations

from runtimes.backends.timing import Prompt, fastest, time_prompts, warm_up
from tests.support.runtime_toys import ToyBackend, random_logits


def toy() -> ToyBackend:
    return ToyBackend(random_logits(), context_tokens=100, chunk_tokens=8)


def test_a_prompt_is_repeated_from_where_it_is_cached() -> None:
    backend = toy()
    (cold,) = time_prompts(backend, 20, repeats=1, limit_s=60)
    assert (cold.tokens, backend.calls) == (20, [8, 8, 4])
    backend.calls.clear()
    warm = time_prompts(backend, 20, repeats=3, limit_s=60, cached_tokens=16)
    assert [prompt.tokens for prompt in warm] == [4, 4, 4]
    assert backend.calls == [4, 4, 4]


def test_repeats_end_at_the_limit_and_a_prompt_where_it_is_cut() -> None:
    backend = toy()
    assert len(time_prompts(backend, 20, repeats=9, limit_s=0)) == 1
    backend.calls.clear()
    (cut,) = time_prompts(backend, 20, repeats=9, limit_s=0, cut_s=0)
    assert (cut.tokens, backend.calls) == (8, [8])


def test_the_fastest_counts_by_its_rate() -> None:
    whole, cut = Prompt(20, 2.0), Prompt(8, 0.4)
    assert fastest([whole, cut, Prompt(20, 3.0)]) is cut


def test_warming_up_leaves_nothing() -> None:
    backend = toy()
    warm_up(backend)
    assert backend.position == 0 and backend.calls == [8, 1]
