"""bundle.json: read, chosen from, and held against the files."""

from __future__ import annotations

from pathlib import Path

from runtimes.bundle.baseline import read_baseline
from runtimes.bundle.variants import check_memory, choose, variants_in
from runtimes.trust.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME, Manifest, read_manifest
from runtimes.trust.verify import verify_files
from tests.fuzz import forms
from tests.fuzz.sealed import SEALED, write_changed
from tests.fuzz.target import Wrong, one_of
from tests.support.packing import MEASURED
from tests.support.toy_bundles import write_manifest

WORDS = (
    "files", "path", "bytes", "sha256", "variants", "name", "artifact", "model/toy.bin", "../x",
    "bundle.json", "schema_version", "size_tokens", "cold_s", "steps", "speed", "measured",
)  # fmt: skip
FORM = forms.Files(
    {SEALED: forms.Json(WORDS), MANIFEST_NAME: forms.Json(WORDS), MANIFEST_HASH_NAME: forms.Raw()}
)
SHARE = 100
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """A bundle of one variant, and one of two."""
    bundle = folder / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "model" / "toy.bin").write_bytes(b"weights")
    (bundle / "tokenizer.json").write_bytes(b"{}")
    variants = [
        {
            "name": name, "format": "toy", "recipe": name, "artifact": "model/toy.bin",
            "memory_bytes": 1000, "first_token_s": 0.5, "per_token_s": 0.1,
            "divergence_nats": 0.01, "measured": MEASURED,
        }
        for name in ("F32", "F16")
    ]  # fmt: skip
    write_manifest(bundle, variants=variants, measured=MEASURED)
    several = (bundle / MANIFEST_NAME).read_bytes()
    write_manifest(bundle, measured=MEASURED)
    one = (bundle / MANIFEST_NAME).read_bytes()
    _seed[:] = [bundle]
    return [
        *[one_of(SEALED, manifest) for manifest in (one, several, several)],
        one_of(MANIFEST_NAME, one),
        one_of(MANIFEST_HASH_NAME, (bundle / MANIFEST_HASH_NAME).read_bytes()),
    ]


def run(data: bytes, folder: Path) -> None:
    """What is accepted is the bundle that lies there, and what it writes is read as the same."""
    write_changed(data, _seed[0], folder)
    manifest = read_manifest(folder)
    for variant in variants_in(manifest):
        read_baseline(choose(manifest, variant.name).measured)
    check_memory(manifest, 1 << 30)
    verify_files(folder, manifest)
    plain = manifest.to_json()  # which sorts its files
    if Manifest.from_json(plain).to_json() != plain:
        raise Wrong("it is not what it writes")
    if {entry.path for entry in manifest.files} != {"model/toy.bin", "tokenizer.json"}:
        raise Wrong("it lists other files than there are")
