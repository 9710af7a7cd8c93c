"""ICE servers: what a browser would take, and TURN credentials as the REST convention has them."""

from __future__ import annotations

from typing import Any

import pytest

from realtime.errors import ConfigurationError
from realtime.signaling.turn import IceServers, turn_credentials

STUN = {"urls": "stun:stun.example.org:3478"}
TURN = {"urls": ["turn:turn.example.org:3478?transport=udp", "turns:turn.example.org"]}
OWN = {"urls": "turn:other.example.org", "username": "u", "credential": "c"}


def test_the_credential_is_that_of_the_convention() -> None:
    # printf %s "1433895918:506" | openssl dgst -sha1 -hmac "my_secret" -binary | base64
    username, credential = turn_credentials("my_secret", "506", 1433895918)
    assert (username, credential) == ("1433895918:506", "yudpGntYvziM2eqFp8bBIVMfEyo=")


def test_each_turn_server_without_a_credential_gets_one_that_ends_in_time() -> None:
    servers = IceServers([STUN, TURN, OWN], "secret", 600.0)
    listed = servers.for_client("me", 1_000_000.5)
    username, credential = turn_credentials("secret", "me", 1_000_600)
    assert listed == [STUN, {**TURN, "username": username, "credential": credential}, OWN]
    assert servers.for_client("you", 1_000_000.5)[1]["username"] == "1000600:you"


def test_without_a_secret_the_list_goes_out_as_it_is() -> None:
    assert IceServers([STUN, OWN], None, 600.0).for_client("me", 0.0) == [STUN, OWN]
    assert IceServers([], None, 600.0).for_client("me", 0.0) == []


@pytest.mark.parametrize(
    "url",
    [
        "stun:example.org",
        "stuns:example.org:5349",
        "stun:192.0.2.1:3478",
        "stun:[2001:db8::1]:3478",
        "turn:example.org?transport=tcp",
        "turns:[2001:db8::1]?transport=udp",
    ],
)
def test_urls_of_the_rfcs_are_taken(url: str) -> None:
    server = {"urls": url, "username": "u", "credential": "c"}
    assert IceServers([server], None, 1).for_client("me", 0) == [server]


@pytest.mark.parametrize(
    "servers",
    [
        STUN,
        "stun:example.org",
        7,
        [7],
        [{}],
        [{"urls": []}],
        [{"urls": [7]}],
        [{"url": "stun:example.org"}],
        [{"urls": "http://example.org"}],
        [{"urls": "stun://example.org"}],
        [{"urls": "stun:"}],
        [{"urls": "stun:exa mple.org"}],
        [{"urls": "stun:example.org?transport=udp"}],
        [{"urls": "turn:example.org?transport=sctp", "username": "u", "credential": "c"}],
        [{**STUN, "other": 1}],
        [{**STUN, "username": "u"}],
        [{**OWN, "credential": None}],
        [{**OWN, "username": ""}],
        [{"urls": "turn:example.org"}],
        [STUN, {"urls": ["stun:example.org", "turns:example.org"]}],
    ],
)
def test_what_a_browser_would_refuse_is_refused_at_once(servers: Any) -> None:
    with pytest.raises(ConfigurationError, match="ice_servers"):
        IceServers(servers, None, 3600.0)


@pytest.mark.parametrize("secret", ["", b"secret", 7])
def test_a_secret_is_a_text(secret: Any) -> None:
    with pytest.raises(ConfigurationError, match="turn_secret"):
        IceServers([TURN], secret, 3600.0)


@pytest.mark.parametrize("servers", [[], [STUN], [OWN]])
def test_a_secret_that_nothing_needs_is_refused(servers: Any) -> None:
    with pytest.raises(ConfigurationError, match="turn_secret"):
        IceServers(servers, "secret", 3600.0)


@pytest.mark.parametrize("ttl", [0, -1, 0.5, True, None, "1h", float("inf"), float("nan")])
def test_a_ttl_is_a_time_in_seconds(ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="turn_ttl"):
        IceServers([TURN], "secret", ttl)


def test_no_error_shows_a_credential() -> None:
    with pytest.raises(ConfigurationError) as caught:
        IceServers([{**OWN, "credential": "hush", "username": 7}], None, 3600.0)
    assert "hush" not in str(caught.value)
