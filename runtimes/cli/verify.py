"""The commands verify and rollback.

Imports the standard library alone, so that a bundle can be checked where nothing is installed.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from runtimes.cli.invocation import Invocation
from runtimes.errors import UsageError
from runtimes.trust.installed.root import Root
from runtimes.trust.manifest import Manifest, read_manifest
from runtimes.trust.signature import PublicKey, verify_signature
from runtimes.trust.verify import verify_files

MIB = 1024 * 1024


def verify(args: argparse.Namespace, call: Invocation) -> None:
    """Check every byte of the bundle, of its unpacked packages where it is installed, and who
    signed it, where a key is given."""
    console = call.console
    progress = console.meter("verify", "MiB", MIB)
    if call.verified is None:
        manifest = read_manifest(call.bundle)
        verify_files(call.bundle, manifest, progress)
        entries = list(manifest.files)
    else:  # DIR/run has done it before it started this
        if args.full and not call.verified.full:
            raise UsageError("--full was not understood", remedy="say it so: DIR/run verify --full")
        manifest = call.verified.manifest
        entries = [*manifest.files, *call.verified.packages.files]
        if args.full and call.verified.packages.python != sys.version:
            console.remark(
                "the byte code was made by another release of Python, and is as it was then: "
                f"install the bundle again to have it made by {platform.python_version()}"
            )
    signed_by = _check_signature(args.public_key, manifest, call)
    total = sum(entry.bytes for entry in entries)
    if console.as_json:
        data = {"bundle": str(call.bundle), "files": len(entries), "bytes": total}
        console.data(data | {"signed_by": signed_by})
    else:
        console.text(f"OK: {len(entries)} files verified, {total} bytes\n")
        console.text(f"signed with the key of {signed_by}\n" if signed_by else "")


def _check_signature(public_key: Path | None, manifest: Manifest, call: Invocation) -> str | None:
    """Whose signature the bundle has: of the key that is named, or that it was installed with."""
    if public_key is not None:
        verify_signature(call.bundle, manifest, PublicKey.read(public_key))
        return str(public_key)
    root = None if call.version is None else Root.read(call.version.script)
    if root is None or root.public_key is None:
        return None
    verify_signature(call.bundle, manifest, PublicKey.kept(root.public_key))
    return "this installation"


def rollback(_args: argparse.Namespace, _call: Invocation) -> None:
    """Where nothing is installed. Of an installation, start.py does it before it checks this."""
    raise UsageError(
        "only an installation has an earlier version",
        remedy="run `DIR/run rollback`, without flags",
    )
