"""One strict reader of JSON, neutral in its errors; whose file it was, its callers say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packager.core import package_data
from packager.core.errors import DataError, IntegrityError, data_errors_as
from packager.core.strict_json import parse_object, read_object
from packager.estimate.constants import load_fitted
from packager.estimate.models import load_model

TWICE = '{"name": "a", "name": "b"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TWICE, "'name' is given twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' is given twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("[1]", "the JSON holds a list"),
        ("{", "not valid JSON"),
        ('{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_what_is_not_one_strict_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_object(text.encode(), "mine.json")
    assert (caught.value.where, caught.value.remedy) == ("mine.json", None)
    assert caught.value.expected


def test_a_file_that_is_missing_or_too_large(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_object(file, 20)
    file.write_text("{}" + " " * 20)
    with pytest.raises(DataError, match="more than 21 bytes"):
        read_object(file, 21)


def test_a_caller_adds_the_remedy_that_works() -> None:
    with pytest.raises(IntegrityError) as caught, data_errors_as(IntegrityError, "try it again"):
        parse_object(b"[]", "mine.json")
    error = caught.value
    assert (error.what, error.where) == ("the JSON holds a list", "mine.json")
    assert (error.expected, error.remedy) == ("an object", "try it again")


@pytest.mark.parametrize("damage", ["{", TWICE, None])
def test_our_own_data_that_is_damaged_has_starpack_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    monkeypatch.setattr(package_data, "profiles_folder", lambda: tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/3b.json", "estimate.json", "device.schema.json"):
        if damage is not None:
            (tmp_path / name).write_text(damage)
    for read in (
        lambda: load_model("3b"),
        load_fitted,
        lambda: package_data.read_schema("device"),
    ):
        with pytest.raises(IntegrityError) as caught:
            read()
        assert "install starpack again" in str(caught.value.remedy)


def lacking(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.pop(key)


def of_another_type(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.update({key: value})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *(
            ("models/3b.json", lacking(key), key)
            for key in ("name", "geometry", "window_tokens", "context_tokens", "notes")
        ),
        ("models/3b.json", lambda data: data["geometry"].pop("heads"), "heads"),
        ("models/3b.json", lambda data: data["geometry"].update(heads="24"), "heads"),
        ("models/3b.json", lambda data: data["geometry"].update(nose=1), "nose"),
        ("models/3b.json", of_another_type("geometry", []), "geometry"),
        ("models/3b.json", of_another_type("window_tokens", 4096.5), "window_tokens"),
        ("models/3b.json", of_another_type("notes", "none"), "notes"),
        ("estimate.json", lacking("constants"), "constants"),
        ("estimate.json", of_another_type("spreads", {"a": [1, 2]}), "spreads"),
        ("estimate.json", of_another_type("constants", {"a": "b"}), "constants"),
    ],
)
def test_our_own_data_has_the_keys_that_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    own = package_data.profiles_folder()
    data = json.loads((own / name).read_bytes())
    change(data)
    (tmp_path / "models").mkdir()
    (tmp_path / name).write_text(json.dumps(data))
    monkeypatch.setattr(package_data, "profiles_folder", lambda: tmp_path)
    with pytest.raises(IntegrityError, match=message) as caught:
        load_model("3b") if name.startswith("models/") else load_fitted()
    assert caught.value.where == str(tmp_path / name)
    assert "install starpack again" in str(caught.value.remedy)
