"""The runtime over a strict toy backend: every promise of runtimes/generation/runtime.py."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtimes.errors import ContextError, DeviceError, IntegrityError, UsageError
from runtimes.generation.completion import Completion, Finish, GenerateOptions, join
from runtimes.generation.runtime import Runtime
from runtimes.prompts.fim import Context, RepoFile
from tests.support.runtime_toys import (
    IDS,
    ToyBackend,
    looping_logits,
    random_logits,
    runtime_over,
    scripted_logits,
    toy_runtime,
    toy_tokenizer,
)
from tests.support.tiny import TOKENS

PLAIN = GenerateOptions(max_tokens=12, speculate=False)
LONG_PROMPT = "def f(a, b):\n    return a + b  # the sum\n"  # 40 ids: five chunks, many windows


def answer(runtime: Runtime, ids: Sequence[int], **options: object) -> Completion:
    return join(runtime.run(ids, dataclasses.replace(PLAIN, **options)))


def scripted(tmp_path: Path, prompt: str, text: str, **shape: int) -> Runtime:
    """A runtime that answers `prompt` with `text` and ends."""
    tokenizer = toy_tokenizer(tmp_path)
    logits = scripted_logits(len(tokenizer.encode(prompt)), tokenizer.encode(text))
    return runtime_over(ToyBackend(logits, **shape), tokenizer)


def naive(runtime: Runtime, ids: Sequence[int], count: int) -> list[int]:
    """Greedy decoding by its definition: every step from nothing, one id per call."""
    ids = list(ids)
    for _ in range(count):
        backend = runtime.backend
        backend.rewind(0)
        for token_id in ids:
            logits = backend.forward([token_id])
        ids.append(int(logits[0].argmax()))
    return ids[-count:]


# Prefill, prefix reuse


@pytest.mark.parametrize("chunk_tokens", [1, 3, 8, 64])
def test_chunks_do_not_change_the_answer(tmp_path: Path, chunk_tokens: int) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=chunk_tokens)
    ids = runtime.tokenizer.encode(LONG_PROMPT)
    assert list(answer(runtime, ids).ids) == naive(toy_runtime(tmp_path), ids, 12)
    assert max(runtime.backend.calls) <= chunk_tokens


def test_a_request_starts_where_the_last_one_agrees_with_it(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=64)
    ids = runtime.tokenizer.encode(LONG_PROMPT)
    first = answer(runtime, ids)
    assert first.finish.timings.reused_tokens == 0
    grown = [*ids, *first.ids, 100, 101]
    second = answer(runtime, grown)
    # the last generated id was never taken in
    assert second.finish.timings.reused_tokens == len(ids) + len(first.ids) - 1
    assert second.ids == answer(toy_runtime(tmp_path), grown).ids
    third = answer(runtime, grown)
    assert third.finish.timings.reused_tokens == len(grown) - 1
    assert third.ids == second.ids


@pytest.mark.parametrize("common", range(0, 41, 4))
def test_reuse_equals_a_fresh_run_wherever_prompts_part(tmp_path: Path, common: int) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=8)
    ids = runtime.tokenizer.encode(LONG_PROMPT)
    answer(runtime, ids)
    other = [*ids[:common], 100, 101, 102]
    again = answer(runtime, other)
    assert again.ids == answer(toy_runtime(tmp_path), other).ids
    # 51 ids went in and the ring holds 13, so only positions from 43 on could be kept
    assert again.finish.timings.reused_tokens == 0


def test_one_short_of_what_the_ring_keeps_starts_over(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=8)
    ids = runtime.tokenizer.encode(LONG_PROMPT)
    answer(runtime, ids, max_tokens=0)
    least = runtime.backend.min_rewind
    assert 0 < least < len(ids)
    assert answer(runtime, [*ids[:least], 100], max_tokens=0).finish.timings.reused_tokens == least
    answer(runtime, ids, max_tokens=0)
    assert answer(runtime, [*ids[: least - 1], 100], max_tokens=0).finish.timings.reused_tokens == 0


def test_progress_counts_the_prompt(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=8)
    ids, seen = list(range(100, 120)), []
    join(runtime.run(ids, PLAIN, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(0, 20), (8, 20), (16, 20), (20, 20)]
    seen.clear()
    join(runtime.run([*ids, 120], PLAIN, progress=lambda done, total: seen.append((done, total))))
    assert seen[-1] == (21, 21)


# Ends


def test_cancelled_in_the_prompt_then_served_rightly(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=8)
    ids = runtime.tokenizer.encode(LONG_PROMPT)
    asked = itertools.count()
    cut = join(runtime.run(ids, PLAIN, cancelled=lambda: next(asked) == 2))
    assert (cut.finish.reason, cut.ids, cut.text) == ("cancelled", (), "")
    assert runtime.backend.position == 16
    after = answer(runtime, ids)
    assert after.finish.timings.reused_tokens == 16
    assert after.ids == answer(toy_runtime(tmp_path), ids).ids


def test_cancelled_between_tokens(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=64)
    asked = itertools.count()
    cut = join(runtime.run([100, 101], PLAIN, cancelled=lambda: next(asked) == 4))
    assert cut.finish.reason == "cancelled"
    assert cut.ids == answer(toy_runtime(tmp_path), [100, 101]).ids[:4]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, DeviceError("out of memory")])
@pytest.mark.parametrize("call", [3, 8])  # in the prompt, in the answer
@pytest.mark.parametrize("counted", [True, False])  # keys written, the position counted or not
def test_an_interrupted_call_leaves_a_sound_state(
    tmp_path: Path, failure, call: int, counted: bool
) -> None:
    runtime = toy_runtime(tmp_path, chunk_tokens=8)
    ids = runtime.tokenizer.encode(LONG_PROMPT)

    def fail() -> None:
        if len(runtime.backend.calls) == call:
            runtime.backend.position -= not counted
            raise failure

    runtime.backend.within_forward = fail
    with pytest.raises((KeyboardInterrupt, DeviceError)):
        answer(runtime, ids)
    runtime.backend.within_forward = lambda: None
    after = answer(runtime, ids)
    assert after.finish.timings.reused_tokens == 0  # a dirty cache is not trusted
    assert after.ids == answer(toy_runtime(tmp_path), ids).ids


def test_a_stream_closed_early_leaves_a_sound_state(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, looping_logits(), chunk_tokens=8)
    ids = [100, 101, 102] * 4
    stream = runtime.run(ids, GenerateOptions(max_tokens=50))
    for _ in range(4):
        next(stream)
    stream.close()
    fresh = toy_runtime(tmp_path, looping_logits(), chunk_tokens=8)
    assert answer(runtime, [*ids, 103]).ids == answer(fresh, [*ids, 103]).ids


@pytest.mark.parametrize("stop_id", sorted(IDS.stops))
def test_every_control_id_ends_the_answer(tmp_path: Path, stop_id: int) -> None:
    backend = ToyBackend(scripted_logits(1, [110, 111, stop_id, 112]))
    runtime = Runtime(backend, toy_tokenizer(tmp_path), IDS)
    done = answer(runtime, [100])
    assert (done.ids, done.finish.reason, done.finish.stop) == ((110, 111), "stop", None)
    assert done.finish.timings.generated_tokens == 2


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("ghi", "abcdef"),  # lies across three ids
        ("h", "abcdefg"),
        ("hij\n", "abcdefg"),  # to the very end of the answer
        ("hiX", "abcdefghij\n"),  # begins and does not come
    ],
)
def test_stop_strings_across_ids(tmp_path: Path, stop: str, text: str, speculate: bool) -> None:
    runtime = scripted(tmp_path, "abcdef", "abcdefghij\n")
    options = GenerateOptions(stop=(stop, "never"), speculate=speculate)
    done = runtime.generate("abcdef", options)
    found = text != "abcdefghij\n"
    assert done.text == text
    assert done.finish.reason == ("stop_string" if found else "stop")
    assert done.finish.stop == (stop if found else None)


def test_length(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, "x", "abcdef")
    done = runtime.generate("x", GenerateOptions(max_tokens=3))
    assert (done.text, done.finish.reason) == ("abc", "length")
    warm = runtime.generate("x", GenerateOptions(max_tokens=0))
    assert (warm.text, warm.finish.reason, warm.finish.timings.first_token_s) == (
        "",
        "length",
        None,
    )


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("context_tokens", range(9, 24))
def test_the_end_of_the_context_ends_the_answer(
    tmp_path: Path, context_tokens: int, speculate: bool
) -> None:
    runtime = toy_runtime(tmp_path, looping_logits(), context_tokens=context_tokens)
    done = answer(runtime, [100 + i % 3 for i in range(8)], max_tokens=1000, speculate=speculate)
    assert (len(done.ids), done.finish.reason) == (context_tokens - 8, "length")


def test_a_prompt_beyond_the_context_is_refused_at_once(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path, context_tokens=20)
    with pytest.raises(ContextError, match="20 tokens") as caught:
        runtime.run([100] * 20)  # before the first chunk is asked for
    assert "larger context" in caught.value.remedy
    assert len(answer(runtime, [100] * 19).ids) == 1
    assert answer(runtime, [100] * 20, max_tokens=0).finish.reason == "length"


@pytest.mark.parametrize("limit_s", [1e-9, 0.05])
def test_time_ends_the_answer(tmp_path: Path, limit_s: float) -> None:
    runtime = toy_runtime(tmp_path, context_tokens=100_000)
    done = answer(runtime, [100], max_tokens=10**6, max_time_s=limit_s)
    assert done.finish.reason == "time"
    assert (len(done.ids) > 0) == (limit_s > 1e-6)


# Text, prompts, the object itself


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("text", ["naïve 日本語 😀👩\u200d👧\r\n\tx", "42" * 20])
def test_a_stream_shows_whole_characters_and_joins_to_the_answer(
    tmp_path: Path, text: str, speculate: bool
) -> None:
    runtime = scripted(tmp_path, "abc", text)
    options = GenerateOptions(speculate=speculate)
    items = list(runtime.stream_generate("abc", options))
    assert "".join(item.text for item in items) == text
    assert all("\ufffd" not in item.text for item in items)
    assert [isinstance(item, Finish) for item in items] == [False] * (len(items) - 1) + [True]
    whole = runtime.generate("abc", options)
    assert (whole.text, whole.ids) == (text, join(items).ids)


def test_a_character_cut_by_max_tokens_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, "abc", "é😀")
    assert runtime.generate("abc", GenerateOptions(max_tokens=4)).text == "é\ufffd"
    stopped = runtime.generate("abc", GenerateOptions(max_tokens=4, stop=("\ufffd",)))
    assert (stopped.text, stopped.finish.reason) == ("é", "stop_string")


def test_infill_takes_the_prompt_of_training(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path)
    context = Context("repo", (RepoFile("a.py", "x"),), "b.py")
    done = runtime.infill("in", "er", PLAIN, context)
    text = (
        "<repo_name>repo<file_sep>a.py\nx<file_sep><fim_prefix>b.py\nin<fim_suffix>er<fim_middle>"
    )
    held = runtime._cache.ids[: done.finish.timings.prompt_tokens]
    assert runtime.tokenizer.decode(held) == text
    streamed = join(runtime.stream_infill("in", "er", PLAIN, context))
    assert (streamed.text, streamed.ids) == (done.text, done.ids)


def test_timings_add_up(tmp_path: Path) -> None:
    timings = answer(toy_runtime(tmp_path), [100] * 20).finish.timings
    assert (timings.prompt_tokens, timings.generated_tokens) == (20, 12)
    assert 0 < timings.prompt_s < timings.first_token_s
    assert timings.decode_s > 0


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": -1}, {"stop": ("",)}, {"stop": "ab"}, {"logprobs": -1}, {"max_time_s": 0}],
)
def test_options_out_of_range_are_named(options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        GenerateOptions(**options)


@pytest.mark.parametrize(("ids", "message"), [([], "empty"), ([-1], "outside"), ([TOKENS], "outs")])
def test_prompts_that_are_none_are_refused(tmp_path: Path, ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy_runtime(tmp_path).run(ids)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    backend = ToyBackend(random_logits())
    backend.vocab_size = TOKENS - 1
    with pytest.raises(IntegrityError, match="tokenizer has"):
        Runtime(backend, toy_tokenizer(tmp_path), IDS)


def test_one_request_at_a_time(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path)
    expected = answer(toy_runtime(tmp_path), [100, 101]).ids
    stream = runtime.run([100], PLAIN)
    next(stream)
    with pytest.raises(UsageError, match="one request at a time"):
        runtime.generate("x", PLAIN)
    results: list[Completion] = []
    waiting = threading.Thread(target=lambda: results.append(answer(runtime, [100, 101])))
    waiting.start()
    waiting.join(timeout=0.05)
    assert waiting.is_alive()  # another thread waits its turn
    stream.close()
    waiting.join(timeout=10)
    assert results[0].ids == expected


def test_closing(tmp_path: Path) -> None:
    with toy_runtime(tmp_path) as runtime:
        stream = runtime.run([100], PLAIN)
        next(stream)
    assert runtime.backend.closed
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        next(stream)
    with pytest.raises(UsageError, match="closed"):
        runtime.generate("x")


def test_time_for_the_prompt_ends_it_after_a_chunk_and_the_next_goes_on(tmp_path: Path) -> None:
    runtime = toy_runtime(tmp_path)
    ids = list(range(100, 130))  # four chunks of 8
    cut = [answer(runtime, ids, max_tokens=2, max_prompt_s=1e-9) for _ in range(4)]
    assert [done.finish.reason for done in cut] == ["time", "time", "time", "length"]
    assert [done.finish.timings.reused_tokens for done in cut] == [0, 8, 16, 24]
    assert cut[-1].ids == answer(toy_runtime(tmp_path), ids, max_tokens=2).ids


def test_time_for_the_answer_ends_it_once_it_has_a_line_break(tmp_path: Path) -> None:
    text = "abc\ndef\n"
    encode = toy_tokenizer(tmp_path).encode
    runtime = toy_runtime(tmp_path, scripted_logits(1, encode(text)))
    done = answer(runtime, [100], max_decode_s=1e-9, speculate=False)
    assert (done.text, done.finish.reason) == ("abc\n", "time")


def test_an_answer_ends_before_a_line_that_is_indented_too_little(tmp_path: Path) -> None:
    text = "x:\n    y\n  z\n"
    encode = toy_tokenizer(tmp_path).encode
    runtime = toy_runtime(tmp_path, scripted_logits(1, encode(text)))
    done = answer(runtime, [100], min_indent=4)
    assert (done.text, done.finish.reason) == ("x:\n    y", "indent")


def test_prompts_of_several_clients_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("runtimes.generation.prefix_cache.MIN_SAVED_TOKENS", 4)
    options = GenerateOptions(max_tokens=2)
    one, other = "def first(value):\n", "class Second:\n    x = 1\n"
    runtime = toy_runtime(tmp_path)
    expected = [runtime.generate(p, options).text for p in (one + "a", other + "b")]
    runtime.cache_sequences(2)
    for prompt in (one, other):
        runtime.generate(prompt, options)
    again = [runtime.generate(p, options) for p in (one + "a", other + "b")]
    assert [completion.text for completion in again] == expected
    assert all(completion.finish.timings.reused_tokens > 10 for completion in again)
    assert len(runtime.saved_tokens) == 1
