"""Records on disk: law, resuming, and what is not trusted."""

from __future__ import annotations

import builtins
import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.core import records, results
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


KINDS = [
    kind
    for module in (records, results)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind)
]
VALUES: dict[object, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
    Path: st.text("ab/.", min_size=1).map(Path),
    types.NoneType: st.none(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type: any that a record may hold."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case types.UnionType:
            return st.one_of(*map(values, arguments))
        case builtins.tuple:
            return st.lists(values(arguments[0]), max_size=2).map(tuple)
        case builtins.dict:
            return st.dictionaries(*map(values, arguments), max_size=2)
        case typing.Literal:
            return st.sampled_from(arguments)
    return VALUES[kind]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_kind_of_record_survives_json(kind: type, data: st.DataObject) -> None:
    record = data.draw(values(kind))
    assert from_plain(kind, json.loads(json.dumps(to_plain(record)))) == record


def test_a_word_that_is_no_verdict_is_refused() -> None:
    plain = to_plain(MEASUREMENT.proof)
    assert from_plain(results.WindowProof, plain).holds
    with pytest.raises(ValueError, match=r"Invalid enum value 'maybe' - at `\$\.verdict`"):
        from_plain(results.WindowProof, plain | {"verdict": "maybe"})


def test_arrays_are_no_records_but_numpys_numbers_are() -> None:
    with pytest.raises(TypeError, match="a record holds a ndarray"):
        to_plain({"a": np.zeros(2)})
    assert type(to_plain(np.float64(2.5))) is float


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

    written = file.read_text()
    twice = written.replace('"stage":', '"stage": "plan", "stage":')
    of_text = written.replace('"bytes": 3', '"bytes": "3"')
    of_another_version = written.replace('"bytes": 3', '"bytes": 3, "crc": 1')
    damages = ("{", "{}", "[]", '{"result": {"variant": 3}}', '{"result": {"x": 1}}')
    for damage in (*damages, twice, of_text, of_another_version):
        assert damage != written
        file.write_text(damage)
        assert store.resume("convert", {}, Artifact, make) == artifact(tmp_path)
    assert len(calls) == 8
    store.resume("convert", {}, Artifact, make, valid=lambda record: False)
    assert len(calls) == 9
