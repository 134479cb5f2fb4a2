"""The description, and requests generated from it: what it says is what happens."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from runtimes.server.app import Settings
from runtimes.server.dialects import DIALECTS
from runtimes.server.http.guard import Access
from tests.support.serving import listening, make_service

pytestmark = pytest.mark.slow

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


KEY = {"authorization": "Bearer a-key-of-this-test"}


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory):
    service = make_service(tmp_path_factory.mktemp("openapi"))
    access = Access(("a-key-of-this-test",))
    with listening(service, Settings(access=access)) as url:
        yield schemathesis.openapi.from_url(url + "/openapi.json", headers=KEY)


def test_what_it_says_is_what_happens(api_schema):
    """Schemathesis' own pytest plug-in does not know this pytest, so the loop is written out."""
    operations = [result.ok() for result in api_schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        for mode in GenerationMode:
            hold_to(operation, mode)


def hold_to(operation, mode: GenerationMode) -> None:
    """Requests that fit an operation's schema, or break it, and what is true of the answers."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    def hold(case):
        case.call_and_validate(checks=CHECKS, headers=KEY)

    try:
        hold()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing to break in it


def test_every_endpoint_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    for dialect in DIALECTS:
        for endpoint in (*dialect.completion_endpoints, *dialect.info_endpoints):
            assert endpoint.path.replace(":path", "") in paths
    operations = [op["operationId"] for path in paths.values() for op in path.values()]
    assert len(set(operations)) == len(operations)
