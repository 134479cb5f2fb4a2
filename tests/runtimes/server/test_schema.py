"""The validator of request bodies against the library that knows all of JSON Schema."""

from __future__ import annotations

import copy

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.errors import UsageError
from runtimes.server.dialects import llamacpp, ollama, openai, tgi
from runtimes.server.http.schema import check, decode

DIALECTS = (openai.DIALECT, llamacpp.DIALECT, ollama.DIALECT, tgi.DIALECT)
SCHEMAS = [
    endpoint.body
    for dialect in DIALECTS
    for endpoint in (*dialect.completing, *dialect.telling)
    if endpoint.body is not None
]
NAMES = sorted({name for schema in SCHEMAS for name in schema["properties"]})
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 30)
    | st.sampled_from([2**53, 2**64, 10**400, 1.0, 0.5, -1.0, 1e308, 101.5])
    | st.sampled_from(["", "a", "x" * 4097, "trim", "error"])
)
VALUES = st.recursive(
    LEAVES,
    lambda parts: st.lists(parts, max_size=20) | st.dictionaries(st.sampled_from(NAMES), parts),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8)


def fits(body: object, schema: object) -> bool:
    try:
        check(body, schema)
    except UsageError as error:
        assert error.expected
        return False
    return True


@given(BODIES, st.sampled_from(SCHEMAS))
@settings(max_examples=400)
def test_both_validators_agree(body, schema):
    validator = jsonschema.Draft202012Validator(schema)
    assert fits(body, schema) == validator.is_valid(body)


@given(st.data())
@settings(max_examples=300)
def test_both_agree_where_one_field_is_off(data):
    """Most random bodies are wrong at once; these are right but for one value."""
    schema = data.draw(st.sampled_from(SCHEMAS))
    good = {"prompt": "p", "model": "m", "input_prefix": "a", "input_suffix": "b", "inputs": "i"}
    good |= {"content": "c", "tokens": [1]}
    assert fits(good, schema)
    body = copy.deepcopy(good)
    body[data.draw(st.sampled_from(sorted(schema["properties"])))] = data.draw(VALUES)
    assert fits(body, schema) == jsonschema.Draft202012Validator(schema).is_valid(body)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_schemas_are_schemas(schema):
    jsonschema.Draft202012Validator.check_schema(schema)


def test_an_error_names_the_place_and_what_was_expected():
    with pytest.raises(UsageError, match=r"options.stop\[1\] is 3") as caught:
        schema = {
            "properties": {"options": {"properties": {"stop": {"items": {"type": "string"}}}}}
        }
        check({"options": {"stop": ["a", 3]}}, schema)
    assert caught.value.expected == "string"
    with pytest.raises(UsageError, match="prompt is missing"):
        check({}, openai.BODY)
    with pytest.raises(UsageError) as caught:
        check({"prompt": "secret " * 100, "suffix": ["x"]}, openai.BODY)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": Infinity}',
        b'{"a": 1e999}', b'{"a": -1e999}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1} trailing',
    ],
)  # fmt: skip
def test_what_is_no_object_in_json_is_refused(data):
    with pytest.raises(UsageError):
        decode(data)
