"""Commands on packed bundles: archive, unpack, join, compare, sign, verify. Prints nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from packager.bundle.archive import unpack_archive
from packager.bundle.delta import write_delta
from packager.bundle.split_archive import (
    SUMS_NAME,
    check_flags,
    join_volumes,
    parse_size,
    write_files,
)
from packager.cli.result import Command, CommandResult
from packager.core.errors import UsageError
from packager.core.record_store import to_plain
from packager.core.records import Progress


def add_target_flags(sub: argparse.ArgumentParser) -> None:
    """What the bundle's packages are for, where it is not this machine."""
    sub.add_argument(
        "--target", metavar="PLATFORM",
        help="manylinux_2_28_x86_64: a Linux of that processor with glibc 2.28 or newer",
    )  # fmt: skip
    sub.add_argument("--target-python", metavar="3.N", help="the Python there (this one)")


def add_archive_flags(sub: argparse.ArgumentParser, name: str = "--archive") -> None:
    """Where the archive goes, and in how large volumes."""
    sub.add_argument(
        name, type=Path, metavar="FILE.tar", required=name == "--out",
        help="write it as one tar file, the same bytes from the same inputs",
    )  # fmt: skip
    sub.add_argument(
        "--split", type=_size, metavar="SIZE",
        help="write that file in volumes of SIZE: 4G, 700MB, 4GiB",
    )  # fmt: skip


def add_commands(add: Callable[[str, Command], argparse.ArgumentParser]) -> None:
    """These commands and their flags; `add` makes a parser of a name and a command."""
    sub = add("archive", archive)
    sub.add_argument("bundle", type=Path, help="folder of a bundle or delta")
    add_archive_flags(sub, "--out")
    sub = add("unpack", unpack)
    sub.add_argument("archive", type=Path, help="the tar file")
    sub.add_argument("--out", type=Path, required=True, help="new folder for what is in it")
    sub = add("join", join)
    sub.add_argument("sums", type=Path, metavar=SUMS_NAME, help="the list beside the volumes")
    sub.add_argument("folders", type=Path, nargs="*", help="more folders with volumes")
    sub.add_argument("--out", type=Path, help="the tar file (its own name, beside the list)")
    sub = add("diff", diff)
    sub.add_argument("old", type=Path, help="folder of the bundle that is installed")
    sub.add_argument("new", type=Path, help="folder of the bundle to come")
    sub.add_argument("--out", type=Path, required=True, metavar="DELTA", help="folder to write")
    add_archive_flags(sub)
    sub = add("verify", verify)
    sub.add_argument("bundle", type=Path, help="folder of a bundle")
    sub.add_argument(
        "--public-key", type=Path, metavar="FILE", help="check that its owner signed the bundle"
    )
    sub = add("sign", sign)
    sub.add_argument("bundle", type=Path, help="folder of a bundle")
    sub.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="your private key, in PEM"
    )


def archive(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Write a bundle or delta as one file, or in volumes.

    The same bundle gives the same bytes; SOURCE_DATE_EPOCH is the time of every file in it.
    """
    files = write_files(arguments.bundle, arguments.out, arguments.split, progress)
    return CommandResult({"files": files}, "\n".join(files))


def unpack(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Unpack the archive of a bundle or delta, and check every byte."""
    out = unpack_archive(arguments.archive, arguments.out, progress)
    return CommandResult({"bundle": str(out)}, f"unpacked and checked: {out}")


def join(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Join the volumes of an archive; name those that are damaged or missing."""
    out = join_volumes(arguments.sums, arguments.folders, arguments.out, progress)
    return CommandResult({"archive": str(out)}, f"joined: {out}")


def diff(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Write only what of the bundle NEW the bundle OLD does not have.

    Its `install` takes an installed OLD to NEW.
    """
    check_flags(arguments.archive, arguments.split)
    delta = write_delta(arguments.old, arguments.new, arguments.out, progress)
    data = {"delta": str(arguments.out), **to_plain(delta)}
    lines = [f"changed: {path}" for path in delta.changed]
    lines += [f"removed: {path}" for path in delta.removed]
    lines.append(f"{delta.delta_bytes} bytes, of {delta.new_bytes}: {arguments.out}")
    if arguments.archive:
        files = write_files(arguments.out, arguments.archive, arguments.split, progress)
        data |= {"archive": files}
        lines += files
    return CommandResult(data, "\n".join(lines))


def sign(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Sign a bundle with an elliptic curve key, offline.

    The signature covers every file of the bundle and is kept in it, as bundle.json.sig. To make a
    key: openssl ecparam -name prime256v1 -genkey -noout -out release.pem; for those who verify:
    openssl pkey -in release.pem -pubout -out release.pub.
    """
    from packager.bundle.signing import sign_bundle

    signature = sign_bundle(arguments.bundle, arguments.key, progress)
    return CommandResult({"signature": str(signature)}, f"signed: {signature}")


def verify(arguments: argparse.Namespace, progress: Progress) -> CommandResult:
    """Check every byte of a bundle against its manifest, and its signature against a key."""
    from packager.bundle.signing import check_signature
    from runtimes.trust.manifest import read_manifest
    from runtimes.trust.verify import verify_files

    manifest = read_manifest(arguments.bundle)
    verify_files(arguments.bundle, manifest, progress=lambda d, t: progress("verify", d, t))
    signed = ""
    if arguments.public_key is not None:
        check_signature(arguments.bundle, arguments.public_key)
        signed = f"; signed with the key of {arguments.public_key}"
    data = {
        "bundle": str(arguments.bundle),
        "files": len(manifest.files),
        "bytes": sum(entry.bytes for entry in manifest.files),
        "verified": True,
        "signed": bool(signed),
    }
    text = f"{data['files']} files, {data['bytes']} bytes: every one as packed{signed}"
    return CommandResult(data, text)


def _size(text: str) -> int:
    """A size in bytes, for argparse."""
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.what}, not {error.expected}") from None
