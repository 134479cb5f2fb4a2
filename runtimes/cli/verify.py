"""The commands verify and rollback. Also opens the bundle, for all commands.

Imports the standard library alone, so that a bundle can be checked where nothing is installed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from runtimes.bundle import open as bundles
from runtimes.bundle.variants import choose
from runtimes.errors import UsageError
from runtimes.trust.console import Console
from runtimes.trust.manifest import Manifest, read_manifest
from runtimes.trust.signature import verify_signature

if TYPE_CHECKING:
    from runtimes.generation.runtime import Runtime

MIB = 1024 * 1024


def verify(args: argparse.Namespace, console: Console) -> None:
    """Check every byte of the bundle, of its unpacked packages where it is installed, and who
    signed it, where a key is given."""
    progress = console.meter("verify", "MiB", MIB)
    manifest = read_manifest(args.bundle)
    entries = list(manifest.files)
    if args.version is None:
        bundles.verify_files(args.bundle, manifest, progress)
    else:
        args.version.verify(full=args.full, progress=progress)
        entries += args.version.package_files()
    if args.public_key is not None:
        verify_signature(args.bundle, manifest, args.public_key)
    signed_by = None if args.public_key is None else str(args.public_key)
    total = sum(entry.bytes for entry in entries)
    if console.as_json:
        data = {"bundle": str(args.bundle), "files": len(entries), "bytes": total}
        console.data(data | {"signed_by": signed_by})
    else:
        console.text(f"whole: {len(entries)} files, {total} bytes\n")
        console.text(f"signed with the key of {signed_by}\n" if signed_by else "")


def rollback(args: argparse.Namespace, console: Console) -> None:
    """Where nothing is installed. Of an installation, start.py does it before it checks this."""
    raise UsageError(
        "only an installation has an earlier version", remedy="type DIR/run rollback, with no flags"
    )


def chosen_manifest(args: argparse.Namespace, console: Console) -> Manifest:
    """The manifest, as if the variant that the flags choose were alone in the bundle.

    "auto" is decided once, and its reasons told: args.variant is then the name of the chosen one.
    """
    manifest = choose(read_manifest(args.bundle), args.variant, args.provider, console.remark)
    if manifest.variants:
        args.variant = manifest.variants[0].name
    return manifest


def open_model(args: argparse.Namespace, console: Console) -> Runtime:
    """Open the bundle as the flags say; warns where they go beyond the model's training."""
    trained = chosen_manifest(args, console).context_tokens
    if args.context is not None and args.context > trained:
        console.warn(
            f"a context of {args.context} tokens; positions past {trained} are beyond "
            "what the model was trained on"
        )
    return bundles.open_bundle(
        args.bundle,
        context_tokens=args.context,
        threads=args.threads,
        provider=args.provider,
        gpu_layers=args.gpu_layers,
        reproducible=args.reproducible,
        variant=args.variant,
        verify=args.verify,
        cache=None if args.version is None else args.version.bundle_cache(),
        progress=console.meter("verify", "MiB", MIB),
    )
