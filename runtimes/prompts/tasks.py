"""What the model is asked for beside plain completion, as prompts for the same two verbs.

StarCoder2 is a base model: it has not been trained to follow instructions, it continues text.
So each task is a text in which the answer is what most likely comes next.

    complete    the code itself
    infill      the code before and after the gap
    docstring   a gap in a docstring, or in a comment before a definition, that is already closed
    explain     the code, then a comment that has begun to list what it does
    translate   the code in a comment headed by its language, then a heading for the other one

How well a model does them has not been measured here on the real weights; the demo model, 5 million
parameters, does none but the first two. Whether an explanation is true, and a translation right,
is for the reader to check.
"""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass

from runtimes.errors import UsageError
from runtimes.prompts.languages import LANGUAGES, Language

PYTHON_INDENT = " " * 4  # PEP 8, for a definition that has no body yet
EXPLAIN_HEAD = "What the code above does, step by step:"
SUMMARY_HEAD = "In short, the code above"
_DEFINITION = re.compile(r"(async\s+def|def|class)\b")
_STRING = re.compile(r"[rRuUbBfF]{0,2}['\"]")
_BETWEEN_STATEMENTS = frozenset(
    {tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT}
)


@dataclass(frozen=True, slots=True)
class Task:
    """One pattern filled in: a request to generate, or with a suffix to infill.

    stop: texts that end the answer. before, after: what belongs around the answer where it is put
    to use. at: character of the code where all three go; None where they stand by themselves.

    Law for a docstring: `prefix == code[:at] + before` and `suffix == after + code[at:]`.
    """

    prefix: str
    suffix: str | None = None
    stop: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    at: int | None = None


def complete(prompt: str) -> Task:
    """What comes after `prompt`."""
    return Task(prompt, at=len(prompt))


def infill(prefix: str, suffix: str) -> Task:
    """What comes between the two."""
    return Task(prefix, suffix, at=len(prefix))


def docstring(code: str, language: Language, line: int = 1) -> Task:
    """Documentation of the first definition at or after `line`, which counts from 1.

    For Python a docstring behind the signature. For others a comment before the first line that
    is not blank: a block where the language has one, else a single line. Raises UsageError where
    there is nothing to document.
    """
    lines = _lines(code)
    if not 1 <= line <= max(1, len(lines)):
        raise UsageError(f"line {line} of a text of {len(lines)} lines")
    if language is LANGUAGES["python"]:
        index, indent = _python_signature(code, line)
        return _docstring_at(code, index, f'{indent}"""', '"""\n', '"""')
    filled = [i for i in range(line - 1, len(lines)) if lines[i].strip()]
    if not filled:
        raise UsageError(f"there is nothing to document from line {line} on")
    index = filled[0]
    indent = lines[index][: len(lines[index]) - len(lines[index].lstrip())]
    if language.doc is not None or language.block is None:
        return _docstring_at(code, index, f"{indent}{language.doc or language.line} ", "\n", "\n")
    end = language.block[1]
    return _docstring_at(code, index, f"{indent}/**\n{indent} * ", f"\n{indent} {end}\n", end)


def explain(code: str, language: Language) -> Task:
    """What `code` does, in a comment after it; in one sentence where the language has no block."""
    text = code.rstrip("\n") + "\n\n"
    if language.block is None:
        before = f"{language.line} {SUMMARY_HEAD}"
        return Task(text + before, None, ("\n",), before, "\n")
    start, end = language.block
    before = f"{start}\n{EXPLAIN_HEAD}\n\n1."
    return Task(text + before, None, (end,), before, f"\n{end}\n")


def translate(code: str, source: Language, target: Language) -> Task:
    """`code` of one language in another, `target`, which the pattern's comments are written in."""
    if source is target:
        raise UsageError("both languages are the same", expected="two different languages")
    mark = target.line
    quoted = "".join(f"{mark}     {line}".rstrip() + "\n" for line in code.strip("\n").split("\n"))
    head = f"{mark} {source.name}:\n{mark}\n{quoted}{mark}\n{mark} The same in {target.name}:\n\n"
    # a model that continues in the same manner would begin with another pair
    return Task(head, None, (f"\n{mark} {source.name}:", f"\n{mark} The same in "))


def _docstring_at(code: str, index: int, before: str, after: str, stop: str) -> Task:
    """The gap, before the line of that index."""
    at = sum(map(len, _lines(code)[:index]))
    if at and code[at - 1] != "\n":  # a signature at the very end of the text
        before = "\n" + before
    return Task(code[:at] + before, after + code[at:], (stop,), before, after, at)


def _python_signature(code: str, line: int) -> tuple[int, str]:
    """Index of the line after a signature, and the indentation of the body.

    By Python's own tokens, because a signature may run over several lines and hold anything. The
    code may be unfinished: only the signature has to be complete.
    """
    indent = None  # of the definition, once it is found
    at_start, last = True, ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            row, column = token.start
            if indent is not None and token.type == tokenize.NEWLINE:
                if last != ":":
                    raise UsageError(
                        "the body of the definition is on the line of its signature",
                        where=f"line {row}",
                        remedy="put it on lines of its own: a docstring goes before it",
                    )
                return row, _body_indent(code, row, indent)
            if at_start and indent is None and row >= line:
                found = _DEFINITION.match(token.line, column)
                indent = token.line[:column] if found else None
            at_start = token.type in _BETWEEN_STATEMENTS
            if token.type != tokenize.COMMENT:
                last = token.string
    except (tokenize.TokenError, SyntaxError):
        pass  # what follows is unfinished, and no signature was complete before it
    raise UsageError(
        f"there is no complete definition from line {line} on",
        expected="def or class, with the colon that ends its signature",
    )


def _body_indent(code: str, index: int, indent: str) -> str:
    """The indentation of the first line of a body at or after `index`."""
    first = next((text for text in _lines(code)[index:] if text.strip()), "")
    body = first[: len(first) - len(first.lstrip())]
    if len(body) <= len(indent):
        return indent + PYTHON_INDENT
    if _STRING.match(first.lstrip()):
        raise UsageError(
            "the definition has a docstring already",
            where=f"line {index + 1}",
            remedy="remove it first, or name another definition by its line",
        )
    return body


def _lines(code: str) -> list[str]:
    """With their ends, split at line feeds alone."""
    return io.StringIO(code).readlines()
