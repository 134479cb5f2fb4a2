"""Small pieces of an answer are sent at once."""

from __future__ import annotations

import socket

from runtimes.server.listen import Address, open_socket


def test_connections_do_not_wait_for_more_to_send() -> None:
    listening = open_socket(Address(port=0))
    with listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
