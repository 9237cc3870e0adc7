"""Fetch an image from an allowed host: its name is resolved once, and an address that is not public is refused."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urlsplit

from mllm_tailor.serving.errors import ApiError, refused

SECONDS = 10.0  # for the whole of one address
BLOCK = 1 << 16


def fetch(url: str, allowed: frozenset[str], limit: int) -> bytes:
    """The bytes at an http(s) address of an allowed host; redirects are not followed.

    The connection goes to the very address that was checked, so a name that resolves differently a moment later
    (DNS rebinding) leads nowhere else.

    Raises:
        ApiError: for a host that is not allowed, a private address, or anything but a whole answer in time.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise refused("url", "not an address") from None
    if parts.scheme not in ("http", "https"):
        raise refused("url", "only data: addresses are read — embed the file as base64")
    if host not in allowed or parts.username is not None:
        raise refused("url", "this host is not allowed (`tailor serve --allow-host`) — embed the file as base64")
    port = port or (443 if parts.scheme == "https" else 80)
    address = _public_address(host, port)
    connection = _Connection(host, port, address, tls=parts.scheme == "https")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers={"Accept": "*/*", "User-Agent": "mllm-tailor"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ApiError(400, f"`url`: the host answered with status {answer.status}", param="url")
        return _read(answer, limit)
    except (OSError, http.client.HTTPException, ValueError):
        raise ApiError(400, "`url`: the host gave no answer that can be read", param="url") from None
    finally:
        connection.close()


def _public_address(host: str, port: int) -> str:
    """The host's first address, once all of them are known to be public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ApiError(400, "`url`: the host has no address", param="url") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise refused("url", "the host's address is not a public one")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also behind a mapping into IPv6.

    >>> [is_public(address) for address in ("8.8.8.8", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "fd00::1")]
    [True, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind a translator
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


def _read(answer: http.client.HTTPResponse, limit: int) -> bytes:
    until = time.monotonic() + SECONDS
    data = b""
    while block := answer.read1(BLOCK):
        data += block
        if len(data) > limit:
            raise ApiError(413, f"`url`: over the limit of {limit:,} bytes", param="url")
        if time.monotonic() > until:
            raise ValueError("too slow")
    return data


class _Connection(http.client.HTTPConnection):
    """A connection to one address, whatever the host's name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, *, tls: bool) -> None:
        super().__init__(host, port, timeout=SECONDS)
        self.address, self.tls = address, tls

    def connect(self) -> None:
        plain = socket.create_connection((self.address, self.port), SECONDS)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host) if self.tls else plain
