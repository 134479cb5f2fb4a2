"""Prompts that clients have put together themselves, control tokens spelt out as text.

Tabby, Cody, Continue and llm-ls send `<fim_prefix>A<fim_suffix>B<fim_middle>` as one string. User
text must never become a control token, and still these clients are to be served. So a prompt is
read as such only if the whole of it has exactly the form below, each mark once and at its place
and no mark in any of the texts; what is read is texts, from which the prompt is built anew like
any other. A prompt that spells marks in any other way is plain text, marks and all.

    [<repo_name>NAME] [<file_sep>FILE]... [<file_sep>] <fim_prefix>A<fim_suffix>B<fim_middle>

The first two are Continue's other files, with the last separator before the prefix. Somebody whose
own text has exactly that form gets a fill-in for it; the server's flag --no-raw-fim turns it off.
"""

from __future__ import annotations

import re
from dataclasses import fields

from runtimes.contract import SpecialIds
from runtimes.prompts.fim import NO_CONTEXT, Context, RepoFile
from runtimes.server.request import TextPrompt

_NAMES = ("repo_name", "file_sep", "fim_prefix", "fim_suffix", "fim_middle")
assert set(_NAMES) <= {field.name for field in fields(SpecialIds)}
_MARK = re.compile(f"<({'|'.join(_NAMES)})>")
_FORM = re.compile("(repo_name )?((?:file_sep )*)fim_prefix fim_suffix fim_middle ")


def read_raw(text: str) -> TextPrompt | None:
    """The texts of a whole fill-in-the-middle prompt; None where `text` is not exactly one."""
    if not text.endswith("<fim_middle>"):
        return None  # without a look at all of it
    before, *parts = _MARK.split(text)
    names, texts = parts[0::2], parts[1::2]
    form = _FORM.fullmatch("".join(f"{name} " for name in names))
    if before or form is None or texts[-1]:
        return None
    head = texts[:-3]
    if names[:-3] and (names[-4] != "file_sep" or head[-1]):
        return None  # what stands before the prefix is not set off from it
    named = form[1] is not None
    context = Context(
        repo_name=head[0] if named else None,
        files=tuple(RepoFile(None, file) for file in head[named:-1]),
    )
    return TextPrompt(texts[-3], texts[-2], context if names[:-3] else NO_CONTEXT)
