"""What a licence asks for when a model is passed on, as far as a program can see to it.

StarCoder2's BigCode OpenRAIL-M v1: a copy of the full text, the use restrictions of its Attachment
A, a notice of what was modified, the original documentation beside ours. Quantising is a
modification. No legal advice: it says what the packer does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packager.bundle.archive import source_date_epoch
from packager.bundle.documents.render import render
from packager.checkpoint.model_card import declared_licence
from packager.core.errors import CheckpointError, IntegrityError, why_unreadable
from packager.core.records import Artifact, Checkpoint
from runtimes.trust.files import read_plain

NO_MARKUP = re.compile(r"[^\w. -]")  # a backtick or line break in a name would spoil a text
MAX_LICENCE_BYTES = 16 << 20  # guessed: the longest licences have some hundred kilobytes
RESTRICTED = re.compile(r"open-?rail|\brail\b", re.IGNORECASE)
WHOLE = (r"attachment\s+a\b", r"use\s+restrictions", r"limitation\s+of\s+liability")
"""What every OpenRAIL-M text has from its middle to its end: a link or an excerpt does not."""


def model_name(checkpoint: Checkpoint) -> str:
    """The name of the checkpoint's folder, without what would spoil a text."""
    return NO_MARKUP.sub("_", checkpoint.path.resolve().name)


def _read_text(file: Path) -> str:
    try:
        return read_plain(file, MAX_LICENCE_BYTES, follow=True).decode(errors="replace")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the licence cannot be read: {why_unreadable(error)}",
            where=file,
            expected=f"a text of at most {MAX_LICENCE_BYTES} bytes",
            remedy="name the licence's text with --licence-file",
        ) from None


def check_full_text(checkpoint: Checkpoint, files: Sequence[Path]) -> None:
    """A licence with use restrictions has to be there in full; raises CheckpointError."""
    declared = declared_licence(checkpoint.path) or ""
    if not RESTRICTED.search(declared):
        return
    text = "\n".join(map(_read_text, files))
    missing = [part for part in WHOLE if not re.search(part, text, re.IGNORECASE)]
    if missing:
        raise CheckpointError(
            f"the model's card declares {declared}, and the licence given is not its full text",
            where=", ".join(map(str, files)),
            expected="the full text with Attachment A, the use restrictions",
            remedy="name a file with the full text with --licence-file; the model's card links to "
            "it. A link or an excerpt is not enough: whoever gets the bundle has to get the text",
        )


def build_date() -> str | None:
    """The date that SOURCE_DATE_EPOCH says, so that the same inputs give the same bytes."""
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        return None
    return datetime.fromtimestamp(source_date_epoch(), UTC).date().isoformat()


def notice(artifacts: Sequence[Artifact], checkpoint: Checkpoint, starpack_version: str) -> str:
    """The text of NOTICE: what was changed, with what, and what goes with every copy."""
    return render(
        "NOTICE",
        model=model_name(checkpoint),
        revision=checkpoint.revision,
        first=artifacts[0].variant,
        others=[artifact.variant for artifact in artifacts[1:]],
        starpack_version=starpack_version,
        date=build_date(),
        adapter_sha256=checkpoint.adapter.sha256 if checkpoint.adapter else None,
        checkpoint_sha256=artifacts[0].checkpoint_sha256,
    )


def own_licence() -> Path:
    """The licence of starpack itself: in the checkout, or in the installed distribution."""
    checkout = Path(__file__).parents[3] / "LICENSE"
    if checkout.is_file():
        return checkout
    try:
        files = distribution("starpack").files or []
        return next(Path(file.locate()) for file in files if file.name == "LICENSE")
    except (PackageNotFoundError, StopIteration):
        raise IntegrityError(
            "starpack's own licence is missing from this installation",
            where=checkout,
            remedy="install starpack again",
        ) from None
