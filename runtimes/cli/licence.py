"""The command that shows the model's licence, its use restrictions included.

Imports the standard library alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runtimes.cli.invocation import Invocation
from runtimes.errors import IntegrityError
from runtimes.trust.manifest import read_manifest

FOLDER = "licence/model/"
NOTICE_NAME = "NOTICE"
OWN = "The runtime around the model is under the Apache License 2.0; see licence/starpack/."


def licence(args: argparse.Namespace, call: Invocation) -> None:
    """Print what was modified, and the full text that binds whoever uses the model."""
    console = call.console
    paths = [entry.path for entry in read_manifest(call.bundle).files]
    texts = {path: _read(call.bundle, path) for path in paths if path.startswith(FOLDER)}
    if not texts:
        raise IntegrityError(
            "the bundle lacks the licence of its model",
            where=call.bundle / FOLDER,
            remedy="ask whoever packed it: a model may not be distributed without its licence",
        )
    notice = _read(call.bundle, NOTICE_NAME) if NOTICE_NAME in paths else None
    if console.as_json:
        console.data({"notice": notice, "texts": texts, "runtime": OWN})
        return
    if notice is not None:
        console.text(f"{notice}\n")
    for path, text in texts.items():
        console.text(f"--- {path} ---\n\n{text.rstrip()}\n\n")
    console.text(f"{OWN}\n")


def _read(bundle: Path, path: str) -> str:
    return (bundle / path).read_text(encoding="utf-8", errors="replace")
