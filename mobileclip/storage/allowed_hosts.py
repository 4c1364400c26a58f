"""Which web servers may be reached for URLs that came with data: public ones, and those that a person named."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_trusted: ContextVar[tuple[str, ...] | None] = ContextVar("trusted", default=None)


class RefusedHostError(PermissionError):
    """A host that data named is none that may be reached."""


@contextmanager
def public_hosts_only(trusted: Sequence[str] = ()) -> Iterator[None]:
    """Let what is opened in this block, redirections included, come from hosts at public addresses of the internet.

    A stranger's list of URLs could otherwise ask a cloud's own services, or machines of the local network, for what is
    meant for this machine alone. Where a proxy is configured, it decides, and is itself reached as ever.

    Args:
        trusted: names of hosts that may be reached wherever they are, such as `127.0.0.1` or `images.example`.
    """
    token = _trusted.set(tuple(host.lower() for host in trusted))
    try:
        yield
    finally:
        _trusted.reset(token)


def check_host(host: str) -> None:
    """Raise if a host is named by an address that is not public; names are looked up when they are connected to.

    Raises:
        RefusedHostError: if it is, and is not trusted.
    """
    trusted = _trusted.get()
    if trusted is None or host.lower() in trusted:
        return
    if "@" in host:
        raise RefusedHostError("an address with a user and a password is not opened")
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        raise _refused(host, "this machine")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not _is_public(address):
        raise _refused(host, "no public address")


def connect(
    address: tuple[str, int], timeout: float | None, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Connect as `socket.create_connection` does, to hosts that may be reached.

    Raises:
        RefusedHostError: if the host has an address that is not public, and is not trusted.
        OSError: if it cannot be reached.
    """
    host, port = address
    trusted = _trusted.get()
    if trusted is None or host.lower() in trusted:
        return socket.create_connection(address, timeout, source_address)
    check_host(host)
    places = [str(place[0]) for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for ip in places:
        if not _is_public(ipaddress.ip_address(ip)):
            raise _refused(host, f"{ip}, which is no public address")
    # What was looked at is connected to: a second look-up could tell another place.
    for ip in places[:-1]:
        try:
            return socket.create_connection((ip, port), timeout, source_address)
        except OSError:  # noqa: PERF203 - a host has few addresses
            continue
    return socket.create_connection((places[-1], port), timeout, source_address)


def _refused(host: str, what: str) -> RefusedHostError:
    return RefusedHostError(f"{host} is {what}; if you trust it, name it in `hosts` of the source (--hosts)")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast
