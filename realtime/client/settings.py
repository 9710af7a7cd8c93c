"""What a Client was told, checked."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from realtime.client.options import (
    Address,
    Backoff,
    ClientLimits,
    Headers,
    HeaderSource,
    check_headers,
    check_kind,
    check_seconds,
    trust,
)
from realtime.client.wire import JSON_WIRE, MSGPACK_WIRE, ClientWire
from realtime.errors import BadMessage, ConfigurationError

__all__ = ["Settings", "checked_settings"]

_BACKOFF, _LIMITS = Backoff(), ClientLimits()
_A_BACKOFF = "a realtime.client.Backoff, such as Backoff(max=30)"
_CLIENT_LIMITS = "realtime.client.ClientLimits, such as ClientLimits(inbox=100)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a Client was told."""

    address: Address
    headers: Callable[[], Headers | None]
    tls: ssl.SSLContext | None
    wire: ClientWire
    timeout: float
    reconnect: bool
    backoff: Backoff
    limits: ClientLimits
    hello: Any
    session: bool
    """Ask the server to go on where it was after a reconnect."""


def checked_settings(
    url: str,
    *,
    headers: HeaderSource,
    msgpack: bool,
    tls: ssl.SSLContext | str | os.PathLike[str] | None,
    timeout: float,
    reconnect: bool,
    backoff: Backoff | None,
    limits: ClientLimits | None,
    hello: Any,
    session: bool,
) -> Settings:
    """Return what ``Client`` was called with.

    :raises ConfigurationError: one of these cannot work.
    """
    address = Address.parse(url)
    for name, value in (("msgpack", msgpack), ("reconnect", reconnect), ("session", session)):
        check_kind(name, value, bool, "True or False")
    wire = MSGPACK_WIRE if msgpack else JSON_WIRE
    if callable(headers):
        source = headers
    else:
        fixed = check_headers(address, headers)
        source = fixed.copy
    _check_hello(hello, wire, session)
    return Settings(
        address=address,
        headers=source,
        tls=trust(address, tls),
        wire=wire,
        timeout=check_seconds("timeout", timeout),
        reconnect=reconnect,
        backoff=_BACKOFF if backoff is None else check_kind("backoff", backoff, Backoff, _A_BACKOFF),
        limits=_LIMITS if limits is None else check_kind("limits", limits, ClientLimits, _CLIENT_LIMITS),
        hello=hello,
        session=session and reconnect,
    )


def _check_hello(hello: Any, wire: ClientWire, session: bool) -> None:
    """Raise ConfigurationError unless this can be the payload of a greeting."""
    try:
        wire.request("system:hello", hello)
    except BadMessage as error:
        raise ConfigurationError(f"hello={hello!r}: {error}") from None
    if session and not (hello is None or isinstance(hello, dict)):
        raise ConfigurationError(f"hello={hello!r}: must be a dictionary, to ask for a session, or session=False")
