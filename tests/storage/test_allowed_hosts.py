"""Hosts with several addresses: names are looked up as a test says, since there is no internet to ask."""

import socket

import pytest

from mobileclip import storage
from mobileclip.storage import StorageError, public_hosts_only
from mobileclip.storage.backend import RefusedHostError
from tests.errors import fails
from tests.stores import web_server

HOST = "images.example"


@pytest.fixture
def named(monkeypatch):
    """Where the host is, and how often that was asked; nobody listens at the first and the second place."""
    places, asked, look_up = ["127.0.0.2", "127.0.0.3", "127.0.0.1"], [], socket.getaddrinfo

    def found(host, port, *rest, **choices):
        asked.append(host)
        where = places if host == HOST else [host]
        return [one for place in where for one in look_up(place, port, *rest, **choices)]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return places, asked


@pytest.fixture
def address():
    with web_server() as site, storage.use_limits(storage.StoreLimits(retry_delays_seconds=())):
        site.files |= {"/a.bin": b"x", "/other.bin": f"{site.url}/a.bin".encode()}
        site.status["/other.bin"] = [302] * 9
        yield site.url.replace("127.0.0.1", HOST)


def read(address, name="a.bin"):
    return storage.read_bytes(f"{address}/{name}", limit=9)


@pytest.mark.parametrize("num_deaf", range(3))
def test_the_first_address_that_answers_is_connected_to(named, address, num_deaf):
    places, asked = named
    del places[: 2 - num_deaf]
    with public_hosts_only([HOST]):
        assert read(address) == b"x"
    assert asked.count(HOST) == 1


def test_where_none_answers_the_last_one_says_why(named, address):
    del named[0][2:]
    with public_hosts_only([HOST]), fails(StorageError, HOST, "Connection refused"):
        read(address)


@pytest.mark.parametrize("places", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["2001:4860:4860::8888", "10.0.0.1"]])
def test_one_address_that_is_not_public_refuses_the_host(named, address, places):
    """Before anything is connected to."""
    named[0][:] = places
    with public_hosts_only(), fails(RefusedHostError, HOST, places[-1]):
        read(address)


def test_where_a_redirection_leads_may_be_asked_too(named, address):
    """The host is trusted, and the place where it leads is not."""
    with public_hosts_only([HOST]), fails(RefusedHostError, "127.0.0.1"):
        read(address, "other.bin")
    with public_hosts_only([HOST, "127.0.0.1"]):
        assert read(address, "other.bin") == b"x"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "169.254.169.254", "2130706433", "127.1"])
def test_places_that_are_named_are_refused_in_every_writing(host):
    with public_hosts_only(), fails(PermissionError, "hosts"):
        read(f"http://{host}")


def test_a_proxy_decides_and_is_asked_wherever_it_is(named, address, monkeypatch):
    with web_server() as proxy, public_hosts_only():
        proxy.files[f"{address}/a.bin"] = b"x"
        monkeypatch.setenv("http_proxy", proxy.url)
        assert read(address) == b"x"
    assert HOST not in named[1]
