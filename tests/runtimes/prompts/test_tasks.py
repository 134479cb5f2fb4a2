"""The prompt patterns of the tasks: where they put the gap, and what ends the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import UsageError
from runtimes.prompts.languages import LANGUAGES, language_named, language_of
from runtimes.prompts.tasks import Task, complete, docstring, explain, infill, translate

PYTHON = LANGUAGES["python"]


def filled(code: str, task: Task, answer: str = "ANSWER") -> str:
    assert task.at is not None and task.suffix is not None
    assert task.prefix == code[: task.at] + task.before
    assert task.suffix == task.after + code[task.at :]
    return task.prefix + answer + task.suffix


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        ("def f(x):\n  return x\n", 1, 'def f(x):\n  """ANSWER"""\n  return x\n'),
        ("def f(x):", 1, 'def f(x):\n    """ANSWER"""\n'),
        (
            "import os\n\n@cached\ndef f(\n    x={'a': 1},  # a: b\n) -> dict[str, int]:\n"
            "\n\treturn x",
            1,
            "import os\n\n@cached\ndef f(\n    x={'a': 1},  # a: b\n) -> dict[str, int]:\n"
            '\t"""ANSWER"""\n\n\treturn x',
        ),
        (
            "class A:\n    async def f(self): # why\n        await g(\n",
            2,
            "class A:\n    async def f(self): # why\n"
            '        """ANSWER"""\n        await g(\n',
        ),
        ("x = 'def f(): '\ndef g():\n    s = '''", 1, "x = 'def f(): '\ndef g():\n"
            "    \"\"\"ANSWER\"\"\"\n    s = '''"),
    ],
)  # fmt: skip
def test_a_docstring_goes_behind_the_signature(code: str, line: int, expected: str) -> None:
    task = docstring(code, PYTHON, line)
    assert filled(code, task) == expected
    assert task.stop == ('"""',)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("", 1),
        ("x = 1\n", 1),
        ("def f(x", 1),
        ("def f(): return 1\n", 1),
        ("def f():\n    '''Has one.'''\n", 1),
        ('def f():\n    r"Has one."\n', 1),
        ("def f():\n    pass\n", 2),
        ("def f():\n    pass\n", 9),
        ("def f():\n    pass\n", 0),
    ],
)
def test_no_place_for_a_docstring_is_an_error(code: str, line: int) -> None:
    with pytest.raises(UsageError):
        docstring(code, PYTHON, line)


@pytest.mark.parametrize(
    ("name", "expected", "stop"),
    [
        ("java", "\n  /**\n   * ANSWER\n   */\n  int f() {\n", "*/"),
        ("rust", "\n  /// ANSWER\n  int f() {\n", "\n"),
        ("go", "\n  // ANSWER\n  int f() {\n", "\n"),
        ("haskell", "\n  -- | ANSWER\n  int f() {\n", "\n"),
    ],
)
def test_other_languages_are_documented_before_the_line(
    name: str, expected: str, stop: str
) -> None:
    code = "\n  int f() {\n"
    task = docstring(code, LANGUAGES[name])
    assert (filled(code, task), task.stop) == (expected, (stop,))
    with pytest.raises(UsageError):
        docstring(" \n\n", LANGUAGES[name])


def test_explaining_begins_a_comment_and_ends_with_it() -> None:
    task = explain("x = 1\n\n", PYTHON)
    assert task.prefix == (
        'x = 1\n\n"""\nWhat the code above does, step by step:\n\n1.'
    )  # fmt: skip
    assert (task.suffix, task.stop, task.at) == (None, ('"""',), None)
    assert explain("f();", LANGUAGES["c"]).stop == ("*/",)
    task = explain("echo", LANGUAGES["bash"])
    assert (task.prefix, task.stop) == ("echo\n\n# In short, the code above", ("\n",))


def test_translating_quotes_the_code_in_the_other_language() -> None:
    task = translate("\ndef f():\n\n    return 1\n", PYTHON, LANGUAGES["javascript"])
    assert task.prefix == (
        "// Python:\n//\n//     def f():\n//\n//         return 1\n//\n"
        "// The same in JavaScript:\n\n"
    )
    assert task.stop == ("\n// Python:", "\n// The same in ")
    with pytest.raises(UsageError):
        translate("x", PYTHON, PYTHON)


def test_complete_and_infill_change_nothing() -> None:
    assert complete("a\r\n") == Task("a\r\n", at=3)
    assert infill("a", "b") == Task("a", "b", at=1)


def test_languages_are_told_by_name_and_by_suffix() -> None:
    assert language_named("Python") is PYTHON
    assert language_of("a/b.c.tsx") is LANGUAGES["typescript"]
    suffixes = [s for language in LANGUAGES.values() for s in language.suffixes]
    assert len(suffixes) == len(set(suffixes))
    with pytest.raises(UsageError, match="language 'cobol'"):
        language_named("cobol")
    with pytest.raises(UsageError):
        language_of("Makefile")


@given(
    st.text("def class(x):\n\t \"'#\\{}\x0c\u2028é", max_size=80),
    st.sampled_from(list(LANGUAGES.values())),
    st.integers(-1, 9),
)
def test_any_text_has_a_docstring_that_leaves_it_whole_or_an_explained_error(
    code: str, language, line: int
) -> None:
    try:
        task = docstring(code, language, line)
    except UsageError:
        return
    filled(code, task)
