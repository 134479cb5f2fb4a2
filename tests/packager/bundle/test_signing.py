"""Signatures: two verifiers that share no code, and every change that either has to find."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.bundle.archive import unpack_archive, write_archive
from packager.bundle.delta import write_delta
from packager.bundle.signing import check_signature, sign_bundle
from packager.cli.main import main
from packager.core.errors import DeviceError, IntegrityError, UsageError
from runtimes.cli import main as cli
from runtimes.trust import install
from runtimes.trust.console import Console
from runtimes.trust.installed.stage import Given
from runtimes.trust.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    manifest_hash,
    read_manifest,
)
from runtimes.trust.signature import PublicKey, verify_signature
from runtimes.trust.verify import verify_files
from tests.support.packing import sh, write_bundle

verifying = pytest.importorskip("model_signing.verifying", reason="needs the signing extra")

pytestmark = [
    pytest.mark.bundle,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]


def make_key(folder: Path, name: str = "release", curve: str = "prime256v1") -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    words = ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(private)]
    subprocess.run(words, check=True)
    words = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(words, check=True)
    return private, public


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A signed bundle that tests leave as it is, and the public key."""
    work = tmp_path_factory.mktemp("signing")
    private, public = make_key(work)
    bundle = write_bundle(work / "parts", work / "bundle")
    sign_bundle(bundle, private)
    return bundle, public


@pytest.fixture
def copy(signed: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(signed[0], tmp_path / "bundle")


def on_device(bundle: Path, public: Path) -> None:
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    verify_signature(bundle, manifest, PublicKey.read(public))


def with_the_library(bundle: Path, public: Path) -> None:
    """As anyone with model-signing would, who knows nothing of starpack."""
    config = verifying.Config().use_elliptic_key_verifier(public_key=public)
    config.verify(bundle, bundle / SIGNATURE_NAME)


@pytest.mark.parametrize("check", [on_device, check_signature, with_the_library])
def test_a_signed_bundle_is_accepted(
    signed: tuple[Path, Path], check: Callable[[Path, Path], None]
) -> None:
    check(*signed)


@pytest.mark.parametrize("curve", ["secp384r1", "secp521r1"])
def test_the_other_curves(copy: Path, tmp_path: Path, curve: str) -> None:
    private, public = make_key(tmp_path, "other", curve)
    sign_bundle(copy, private)
    for check in (on_device, check_signature, with_the_library):
        check(copy, public)


def test_sha256sum_accepts_what_lies_beside_the_manifest(signed: tuple[Path, Path]) -> None:
    words = ["sha256sum", "-c", MANIFEST_HASH_NAME]
    done = subprocess.run(words, cwd=signed[0], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{MANIFEST_NAME}:", "OK", f"{SIGNATURE_NAME}:", "OK"]


def test_changed_bytes_are_found_without_a_key_and_named(copy: Path) -> None:
    rng = random.Random(7)
    data = (copy / SIGNATURE_NAME).read_bytes()
    for place in rng.sample(range(len(data)), 200):
        changed = bytearray(data)
        changed[place] ^= rng.randrange(1, 256)
        (copy / SIGNATURE_NAME).write_bytes(changed)
        with pytest.raises(IntegrityError, match="its signature, or"):
            read_manifest(copy)
    (copy / SIGNATURE_NAME).unlink()  # and a signature does not get lost unnoticed
    with pytest.raises(IntegrityError, match="its signature, or"):
        read_manifest(copy)


def forge(bundle: Path, path: str) -> None:
    """Change a byte of a file and make bundle.json and its hash fit, as a forger would."""
    file = bundle / path
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    from packager.core.atomic import file_entry

    value = json.loads((bundle / MANIFEST_NAME).read_bytes())
    value["files"] = [
        {"path": path, "bytes": len(data), "sha256": file_entry(bundle, path).sha256}
        if entry["path"] == path
        else entry
        for entry in value["files"]
    ]
    reseal(bundle, json.dumps(value).encode(), (bundle / SIGNATURE_NAME).read_bytes())


def reseal(bundle: Path, manifest: bytes, signature: bytes) -> None:
    (bundle / MANIFEST_NAME).write_bytes(manifest)
    (bundle / SIGNATURE_NAME).write_bytes(signature)
    (bundle / MANIFEST_HASH_NAME).write_bytes(manifest_hash(manifest, signature))


@pytest.mark.parametrize("path", ["model/model.gguf", "runtimes/cli/main.py", "install"])
def test_a_forged_file_with_a_fitting_manifest_is_found(
    signed: tuple[Path, Path], copy: Path, path: str
) -> None:
    forge(copy, path)
    verify_files(copy, read_manifest(copy))  # nothing is amiss, but for the signature
    for check in (on_device, check_signature):
        with pytest.raises(IntegrityError) as caught:
            check(copy, signed[1])
        assert path in str(caught.value) or MANIFEST_NAME in str(caught.value)


def test_any_change_to_what_was_signed_is_found(signed: tuple[Path, Path], copy: Path) -> None:
    manifest = (copy / MANIFEST_NAME).read_bytes()
    value = json.loads((copy / SIGNATURE_NAME).read_bytes())
    payload = base64.b64decode(value["dsseEnvelope"]["payload"])
    rng = random.Random(8)
    for place in rng.sample(range(len(payload)), 20):
        changed = bytearray(payload)
        changed[place] ^= rng.randrange(1, 256)
        value["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        reseal(copy, manifest, json.dumps(value).encode())
        for check in (on_device, check_signature):
            with pytest.raises(IntegrityError):
                check(copy, signed[1])


def test_a_signature_by_another_key_or_none_is_refused(
    signed: tuple[Path, Path], copy: Path, tmp_path: Path
) -> None:
    private, public = make_key(tmp_path, "stranger")
    for check in (on_device, check_signature):
        with pytest.raises(IntegrityError):
            check(signed[0], public)
    sign_bundle(copy, private)  # signing again replaces the signature
    on_device(copy, public)
    unsigned = write_bundle(tmp_path / "parts", tmp_path / "unsigned")
    for check in (on_device, check_signature):
        with pytest.raises(IntegrityError, match="not signed"):
            check(unsigned, public)
        with pytest.raises(UsageError):
            check(copy, private.with_name("none"))
        with pytest.raises(UsageError):
            check(copy, copy / "README.md")


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"{}",
        b'{"dsseEnvelope": {}}',
        b'{"dsseEnvelope": {"signatures": [], "payload": "", "payloadType": ""}}',
        b'{"dsseEnvelope": {"signatures": [{"sig": "#"}], "payload": "",'
        b' "payloadType": "application/vnd.in-toto+json"}}',
        b"[" * 100_000,
    ],
)
def test_nonsense_in_place_of_a_signature(
    signed: tuple[Path, Path], copy: Path, envelope: bytes
) -> None:
    reseal(copy, (copy / MANIFEST_NAME).read_bytes(), envelope)
    for check in (on_device, check_signature):
        with pytest.raises(IntegrityError):
            check(copy, signed[1])


def test_only_a_whole_bundle_is_signed_and_only_with_a_fit_key(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_key(tmp_path)
    before = (copy / SIGNATURE_NAME).read_bytes()
    curve25519 = tmp_path / "ed25519.pem"
    words = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(curve25519)]
    subprocess.run(words, check=True)
    for key in (curve25519, public, copy / "README.md", tmp_path / "none"):
        with pytest.raises(UsageError):
            sign_bundle(copy, key)
    (copy / "model" / "model.gguf").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="has 7 bytes"):
        sign_bundle(copy, private)
    assert (copy / SIGNATURE_NAME).read_bytes() == before
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no openssl"):
        verify_signature(copy, read_manifest(copy), PublicKey.read(public))


def test_a_bundle_half_signed_is_refused_and_can_be_signed_again(
    copy: Path, tmp_path: Path
) -> None:
    private, public = make_key(tmp_path)
    (copy / SIGNATURE_NAME).write_bytes(b"{}")  # what a kill between two renames leaves
    with pytest.raises(IntegrityError):
        read_manifest(copy)
    sign_bundle(copy, private)
    on_device(copy, public)


def test_the_signature_goes_with_archives_deltas_and_installations(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, public = signed
    with open(tmp_path / "bundle.tar", "wb") as stream:
        write_archive(bundle, stream)
    unpacked = unpack_archive(tmp_path / "bundle.tar", tmp_path / "unpacked")
    on_device(unpacked, public)
    older = write_bundle(tmp_path / "parts", tmp_path / "older", weights=b"old")
    write_delta(older, bundle, tmp_path / "delta")
    target = tmp_path / "installed"
    assert sh(older / "install", "--to", target).returncode == 0
    assert sh(tmp_path / "delta" / "install", "--to", target).returncode == 0
    on_device(target / "current" / "bundle", public)


def test_an_installation_takes_a_new_signature_over(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    assert sh(copy / "install", "--to", target).returncode == 0
    private, public = make_key(tmp_path, "new")
    sign_bundle(copy, private)
    assert sh(copy / "install", "--to", target).returncode == 0
    assert sh(target / "run", "verify", "--public-key", public).returncode == 0
    done = sh(target / "run", "verify", "--public-key", copy / "README.md")
    assert done.returncode == UsageError.exit_code and "openssl pkey" in done.stderr


def test_an_installation_keeps_to_the_key_that_it_was_given(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, public = signed
    target = tmp_path / "target"
    newer = write_bundle(tmp_path / "parts", tmp_path / "newer", weights=b"n" * 900)
    refused = sh(newer / "install", "--to", target, "--public-key", public)
    assert refused.returncode == 5 and "not signed" in refused.stderr
    assert not target.exists()
    done = sh(bundle / "install", "--to", target, "--public-key", public)
    assert done.returncode == 0, done.stderr
    assert "signed with the key of" in sh(target / "run", "verify").stdout
    refused = sh(newer / "install", "--to", target)  # nobody says which key: the one from before
    assert refused.returncode == 5 and "not signed" in refused.stderr
    private, other = make_key(tmp_path, "other")
    sign_bundle(newer, private)
    refused = sh(newer / "install", "--to", target)
    assert refused.returncode == 5 and "--public-key" in refused.stderr
    assert sh(newer / "install", "--to", target, "--public-key", other).returncode == 0
    assert sh(target / "run", "verify", "--full").returncode == 0
    refused = sh(bundle / "install", "--to", target)
    assert refused.returncode == 5


def test_rollback_keeps_to_the_key_too(tmp_path: Path) -> None:
    private, public = make_key(tmp_path)
    unsigned = write_bundle(tmp_path / "parts", tmp_path / "unsigned")
    newer = write_bundle(tmp_path / "more parts", tmp_path / "newer", weights=b"n" * 900)
    sign_bundle(newer, private)
    target = tmp_path / "target"
    assert sh(unsigned / "install", "--to", target).returncode == 0
    assert sh(newer / "install", "--to", target, "--public-key", public).returncode == 0
    refused = sh(target / "run", "rollback")
    assert refused.returncode == 5 and "not signed" in refused.stderr
    assert sh(target / "run", "verify").returncode == 0


def test_what_was_checked_against_the_key_is_what_is_installed(
    copy: Path, signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the bundle puts a forged manifest there once the key has been used."""
    forged = json.loads((copy / MANIFEST_NAME).read_text()) | {"artifact": "tokenizer.json"}
    signature = (copy / SIGNATURE_NAME).read_bytes()

    def swap(*arguments: object, **options: object) -> None:
        verify_signature(*arguments, **options)
        data = json.dumps(forged).encode()
        (copy / MANIFEST_NAME).write_bytes(data)
        (copy / MANIFEST_HASH_NAME).write_bytes(manifest_hash(data, signature))

    monkeypatch.setattr(install, "verify_signature", swap)
    with pytest.raises(IntegrityError, match="changed while it was copied"):
        install.install(Given.read(copy), tmp_path / "target", signed[1], Console())


def test_checking_needs_no_temporary_folder(
    signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others could change what lies there; and a container that is read only has none."""
    bundle, public = signed
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    verify_signature(bundle, read_manifest(bundle), PublicKey.read(public))


def test_the_key_that_is_kept_is_the_one_that_was_used(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, public = signed
    _, other = make_key(tmp_path, "other")
    both = tmp_path / "both.pub"
    both.write_text(other.read_text() + public.read_text())
    refused = sh(bundle / "install", "--to", tmp_path / "target", "--public-key", both)
    assert refused.returncode == 5  # the first of them has not signed it


def test_a_bundle_is_checked_with_a_key_before_anything_is_installed(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, public = signed
    assert sh(bundle / "install", "--check", "--public-key", public).returncode == 0
    _, other = make_key(tmp_path, "other")
    assert sh(bundle / "install", "--check", "--public-key", other).returncode == 5
    refused = sh(bundle / "install", "--check", "--public-key", tmp_path / "none")
    assert refused.returncode == 2 and "openssl pkey" in refused.stderr


def test_both_command_lines(signed: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    bundle, public = signed
    private, other = make_key(tmp_path)
    copy = shutil.copytree(bundle, tmp_path / "copy")
    assert main(["sign", str(copy), "--key", str(private)]) == 0
    for command in (main, cli.main):
        place = [str(copy)] if command is main else ["--bundle", str(copy)]
        assert command(["verify", *place, "--public-key", str(other)]) == 0
        assert str(other) in capsys.readouterr().out
        code = command(["verify", *place, "--public-key", str(public)])
        assert code == IntegrityError.exit_code
