"""`inspect` and `fetch`: what a checkpoint is, and where it comes from. Prints nothing."""

from __future__ import annotations

import argparse

from packager.checkpoint.reader import describe
from packager.cli.result import CommandResult, key_values
from packager.cli.settings import checkpoint_of
from packager.core.record_store import to_plain
from packager.core.records import Progress


def inspect(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Geometry, window and memory of a checkpoint."""
    checkpoint = checkpoint_of(arguments, progress)
    data = describe(checkpoint)
    return CommandResult(data, key_values(data))


def fetch(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Download a checkpoint from the Hugging Face hub."""
    from packager.checkpoint.hub import fetch as download

    record = download(arguments.repo, arguments.revision, arguments.out, progress=progress)
    data = to_plain(record)
    return CommandResult(data, f"fetched {arguments.repo} to {arguments.out}")
