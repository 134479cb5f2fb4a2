"""Records on disk: law, resuming, and what is not trusted."""

from __future__ import annotations

import json
from pathlib import Path

from packager.core.record_store import Store, from_plain, to_plain
from packager.core.records import Adapter, Artifact, Variant
from packager.core.results import Quality, Selection
from runtimes.trust.entries import FileEntry
from tests.support.candidates import ALL, choose
from tests.support.samples import MEASUREMENT


def artifact(folder: Path) -> Artifact:
    entry = FileEntry("model.gguf", 3, "ab" * 32)
    return Artifact(Variant("gguf", "Q8_0", 8.5, None), "cd" * 32, folder, (entry,), {"a": "1"})


def test_a_record_survives_json(tmp_path):
    for record in (artifact(tmp_path), MEASUREMENT, choose(ALL), Adapter(tmp_path, "ef" * 32)):
        plain = json.loads(json.dumps(to_plain(record)))
        assert from_plain(type(record), plain) == record
    assert isinstance(MEASUREMENT.quality, Quality) and isinstance(choose(ALL), Selection)


def test_finished_work_is_not_redone_until_its_inputs_change(tmp_path):
    store, calls = Store(tmp_path), []

    def make() -> Artifact:
        calls.append(1)
        return artifact(tmp_path)

    for inputs in ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 1}):
        assert store.resume("convert", inputs, Artifact, make) == artifact(tmp_path)
    assert len(calls) == 2
    assert len(list((tmp_path / "records").glob("convert-*.json"))) == 2


def test_a_record_that_is_damaged_or_whose_files_are_gone_is_made_again(tmp_path):
    store = Store(tmp_path)
    store.resume("convert", {}, Artifact, lambda: artifact(tmp_path))
    (file,) = (tmp_path / "records").iterdir()
    calls = []

    def make() -> Artifact:
        calls.append(1)
        return artifact(tmp_path)

    for damage in ("{", "{}", '{"result": {"variant": 3}}', '{"result": {"x": 1}}', "[]"):
        file.write_text(damage)
        assert store.resume("convert", {}, Artifact, make) == artifact(tmp_path)
    assert len(calls) == 5
    store.resume("convert", {}, Artifact, make, sound=lambda record: False)
    assert len(calls) == 6
