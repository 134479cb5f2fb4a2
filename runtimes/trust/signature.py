"""Is a bundle signed by the holder of a key? Checked with the system's `openssl`.

bundle.json.sig is what OpenSSF model-signing writes with an elliptic curve key: a Sigstore bundle,
in it a DSSE envelope, in it an in-toto statement that names every file with its SHA-256.

    openssl checks that the key has signed the statement; nothing here does cryptography
    the statement has to name bundle.json and all that bundle.json lists, with the same hashes

So together with runtimes/trust/verify.py every byte is as it was signed. The program comes from the
system and not with the bundle: what checks must not come from the one who is checked. Standard
library only.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimes.errors import DeviceError, IntegrityError, UsageError
from runtimes.trust.files import read_plain
from runtimes.trust.manifest import (
    COPY_AGAIN,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    manifest_bytes,
    signature_bytes,
)
from runtimes.trust.strict_json import parse_json

# specified: https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md, and model-signing's
# sources for the types and for the digest that belongs to each curve
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
DIGEST_OF_CURVE = {"prime256v1": "sha256", "secp384r1": "sha384", "secp521r1": "sha512"}
MAKE_PUBLIC = "openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem"
_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
_PEM = re.compile(rf"{_BEGIN}\r?\n([A-Za-z0-9+/=\r\n]+){_END}")
MAX_KEY_BYTES = 64 * 1024  # guessed: a key has a few hundred
TIME_LIMIT_S = 60  # guessed: openssl takes milliseconds


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key as a PEM file holds it, and what to call it."""

    pem: bytes
    name: str

    @classmethod
    def read(cls, file: Path) -> PublicKey:
        """Raises UsageError."""
        try:
            return cls(read_plain(file, MAX_KEY_BYTES, follow=True), file.name)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the public key cannot be read: {getattr(error, 'strerror', error)}",
                where=file,
                expected="a public key in PEM",
                remedy=MAKE_PUBLIC,
            ) from None

    @classmethod
    def kept(cls, body: str, name: str = "this installation") -> PublicKey:
        """Law: PublicKey.kept(key.body) is the key that openssl takes of key.pem."""
        lines = [body[i : i + 64] for i in range(0, len(body), 64)]
        return cls("\n".join([_BEGIN, *lines, _END, ""]).encode(), name)

    @property
    def body(self) -> str:
        """What stands between the lines of the PEM, to be kept; raises UsageError."""
        found = _PEM.search(self.pem.decode(errors="replace"))
        if found is None:
            raise UsageError(
                "not a public key: it has no lines of a PUBLIC KEY",
                where=self.name,
                expected="a public key in PEM",
                remedy=MAKE_PUBLIC,
            )
        return "".join(found[1].split())


def verify_signature(
    bundle: Path,
    manifest: Manifest,
    public_key: PublicKey,
    *,
    data: bytes | None = None,
    signature: bytes | None = None,
) -> None:
    """Check that `public_key` has signed this manifest and each file it lists.

    The files themselves are verify_files' business. data, signature: the content of bundle.json and
    of its signature, for a caller that has read them. Raises IntegrityError for a bundle that is
    not signed, or not by this key, or not as it is now; UsageError for what is no such key;
    DeviceError where there is no openssl.
    """
    payload, seal = _envelope(bundle, signature or signature_bytes(bundle))
    digest = _digest_for(public_key)
    said = pre_authentication_encoding(payload)
    done = _openssl("dgst", f"-{digest}", "-verify", public_key.pem, "-signature", seal, said)
    if done.returncode != 0:
        raise _bad(bundle, f"the signature was not made with the key of {public_key.name}")
    signed = _signed_hashes(bundle, payload)
    expected = {entry.path: entry.sha256 for entry in manifest.files}
    expected[MANIFEST_NAME] = hashlib.sha256(data or manifest_bytes(bundle)).hexdigest()
    for path in sorted(signed.keys() | expected.keys()):
        if signed.get(path) != expected.get(path):
            raise IntegrityError(
                f"the signature is of another bundle: they differ in {path}",
                where=bundle / path,
                expected=signed.get(path, "no such file"),
                remedy=COPY_AGAIN,
            )


def pre_authentication_encoding(payload: bytes) -> bytes:
    """What DSSE has signed for a payload: its type and length go before it."""
    return b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload
    )  # fmt: skip


def _envelope(bundle: Path, data: bytes | None) -> tuple[bytes, bytes]:
    """The statement and its signature; raises IntegrityError."""
    if data is None:
        raise IntegrityError(
            "the bundle is not signed",
            where=bundle / SIGNATURE_NAME,
            remedy="have whoever packed it sign it: starpack sign BUNDLE --key FILE",
        )
    try:
        value: Any = parse_json(data)
        envelope = value["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"its payload is {envelope['payloadType']!r}")
        return (
            base64.b64decode(envelope["payload"], validate=True),
            base64.b64decode(signature["sig"], validate=True),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _bad(bundle, f"not a signature of model-signing: {error}") from None


def _signed_hashes(bundle: Path, payload: bytes) -> Mapping[str, str]:
    """Path to SHA-256, as the statement has them; raises IntegrityError."""
    try:
        statement: Any = parse_json(payload)
        predicate = statement["predicate"]
        kind = (
            statement["_type"],
            statement["predicateType"],
            predicate["serialization"]["method"],
        )
        if kind != (STATEMENT_TYPE, PREDICATE_TYPE, "files"):
            raise ValueError(f"it is of kind {kind}")
        hashes = {}
        for resource in predicate["resources"]:
            name, digest = resource["name"], resource["digest"]
            if not isinstance(name, str) or not isinstance(digest, str):
                raise ValueError("a name or a hash in it is no text")
            if resource["algorithm"] != "sha256" or name in hashes:
                raise ValueError(f"{name} is twice in it, or without SHA-256")
            hashes[name] = digest
    except (ValueError, KeyError, TypeError) as error:
        raise _bad(bundle, f"not a statement of model-signing: {error}") from None
    return hashes


def _digest_for(public_key: PublicKey) -> str:
    """The digest that model-signing uses with this key's curve; raises UsageError."""
    done = _openssl("pkey", "-pubin", "-in", public_key.pem, "-noout", "-text")
    curve = re.search(r"ASN1 OID: (\S+)", done.stdout)
    if done.returncode != 0 or curve is None or curve[1] not in DIGEST_OF_CURVE:
        raise UsageError(
            "not a public key that bundles are signed with",
            where=public_key.name,
            expected=f"a public key in PEM, on one of the curves {', '.join(DIGEST_OF_CURVE)}",
            remedy=MAKE_PUBLIC,
        )
    return DIGEST_OF_CURVE[curve[1]]


def _openssl(*words: str | bytes) -> subprocess.CompletedProcess[str]:
    """Run it; `bytes` are the content of a file in memory, which nobody can change, as its name."""
    program = shutil.which("openssl")
    if program is None:
        raise DeviceError(
            "there is no openssl on this machine's PATH, which checks signatures",
            remedy="install the system's openssl, or check the bundle where there is one: "
            "starpack verify BUNDLE --public-key FILE",
        )
    files = [_in_memory(word) for word in words if isinstance(word, bytes)]
    names = iter(f"/proc/self/fd/{file}" for file in files)
    try:
        return subprocess.run(
            [program, *(next(names) if isinstance(word, bytes) else word for word in words)],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"openssl has not answered for {TIME_LIMIT_S} s",
            where=program,
            remedy="see what holds it up, and try again",
        ) from None
    finally:
        for file in files:
            os.close(file)


def _in_memory(content: bytes) -> int:
    """A descriptor, for the caller to close."""
    file = os.memfd_create("starpack")
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    return file


def _bad(bundle: Path, what: str) -> IntegrityError:
    return IntegrityError(
        what,
        where=bundle / SIGNATURE_NAME,
        expected="a signature by the key that you were given for this bundle",
        remedy="do not use the bundle; ask whoever signed it",
    )
