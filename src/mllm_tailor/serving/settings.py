"""What a server may be asked for, and where it listens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from mllm_tailor.core.errors import RunError

KEY_VARIABLE = "TAILOR_API_KEY"


@dataclass(frozen=True)
class ServeLimits:
    """What one request may cost, and how many requests there may be. Everything beyond is refused with 413 or 429."""

    requests: int = 64  # in the server at a time, waiting or being answered
    body_bytes: int = 32 * 2**20  # of one request; base64 adds a third to a file
    bodies_bytes: int = 512 * 2**20  # of all requests in the server
    body_seconds: float = 60.0  # in which a body must have arrived
    text: int = 200_000  # characters of all messages
    messages: int = 200
    media: int = 32  # images (a page is one), recordings and videos of a request
    pixels: int = 80_000_000  # of all its images
    pages: int = 20  # of one document
    seconds: float = 600.0  # of one recording or video
    files: int = 1_000  # uploaded and not deleted
    batch_rows: int = 50_000


@dataclass(frozen=True)
class ServeSettings:
    """Where the server listens, who may ask, and what."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None  # that clients send as `Authorization: Bearer KEY`
    allowed_hosts: frozenset[str] = frozenset()  # of http(s) addresses that images may be fetched from
    window: float = 0.005  # seconds in which requests are collected when nothing is running
    files: Path | None = None  # folder of uploaded files and batches; None: a temporary one
    limits: ServeLimits = field(default_factory=ServeLimits)

    def check(self) -> None:
        """Refuse to listen to other machines without a key.

        Raises:
            RunError: naming the variable that holds the key.
        """
        if not self.local and not self.key:
            raise RunError(
                f"--host {self.host} is open to other machines, and no key is set — set {KEY_VARIABLE} in the "
                "environment, or listen on 127.0.0.1"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
