"""A key that is given twice is refused by every reader of what comes from outside."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.bundle.signing import sign_bundle
from packager.core.errors import DataError
from packager.core.strict_json import parse_object
from runtimes.errors import IntegrityError
from runtimes.trust import signature
from runtimes.trust.delta import KEYS, read_delta
from runtimes.trust.installed.version import Version
from runtimes.trust.manifest import MANIFEST_NAME, manifest_hash, read_manifest
from runtimes.trust.strict_json import parse_json
from runtimes.trust.verify import HashCache
from tests.support.packing import write_bundle


def twice(plain: str) -> str:
    """The same object, its first key given once more."""
    (name, value), *_ = json.loads(plain).items()
    return plain.rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}"


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' is given twice"):
        parse_json(text)
    with pytest.raises(DataError):
        parse_object(text.encode(), "here")


def test_anything_else_is_as_json_has_it() -> None:
    value = {"a": [1, 2.5, None, True, {"b": "é"}], "": {}}
    assert parse_json(json.dumps(value)) == value
    for text in ("", "{", "\xff", "[" * 100_000):
        with pytest.raises(ValueError):
            parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "-Infinity", "1e999", "-1e999"),
        *(r'"\ud800"', r'"\udc00\ud800"', r'"\ud800x"', '"\ud800"'),
        r'{"\udfff": 1}',
    ],
)
def test_what_other_readers_refuse_or_take_for_something_else(text: str) -> None:
    for before, after in (("", ""), ('{"a": [', "]}"), ('[{"b": [1, ', "]}, 2]")):
        with pytest.raises(ValueError, match=r"number|half of a surrogate pair"):
            parse_json(before + text + after)


def test_bytes_are_utf_8() -> None:
    for data in (b'"\xed\xa0\x80"', b'"\xff"', '"a"'.encode("utf-16")):
        with pytest.raises(ValueError, match="codec can't decode"):
            parse_json(data)


def test_whole_pairs_and_a_mark_of_order_are_read() -> None:
    assert parse_json(b'\xef\xbb\xbf["\\ud83d\\ude00", "\\u0120"]') == [
        "\N{GRINNING FACE}",
        "\u0120",
    ]


def test_the_manifest(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle")
    plain = (bundle / MANIFEST_NAME).read_text()
    write_manifest(bundle, plain)
    read_manifest(bundle)
    write_manifest(bundle, twice(plain))
    with pytest.raises(IntegrityError, match="given twice"):
        read_manifest(bundle)
    with pytest.raises(IntegrityError, match="given twice"):
        sign_bundle(bundle, write_key(tmp_path))


def write_manifest(bundle: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text)
    (bundle / f"{MANIFEST_NAME}.sha256").write_bytes(manifest_hash(text.encode()))


def write_key(folder: Path) -> Path:
    """Any file: the manifest is refused before it is read."""
    file = folder / "key.pem"
    file.write_text("no key")
    return file


def test_the_record_of_a_delta(tmp_path: Path) -> None:
    plain = json.dumps(dict.fromkeys(sorted(KEYS), "") | {"schema_version": 1, "files": []})
    (tmp_path / "delta.json").write_text(plain)
    read_delta(tmp_path)
    (tmp_path / "delta.json").write_text(twice(plain))
    with pytest.raises(IntegrityError, match="given twice"):
        read_delta(tmp_path)


def test_the_list_of_installed_packages(tmp_path: Path) -> None:
    entry = json.dumps({"path": "a", "bytes": 1, "sha256": "0" * 64})
    (tmp_path / "packages.json").write_text(f'{{"files": [{entry}], "python": "3"}}')
    assert len(Version(tmp_path)._read_packages().files) == 1
    (tmp_path / "packages.json").write_text(f'{{"files": [{twice(entry)}], "python": "3"}}')
    with pytest.raises(IntegrityError, match="given twice"):
        Version(tmp_path)._read_packages()


def test_remembered_hashes(tmp_path: Path) -> None:
    file = tmp_path / "checked.json"
    info = tmp_path.stat()
    stamp = f"{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"
    plain = json.dumps({stamp: "0" * 64})
    for text, known in ((plain, "0" * 64), (twice(plain), None)):
        file.write_text(text)
        assert HashCache(file).get(info) == known


@pytest.mark.parametrize("damage", ["envelope", "statement", None])
def test_a_signature(tmp_path: Path, damage: str | None) -> None:
    def maybe(name: str) -> Callable[[str], str]:
        return twice if name == damage else str

    statement = {
        "_type": signature.STATEMENT_TYPE,
        "predicateType": signature.PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files"},
            "resources": [{"algorithm": "sha256", "name": "a", "digest": "0" * 64}],
        },
    }
    payload = maybe("statement")(json.dumps(statement)).encode()
    envelope = {
        "payloadType": signature.PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(b"signature").decode()}],
    }
    text = maybe("envelope")(json.dumps({"dsseEnvelope": envelope}))
    (tmp_path / "bundle.json.sig").write_text(text)
    if damage is None:
        said, sealed = signature._envelope(tmp_path, signature.signature_bytes(tmp_path))
        assert sealed == b"signature"
        assert signature._signed_hashes(tmp_path, said) == {"a": "0" * 64}
        return
    with pytest.raises(IntegrityError, match="given twice"):
        said, _ = signature._envelope(tmp_path, signature.signature_bytes(tmp_path))
        signature._signed_hashes(tmp_path, said)
