"""The bundle's model as the flags choose and open it, for every command that runs it.

Standard library only, until the hashes hold.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from runtimes.bundle.open import OpenOptions, open_bundle
from runtimes.bundle.variants import choose
from runtimes.cli.invocation import Invocation
from runtimes.trust.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from runtimes.generation.runtime import Runtime

MIB = 1024 * 1024
FLASH_ATTENTION = {"auto": None, "on": True, "off": False}


def chosen_manifest(args: argparse.Namespace, call: Invocation) -> Manifest:
    """Read the manifest, as if the variant that the flags choose were alone in the bundle."""
    manifest = read_manifest(call.bundle)
    return choose(manifest, args.variant, args.provider, call.console.remark)


def open_model(args: argparse.Namespace, call: Invocation, manifest: Manifest) -> Runtime:
    """Open the chosen variant; warn where the context is longer than the training's."""
    if args.context is not None and args.context > manifest.context_tokens:
        call.console.warn(
            f"a context of {args.context} tokens; positions past {manifest.context_tokens} are "
            "beyond what the model was trained on"
        )
    return open_bundle(
        call.bundle,
        OpenOptions(
            context_tokens=args.context,
            threads=args.threads,
            provider=args.provider,
            gpu_layers=args.gpu_layers,
            flash_attention=FLASH_ATTENTION[args.flash_attention],
            reproducible=args.reproducible,
        ),
        manifest=manifest,
        verify=args.verify,
        cache=None if call.version is None else call.version.bundle_cache(),
        progress=call.console.meter("verify", "MiB", MIB),
    )
