"""No test reaches the network: the hook of tests/conftest.py stands in the way."""

from __future__ import annotations

import socket
import threading

import pytest


def _send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", ("192.0.2.1", 53))


@pytest.mark.parametrize("ask", [
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    lambda: socket.getaddrinfo("example.org", 443), _send,
])
def test_beyond_loopback_is_refused(ask) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OSError, match="tests have no network"):
        ask()


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        socket.create_connection(server.getsockname()).close()
        thread.join()
