"""bundle.json.sig: a Sigstore bundle, in it a signed statement of every file.

A statement that was changed is signed anew, as its author could; an envelope is left as it is.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtimes.trust.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    manifest_hash,
    read_manifest,
)
from runtimes.trust.signature import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    PublicKey,
    pre_authentication_encoding,
    verify_signature,
)
from tests.fuzz import forms
from tests.fuzz.target import Wrong, json_bytes, one_of, split_file
from tests.support.toy_bundles import write_manifest

WORDS = (
    "dsseEnvelope", "payload", "payloadType", "signatures", "sig", "keyid", "predicate", "name",
    "digest", "algorithm", "sha256", "resources", "_type", "predicateType", "serialization",
    "method", "files", "bundle.json", "a.txt", "../x", "0" * 64,
)  # fmt: skip
FORM = forms.Files({"statement": forms.Json(WORDS), "envelope": forms.Json(WORDS)})
SHARE = 5
PROGRAMS = ("openssl",)
_key = ec.derive_private_key(7, ec.SECP256R1())
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """Of a bundle of one file."""
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "a.txt").write_bytes(b"a")
    write_manifest(bundle)
    public = _key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "key.pub").write_bytes(public)
    _seed[:] = [bundle, folder / "key.pub"]
    statement = json_bytes(
        {
            "_type": STATEMENT_TYPE,
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {"method": "files", "allow_symlinks": False},
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest}
                    for name, digest in sorted(_hashes(bundle).items())
                ],
            },
        }
    )
    return [one_of("statement", statement), one_of("envelope", _envelope(statement))]


def run(data: bytes, folder: Path) -> None:
    """What is accepted was signed, and names each file of the bundle with its own hash."""
    shutil.copytree(_seed[0], folder, dirs_exist_ok=True)
    name, content = split_file(data)
    signature = _envelope(content) if name == "statement" else content
    (folder / SIGNATURE_NAME).write_bytes(signature)
    manifest = (folder / MANIFEST_NAME).read_bytes()
    (folder / MANIFEST_HASH_NAME).write_bytes(manifest_hash(manifest, signature))
    verify_signature(folder, read_manifest(folder), PublicKey.read(_seed[1]))
    payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    named = {r["name"]: r["digest"] for r in payload["predicate"]["resources"]}
    if named != _hashes(folder):
        raise Wrong("it names others", named)


def _hashes(bundle: Path) -> dict[str, str]:
    import hashlib

    files = {name: (bundle / name).read_bytes() for name in ("a.txt", MANIFEST_NAME)}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _envelope(statement: bytes) -> bytes:
    signed = _key.sign(pre_authentication_encoding(statement), ec.ECDSA(hashes.SHA256()))
    return json_bytes(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signed).decode(), "keyid": ""}],
            },
        }
    )
