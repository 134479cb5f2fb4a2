"""Fixtures that the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from runtimes.server.app import Settings, create_app
from runtimes.server.service import Service
from tests.support.serving import HERE, listening, make_service


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A toy whose answers depend on every id of the prompt's end."""
    return make_service(tmp_path)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """The application without a socket."""
    with TestClient(create_app(service, Settings()), base_url=HERE) as opened:
        yield opened


@pytest.fixture
def live(service: Service) -> Iterator[str]:
    """The toy's server, as clients reach it."""
    with listening(service) as url:
        yield url
