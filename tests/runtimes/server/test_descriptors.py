"""Descriptors: enough for the connections, or an error at start; running out is waited out."""

from __future__ import annotations

import errno
import logging
import resource
import socket

import httpx
import pytest

from runtimes.errors import DeviceError
from runtimes.server import descriptors
from tests.support.serving import connect, listening, wait_until


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch):
    """limits(soft, hard) -> the list of limits that are set then."""

    def limit(soft: int, hard: int) -> list[tuple[int, int]]:
        made: list[tuple[int, int]] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, pair: made.append(pair))
        return made

    return limit


def test_the_own_limit_is_raised_as_far_as_it_has_to_be(limits):
    made = limits(64, 100_000)
    descriptors.reserve(256)
    ((soft, hard),) = made
    assert 256 + 64 + 128 < soft < 100_000 and hard == 100_000
    for enough in (soft, resource.RLIM_INFINITY):
        made = limits(enough, enough)
        descriptors.reserve(256)
        assert made == []


def test_too_few_are_an_error_whose_remedy_works(limits):
    limits(200, 200)
    with pytest.raises(DeviceError, match="256 connections need") as caught:
        descriptors.reserve(256)
    fits = int(caught.value.remedy.split("--connections ")[1].split(",")[0])
    assert 1 < fits < 256
    descriptors.reserve(fits)
    with pytest.raises(DeviceError):
        descriptors.reserve(fits + 1)
    limits(8, 8)
    with pytest.raises(DeviceError) as caught:
        descriptors.reserve(1)
    assert "--connections" not in caught.value.remedy


def test_connections_far_above_the_limit_are_closed(service):
    with listening(service, connections=2) as url:
        clients = [connect(url) for _ in range(20)]
        try:
            for client in clients:
                client.settimeout(0.2)
            wait_until(lambda: sum(map(is_closed, clients)) >= 20 - 2 - 2)
        finally:
            for client in clients:
                client.close()
        wait_until(lambda: httpx.get(url + "/health").status_code == 200)


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_running_out_is_waited_out_with_a_word(service, monkeypatch, caplog):
    accept, failures = socket.socket.accept, []

    def failing(self: socket.socket):
        if len(failures) < 300:
            failures.append(None)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    with listening(service) as url, caplog.at_level(logging.WARNING):
        monkeypatch.setattr(socket.socket, "accept", failing)
        assert httpx.get(url + "/health", timeout=30).status_code == 200
    assert len(failures) == 300
    assert "Traceback" not in caplog.text
    (line,) = caplog.messages
    assert line == "new connections wait: Too many open files"
