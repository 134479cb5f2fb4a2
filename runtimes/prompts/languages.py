"""How programming languages write comments: what the task patterns need to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from runtimes.errors import UsageError


@dataclass(frozen=True, slots=True)
class Language:
    """A language's name for people, its file suffixes and its comments.

    line: starts a comment to the end of the line. doc: starts such a comment where it documents
    what follows. block: opens and closes a comment of several lines, None where there is none that
    everybody uses. Python's is a string, which is how Python code documents.
    """

    name: str
    suffixes: tuple[str, ...]
    line: str
    doc: str | None = None
    block: tuple[str, str] | None = None


_C = ("/*", "*/")
LANGUAGES = {
    "python": Language("Python", (".py", ".pyi"), "#", block=('"""', '"""')),
    "bash": Language("Bash", (".sh", ".bash"), "#"),
    "c": Language("C", (".c", ".h"), "//", block=_C),
    "cpp": Language("C++", (".cc", ".cpp", ".cxx", ".hh", ".hpp"), "//", block=_C),
    "csharp": Language("C#", (".cs",), "//", block=_C),
    "go": Language("Go", (".go",), "//"),
    "haskell": Language("Haskell", (".hs",), "--", "-- |", ("{-", "-}")),
    "java": Language("Java", (".java",), "//", block=_C),
    "javascript": Language("JavaScript", (".js", ".mjs", ".cjs", ".jsx"), "//", block=_C),
    "julia": Language("Julia", (".jl",), "#"),
    "kotlin": Language("Kotlin", (".kt", ".kts"), "//", block=_C),
    "lua": Language("Lua", (".lua",), "--", "---"),
    "perl": Language("Perl", (".pl", ".pm"), "#"),
    "php": Language("PHP", (".php",), "//", block=_C),
    "r": Language("R", (".r", ".R"), "#", "#'"),
    "ruby": Language("Ruby", (".rb",), "#"),
    "rust": Language("Rust", (".rs",), "//", "///"),
    "scala": Language("Scala", (".scala",), "//", block=_C),
    "sql": Language("SQL", (".sql",), "--"),
    "swift": Language("Swift", (".swift",), "//", "///"),
    "typescript": Language("TypeScript", (".ts", ".tsx"), "//", block=_C),
}
NAMES = tuple(LANGUAGES)


def language_named(name: str) -> Language:
    """The language of a name in NAMES, in any case; raises UsageError."""
    try:
        return LANGUAGES[name.lower()]
    except KeyError:
        raise UsageError(f"the language {name!r} is not known", expected=", ".join(NAMES)) from None


def language_of(path: str) -> Language:
    """The language that a file's suffix says; raises UsageError."""
    suffix = PurePosixPath(path).suffix
    for language in LANGUAGES.values():
        if suffix in language.suffixes:
            return language
    raise UsageError(
        "the file's name does not tell its language",
        where=path,
        remedy=f"name it with --language: {', '.join(NAMES)}",
    )
