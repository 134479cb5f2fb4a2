"""Fills in the templates of a bundle's texts. What is filled in stays text, whatever it says.

In Markdown, its markup is escaped; everywhere, line breaks become spaces. A name that a template
uses and nobody gives is an error.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
_MARKUP = re.compile(r"([\\`*\[\]<>|#~&])")
_PLAIN_SCALAR = re.compile(r"[A-Za-z][\w.+-]*")


class Markdown(str):
    """Markdown already: not to be escaped again."""

    __slots__ = ()


def render(name: str, **values: object) -> str:
    """The text of the template `name`, a path below templates/."""
    return _environment(name.endswith(".md")).get_template(name).render(values)


def as_text(value: object) -> str:
    """On one line."""
    return " ".join(str(value).split())


def as_markdown(value: object) -> Markdown:
    """What Markdown shows as the text of `value`."""
    return value if isinstance(value, Markdown) else Markdown(_MARKUP.sub(r"\\\1", as_text(value)))


def as_code(value: object) -> Markdown:
    """A code span of Markdown; in a table, it stays in its cell."""
    text = as_text(value).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown(f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`")


def as_yaml(value: object) -> Markdown:
    """A scalar of YAML; plain where that is safe."""
    text = as_text(value)
    return Markdown(text if _PLAIN_SCALAR.fullmatch(text) else json.dumps(text))


@cache
def _environment(markdown: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=as_markdown if markdown else as_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": as_code, "yaml": as_yaml}
    return environment
