"""The checkpoint's model card: the licence that its front matter declares.

Knows where a card is and how its front matter is read. Knows nothing of what a licence asks for.
"""

from __future__ import annotations

import os
from pathlib import Path

from packager.core.errors import CheckpointError, why_unreadable
from runtimes.trust.files import open_plain

CARD_NAME = "README.md"  # as the Hugging Face hub has it
MAX_CARD_BYTES = 1024 * 1024  # guessed: front matter is at the top, and takes a few kilobytes
MAX_LICENCE_CHARACTERS = 200  # guessed: the longest of the hub's names has 40


def declared_licence(folder: Path) -> str | None:
    """The `license` in the front matter of a checkpoint's card; several are joined by ", ".

    None without a card, front matter or `license`. Raises CheckpointError where the front matter
    cannot be read: a licence must not be overlooked.
    """
    file = folder / CARD_NAME
    if not os.path.lexists(file):
        return None
    try:
        with open_plain(file, follow=True) as stream:
            data = stream.read(MAX_CARD_BYTES)
    except (OSError, ValueError) as error:
        raise _bad(file, f"it cannot be read: {why_unreadable(error)}") from None
    if len(data) == MAX_CARD_BYTES and data.startswith(b"---") and b"\n---" not in data:
        raise _bad(file, f"its front matter does not end within {MAX_CARD_BYTES} bytes")
    found = _front_matter_licence(file, data.decode("utf-8-sig", errors="replace"))
    listed = found if isinstance(found, list) else [] if found is None else [found]
    names = [" ".join(name.split()) for name in listed if isinstance(name, str)]
    if len(names) < len(listed):
        raise _bad(file, f"its license is {found!r}")
    licence = ", ".join(names)
    if len(licence) > MAX_LICENCE_CHARACTERS:
        raise _bad(file, f"its license has {len(licence)} characters")
    return licence or None


def _front_matter_licence(file: Path, text: str) -> object:
    from huggingface_hub.repocard import REGEX_YAML_BLOCK, ModelCard  # heavy, and needed here alone

    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return None
    try:
        # evaluation results, which are not asked for here, may be malformed
        return ModelCard(block[0], ignore_metadata_errors=True).data.get("license")
    except Exception as error:  # the YAML library's own classes among them
        raise _bad(file, f"its front matter cannot be read: {error}") from None


def _bad(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the model's card is damaged: {what}",
        where=file,
        expected="YAML between two lines of ---, with license: NAME or a list of names",
        remedy="mend the card, or take it from the model's own repository",
    )
