"""What is described is what is read: the structs of bodies against the schemas that they make."""

from __future__ import annotations

import json

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.errors import UsageError
from runtimes.server.dialects import llamacpp, ollama, openai, tgi
from runtimes.server.http.body import decode, read_body

DIALECTS = (openai.DIALECT, llamacpp.DIALECT, ollama.DIALECT, tgi.DIALECT)
BODIES = sorted(
    {
        endpoint.body
        for dialect in DIALECTS
        for endpoint in (*dialect.completion_endpoints, *dialect.info_endpoints)
        if endpoint.body is not None
    },
    key=str,
)
GOOD = {"prompt": "p", "model": "m", "input_prefix": "a", "input_suffix": "b", "inputs": "i"}
GOOD |= {"content": "c", "tokens": [1]}
NAMES = sorted({name for body in BODIES for name in body.__struct_fields__})
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


def is_read(value: object, body: type[object]) -> bool:
    try:
        read_body(json.dumps(value).encode(), body)
    except UsageError as error:
        assert error.expected or "seed" in error.what
        return False
    return True


def validator(body: type[object]) -> jsonschema.Draft202012Validator:
    schema = msgspec.json.schema(body)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8), st.sampled_from(BODIES))
@settings(max_examples=400)
def test_what_fits_the_description_is_read_and_nothing_else(value, body):
    assert is_read(value, body) == validator(body).is_valid(value)


@given(st.data())
@settings(max_examples=400)
def test_the_same_where_one_field_is_off(data):
    """Most random bodies are wrong at once; these are right but for one value."""
    body = data.draw(st.sampled_from(BODIES))
    assert is_read(GOOD, body)
    value = {**GOOD, data.draw(st.sampled_from(body.__struct_fields__)): data.draw(VALUES)}
    assert is_read(value, body) == validator(body).is_valid(value)


@pytest.mark.parametrize(
    ("body", "value", "what", "expected"),
    [
        (ollama.GenerateBody, {"model": "m", "options": {"stop": ["a", 3]}},
         "options.stop[1] is of type int", "str"),
        (openai.CompletionsBody, {}, "prompt is missing", "it in the body"),
        (openai.CompletionsBody, {"prompt": "p", "starpack": {"files": [{"path": "a"}]}},
         "starpack.files[0].text is missing", "it in the body"),
        (openai.CompletionsBody, {"prompt": "p", "n": 17}, "n is out of range", "int <= 16"),
        (openai.CompletionsBody, {"prompt": "p", "seed": 2**64},
         f"the seed is above {2**64 - 1}", None),
        (tgi.TextGenerationBody, {"inputs": "i", "parameters": {"stop": ["x" * 4097]}},
         "parameters.stop[0] is out of range", "str of length <= 4096"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_and_what_was_expected(body, value, what, expected):
    with pytest.raises(UsageError) as caught:
        read_body(json.dumps(value).encode(), body)
    assert (caught.value.what, caught.value.expected) == (what, expected)


def test_an_error_shows_nothing_of_the_body():
    value = {"prompt": "secret " * 100, "suffix": ["secret"], "secret": 1}
    with pytest.raises(UsageError) as caught:
        read_body(json.dumps(value).encode(), openai.CompletionsBody)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("field", ["max_tokens", "stream", "stop", "starpack"])
def test_half_a_character_where_there_should_be_no_text(field):
    data = b'{"prompt": "p", "%s": "\\ud800"}' % field.encode()
    if field == "stop":  # a text, which is looked at later
        assert read_body(data, openai.CompletionsBody).stop == "\ud800"
        return
    with pytest.raises(UsageError, match=r"half of a surrogate pair|is of type str"):
        read_body(data, openai.CompletionsBody)


@pytest.mark.parametrize("text", ["4", "4.0", "4e0"])
def test_a_whole_number_is_one_however_it_is_written(text):
    data = f'{{"prompt": [{text}], "n": {text}, "temperature": {text}}}'.encode()
    body = read_body(data, openai.CompletionsBody)
    assert (body.prompt, body.n, body.temperature) == ([4], 4, 4.0)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": Infinity}',
        b'{"a": 1e999}', b'{"a": -1e999}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1} trailing',
        b'{"prompt": "a", "prompt": "b"}', b'{"a": {"b": 1, "b": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_object_in_json_is_refused(data):
    with pytest.raises(UsageError):
        decode(data)
