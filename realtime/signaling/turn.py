"""ICE servers: what a page puts into ``RTCPeerConnection({iceServers})``, with TURN credentials that expire.

State only: no sockets, no clock, no greenlets. The credentials follow the convention that coturn calls
``use-auth-secret`` (draft-uberti-behave-turn-rest-00, section 2.2): bridge and TURN server share a secret, and
neither asks the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from realtime.errors import ConfigurationError

__all__ = ["IceServers", "turn_credentials"]

_MEMBERS = ("urls", "username", "credential")  # of an RTCIceServer (W3C WebRTC 4.2.4)
_TURN = ("turn:", "turns:")
# RFC 7064 and RFC 7065: no slashes; a name or an address, IPv6 in brackets; transport for TURN only
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/?#\[\]@]+)(?::[0-9]{1,5})?"
_URL = re.compile(rf"stuns?:{_HOST}|turns?:{_HOST}(?:\?transport=(?:udp|tcp))?")


def turn_credentials(secret: str, user: str, expires: int) -> tuple[str, str]:
    """Return username and credential that a TURN server with the same secret takes until ``expires``.

    :param expires: seconds since the epoch.
    """
    username = f"{expires}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


class IceServers:
    """The ``ice_servers`` option, checked.

    :param servers: as a page gives them to a browser: ``{"urls": url or [url, ...], "username"?, "credential"?}``.
    :param secret: shared with the TURN servers (coturn's ``static-auth-secret``): entries with a ``turn:`` or
        ``turns:`` URL and no credential of their own get one for each client.
    :param ttl: seconds that such a credential is good for.
    :raises ConfigurationError: an entry that a browser would refuse, or a secret that no entry needs.
    """

    def __init__(self, servers: Sequence[Mapping[str, Any]], secret: str | None, ttl: float) -> None:
        if isinstance(servers, (str, bytes, Mapping)) or not isinstance(servers, Sequence):
            raise ConfigurationError(f'ice_servers={servers!r}: must be a list such as [{{"urls": "stun:host:3478"}}]')
        if secret is not None and (not isinstance(secret, str) or not secret):
            raise ConfigurationError("turn_secret: must be a text, the secret that the TURN server has")
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not math.isfinite(ttl) or ttl < 1:
            raise ConfigurationError(f"turn_ttl={ttl!r}: must be seconds, at least 1")
        self._secret = secret
        self._ttl = ttl
        self._servers = [_checked(server, has_secret=secret is not None) for server in servers]
        if secret is not None and not any(map(_needs_credential, self._servers)):
            raise ConfigurationError("turn_secret: ice_servers has no turn: or turns: entry that needs a credential")

    def for_client(self, client_id: str, now: float) -> list[dict[str, Any]]:
        """Return the list for one client, with credentials that are good for ``ttl`` from ``now`` on.

        :param now: seconds since the epoch.
        """
        if self._secret is None:
            return self._servers
        username, credential = turn_credentials(self._secret, client_id, int(now + self._ttl))
        return [
            {**server, "username": username, "credential": credential} if _needs_credential(server) else server
            for server in self._servers
        ]


def _urls_of(server: Mapping[str, Any]) -> list[Any]:
    urls = server.get("urls")
    return [urls] if isinstance(urls, str) else list(urls) if isinstance(urls, (list, tuple)) else []


def _needs_credential(server: Mapping[str, Any]) -> bool:
    return "credential" not in server and any(url.startswith(_TURN) for url in _urls_of(server))


def _checked(server: Mapping[str, Any], *, has_secret: bool) -> dict[str, Any]:
    """Return a copy of one entry; raise ConfigurationError if a browser would refuse it. Shows no credential."""
    if not isinstance(server, Mapping) or not _urls_of(server):
        raise ConfigurationError('ice_servers: each must be {"urls": "stun:host:3478"}, or a list of URLs there')
    urls = _urls_of(server)
    if unknown := set(server) - set(_MEMBERS):
        raise ConfigurationError(f"ice_servers: {urls[0]!r} has {sorted(map(str, unknown))}; allowed: {_MEMBERS}")
    for url in urls:
        if not isinstance(url, str) or not _URL.fullmatch(url):
            example = "stun:host:port, turn:host:port?transport=udp, or stuns: and turns:"
            raise ConfigurationError(f"ice_servers: {url!r} is no URL of an ICE server ({example})")
    for name in _MEMBERS[1:]:
        if name in server and (not isinstance(server[name], str) or not server[name]):
            raise ConfigurationError(f"ice_servers: {name} of {urls[0]!r} must be a text that is not empty")
    if ("username" in server) != ("credential" in server):
        raise ConfigurationError(f"ice_servers: {urls[0]!r} needs both username and credential, or neither")
    if _needs_credential(server) and not has_secret:
        raise ConfigurationError(f"ice_servers: {urls[0]!r} needs username and credential, or turn_secret=...")
    return {"urls": urls if len(urls) > 1 else urls[0], **{n: server[n] for n in _MEMBERS[1:] if n in server}}
