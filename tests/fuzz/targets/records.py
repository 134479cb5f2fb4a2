"""What starpack itself leaves beside its outputs, and reads again: damage costs time, no more."""

from __future__ import annotations

from pathlib import Path

from packager.checkpoint.reader import FETCH_RECORD_NAME, read_checkpoint
from packager.core.atomic import cache_folder, write_json
from packager.core.record_store import Store, to_plain
from packager.core.results import Measurement
from packager.core.workdir import LEDGER_NAME, Ledger
from runtimes.trust.verify import HashCache
from tests.fuzz import forms
from tests.fuzz.target import Wrong, json_bytes, one_of, split_file
from tests.support.samples import MEASUREMENT
from tests.support.tiny import write_checkpoint

WORDS = ("commit", "files", "path", "sha256", "result", "jobs", "bytes", "end", "proof", "speed")
KINDS = ("record", "fetch", "hashes", "ledger")
FORM = forms.Files({kind: forms.Json(WORDS) for kind in KINDS})
SHARE = 40
INPUTS = {"a": 1}
_seed: list[Path] = []


def seeds(folder: Path) -> list[bytes]:
    """One of each."""
    _seed[:] = [write_checkpoint(folder / "model", layers=1, hidden=16, heads=2, ffn=16)]
    record = {"stage": "measure", "inputs": INPUTS, "result": to_plain(MEASUREMENT)}
    fetched = {"commit": "0" * 40, "files": [{"path": "config.json", "sha256": "0" * 64}]}
    hashes = {"/x|1|2": "0" * 64, "1:2:3:4": "0" * 64}
    ledger = {"jobs": 2, "bytes": 5, "end": 5}
    values = dict(zip(KINDS, (record, fetched, hashes, ledger), strict=True))
    return [one_of(kind, json_bytes(value)) for kind, value in values.items()]


def run(data: bytes, folder: Path) -> None:
    """Used, or made again."""
    kind, content = split_file(data)
    match kind:
        case "record":
            store = Store(folder)
            file = folder / "records" / f"measure-{store.key(INPUTS)}.json"
            write_json(file, {})
            file.write_bytes(content)
            found = store.resume("measure", INPUTS, Measurement, lambda: MEASUREMENT)
            if not isinstance(found, Measurement):
                raise Wrong("not a measurement", type(found))
        case "fetch":
            for file in _seed[0].iterdir():
                (folder / file.name).hardlink_to(file)
            (folder / FETCH_RECORD_NAME).write_bytes(content)
            read_checkpoint(folder)
        case "ledger":
            (folder / "weights").write_bytes(b"weights")
            (folder / LEDGER_NAME).write_bytes(content)
            ledger = Ledger(folder / "weights")
            if not (type(ledger.jobs) is int and type(ledger.bytes) is int and ledger.jobs >= 0):
                raise Wrong("not counts", (ledger.jobs, ledger.bytes))
        case _:
            (folder / "hashes.json").write_bytes(content)
            HashCache(folder / "hashes.json").get(folder.stat())
            cache_folder().mkdir(exist_ok=True)
            (cache_folder() / "hashes.json").write_bytes(content)
            read_checkpoint(_seed[0])
