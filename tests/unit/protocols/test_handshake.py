"""The opening handshake: RFC 6455 sections 1.3, 4.1, 4.2 and 10.2, both ends."""

from __future__ import annotations

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.protocol import State as OtherState
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from realtime.errors import ConfigurationError, HandshakeError
from realtime.protocols.deflate import DeflateOptions
from realtime.protocols.handshake import (
    Accepted,
    accept_handshake,
    build_request,
    check_allowed_origins,
    check_origin,
    check_response,
    new_key,
)
from realtime.protocols.http import Request, parse_request, parse_response

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

GOOD = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(
    changes: dict[str, str | None] | None = None, *, line: str = "GET /chat HTTP/1.1", add: str = ""
) -> Request:
    """A good request with some headers changed, removed (None) or, as text, added."""
    fields = {**GOOD, **(changes or {})}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return parse_request(("\r\n".join(lines) + "\r\n" + add + "\r\n").encode())


def refused(request: Request, **options: object) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        accept_handshake(request, **options)  # type: ignore[arg-type]
    return caught.value


def test_example_of_section_1_3() -> None:
    accepted = accept_handshake(
        request({"Origin": "http://example.com", "Sec-WebSocket-Protocol": "chat, superchat"}),
        subprotocols=["chat"],
        allowed_origins=["http://example.com"],
    )
    assert accepted.subprotocol == "chat"
    assert accepted.response == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    ],
    ids=str,
)
def test_upgrade_headers_are_lists_of_tokens_in_any_case(changes: dict[str, str | None]) -> None:
    assert accept_handshake(request(changes)).response.startswith(b"HTTP/1.1 101 ")


REFUSED = [
    ("no upgrade", request({"Upgrade": None}), 426),
    ("upgrade to something else", request({"Upgrade": "h2c"}), 426),
    ("no connection header", request({"Connection": None}), 426),
    ("connection keep-alive", request({"Connection": "keep-alive"}), 426),
    ("connection of a like name", request({"Connection": "upgraded"}), 426),
    ("POST", request(line="POST /chat HTTP/1.1"), 405),
    ("HEAD", request(line="HEAD /chat HTTP/1.1"), 405),
    ("HTTP/1.0", request(line="GET /chat HTTP/1.0"), 400),
    ("a body", request(add="Content-Length: 3\r\n"), 400),
    ("a chunked body", request(add="Transfer-Encoding: chunked\r\n"), 400),
    ("version 8", request({"Sec-WebSocket-Version": "8"}), 426),
    ("no version", request({"Sec-WebSocket-Version": None}), 426),
    ("version 13 twice", request(add="Sec-WebSocket-Version: 13\r\n"), 426),
    ("no key", request({"Sec-WebSocket-Key": None}), 400),
    ("two keys", request(add=f"Sec-WebSocket-Key: {KEY}\r\n"), 400),
    ("empty key", request({"Sec-WebSocket-Key": ""}), 400),
    ("key of 15 bytes", request({"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAA"}), 400),
    ("key of 17 bytes", request({"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAAA="}), 400),
    ("key in no base64", request({"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAA!A=="}), 400),
    ("subprotocol twice", request({"Sec-WebSocket-Protocol": "a, b, a"}), 400),
    ("empty subprotocol", request({"Sec-WebSocket-Protocol": "a,,b"}), 400),
    ("subprotocol of two words", request({"Sec-WebSocket-Protocol": "a b"}), 400),
]


@pytest.mark.parametrize(("bad", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_section_4_2_1_does_not_allow_is_refused(bad: Request, status: int) -> None:
    assert refused(bad).status == status


def test_refusals_carry_the_headers_their_status_demands() -> None:
    assert refused(request(line="POST / HTTP/1.1")).headers == {"Allow": "GET"}
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    assert refused(request({"Upgrade": None})).headers == upgrade
    version = refused(request({"Sec-WebSocket-Version": "12"}))
    assert version.headers == {**upgrade, "Sec-WebSocket-Version": "13"}


def test_malformed_extensions_are_refused_only_if_they_are_read() -> None:
    bad = request({"Sec-WebSocket-Extensions": "permessage-deflate; ="})
    assert refused(bad, deflate=DeflateOptions()).status == 400
    assert accept_handshake(bad).extensions == ""


# ----------------------------------------------------------------------------------------------- subprotocols


@pytest.mark.parametrize(
    ("offered", "spoken", "chosen"),
    [
        ("a, b", ["b", "a"], "b"),
        ("a", ["b", "a"], "a"),
        ("a", ["b"], None),
        ("A", ["a"], None),
        ("a", [], None),
        (None, ["a"], None),
    ],
)
def test_subprotocol_is_the_first_of_ours_that_is_offered(
    offered: str | None, spoken: list[str], chosen: str | None
) -> None:
    accepted = accept_handshake(request({"Sec-WebSocket-Protocol": offered}), subprotocols=spoken)
    assert accepted.subprotocol == chosen
    assert (b"Sec-WebSocket-Protocol" in accepted.response) == (chosen is not None)


def test_subprotocols_may_be_offered_in_several_headers() -> None:
    two = request({"Sec-WebSocket-Protocol": "a"}, add="Sec-WebSocket-Protocol: b\r\n")
    assert accept_handshake(two, subprotocols=["b"]).subprotocol == "b"


def test_extra_headers_are_sent_but_cannot_break_out() -> None:
    accepted = accept_handshake(request(), extra_headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    assert parse_response(accepted.response).headers.get_all("set-cookie") == ["a=1", "b=2"]
    with pytest.raises(ValueError, match="X-Bad"):
        accept_handshake(request(), extra_headers=[("X-Bad", "a\r\nInjected: 1")])


# ----------------------------------------------------------------------------------------------------- origin

ORIGINS = [
    # Origin, Host, allowed_origins, passes
    (None, "a.example", None, True),
    (None, "a.example", ["https://b.example"], True),
    ("http://a.example", "a.example", None, True),
    ("https://a.example", "a.example", None, True),
    ("https://a.example", "a.example:443", None, True),
    ("http://a.example:80", "a.example", None, True),
    ("HTTPS://A.Example", "a.EXAMPLE", None, True),
    ("http://localhost:8080", "localhost:8080", None, True),
    ("http://[::1]:8080", "[::1]:8080", None, True),
    ("http://[::1]", "[::1]", None, True),
    ("http://localhost:3000", "localhost:8080", None, False),
    ("http://a.example", "a.example:8080", None, False),
    ("https://a.example:80", "a.example", None, False),
    ("https://b.example", "a.example", None, False),
    ("https://a.example.evil.example", "a.example", None, False),
    ("https://evil-a.example", "a.example", None, False),
    ("https://a.example/", "a.example", None, False),
    ("https://user@a.example", "a.example", None, False),
    ("https://a.example https://b.example", "a.example", None, False),
    ("null", "a.example", None, False),
    ("null", "null", None, False),
    ("", "a.example", None, False),
    ("a.example", "a.example", None, False),
    ("https://b.example", "a.example", "*", True),
    ("null", "a.example", "*", True),
    ("https://b.example", "a.example", ["*"], True),
    ("https://b.example", "a.example", ["https://b.example"], True),
    ("https://B.example", "a.example", ["HTTPS://b.example"], True),
    ("https://b.example", "a.example", "https://b.example", True),
    ("https://b.example:443", "a.example", ["https://b.example"], True),
    ("null", "a.example", ["null"], True),
    ("http://b.example", "a.example", ["https://b.example"], False),
    ("https://b.example:8443", "a.example", ["https://b.example"], False),
    ("https://x.b.example", "a.example", ["https://b.example"], False),
    ("https://a.example", "a.example", ["https://b.example"], False),
    ("https://a.example", "a.example", [], False),
    ("null", "a.example", ["https://b.example"], False),
    ("not an origin", "a.example", ["neither is this"], False),
]


@pytest.mark.parametrize(("origin", "host", "allowed", "passes"), ORIGINS, ids=str)
def test_origin(origin: str | None, host: str, allowed: list[str] | str | None, passes: bool) -> None:
    asked = request({"Origin": origin, "Host": host})
    if passes:
        check_origin(asked, allowed)
        assert accept_handshake(asked, allowed_origins=allowed).response
    else:
        error = refused(asked, allowed_origins=allowed)
        assert error.status == 403
        assert repr(origin) in error.message
        assert "allowed_origins" in error.message


def test_two_origins_are_refused() -> None:
    two = request({"Origin": "http://server.example.com"}, add="Origin: http://server.example.com\r\n")
    assert refused(two).status == 400


@pytest.mark.parametrize(
    "allowed", [None, "*", [], ["*", "null"], "http://a.example:3000", ["https://a.example"]]
)
def test_allowed_origins_that_can_match_are_accepted(allowed: list[str] | str | None) -> None:
    check_allowed_origins(allowed)


@pytest.mark.parametrize(
    "allowed", ["a.example", ["https://a.example/"], [""], ["https://*.a.example/x"], [1]]
)
def test_allowed_origins_that_cannot_match_are_a_configuration_error(allowed: list[str] | str) -> None:
    with pytest.raises(ConfigurationError, match="allowed_origins"):
        check_allowed_origins(allowed)


# ----------------------------------------------------------------------------------------------------- client


def answer(changes: dict[str, str | None] | None = None, *, status: str = "101 Switching Protocols") -> bytes:
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": ACCEPT,
        **(changes or {}),
    }
    lines = [
        f"HTTP/1.1 {status}",
        *(f"{name}: {value}" for name, value in fields.items() if value is not None),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_client_accepts_the_example_of_section_1_3() -> None:
    accepted = check_response(
        answer({"Sec-WebSocket-Protocol": "chat"}), KEY, subprotocols=["chat", "superchat"]
    )
    assert accepted.subprotocol == "chat"
    assert accepted.deflate is None


CLIENT_REFUSES = [
    ("wrong accept", answer({"Sec-WebSocket-Accept": ACCEPT.lower()}), 502),
    ("no accept", answer({"Sec-WebSocket-Accept": None}), 502),
    ("no upgrade", answer({"Upgrade": None}), 502),
    ("other upgrade", answer({"Upgrade": "h2c"}), 502),
    ("no connection", answer({"Connection": None}), 502),
    ("connection close", answer({"Connection": "close"}), 502),
    ("status 200", answer(status="200 OK"), 200),
    ("status 403", answer(status="403 Forbidden"), 403),
    ("subprotocol not offered", answer({"Sec-WebSocket-Protocol": "other"}), 502),
    ("two subprotocols", answer({"Sec-WebSocket-Protocol": "chat, superchat"}), 502),
    ("extension not offered", answer({"Sec-WebSocket-Extensions": "x-other"}), 502),
    ("parameter not offered", answer({"Sec-WebSocket-Extensions": "permessage-deflate; x=1"}), 502),
    ("no HTTP", b"\x15\x03\x01\x00\r\n\r\n", 502),
]


@pytest.mark.parametrize(
    ("head", "status"), [case[1:] for case in CLIENT_REFUSES], ids=[case[0] for case in CLIENT_REFUSES]
)
def test_client_refuses_what_section_4_1_does_not_allow(head: bytes, status: int) -> None:
    with pytest.raises(HandshakeError) as caught:
        check_response(head, KEY, subprotocols=["chat", "superchat"], deflate=DeflateOptions())
    assert caught.value.status == status


def test_client_refuses_compression_it_did_not_offer() -> None:
    with pytest.raises(HandshakeError, match="did not offer"):
        check_response(answer({"Sec-WebSocket-Extensions": "permessage-deflate"}), KEY)


@pytest.mark.parametrize(
    ("host", "target", "subprotocols", "headers"),
    [
        ("a b", "/", [], []),
        ("a\r\nX: 1", "/", [], []),
        ("a", "chat", [], []),
        ("a", "/ HTTP/1.1\r\nX: 1", [], []),
        ("a", "/ü", [], []),
        ("a", "/#fragment", [], []),
        ("a", "/", ["a b"], []),
        ("a", "/", [], [("X", "a\nb")]),
        ("a", "/", [], [("X Y", "a")]),
    ],
    ids=str,
)
def test_client_refuses_to_write_what_is_no_request(
    host: str, target: str, subprotocols: list[str], headers: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        build_request(host, target, KEY, subprotocols=subprotocols, headers=headers)


def test_keys_differ() -> None:
    assert len({new_key() for _ in range(100)}) == 100


# ----------------------------------------------------------------------------------------- against each other


def agree(deflate: DeflateOptions | None) -> tuple[Accepted, Accepted]:
    key = new_key()
    asked = build_request("a.example", "/x?y=1", key, subprotocols=["b", "a"], deflate=deflate)
    there = accept_handshake(parse_request(asked), subprotocols=["a", "b"], deflate=DeflateOptions())
    return there, check_response(there.response, key, subprotocols=["b", "a"], deflate=deflate)


def test_both_ends_of_ours_agree() -> None:
    there, here = agree(DeflateOptions(server_no_context_takeover=True, client_max_window_bits=12))
    assert there.subprotocol == here.subprotocol == "a"
    assert there.extensions == here.extensions
    assert there.deflate is not None
    assert here.deflate is not None
    assert there.deflate.send_takeover is here.deflate.receive_takeover is False
    assert there.deflate.receive_takeover is here.deflate.send_takeover is True
    assert there.deflate.receive_window_bits == here.deflate.send_window_bits == 12
    assert agree(None)[0].deflate is None


@pytest.mark.parametrize("compress", [False, True])
def test_another_implementation_as_client(compress: bool) -> None:
    other = ClientProtocol(
        parse_uri("ws://a.example/chat"),
        origin="http://a.example",  # type: ignore[arg-type]
        subprotocols=["chat"],  # type: ignore[list-item]
        extensions=[ClientPerMessageDeflateFactory()] if compress else None,
    )
    other.send_request(other.connect())
    asked = parse_request(b"".join(other.data_to_send()))
    accepted = accept_handshake(
        asked, subprotocols=["chat"], deflate=DeflateOptions(server_max_window_bits=10)
    )
    other.receive_data(accepted.response)
    assert other.handshake_exc is None
    assert other.state is OtherState.OPEN
    assert other.subprotocol == "chat"
    assert bool(other.extensions) == bool(accepted.deflate) == compress


@pytest.mark.parametrize("compress", [False, True])
def test_another_implementation_as_server(compress: bool) -> None:
    other = ServerProtocol(
        subprotocols=["chat"],  # type: ignore[list-item]
        extensions=[ServerPerMessageDeflateFactory()] if compress else None,
    )
    key, deflate = new_key(), DeflateOptions(server_no_context_takeover=True)
    other.receive_data(
        build_request(
            "a.example", "/chat", key, subprotocols=["chat"], deflate=deflate, headers=[("X-A", "1")]
        )
    )
    [asked] = other.events_received()
    other.send_response(other.accept(asked))  # type: ignore[arg-type]
    accepted = check_response(b"".join(other.data_to_send()), key, subprotocols=["chat"], deflate=deflate)
    assert other.state is OtherState.OPEN
    assert accepted.subprotocol == "chat"
    assert bool(accepted.deflate) == compress
