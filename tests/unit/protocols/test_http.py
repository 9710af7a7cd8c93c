"""The strict reader of HTTP heads: what has one meaning is taken apart, everything else is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.errors import HandshakeError
from realtime.protocols.http import (
    MAX_HEADER_FIELDS,
    Headers,
    HeadReader,
    Request,
    parse_request,
    parse_response,
    reason_phrase,
    render_response,
)


def request_of(*lines: str, first: str = "GET / HTTP/1.1", host: str | None = "example.com") -> Request:
    hosts = [] if host is None else [f"Host: {host}"]
    return parse_request("\r\n".join([first, *hosts, *lines, "", ""]).encode("latin-1"))


def refused(head: bytes) -> int:
    with pytest.raises(HandshakeError) as caught:
        parse_request(head)
    assert caught.value.message.endswith(".")
    return caught.value.status


def test_a_request_is_taken_apart() -> None:
    request = parse_request(
        b"GET /chat%20room/%C3%BC?a=1&a=2&b=x%20y&empty= HTTP/1.1\r\n"
        b"Host: example.com:8080\r\nX-One:  padded \t\r\nx-one: again\r\nEmpty:\r\n\r\n",
        remote_address="192.0.2.1",
        secure=True,
    )
    assert (request.method, request.version, request.secure) == ("GET", "HTTP/1.1", True)
    assert request.target == "/chat%20room/%C3%BC?a=1&a=2&b=x%20y&empty="
    assert (request.raw_path, request.path) == ("/chat%20room/%C3%BC", "/chat room/ü")
    assert request.query_string == "a=1&a=2&b=x%20y&empty="
    assert request.query == {"a": "1", "b": "x y", "empty": ""}
    assert request.query_all == {"a": ["1", "2"], "b": ["x y"], "empty": [""]}
    assert request.headers["x-ONE"] == "padded, again"
    assert request.headers.get_all("X-One") == ["padded", "again"]
    assert request.headers["empty"] == ""
    assert request.remote_address == "192.0.2.1"


def test_headers_behave_as_a_mapping_without_regard_to_case() -> None:
    headers = Headers([("Accept", "a"), ("ACCEPT", "b"), ("Host", "h")])
    assert dict(headers) == {"accept": "a, b", "host": "h"}
    assert len(headers) == 2
    assert "hOsT" in headers
    assert "missing" not in headers
    number: object = 7
    assert number not in headers
    assert headers.get("missing") is None
    assert headers.raw == [("Accept", "a"), ("ACCEPT", "b"), ("Host", "h")]
    with pytest.raises(KeyError):
        headers["missing"]


def test_cookies_are_split_unquoted_and_the_first_of_a_name_wins() -> None:
    request = request_of('Cookie: a=1; b="two; broken; c=x=y', 'cookie: a=2; d="four"')
    assert request.cookies == {"a": "1", "b": '"two', "c": "x=y", "d": "four"}
    assert request_of().cookies == {}


@pytest.mark.parametrize(
    ("target", "raw_path", "query"),
    [
        ("http://example.com/a?b", "/a", "b"),
        ("HTTPS://EXAMPLE.com", "/", ""),
        ("http://example.com?b=1", "/", "b=1"),
        ("/?", "/", ""),
        ("//double/slash", "//double/slash", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/not%zzdecodable%", "/not%zzdecodable%", ""),
    ],
)
def test_targets_that_are_paths_or_whole_uris(target: str, raw_path: str, query: str) -> None:
    request = request_of(first=f"GET {target} HTTP/1.1")
    assert (request.raw_path, request.query_string) == (raw_path, query)


def test_asterisk_is_for_options() -> None:
    assert request_of(first="OPTIONS * HTTP/1.1").path == "*"
    assert refused(b"GET * HTTP/1.1\r\nHost: a\r\n\r\n") == 400


def test_http_1_0_may_leave_the_host_out() -> None:
    assert request_of(first="GET / HTTP/1.0", host=None).version == "HTTP/1.0"
    assert refused(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n") == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET / ", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET\t/\tHTTP/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.11", 400),
        (b"GET / HTTP/x.y", 400),
        (b"GET / HTTP/2.0", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"GET / HTTP/9.9", 505),
        (b"GET / HTTP/1.2", 505),
        (b"G@T / HTTP/1.1", 400),
        (b"lead in GET / HTTP/1.1", 400),
        (b"prefixGET nonsense HTTP/1.1", 400),
        (b"GET relative HTTP/1.1", 400),
        (b"GET /#fragment HTTP/1.1", 400),
        (b"GET /\xc3\xbc HTTP/1.1", 400),
        (b"GET /a\x00b HTTP/1.1", 400),
        (b"GET /a\x7fb HTTP/1.1", 400),
        (b"GET ftp://example.com/ HTTP/1.1", 400),
        (b"GET http:// HTTP/1.1", 400),
        (b"GET http://other.example/ HTTP/1.1", 400),
        (b"GET http://user@example.com/ HTTP/1.1", 400),
        (b"CONNECT example.com:443 HTTP/1.1", 400),
        (b"CONNECT http://example.com/ HTTP/1.1", 400),
    ],
)
def test_request_lines_that_are_refused(line: bytes, status: int) -> None:
    assert refused(line + b"\r\nHost: example.com\r\n\r\n") == status


@pytest.mark.parametrize(
    "host",
    ["a", "a.b:80", "127.0.0.1:0", "[::1]", "[::1]:65535", "a_b", "xn--bcher-kva.example", "a:"],
)
def test_hosts_that_are_valid(host: str) -> None:
    assert request_of(host=host).headers["host"] == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a/b",
        "a@b",
        "a:65536",
        "a:x",
        "a:1:2",
        "[::1",
        "[::g]",
        "[1.2.3.4]",
        "::1",
        "a?b",
        "ü",
        "<x>",
    ],
)
def test_hosts_that_are_refused(host: str) -> None:
    assert refused(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")) == 400


def test_a_missing_or_doubled_host_is_refused() -> None:
    assert refused(b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n") == 400
    assert refused(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n") == 400
    assert refused(b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n") == 400


@pytest.mark.parametrize(
    "field",
    [
        b"no colon",
        b": no name",
        b"Name : value",
        b"Na me: value",
        b"Name[]: value",
        b"N\xc3\xa4me: value",
        b" Folded: start",
        b"A: b\r\n folded",
        b"A: b\r\n\tfolded",
        b"A: bell\x07",
        b"A: nul\x00",
        b"A: del\x7f",
        b"A: lone\rreturn",
        b"A: lone\nfeed",
        b"A: b\r\r\nC: d",
    ],
)
def test_header_lines_that_are_refused(field: bytes) -> None:
    assert refused(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n") == 400


def test_latin_1_and_tabs_inside_values_are_kept() -> None:
    assert request_of("A: caf\xe9\tau lait").headers["a"] == "caf\xe9\tau lait"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rSome: thing\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nmore",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"",
        b"\r\n\r\n",
        b"\n\r\n\r\n",
    ],
)
def test_only_whole_heads_with_crlf_lines_are_taken(head: bytes) -> None:
    assert refused(head) == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (("Content-Length: -1",), 400),
        (("Content-Length: -123456789123456789123456789",), 400),
        (("Content-Length: +1",), 400),
        (("Content-Length: abc",), 400),
        (("Content-Length: 0x10",), 400),
        (("Content-Length: 1_0",), 400),
        (("Content-Length: \xb2",), 400),
        (("Content-Length:",), 400),
        (("Content-Length: 5, 5",), 400),
        (("Content-Length: 5", "content-length: 5"), 400),
        (("Content-Length: 9999999999999999999",), 413),
        (("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (("contENT-length: 5", "TRANSFER-encoding: chunked"), 400),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
        (("Transfer-Encoding: chunked, chunked",), 400),
        (("Transfer-Encoding: chunked, gzip",), 400),
        (("Transfer-Encoding: identity",), 400),
        (("Transfer-Encoding: xchunked",), 400),
        (("Transfer-Encoding: chunked;q=1",), 400),
        (("Transfer-Encoding:",), 400),
        (("Transfer-Encoding: , chunked",), 400),
        (("Transfer-Encoding: gzip, chunked",), 501),
    ],
)
def test_bodies_whose_length_is_unclear_are_refused(fields: tuple[str, ...], status: int) -> None:
    head = "\r\n".join(["POST / HTTP/1.1", "Host: a", *fields, "", ""]).encode("latin-1")
    assert refused(head) == status


def test_chunked_needs_http_1_1() -> None:
    assert request_of("Transfer-Encoding: Chunked").headers["transfer-encoding"] == "Chunked"
    assert refused(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") == 400


def test_the_number_of_header_fields_is_bounded() -> None:
    most = [f"X-{number}: x" for number in range(MAX_HEADER_FIELDS - 1)]
    assert len(request_of(*most).headers) == MAX_HEADER_FIELDS
    assert refused("\r\n".join(["GET / HTTP/1.1", "Host: a", *most, "Y: y", "", ""]).encode()) == 431


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(HEAD) + 8])
def test_a_head_may_arrive_in_any_pieces(size: int) -> None:
    reader = HeadReader(len(HEAD))
    data = HEAD + b"leftover"
    for start in range(0, len(data), size):
        head = reader.feed(data[start : start + size])
        if head is not None:
            break
        assert start + size < len(HEAD)
    assert head == HEAD
    assert data[start + size :] == data[len(HEAD) + len(reader.leftover) :]
    assert b"leftover".startswith(reader.leftover)


@pytest.mark.parametrize("cut", range(len(HEAD)))
def test_no_beginning_of_a_valid_head_is_refused(cut: int) -> None:
    reader = HeadReader(1000)
    assert reader.feed(HEAD[:cut]) is None
    assert reader.started == (cut > 0)
    assert reader.feed(HEAD[cut:]) == HEAD


def test_one_blank_line_before_a_request_is_ignored_and_no_more() -> None:
    reader = HeadReader(1000)
    assert reader.feed(b"\r") is None
    assert reader.feed(b"\n") is None
    assert not reader.started
    assert reader.feed(HEAD) == HEAD
    more = HeadReader(1000).feed(b"\r\n\r\n" + HEAD)
    assert more is not None
    assert refused(more) == 400


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\rX", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nA: \x07"]
)
def test_bytes_that_no_head_may_contain_are_refused_before_its_end(data: bytes) -> None:
    with pytest.raises(HandshakeError) as whole:
        HeadReader(1000).feed(data)
    assert whole.value.status == 400
    reader = HeadReader(1000)
    for byte in data[:-1]:
        with suppress(HandshakeError):
            reader.feed(bytes([byte]))
    with pytest.raises(HandshakeError):
        reader.feed(data[-1:])


def test_what_follows_the_head_is_not_looked_at() -> None:
    reader = HeadReader(len(HEAD))
    assert reader.feed(HEAD + b"\x00\n\r" * 1000) == HEAD
    assert reader.leftover == b"\x00\n\r" * 1000


def test_a_head_over_the_limit_is_refused_as_soon_as_it_is() -> None:
    assert HeadReader(len(HEAD)).feed(HEAD) == HEAD
    reader = HeadReader(len(HEAD) - 1)
    with pytest.raises(HandshakeError) as caught:
        reader.feed(HEAD)
    assert caught.value.status == 431
    reader = HeadReader(100)
    assert reader.feed(b"GET /" + b"a" * 95) is None
    with pytest.raises(HandshakeError) as caught:
        reader.feed(b"a")
    assert caught.value.status == 431


def parsed_or_refused(head: bytes) -> Request | None:
    """The request, or None if it is refused with a status of an error; nothing else may come out."""
    status = None
    try:
        return parse_request(head)
    except HandshakeError as error:
        status = error.status
    assert 400 <= status <= 599
    return None


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_request_or_the_documented_error(data: bytes) -> None:
    head = None
    with suppress(HandshakeError):
        head = HeadReader(200).feed(data)
    parsed_or_refused(data if head is None else head)


TOKENS = (
    *(b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host:", b"a", b":", b",", b"\t", b"http://"),
    *(b"Content-Length:", b"5", b"Transfer-Encoding:", b"chunked", b"[::1]", b"\x00", b"\xff", b"?", b"%"),
)


@given(st.lists(st.sampled_from(TOKENS), max_size=30))
def test_any_mixture_of_tokens_ends_in_a_request_or_the_documented_error(tokens: list[bytes]) -> None:
    for start in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n"):
        request = parsed_or_refused(start + b"".join(tokens) + b"\r\n\r\n")
        if request is not None:
            assert len(request.headers.get_all("host")) == 1
            assert request.target.isascii()
            assert isinstance(request.path, str)
            assert isinstance(request.query, dict)


def test_a_response_states_its_length_and_closes() -> None:
    response = render_response(404, {"X-Why": "because"}, "Nothing here: ü")
    head, _, body = response.partition(b"\r\n\r\n")
    assert body == "Nothing here: ü".encode()
    parsed = parse_response(head + b"\r\n\r\n")
    assert (parsed.status, parsed.reason, parsed.version) == (404, "Not Found", "HTTP/1.1")
    assert dict(parsed.headers) == {
        "x-why": "because",
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        "connection": "close",
    }


def test_given_headers_are_kept_and_repeated_ones_possible() -> None:
    response = render_response(
        426, [("Connection", "Upgrade"), ("content-type", "text/html"), ("A", "1"), ("A", "2")], b"x"
    )
    parsed = parse_response(response[:-1])
    assert parsed.headers.get_all("connection") == ["Upgrade"]
    assert parsed.headers.get_all("content-type") == ["text/html"]
    assert parsed.headers.get_all("a") == ["1", "2"]


def test_an_answer_to_head_has_the_length_but_not_the_body() -> None:
    response = render_response(404, {}, "four", head_only=True)
    assert parse_response(response).headers["content-length"] == "4"


@pytest.mark.parametrize("status", [101, 204, 304])
def test_statuses_without_a_body_get_exactly_the_given_headers(status: int) -> None:
    parsed = parse_response(render_response(status, {"Upgrade": "websocket"}))
    assert parsed.headers.raw == [("Upgrade", "websocket")]
    with pytest.raises(ValueError, match="no body"):
        render_response(status, {}, "x")


@pytest.mark.parametrize(
    "headers",
    [
        {"A": "b\r\nC: d"},
        {"A": "b\nc"},
        {"A": "b\rc"},
        {"A": "\x00"},
        {"A": "€"},
        {"A b": "c"},
        {"A:": "c"},
        {"": ""},
    ],
)
def test_headers_that_would_break_the_response_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        render_response(200, headers)


@pytest.mark.parametrize("status", [0, 99, 600, 1000])
def test_a_status_outside_the_known_classes_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        render_response(status)


def test_unregistered_statuses_are_named_after_their_class() -> None:
    assert reason_phrase(418) == "I'm a Teapot"
    assert reason_phrase(499) == "Client Error"
    assert reason_phrase(599) == "Server Error"


def test_a_response_is_taken_apart() -> None:
    response = parse_response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    assert (response.status, response.reason) == (101, "Switching Protocols")
    assert response.headers["upgrade"] == "websocket"
    assert parse_response(b"HTTP/1.0 200 \r\n\r\n").reason == ""


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_what_is_no_response_is_refused(head: bytes) -> None:
    with pytest.raises(HandshakeError) as caught:
        parse_response(head)
    assert caught.value.status == 502
