"""What a Client may be told: bounds, back-off, address, headers and trust, each checked where it is written."""

from __future__ import annotations

import math
import os
import random
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar
from urllib.parse import quote, urlsplit

from realtime.config import KiB, MiB
from realtime.errors import ConfigurationError
from realtime.protocols.handshake import build_request, new_key

__all__ = [
    "Address",
    "Backoff",
    "ClientLimits",
    "HeaderSource",
    "Headers",
    "check_headers",
    "check_kind",
    "check_seconds",
    "trust",
]

T = TypeVar("T")

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
HeaderSource = Headers | Callable[[], Headers] | None

_AUTHORITY_END = re.compile("[/?#]")  # RFC 3986 section 3.2


def check_seconds(name: str, value: float) -> float:
    """Return a duration above 0, ``math.inf`` among them; raise ConfigurationError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value <= 0:
        raise ConfigurationError(f"{name}={value!r}: must be a number of seconds above 0")
    return value


def check_kind(name: str, value: object, kind: type[T], allowed: str) -> T:
    """Return a value of the kind it must have; raise ConfigurationError for any other, with what is allowed."""
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name}={value!r}: must be {allowed}")
    return value


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Seconds before a reconnect: the same as the JavaScript client's (Socket.IO's ``reconnectionDelay`` and so on)."""

    min: float = 1.0
    """Before the first attempt; doubled for each further one."""

    max: float = 5.0
    """The longest."""

    jitter: float = 0.5
    """The share of it that chance adds or takes away, so that a thousand clients do not come back at one moment."""

    def __post_init__(self) -> None:
        check_seconds("Backoff(min)", self.min)
        check_seconds("Backoff(max)", self.max)
        if not self.min <= self.max < math.inf:
            raise ConfigurationError(f"Backoff(max={self.max!r}): must be finite and at least min, {self.min!r}")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Backoff(jitter={self.jitter!r}): must be from 0 to 1")

    def delay(self, attempt: int) -> float:
        """Return the seconds before an attempt, counted from 0."""
        # past the bound anyway; 2.0 ** 1024 would overflow
        delay = min(self.min * 2.0 ** min(attempt, 64), self.max)
        return delay * (1 + self.jitter * random.uniform(-1, 1))


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """Bounds on what one Client may hold. Sizes are bytes."""

    message_size: int = 4 * MiB
    """Largest message the server may send, its fragments together. A larger one is refused from its frame header on:
    the connection ends with 1009. (The server's own bound is its outbox, 1 MiB unless it is told otherwise.)"""

    outbox: int = 1 * MiB
    """Bytes that wait beside what the socket has taken. While more than that wait, ``send`` and ``call`` wait."""

    queue: int = 256
    """Messages that may wait for a connection; with one more ``send`` and ``call`` raise QueueFull."""

    queue_bytes: int = 1 * MiB
    """The same in bytes."""

    inbox: int = 1024
    """Messages that may wait for handlers. Past it nothing is read any more and TCP pushes back on the server;
    reading goes on once half of them are handled. A handler that waits for an answer meanwhile gets QueueFull, as
    the answer could not arrive."""

    inbox_bytes: int = 8 * MiB
    """The same in bytes."""

    unclaimed: int = 256
    """Messages without a handler that are kept for ``wait_for``; for one more the oldest is dropped and counted."""

    unclaimed_bytes: int = 1 * MiB
    """The same in bytes."""

    stream: int = 1024
    """Items of one streamed answer that may wait to be read; with one more the reading fails with ``overflow``."""

    response_head: int = 16 * KiB
    """Status line and headers of the answer to the opening handshake."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ConfigurationError(f"ClientLimits({field.name}={value!r}): must be a whole number above 0")


@dataclass(frozen=True)
class Address:
    """Where a URL leads to."""

    url: str
    host: str
    port: int
    secure: bool
    target: str
    """Path and query, percent-encoded."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Take a URL apart. Raises ConfigurationError."""
        allowed = "must be as in 'ws://localhost:8080/realtime', with ws, wss, http or https"
        if not isinstance(url, str) or any(ord(char) < 32 or ord(char) == 127 for char in url):
            raise ConfigurationError(f"url={url!r}: {allowed}")  # of control characters urlsplit drops some
        if "@" in _AUTHORITY_END.split(url.partition("//")[2])[0]:
            raise ConfigurationError("url: has a user or password in it; send that with headers={'Authorization': ...}")
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("ascii" if ":" in (parts.hostname or "") else "idna").decode()
        except ValueError as error:  # of which UnicodeError is one
            raise ConfigurationError(f"url={url!r}: {allowed}: {error}") from None
        if parts.scheme not in ("ws", "wss", "http", "https") or not host:
            raise ConfigurationError(f"url={url!r}: {allowed}")
        if port == 0:
            raise ConfigurationError(f"url={url!r}: nobody can be reached at port 0")
        secure = parts.scheme in ("wss", "https")
        query = f"?{parts.query}" if parts.query else ""
        target = quote((parts.path or "/") + query, safe="%/:?#[]@!$&'()*+,;=~")
        address = cls(url, host, port or (443 if secure else 80), secure, target)
        try:
            build_request(address.host_header, target, new_key())
        except ValueError as error:
            raise ConfigurationError(f"url={url!r}: {allowed}: {error}") from None
        return address

    @property
    def host_header(self) -> str:
        """The Host header: with the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


_OURS = frozenset(("host", "upgrade", "connection", "content-length", "transfer-encoding"))


def check_headers(address: Address, headers: Headers | None) -> list[tuple[str, str]]:
    """Return headers as pairs. Raises ConfigurationError for what no request can carry."""
    try:
        pairs = [(name, value) for name, value in (headers.items() if isinstance(headers, Mapping) else headers or ())]
    except (TypeError, ValueError):
        kind = type(headers).__name__
        raise ConfigurationError(
            f"headers: must map names to strings, as in {{'Authorization': 'Bearer abc'}}, or be pairs of these: {kind}"
        ) from None
    for name, value in pairs:
        if not isinstance(name, str):
            raise ConfigurationError(f"headers: the name {name!r} must be a string")
        if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
            raise ConfigurationError(f"headers: {name!r} is written by the client itself")
        if not isinstance(value, str):
            raise ConfigurationError(f"headers: the value of {name!r} must be a string, not {type(value).__name__}")
    try:
        build_request(address.host_header, address.target, new_key(), headers=pairs)
    except ValueError as error:
        raise ConfigurationError(f"headers: {error}") from None
    return pairs


def trust(address: Address, tls: ssl.SSLContext | str | os.PathLike[str] | None) -> ssl.SSLContext | None:
    """Return what to encrypt with, None for a ws:// address. Raises ConfigurationError."""
    if not address.secure:
        if tls is not None:
            raise ConfigurationError(f"tls={tls!r}: is for wss:// and https:// addresses, not for {address.url!r}")
        return None
    if isinstance(tls, ssl.SSLContext):
        return tls
    if tls is not None and not isinstance(tls, (str, os.PathLike)):
        raise ConfigurationError(f"tls={tls!r}: must be an ssl.SSLContext or the path of a file of certificates")
    try:
        return ssl.create_default_context(cafile=tls)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"tls={tls!r}: cannot be read as certificates in PEM format: {error}") from error
