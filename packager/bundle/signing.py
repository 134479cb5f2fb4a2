"""Signatures on bundles: OpenSSF model-signing with an elliptic curve key, offline.

The signature lies in the bundle as bundle.json.sig. It covers bundle.json and every file that
bundle.json lists, each by its SHA-256. bundle.json.sha256 gets a line for it, so that damage to
the signature shows without a key as well. `model_signing verify key` checks it too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

from packager.core.atomic import atomic_file
from packager.core.errors import BuildError, IntegrityError, UsageError
from packager.core.records import Progress, no_progress
from runtimes.trust.files import open_plain
from runtimes.trust.manifest import (
    COPY_AGAIN,
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    manifest_hash,
    parse_manifest,
    read_manifest,
)
from runtimes.trust.verify import verify_files

MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"


def sign_bundle(bundle: Path, private_key: Path, progress: Progress = no_progress) -> Path:
    """Check every byte of the bundle, then sign it; returns the signature's file.

    private_key: PEM, on the curve P-256, P-384 or P-521, not encrypted. An earlier signature is
    replaced. Raises IntegrityError for a damaged bundle, UsageError for such a key.
    """
    library = _library("model_signing.signing")
    if not private_key.is_file():
        raise UsageError(
            "no such file", where=private_key, expected="a private key", remedy=MAKE_KEY
        )
    manifest_data = _unsigned_manifest(bundle)
    manifest = parse_manifest(manifest_data, bundle)
    verify_files(bundle, manifest, lambda done, total: progress("verify", done, total))
    try:
        config = library.Config().use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a private key that can sign: {error}",
            where=private_key,
            expected="an elliptic curve key in PEM (P-256, P-384, P-521) without a password",
            remedy=f"{MAKE_KEY}; or, of an encrypted one: openssl pkey -in FILE -out KEY.pem",
        ) from None
    config.set_hashing_config(_hashing())
    progress("sign", 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, SIGNATURE_NAME)
        config.sign(bundle, made)
        signature = made.read_bytes()
    # A kill between these two leaves a bundle that is refused; signing again repairs it.
    for name, data in (
        (SIGNATURE_NAME, signature),
        (MANIFEST_HASH_NAME, manifest_hash(manifest_data, signature)),
    ):
        with atomic_file(bundle / name) as stream:
            stream.write(data)
    progress("sign", 1, 1)
    return bundle / SIGNATURE_NAME


def check_signature(bundle: Path, public_key: Path) -> None:
    """Check with model-signing that the key has signed every file of the bundle as it is now.

    Raises IntegrityError, UsageError for a file that is no such key. Hashes every file itself.
    """
    read_manifest(bundle)
    library = _library("model_signing.verifying")
    if not (bundle / SIGNATURE_NAME).is_file():
        raise IntegrityError(
            "the bundle is not signed",
            where=bundle / SIGNATURE_NAME,
            remedy="starpack sign BUNDLE --key FILE",
        )
    try:
        open_plain(public_key, follow=True).close()  # the library waits for a pipe
        config = library.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"not a public key that bundles are signed with: {error}",
            where=public_key,
            expected="an elliptic curve key in PEM (P-256, P-384, P-521)",
            remedy="openssl pkey -in KEY.pem -pubout -out PUBLIC.pem",
        ) from None
    config.set_hashing_config(_hashing())
    try:
        config.verify(bundle, bundle / SIGNATURE_NAME)
    except Exception as error:  # the library has no class of its own for what it refuses
        raise IntegrityError(
            f"the signature does not hold: {error or type(error).__name__}",
            where=bundle / SIGNATURE_NAME,
            expected=f"a signature by the key of {public_key}",
            remedy="do not use the bundle; ask whoever signed it",
        ) from None


def _hashing() -> object:
    """All files but the two that say what the manifest and its signature should be."""
    config = _library("model_signing.hashing").Config()
    config.use_file_serialization(hashing_algorithm="sha256")
    paths = [MANIFEST_HASH_NAME, SIGNATURE_NAME]
    return config.set_ignored_paths(paths=paths, ignore_git_paths=False)


def _unsigned_manifest(bundle: Path) -> bytes:
    """bundle.json, checked against its own line of bundle.json.sha256; raises IntegrityError."""
    try:
        data = (bundle / MANIFEST_NAME).read_bytes()
        valid = (bundle / MANIFEST_HASH_NAME).read_bytes().startswith(manifest_hash(data))
    except OSError as error:
        raise IntegrityError(
            f"not a bundle: {error.strerror}",
            where=bundle,
            remedy="name the folder that `starpack pack` wrote",
        ) from None
    if not valid:
        raise IntegrityError(
            f"{MANIFEST_NAME} has changed since it was packed", where=bundle, remedy=COPY_AGAIN
        )
    return data


def _library(name: str) -> ModuleType:
    """A module of model-signing, which is loaded only to sign and to check."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BuildError(
            f"signing needs the Python package {error.name!r}, which is missing",
            remedy="pip install 'starpack[signing]', or `make setup`",
        ) from None
