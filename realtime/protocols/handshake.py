"""The opening handshake (RFC 6455 section 4) for either end, without I/O.

A server calls :func:`accept_handshake` with a parsed request; a client writes :func:`build_request` and gives
the answer's head to :func:`check_response`. What does not lead to a WebSocket raises HandshakeError, whose
text says what is allowed. Nothing here switches greenlets.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from realtime.errors import ConfigurationError, HandshakeError
from realtime.protocols.deflate import (
    DeflateOptions,
    PerMessageDeflate,
    accept_offer,
    accept_response,
    make_offer,
)
from realtime.protocols.http import Headers, Request, parse_response, render_response

__all__ = [
    "Accepted",
    "accept_handshake",
    "build_request",
    "check_allowed_origins",
    "check_origin",
    "check_response",
    "new_key",
]

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_VERSION = "13"
_UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}  # required in a 426 (RFC 9110 section 15.5.22)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_ORIGIN = re.compile(  # RFC 6454 section 6.2: scheme, host and port, nothing after
    r"([a-z][a-z0-9+.\-]*)://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(?::([0-9]{1,5}))?", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_TARGET = re.compile(r"/[!\"$-~]*")  # visible ASCII; no fragment (RFC 6455 section 3)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Accepted:
    """What a handshake agreed on."""

    response: bytes
    """The 101 response a server has to send; empty for a client."""
    subprotocol: str | None
    deflate: PerMessageDeflate | None
    """For ``WebSocketProtocol(deflate=...)``."""
    extensions: str
    """The agreed Sec-WebSocket-Extensions header; empty if none."""
    headers: Headers
    """The other end's headers."""


def accept_handshake(
    request: Request,
    *,
    subprotocols: Sequence[str] = (),
    allowed_origins: Sequence[str] | str | None = None,
    deflate: DeflateOptions | None = None,
    extra_headers: Iterable[tuple[str, str]] = (),
) -> Accepted:
    """As a server, check an upgrade request and write the answer (RFC 6455 section 4.2).

    :param subprotocols: those spoken here, most wanted first. None in common: none is agreed on, and the
        client decides whether that will do.
    :param allowed_origins: see :func:`check_origin`.
    :param deflate: compress if the client offers it; None: never.
    :param extra_headers: further response headers, cookies for instance.
    :raises HandshakeError: 405 not GET, 426 no upgrade or another version, 400 malformed, 403 origin.
    :raises ValueError: an extra header that cannot be written.
    """
    key = _check_upgrade(request)
    check_origin(request, allowed_origins)
    headers = [*_UPGRADE.items(), ("Sec-WebSocket-Accept", _accept_value(key))]
    offered = _parse_subprotocols(request.headers)
    subprotocol = next((name for name in subprotocols if name in offered), None)
    if subprotocol is not None:
        headers.append(("Sec-WebSocket-Protocol", subprotocol))
    agreed, extensions = _choose_extensions(request.headers, deflate)
    if extensions:
        headers.append(("Sec-WebSocket-Extensions", extensions))
    response = render_response(101, [*headers, *extra_headers])
    return Accepted(response, subprotocol, agreed, extensions, request.headers)


def _check_upgrade(request: Request) -> str:
    """Return the request's key if it asks for a WebSocket as it must; raise HandshakeError otherwise."""
    headers = request.headers
    if request.method != "GET":
        raise HandshakeError(405, "A WebSocket is opened with GET.", {"Allow": "GET"})
    if "websocket" not in _tokens(headers, "upgrade") or "upgrade" not in _tokens(headers, "connection"):
        raise HandshakeError(
            426,
            "This is a WebSocket endpoint: connect with a WebSocket client, "
            "which sends 'Upgrade: websocket' and 'Connection: Upgrade'.",
            _UPGRADE,
        )
    if "transfer-encoding" in headers or headers.get("content-length", "0").strip("0"):
        raise HandshakeError(400, "A WebSocket handshake has no body.")
    if request.version.endswith("1.0"):
        raise HandshakeError(400, "A WebSocket is opened with HTTP/1.1, not HTTP/1.0.")
    if headers.get_all("sec-websocket-version") != [_VERSION]:
        raise HandshakeError(
            426,
            f"Only WebSocket version {_VERSION} (RFC 6455) is spoken: Sec-WebSocket-Version: {_VERSION}.",
            {**_UPGRADE, "Sec-WebSocket-Version": _VERSION},
        )
    keys = headers.get_all("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise HandshakeError(400, "A request must have exactly one Sec-WebSocket-Key: 16 bytes in base64.")
    return keys[0]


def _tokens(headers: Headers, name: str) -> list[str]:
    """Return the lower-cased members of a comma-separated header."""
    return [token.strip(" \t").lower() for token in headers.get(name, "").split(",")]


def _accept_value(key: str) -> str:
    """Return what proves that the key was read (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


def _parse_subprotocols(headers: Headers) -> list[str]:
    header = headers.get("sec-websocket-protocol")
    if header is None:
        return []
    names = [name.strip(" \t") for name in header.split(",")]
    if len(set(names)) < len(names) or not all(_TOKEN.fullmatch(name) for name in names):
        raise HandshakeError(400, "Sec-WebSocket-Protocol must list names, each once, between commas.")
    return names


def _choose_extensions(
    headers: Headers, options: DeflateOptions | None
) -> tuple[PerMessageDeflate | None, str]:
    header = headers.get("sec-websocket-extensions")
    if header is None or options is None:
        return None, ""
    try:
        agreed = accept_offer(header, options)
    except ValueError:
        raise HandshakeError(
            400, "Sec-WebSocket-Extensions does not follow the grammar of RFC 6455 section 9.1."
        ) from None
    return agreed or (None, "")


# ---------------------------------------------------------------------------------------------------- origin


def check_origin(request: Request, allowed: Sequence[str] | str | None = None) -> None:
    """Refuse pages of a foreign origin: a browser sends its cookies whoever wrote the page (section 10.2).

    :param allowed: None: the page comes from the host it connects to. ``"*"``: any page. Else the origin, or
        origins, whose pages may connect, such as ``"https://example.com"``; ``"null"`` is that of files and
        sandboxed frames. A request without Origin does not come from a browser, and passes.
    :raises HandshakeError: 403 naming the origin, 400 for more than one Origin header.
    """
    origins = request.headers.get_all("origin")
    if not origins:
        return
    if len(origins) > 1:
        raise HandshakeError(400, "A request must not have more than one Origin header.")
    origin = origins[0]
    if allowed is None:
        if _is_same_host(origin, request.headers.get("host", "")):
            return
        rule = "only pages of the same host may connect"
    else:
        allowed = (allowed,) if isinstance(allowed, str) else allowed
        wanted = _normalise(origin)
        if "*" in allowed or (wanted and wanted in map(_normalise, allowed)):
            return
        rule = "it is not among the allowed origins"
    shown = origin[:200]
    raise HandshakeError(
        403, f"Pages of origin {shown!r} may not connect: {rule}. To allow it, add it to allowed_origins."
    )


def check_allowed_origins(allowed: Sequence[str] | str | None) -> None:
    """Raise ConfigurationError for an ``allowed_origins`` that no browser's Origin could ever match."""
    for origin in () if allowed is None else (allowed,) if isinstance(allowed, str) else allowed:
        if origin not in ("*", "null") and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
            raise ConfigurationError(
                f"allowed_origins has {origin!r}: must be an origin as in 'https://example.com' or "
                "'http://localhost:3000' (no path, no final slash), '*' or 'null'"
            )


def _normalise(origin: str) -> str:
    """Return the origin in lower case without its scheme's default port; "" if it is no origin."""
    if origin == "null":
        return origin
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return ""
    scheme = match[1].lower()
    return f"{scheme}://{_join_port(match[2], match[3], scheme)}"


def _is_same_host(origin: str, host: str) -> bool:
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False
    # A proxy that ends TLS leaves no trace of it in Host, so both are read with the page's default port.
    scheme = match[1].lower()
    name, port = re.fullmatch(r"(.*?)(?::([0-9]*))?", host, re.DOTALL).groups()  # type: ignore[union-attr]
    return _join_port(match[2], match[3], scheme) == _join_port(name, port, scheme)


def _join_port(host: str, port: str | None, scheme: str) -> str:
    if not port or port == _DEFAULT_PORTS.get(scheme):
        return host.lower()
    return f"{host.lower()}:{port}"


# ---------------------------------------------------------------------------------------------------- client


def new_key() -> str:
    """Return a fresh Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


def build_request(
    host: str,
    target: str,
    key: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: Iterable[tuple[str, str]] = (),
    deflate: DeflateOptions | None = None,
) -> bytes:
    """As a client, return the upgrade request (RFC 6455 section 4.1).

    :param host: the URL's host, with its port unless it is the scheme's default.
    :param target: the URL's path and query, percent-encoded.
    :param key: from :func:`new_key`; :func:`check_response` wants it again.
    :raises ValueError: a part that cannot be written in a request.
    """
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no host")
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is no request target: it starts with a slash and is percent-encoded")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not 16 bytes in base64")
    fields = [
        ("Host", host),
        *_UPGRADE.items(),
        ("Sec-WebSocket-Version", _VERSION),
        ("Sec-WebSocket-Key", key),
    ]
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a subprotocol")
    if subprotocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    if deflate is not None:
        fields.append(("Sec-WebSocket-Extensions", make_offer(deflate)))
    lines = [f"GET {target} HTTP/1.1"]
    for name, value in [*fields, *headers]:
        if not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"cannot write header {name!r}: {value!r}")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def check_response(
    head: bytes, key: str, *, subprotocols: Sequence[str] = (), deflate: DeflateOptions | None = None
) -> Accepted:
    """As a client, check the server's answer (RFC 6455 section 4.1) to a request with the same arguments.

    :raises HandshakeError: with the server's own status if it refused, 502 if its answer is wrong.
    """
    response = parse_response(head)
    headers = response.headers
    if response.status != 101:
        raise HandshakeError(
            response.status, f"the server refused: {response.status} {response.reason}", dict(headers.raw)
        )
    if _tokens(headers, "upgrade") != ["websocket"] or "upgrade" not in _tokens(headers, "connection"):
        raise HandshakeError(502, "the server switched to another protocol than WebSocket")
    if headers.get_all("sec-websocket-accept") != [_accept_value(key)]:
        raise HandshakeError(502, "the server's Sec-WebSocket-Accept does not belong to our key")
    chosen = headers.get_all("sec-websocket-protocol")
    if len(chosen) > 1 or not set(chosen) <= set(subprotocols):
        raise HandshakeError(
            502, f"the server chose a subprotocol we did not offer: {', '.join(chosen)[:200]!r}"
        )
    extensions = headers.get("sec-websocket-extensions", "")
    agreed = None
    if extensions:
        if deflate is None:
            raise HandshakeError(502, f"the server chose extensions we did not offer: {extensions[:200]!r}")
        try:
            agreed = accept_response(extensions, deflate)
        except ValueError as error:
            raise HandshakeError(502, str(error)) from None
    return Accepted(b"", chosen[0] if chosen else None, agreed, extensions, headers)
