"""Hosts with several addresses: names are looked up once, as a test says, since there is no internet to ask."""

import socket

import pytest

from mobileclip.storage import connect, public_hosts_only
from tests.errors import fails

PLACES = ["8.8.8.8", "2001:4860:4860::8888", "1.1.1.1"]


@pytest.fixture
def internet(monkeypatch):
    """What is asked for; places that answer are added by the test."""
    asked, answering, named = [], {}, list(PLACES)

    def reach(address, timeout, source_address):
        asked.append((*address, timeout, source_address))
        if address[0] not in answering:
            raise ConnectionRefusedError(address[0])
        return answering[address[0]]

    def look_up(host, port, **_):
        asked.append(host)
        return [(None, None, None, "", (place, port)) for place in named]

    monkeypatch.setattr(socket, "create_connection", reach)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked, answering, named


@pytest.mark.parametrize("place", range(3))
def test_the_first_address_that_answers_is_connected_to(internet, place):
    asked, answering, _ = internet
    answering |= dict.fromkeys(PLACES[place:], "connected")
    with public_hosts_only():
        assert connect(("images.example", 443), 9.0) == "connected"
    assert asked == ["images.example", *((ip, 443, 9.0, None) for ip in PLACES[: place + 1])]


def test_where_none_answers_the_last_one_says_why(internet):
    with public_hosts_only(), pytest.raises(ConnectionRefusedError, match=PLACES[-1]):
        connect(("images.example", 443), 9.0)


def test_one_address_that_is_not_public_refuses_the_host(internet):
    asked, answering, named = internet
    answering |= dict.fromkeys(PLACES, "connected")
    named.append("10.0.0.1")
    with public_hosts_only(), fails("storage.public-address-you-trust-name", "10.0.0.1"):
        connect(("images.example", 443), 9.0)
    assert asked == ["images.example"]
