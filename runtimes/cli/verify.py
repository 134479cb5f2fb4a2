"""The commands verify and rollback.

Imports the standard library alone, so that a bundle can be checked where nothing is installed.
"""

from __future__ import annotations

import argparse

from runtimes.cli.invocation import Invocation
from runtimes.errors import UsageError
from runtimes.trust.manifest import read_manifest
from runtimes.trust.signature import verify_signature
from runtimes.trust.verify import verify_files

MIB = 1024 * 1024


def verify(args: argparse.Namespace, call: Invocation) -> None:
    """Check every byte of the bundle, of its unpacked packages where it is installed, and who
    signed it, where a key is given."""
    console = call.console
    progress = console.meter("verify", "MiB", MIB)
    manifest = read_manifest(call.bundle)
    entries = list(manifest.files)
    if call.version is None:
        verify_files(call.bundle, manifest, progress)
    else:
        call.version.verify(full=args.full, progress=progress)
        entries += call.version.package_files()
    if args.public_key is not None:
        verify_signature(call.bundle, manifest, args.public_key)
    signed_by = None if args.public_key is None else str(args.public_key)
    total = sum(entry.bytes for entry in entries)
    if console.as_json:
        data = {"bundle": str(call.bundle), "files": len(entries), "bytes": total}
        console.data(data | {"signed_by": signed_by})
    else:
        console.text(f"OK: {len(entries)} files verified, {total} bytes\n")
        console.text(f"signed with the key of {signed_by}\n" if signed_by else "")


def rollback(_args: argparse.Namespace, _call: Invocation) -> None:
    """Where nothing is installed. Of an installation, start.py does it before it checks this."""
    raise UsageError(
        "only an installation has an earlier version",
        remedy="run `DIR/run rollback`, without flags",
    )
