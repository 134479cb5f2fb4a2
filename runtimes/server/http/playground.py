"""The page at `/`: an editor to try the model in, as one file that asks no other host for anything.

The page, its style and its script are three files here and one in the answer. Its policy lets run
and apply just those two, by their hashes, and lets nothing be asked for but this server.
"""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from pathlib import Path
from string import Template

from runtimes.prompts.languages import LANGUAGES
from runtimes.server.dialects.endpoint import InfoEndpoint, Text
from runtimes.server.service import Service

FOLDER = Path(__file__).parent / "page"


def page(service: Service, _body: None) -> Text:
    """The page of a service. It holds no secret: its user brings the API key."""
    source, style, script = _files()
    model = service.model
    facts = {
        "model": model.name,
        "format": model.format.upper(),
        "recipe": model.recipe,
        "context": f"{model.context_tokens:,}",
        "window": "none" if model.window_tokens is None else f"{model.window_tokens:,}",
        "most": service.defaults.max_tokens,
    }
    escaped = {name: html.escape(str(value)) for name, value in facts.items()}
    languages = "".join(
        f'<option value="{name}">{html.escape(language.name)}</option>'
        for name, language in LANGUAGES.items()
    )
    text = Template(source).substitute(escaped, languages=languages, style=style, script=script)
    return Text(text, "text/html; charset=utf-8", {"content-security-policy": _policy()})


@cache
def _files() -> tuple[str, str, str]:
    """The page's source, style and script."""
    page, style, script = (
        (FOLDER / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    return page, style, script


@cache
def _policy() -> str:
    """See Content Security Policy, level 3."""
    _, style, script = _files()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PLAYGROUND = InfoEndpoint(
    "GET", "/", "A page to try the model in", None, page, media_type="text/html"
)  # fmt: skip
