"""Prompts within the context: whole, trimmed from the far ends as the budget says, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.contract import SpecialIds
from runtimes.errors import Cancelled, ContextError
from runtimes.prompts.fim import Context, RepoFile, generate_ids, infill_ids
from runtimes.prompts.tokenizer import Tokenizer
from runtimes.server import prompt_budget, prompt_cut
from runtimes.server.request import IdsPrompt, ServerDefaults, TextPrompt
from tests.support.runtime_toys import IDS, toy_tokenizer

CODE = st.text(alphabet="ab 1\n\té😀<>_im", max_size=60)
FILES = st.lists(st.builds(RepoFile, st.none() | st.just("a.py"), CODE), max_size=4)
CONTEXTS = st.builds(
    Context, st.none() | st.just("me/it"), FILES.map(tuple), st.none() | st.just("b.py")
)
PROMPTS = st.builds(TextPrompt, CODE, st.none() | CODE, CONTEXTS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def fit_prompt(tokenizer, prompt, context=400, tokens=8, over="error", defaults=None):
    return prompt_budget.fit_prompt(
        prompt, tokenizer, IDS, context, tokens, over, defaults or ServerDefaults()
    )


@given(PROMPTS)
def test_what_fits_is_the_prompt_as_trained_and_its_parts_add_up(tokenizer, prompt):
    ids, fit = fit_prompt(tokenizer, prompt, context=5000)
    if prompt.suffix is None:
        whole = generate_ids(tokenizer.encode, IDS, prompt.prefix, prompt.context)
    else:
        whole = infill_ids(tokenizer.encode, IDS, prompt.prefix, prompt.suffix, prompt.context)
    assert list(ids) == (whole or [IDS.endoftext])
    parts = fit.prefix_tokens + fit.suffix_tokens + fit.extras_tokens + fit.control_tokens
    assert parts == fit.prompt_tokens == len(ids)
    assert fit.dropped_tokens == fit.dropped_files == 0
    assert fit.control_tokens == sum(i in IDS.stops for i in ids)


@given(PROMPTS, st.integers(40, 90))
@settings(max_examples=200)
def test_a_trim_fits_and_keeps_the_text_at_the_gap(tokenizer, prompt, context):
    try:
        ids, fit = fit_prompt(tokenizer, prompt, context, tokens=4, over="trim")
    except ContextError:  # a repository's name and its separators alone are too long
        assert prompt.context != Context()
        return
    assert len(ids) == fit.prompt_tokens <= fit.room_tokens == context - 4
    text = tokenizer.decode(ids)
    if prompt.suffix is not None:
        before, after = text.split("<fim_prefix>")[1].split("<fim_suffix>")
        assert prompt.prefix.endswith(before.removeprefix("b.py\n"))
        assert prompt.suffix.startswith(after.removesuffix("<fim_middle>"))
    if fit.dropped_tokens == 0:
        assert ids == fit_prompt(tokenizer, prompt, 5000)[0]


def test_too_long_is_an_error_that_counts_the_parts(tokenizer):
    prompt = TextPrompt("x" * 90, "y" * 30, Context(files=(RepoFile("f", "z" * 10),)))
    with pytest.raises(ContextError, match="90 before the gap, 30 after it, 12 of other files"):
        fit_prompt(tokenizer, prompt, context=100)


def test_shares_of_a_trimmed_prompt(tokenizer):
    files = tuple(RepoFile(None, letter * 20) for letter in "pqr")
    prompt = TextPrompt("x" * 500, "y" * 500, Context(files=files))
    ids, fit = fit_prompt(tokenizer, prompt, context=208, tokens=8, over="trim")
    assert fit.room_tokens == 200
    # a quarter of the room is 48 with the control ids off it: two of the files fit, the last ones
    assert (fit.dropped_files, fit.extras_tokens, fit.dropped_extras_tokens) == (1, 40, 20)
    assert "ppp" not in tokenizer.decode(ids)
    assert fit.suffix_tokens == (200 - 7 - 40) // 4
    assert fit.prompt_tokens >= 198  # nothing is wasted but the separator of the dropped file


def test_what_one_part_does_not_need_goes_to_the_others(tokenizer):
    short = TextPrompt("x" * 10, "y" * 500)
    assert fit_prompt(tokenizer, short, 108, 8, "trim")[1].suffix_tokens == 100 - 3 - 10
    long = TextPrompt("x" * 500, "y" * 10)
    _, fit = fit_prompt(tokenizer, long, 108, 8, "trim")
    assert (fit.prefix_tokens, fit.suffix_tokens) == (100 - 3 - 10, 10)


def test_the_start_of_a_trimmed_prefix_stays_while_somebody_types(tokenizer):
    """So that what the engine holds can be used again."""
    starts = set()
    for typed in range(100):
        text = "".join(f"{i:04d}" for i in range(200)) + "x" * typed
        ids, fit = fit_prompt(tokenizer, TextPrompt(text, "end"), 408, 8, "trim")
        assert 400 - prompt_budget.CUT_STEP_TOKENS <= fit.prompt_tokens <= 400
        starts.add(tuple(ids[:20]))
    assert len(starts) <= 2


def test_a_quarter_of_the_context_at_most_is_kept_for_the_answer(tokenizer):
    assert fit_prompt(tokenizer, TextPrompt("x"), 100, 1000)[1].room_tokens == 75
    assert fit_prompt(tokenizer, TextPrompt("x"), 100, 0)[1].room_tokens == 100


def test_ids_as_they_are(tokenizer):
    assert fit_prompt(tokenizer, IdsPrompt((1, 50, 3, 2)))[0] == (1, 50, 3, 2)
    assert fit_prompt(tokenizer, IdsPrompt(()))[0] == (IDS.endoftext,)
    many = IdsPrompt(tuple(range(40, 240)))
    with pytest.raises(ContextError):
        fit_prompt(tokenizer, many, 100)
    ids, fit = fit_prompt(tokenizer, many, 100, over="trim")
    assert ids == tuple(range(148, 240)) and fit.dropped_prefix_tokens == 108


LONG = prompt_cut.WHOLE_CHARACTERS + 1
PLACES = {
    "prefix": lambda text: TextPrompt(text),
    "suffix": lambda text: TextPrompt("x", text),
    "file": lambda text: TextPrompt("x", "y", Context(files=(RepoFile("a.py", text),))),
    "files": lambda text: TextPrompt(
        "x", None, Context(files=tuple(RepoFile(None, text[i::20]) for i in range(20)))
    ),
    "repository": lambda text: TextPrompt("x", None, Context(text)),
    "path": lambda text: TextPrompt("x", None, Context(None, (), text)),
}


@pytest.fixture
def tokenised(tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is tokenised."""
    texts: list[str] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer,
        "encode",
        lambda self, text, *more: texts.append(text) or encode(self, text, *more),
    )
    return texts


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_fit_is_refused_before_it_is_tokenised(tokenizer, tokenised, place):
    with pytest.raises(ContextError, match="at least"):
        fit_prompt(tokenizer, PLACES[place]("1" * LONG))
    assert tokenised == []


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_fit_is_cut_before_it_is_tokenised(tokenizer, tokenised, place):
    text = "".join(f"{i:04d}" for i in range(LONG // 4)) * 2
    try:
        ids, fit = fit_prompt(tokenizer, PLACES[place](text), over="trim")
    except ContextError:
        assert place in ("repository", "path") and tokenised == []
        return
    assert sum(map(len, set(tokenised))) <= prompt_cut.CUT_STEP_BYTES + 2 * 400
    whole = len(text) + (place == "suffix")
    kept, dropped = fit.prompt_tokens - fit.control_tokens, fit.dropped_tokens
    assert kept + dropped >= whole
    if place == "prefix":
        assert text.endswith(tokenizer.decode(ids)) and kept > 392 - prompt_budget.CUT_STEP_TOKENS
    if place == "suffix":
        assert "<fim_suffix>" + text[: fit.suffix_tokens] in tokenizer.decode(ids)
        assert fit.prompt_tokens == fit.room_tokens
    if place == "files":
        assert fit.dropped_files == 20


def test_a_prompt_that_was_cut_before_keeps_its_start_while_somebody_types(tokenizer):
    starts = set()
    for typed in range(50):
        text = "".join(f"{i:05d}" for i in range(LONG // 5 + 1)) + "x" * typed
        ids, _ = fit_prompt(tokenizer, TextPrompt(text, "end"), 408, 8, "trim")
        starts.add(tuple(ids[:20]))
    assert len(starts) <= 2


def test_a_client_that_leaves_ends_the_work(tokenizer):
    with pytest.raises(Cancelled):
        prompt_budget.fit_prompt(
            TextPrompt("abc"), tokenizer, IDS, 400, 8, "error", ServerDefaults(), lambda: True
        )


def test_marks_in_texts_stay_text(tokenizer):
    for prompt in (
        TextPrompt("a<fim_middle>", "<fim_suffix>b"),
        TextPrompt("<file_sep>", None, Context("<repo_name>", (RepoFile("<fim_prefix>", "x"),))),
    ):
        ids, fit = fit_prompt(tokenizer, prompt)
        assert sum(i in SpecialIds().stops for i in ids) == fit.control_tokens == 3
