"""Commands on whom to trust: sign a bundle; the flag that names a signer's key."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from packager.cli.convert import Command, Report
from packager.core.records import Progress


def add_commands(add: Callable[[str, Command], argparse.ArgumentParser]) -> None:
    """These commands and their flags; `add` makes a parser of a name and a command."""
    sub = add("sign", sign)
    sub.add_argument("bundle", type=Path, help="folder of a bundle")
    sub.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="your private key, in PEM"
    )


def add_key(sub: argparse.ArgumentParser) -> None:
    """Whose signature to ask for."""
    sub.add_argument(
        "--public-key", type=Path, metavar="FILE", help="check that its owner signed the bundle"
    )


def sign(arguments: argparse.Namespace, progress: Progress) -> Report:
    """Sign a bundle with an elliptic curve key, offline.

    The signature covers every file of the bundle and is kept in it, as bundle.json.sig. To make a
    key: openssl ecparam -name prime256v1 -genkey -noout -out release.pem; for those who verify:
    openssl pkey -in release.pem -pubout -out release.pub.
    """
    from packager.bundle.signing import sign_bundle

    signature = sign_bundle(arguments.bundle, arguments.key, progress)
    return Report({"signature": str(signature)}, f"signed: {signature}")
