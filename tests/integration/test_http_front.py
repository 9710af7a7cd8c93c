"""The HTTP front over real sockets: strict before anybody sees a request, a good WSGI server after."""

from __future__ import annotations

import gc
import logging
import os
import socket as plain_socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import gevent
import gevent.event
import gevent.socket
import gevent.ssl
import pytest
import trustme
from raw import connect_saying

from realtime.config import Limits
from realtime.errors import ConfigurationError, HandshakeError, PortInUse
from realtime.protocols.http import Headers, Request, parse_response, render_response
from realtime.transports.http import HttpServer, TLSOptions

PATIENCE = 60.0
HOST = "127.0.0.1"
SWITCHED = render_response(101, {"Upgrade": "test"})

Serve = Callable[..., HttpServer]


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answers with the request's body."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [environ["wsgi.input"].read()]


def no_upgrade(request: Request, sock: gevent.socket.socket, leftover: bytes) -> None:
    raise AssertionError("no upgrade was expected")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that are stopped when the test ends."""
    started: list[HttpServer] = []

    def serve_one(**options: Any) -> HttpServer:
        defaults = {"host": HOST, "port": 0, "path": "/realtime", "upgrade": no_upgrade}
        server = HttpServer(**{**defaults, **options})
        started.append(server)
        server.start()
        return server

    yield serve_one
    for server in started:
        server.stop(timeout=0)


class Client:
    """A raw connection that can send anything and reads one answer at a time.

    :param first: what it says before the server has a turn: see ``connect_saying``.
    """

    def __init__(self, server: HttpServer, context: ssl.SSLContext | None = None, *, first: bytes = b"") -> None:
        if first:
            self.sock = connect_saying((server.host, server.port), first)
        else:
            self.sock = gevent.socket.create_connection((server.host, server.port), timeout=PATIENCE)
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert self.more(), f"the connection ended after {self.buffer!r}"
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            assert self.more(), f"the connection ended after {self.buffer!r}"
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def head(self) -> tuple[int, Headers]:
        while b"\r\n\r\n" not in self.buffer:
            assert self.more(), f"the connection ended after {self.buffer!r}"
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        response = parse_response(head + b"\r\n\r\n")
        return response.status, response.headers

    def answer(self) -> tuple[int, Headers, bytes]:
        status, headers = self.head()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.line(), 16):
                body += self.take(size)
                assert self.line() == b""
            assert self.line() == b""
            return status, headers, body
        return status, headers, self.take(int(headers.get("content-length", "0")))

    def ended(self) -> bool:
        """True when the server has closed, and had sent nothing more."""
        try:
            while self.more():
                pass
        except ConnectionResetError:
            pass
        return self.buffer == b""


def ask(server: HttpServer, data: bytes) -> tuple[int, Headers, bytes]:
    with Client(server) as client:
        client.send(data)
        return client.answer()


def get(path: str = "/", *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", "Host: example.com", *fields, "", ""]).encode()


def until(condition: Callable[[], object]) -> None:
    """Let other greenlets run until ``condition()`` holds."""
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0)


UPGRADE = ("Connection: Upgrade", "Upgrade: WebSocket")


# The cases of the public h1spec list, each through the real server in front of a real application.


WHOLE = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "cut",
    [1, 4, 10, 11, 15, 19, 20, 21, 24, 26, 27, 36, 37, 38, 39],
    ids=lambda cut: repr(WHOLE[:cut])[-14:],
)
def test_half_a_request_is_waited_for(serve: Serve, cut: int) -> None:
    server = serve(app=echo)
    with Client(server) as client:
        client.send(WHOLE[:cut])
        until(lambda: server.active)
        gevent.idle()
        client.send(WHOLE[cut:])
        assert client.answer()[0] == 200
    assert server.counters["http_requests"] == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        get(),
        get("/", "Expect: 100-continue"),
        b"GET / HTTP/1.1\r\nhoSt:\texample.com\r\nempty:\r\n\r\n",
        get("/", "X-Empty: "),
        b"\r\n" + get(),
    ],
)
def test_valid_requests_are_answered(serve: Serve, request_bytes: bytes) -> None:
    assert ask(serve(app=echo), request_bytes)[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / \r\n\r\n", 400),
        (get("/", "X-Invalid[]: test"), 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
        (get("/", "Host: example.org"), 400),
        (get("/", "Content-Length: -123456789123456789123456789"), 400),
        (get("/", "Content-Length: -1234"), 400),
        (get("/", "Content-Length: abc"), 400),
        (get("/", "X-Control: test\x07"), 400),
        (get(version="HTTP/9.9"), 505),
        (b"Extra line" + get(), 400),
        (b"GET / HTTP/1.1\r\nHost: example.com\r\n\rSome-Header: Test\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: example.com\n\n", 400),
        (
            get("/", "content-LengtH: 5", "TransFer-Encoding: chunked") + b"c\r\nHellO world1\r\n0\r\n\r\n",
            400,
        ),
        (get("/", "Transfer-Encoding: gzip, chunked"), 501),
        (get("/", *[f"X-{number}: x" for number in range(200)]), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_malformed_requests_get_their_status_one_sentence_and_the_end(
    serve: Serve, request_bytes: bytes, status: int
) -> None:
    server = serve(app=echo)
    with Client(server) as client:
        client.send(request_bytes)
        found, headers, body = client.answer()
        assert found == status
        assert headers["connection"] == "close"
        assert body.endswith(b".\n")
        assert body.count(b"\n") == 1
        assert client.ended()
    assert server.counters["http_refused"] == 1
    assert server.counters["http_requests"] == 0


def test_a_body_with_a_length_arrives(serve: Serve) -> None:
    assert ask(serve(app=echo), get("/", "Content-Length: 5", method="POST") + b"hello")[2] == b"hello"


def test_a_chunked_body_arrives_in_whatever_pieces(serve: Serve) -> None:
    server = serve(app=echo)
    body = b'c\r\nHellO world1\r\n00A ; name="value"\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n'
    request = get("/", "Transfer-Encoding: chunked", method="POST") + body
    assert ask(server, request)[2] == b"HellO world10123456789"
    with Client(server) as client:
        for byte in request + request:  # and twice on one connection
            client.send(bytes([byte]))
        assert client.answer()[2] == b"HellO world10123456789"
        assert client.answer()[2] == b"HellO world10123456789"


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        b"5\r\nhello\r\n0\r\n" + b"T: x\r\n" * 5000 + b"\r\n",
        b"f" * 17 + b"\r\n",
        b"5;" + b"x" * 5000,
    ],
)
def test_a_malformed_chunked_body_is_refused_and_ends_the_connection(
    serve: Serve, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(app=echo)
    with Client(server) as client:
        client.send(get("/", "Transfer-Encoding: chunked", method="POST") + body + get("/smuggled"))
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert client.ended()
    assert server.counters["http_requests"] == 1
    assert server.counters["app_failures"] == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Deadlines and sizes.


@pytest.mark.parametrize("sent", [b"G", WHOLE[:-1], get("/realtime", *UPGRADE)[:-2]])
def test_half_a_handshake_then_silence_is_dropped_at_the_deadline(serve: Serve, sent: bytes) -> None:
    server = serve(limits=Limits(handshake=0.3))
    with Client(server, first=sent) as client:
        assert client.answer()[0] == 408
        assert client.ended()
    assert server.counters["handshake_timeouts"] == 1


def test_a_client_that_never_speaks_is_dropped_without_a_word(serve: Serve) -> None:
    server = serve(limits=Limits(handshake=0.3))
    with Client(server) as client:
        assert client.ended()
    assert server.counters["handshake_timeouts"] == 1


def test_a_trickle_does_not_extend_the_deadline(serve: Serve) -> None:
    server = serve(limits=Limits(handshake=0.3))
    with Client(server, first=b"GET / HTTP/1.1\r\nHost: a\r\nX: ") as client:

        def trickle() -> None:
            while True:
                client.send(b"x")
                gevent.sleep(0.02)

        trickling = gevent.spawn(trickle)
        try:
            assert client.answer()[0] == 408
        finally:
            trickling.kill()
    assert server.counters["handshake_timeouts"] == 1


def test_a_second_request_has_the_same_deadline(serve: Serve) -> None:
    server = serve(app=echo, limits=Limits(handshake=1.0))
    with Client(server, first=WHOLE + WHOLE[:10]) as client:
        assert client.answer()[0] == 200
        assert client.answer()[0] == 408
        assert client.ended()
    with Client(server, first=WHOLE) as client:
        assert client.answer()[0] == 200
        assert client.ended()
    assert server.counters["handshake_timeouts"] == 1


def test_a_header_block_of_10_mb_is_answered_and_not_collected(serve: Serve) -> None:
    server = serve(app=echo)
    with Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")

        def flood() -> None:
            try:
                for _ in range(160):
                    client.send(b"X: " + b"x" * 65531 + b"\r\n")
                client.sock.shutdown(plain_socket.SHUT_WR)
            except ConnectionError:
                pass  # the server listens for two seconds more, which a standstill may take

        flooding = gevent.spawn(flood)
        assert client.answer()[0] == 431
        assert client.ended()
        flooding.get(timeout=PATIENCE)
    assert server.counters["http_refused"] == 1


def test_a_body_that_falls_silent_is_given_up(serve: Serve) -> None:
    server = serve(app=echo, limits=Limits(handshake=0.3))
    with Client(server, first=get("/", "Content-Length: 5", method="POST") + b"he") as client:
        assert client.answer()[0] == 408
        assert client.ended()
    assert server.counters["app_failures"] == 0


def test_a_client_that_takes_nothing_of_an_answer_is_given_up(serve: Serve) -> None:
    finished = gevent.event.Event()

    def endless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield bytes(65536)
        finally:
            finished.set()

    server = serve(app=endless, limits=Limits(handshake=0.3))
    with Client(server, first=WHOLE):
        assert finished.wait(PATIENCE)
    assert server.counters["app_failures"] == 0


def test_above_the_bound_clients_wait_and_are_served_when_there_is_room(serve: Serve) -> None:
    server = serve(app=echo, max_handshakes=2)
    with Client(server) as first, Client(server), Client(server) as third:
        third.send(WHOLE)
        until(lambda: server.active == 2)
        gevent.idle()
        assert server.counters["accepted"] == 2
        first.sock.close()
        assert third.answer()[0] == 200
        assert server.counters["accepted"] == 3


# Routes.


@pytest.mark.parametrize("path", ["/", "/realtime/", "/Realtime", "/%72ealtime/x", "/elsewhere?a=/realtime"])
def test_without_an_application_other_paths_are_404(serve: Serve, path: str) -> None:
    server = serve()
    status, headers, body = ask(server, get(path))
    assert status == 404
    assert headers["content-type"].startswith("text/plain")
    assert body
    with Client(server) as client:
        client.send(get(path, *UPGRADE, method="HEAD"))
        assert client.head()[0] == 404
        assert client.ended()


@pytest.mark.parametrize("path", ["/realtime", "/realtime?x=1", "/%72ealtime"])
def test_a_plain_get_of_the_endpoint_is_told_how_to_connect(serve: Serve, path: str) -> None:
    status, headers, body = ask(serve(app=echo), get(path))
    assert status == 426
    assert headers["upgrade"] == "websocket"
    assert "upgrade" in headers["connection"].lower()
    assert b"WebSocket endpoint" in body
    assert b'new WebSocket("ws://example.com' in body


def test_an_upgrade_in_http_1_0_is_no_upgrade(serve: Serve) -> None:
    assert ask(serve(), get("/realtime", *UPGRADE, version="HTTP/1.0"))[0] == 426


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_the_endpoint_knows_get_only(serve: Serve, method: str) -> None:
    status, headers, _ = ask(serve(app=echo), get("/realtime", *UPGRADE, method=method))
    assert (status, headers["allow"]) == (405, "GET")


def test_an_upgrade_hands_over_the_request_the_socket_and_what_came_early(serve: Serve) -> None:
    taken: list[tuple[Request, gevent.socket.socket, bytes]] = []

    def upgrade(request: Request, sock: gevent.socket.socket, leftover: bytes) -> None:
        sock.sendall(SWITCHED)
        taken.append((request, sock, leftover))

    server = serve(upgrade=upgrade)
    with Client(server) as client:
        client.send(get("/realtime?token=7", *UPGRADE) + b"early frame")
        assert client.head()[0] == 101
        until(lambda: not server.active)
        request, sock, leftover = taken.pop()
        with sock:
            assert request.query == {"token": "7"}
            assert request.remote_address == HOST
            assert leftover == b"early frame"
            assert sock.gettimeout() is None
            server.stop(timeout=0)
            sock.sendall(b"still open")
            assert client.take(10) == b"still open"
    assert server.counters["upgrades"] == 1


def test_without_a_path_every_path_is_an_endpoint_and_the_application_gets_the_rest(serve: Serve) -> None:
    def upgrade(request: Request, sock: gevent.socket.socket, leftover: bytes) -> None:
        sock.sendall(SWITCHED)
        sock.close()

    server = serve(path=None, upgrade=upgrade)
    assert ask(server, get("/any", *UPGRADE))[0] == 101
    assert ask(server, get("/any"))[0] == 426
    server = serve(path=None, upgrade=upgrade, app=echo)
    assert ask(server, get("/any", *UPGRADE))[0] == 101
    assert ask(server, get("/any"))[0] == 200


def test_an_upgrade_that_is_refused_is_answered(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def upgrade(request: Request, sock: gevent.socket.socket, leftover: bytes) -> None:
        if "fail" in request.query:
            raise RuntimeError("secret detail")
        raise HandshakeError(401, request.query["why"], {"WWW-Authenticate": request.query["why"]})

    server = serve(upgrade=upgrade)
    status, headers, body = ask(server, get("/realtime?why=no", *UPGRADE))
    assert (status, headers["www-authenticate"], body) == (401, "no", b"no\n")
    assert ask(server, get("/realtime?why=a%0D%0AB:+c", *UPGRADE))[0] == 500
    status, _, body = ask(server, get("/realtime?fail", *UPGRADE))
    assert status == 500
    assert b"secret" not in body
    assert "secret detail" in caplog.text
    assert server.counters["upgrades_refused"] == 3


# The WSGI application.


def test_the_environ_says_what_was_asked(serve: Serve) -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.update(environ)
        return echo(environ, start_response)

    server = serve(app=app)
    with Client(server) as client:
        client.send(
            get(
                "/caf%C3%A9/a%20b?x=%20",
                "X-Multi: 1",
                "X-Multi: 2",
                "Cookie: a=1",
                "Cookie: b=2",
                "Content-Type: text/plain",
                "Content-Length: 2",
                "X_Multi: forged",
                method="PUT",
            )
            + b"ok"
        )
        assert client.answer()[2] == b"ok"
        address, port = client.sock.getsockname()
    assert {name: value for name, value in seen.items() if not name.startswith(("wsgi.", "realtime."))} == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "realtime",
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/caf\xc3\xa9/a b",
        "QUERY_STRING": "x=%20",
        "SERVER_NAME": HOST,
        "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": address,
        "REMOTE_PORT": str(port),
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "2",
        "HTTP_HOST": "example.com",
        "HTTP_X_MULTI": "1,2",
        "HTTP_COOKIE": "a=1; b=2",
    }
    assert seen["wsgi.url_scheme"] == "http"
    assert seen["wsgi.version"] == (1, 0)
    assert type(seen) is dict


def test_a_connection_is_kept_for_further_requests_and_pipelined_ones(serve: Serve) -> None:
    server = serve(app=echo)
    with Client(server) as client:
        for number in range(3):
            body = b"body %d" % number
            client.send(get("/", f"Content-Length: {len(body)}", method="POST") + body)
            assert client.answer()[2] == body
        client.send(b"".join(get("/", "Content-Length: 1", method="POST") + b"%d" % n for n in range(5)) + b"\r\n")
        assert [client.answer()[2] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert server.counters["accepted"] == 1
    assert server.counters["http_requests"] == 8


def test_a_malformed_pipelined_request_is_refused_after_the_good_one(serve: Serve) -> None:
    server = serve(app=echo)
    with Client(server) as client:
        client.send(WHOLE + b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + WHOLE)
        assert client.answer()[0] == 200
        assert client.answer()[0] == 400
        assert client.ended()
    assert server.counters["http_requests"] == 1


@pytest.mark.parametrize(
    "request_bytes",
    [get("/", "Connection: close"), get("/", "Connection: x, Close"), get(version="HTTP/1.0")],
)
def test_a_client_that_wants_the_end_gets_it(serve: Serve, request_bytes: bytes) -> None:
    with Client(serve(app=echo)) as client:
        client.send(request_bytes + WHOLE)
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert client.ended()


def test_a_body_nobody_read_does_not_become_the_next_request(serve: Serve) -> None:
    def deaf(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [b"deaf"]

    server = serve(app=deaf)
    hidden = get("/smuggled")
    with Client(server) as client:
        client.send(get("/", f"Content-Length: {len(hidden)}", method="POST") + hidden + WHOLE)
        assert client.answer()[2] == b"deaf"
        assert client.answer()[2] == b"deaf"
    assert server.counters["http_requests"] == 2
    with Client(server) as client:
        client.send(get("/", "Content-Length: 100000000", method="POST") + bytes(500_000))
        assert client.answer()[2] == b"deaf"
        assert client.ended()


def test_100_continue_is_sent_when_the_application_reads(serve: Serve) -> None:
    with Client(serve(app=echo)) as client:
        client.send(get("/", "Content-Length: 2", "Expect: 100-Continue", method="POST"))
        assert client.head()[0] == 100
        client.send(b"ok")
        assert client.answer()[2] == b"ok"
        client.send(WHOLE)
        assert client.answer()[0] == 200


def test_without_reading_there_is_no_100_continue_and_no_waiting(serve: Serve) -> None:
    def deaf(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("403 Forbidden", [])
        return [b"no"]

    with Client(serve(app=deaf)) as client:
        client.send(get("/", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        status, headers, body = client.answer()
        assert (status, headers["connection"], body) == (403, "close", b"no")
        assert client.ended()


def test_an_answer_streams_as_it_is_made(serve: Serve) -> None:
    go_on = gevent.event.Event()

    def stream(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        assert go_on.wait(PATIENCE)
        yield b""
        yield b"second"

    with Client(serve(app=stream)) as client:
        client.send(WHOLE)
        status, headers = client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert (client.line(), client.line()) == (b"5", b"first")
        go_on.set()
        assert (client.line(), client.line()) == (b"6", b"second")
        assert (client.line(), client.line()) == (b"0", b"")
        client.send(WHOLE)
        assert client.answer()[2] == b"firstsecond"
    with Client(serve(app=stream)) as client:
        client.send(get(version="HTTP/1.0"))
        assert client.head()[1].get("transfer-encoding") is None
        while client.more():
            pass
        assert client.buffer == b"firstsecond"


@pytest.mark.parametrize("streamed", [False, True])
def test_head_gets_the_headers_alone(serve: Serve, streamed: bool) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [("X-Method", environ["REQUEST_METHOD"])])
        return iter([b"body"]) if streamed else [b"body"]

    with Client(serve(app=app)) as client:
        for _ in range(2):
            client.send(get(method="HEAD"))
            status, headers = client.head()
            assert (status, headers["x-method"]) == (200, "HEAD")
            assert headers.get("content-length") == (None if streamed else "4")
        client.send(get())
        assert client.answer()[2] == b"body"


class Failure(BaseException):
    """An application may raise anything."""


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret"), OSError(), BrokenPipeError(32, "secret"), SystemExit(3), Failure("secret")],
)
def test_an_application_that_raises_is_a_500_and_a_log_line(
    serve: Serve, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        raise error

    server = serve(app=app)
    status, headers, body = ask(server, get("/broken"))
    assert (status, headers["connection"]) == (500, "close")
    assert b"secret" not in body
    assert "GET /broken" in caplog.text
    assert type(error).__name__ in caplog.text
    assert server.counters["app_failures"] == 1


def test_an_application_that_fails_in_the_middle_does_not_look_complete(serve: Serve) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        raise RuntimeError

    with Client(serve(app=app)) as client:
        client.send(WHOLE)
        assert client.head()[0] == 200
        assert (client.line(), client.line()) == (b"5", b"first")
        assert client.ended()


def test_an_application_that_never_starts_a_response_is_a_500(serve: Serve) -> None:
    assert ask(serve(app=lambda environ, start_response: []), get())[0] == 500


@pytest.mark.parametrize("promised", ["2", "6"])
def test_a_wrong_content_length_ends_the_connection(serve: Serve, promised: str) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", promised)])
        return [b"four"]

    with Client(serve(app=app)) as client:
        client.send(WHOLE)
        client.head()
        while client.more():
            pass
        assert client.buffer == b"four"


def test_a_flask_application_works(serve: Serve) -> None:
    app = flask.Flask("front")

    @app.post("/form/<name>")
    def form(name: str) -> dict[str, str]:
        return {"name": name, "field": flask.request.form["field"], "url": flask.request.url}

    @app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(iter(["a", "b"]), mimetype="text/plain")

    server = serve(app=app)
    with Client(server) as client:
        body = b"field=a+value"
        kind = "Content-Type: application/x-www-form-urlencoded"
        client.send(get("/form/J%C3%BCrgen?q", kind, f"Content-Length: {len(body)}", method="POST") + body)
        status, _, answer = client.answer()
        assert status == 200
        assert flask.json.loads(answer) == {
            "name": "Jürgen",
            "field": "a value",
            "url": "http://example.com/form/Jürgen?q",
        }
        client.send(get("/form/x", kind, "Transfer-Encoding: chunked", method="POST") + b"7\r\nfield=b\r\n0\r\n\r\n")
        assert flask.json.loads(client.answer()[2])["field"] == "b"
        client.send(get("/stream"))
        assert client.answer()[2] == b"ab"
        client.send(get("/nowhere"))
        assert client.answer()[0] == 404


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> TLSOptions:
    folder: Path = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return TLSOptions(certfile=str(folder / "cert.pem"), keyfile=str(folder / "key.pem"))


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def test_tls_carries_requests_and_upgrades(serve: Serve, tls: TLSOptions, trust: ssl.SSLContext) -> None:
    schemes = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        schemes.append(environ["wsgi.url_scheme"])
        return echo(environ, start_response)

    def upgrade(request: Request, sock: gevent.socket.socket, leftover: bytes) -> None:
        assert request.secure
        sock.sendall(SWITCHED + leftover)
        sock.close()

    server = serve(app=app, upgrade=upgrade, tls=tls)
    large = bytes(range(256)) * 4096
    with Client(server, trust) as client:
        client.send(get("/", f"Content-Length: {len(large)}", method="POST") + large)
        assert client.answer()[2] == large
        client.send(get("/realtime", *UPGRADE) + b"early")
        assert client.head()[0] == 101
        assert client.take(5) == b"early"
    assert schemes == ["https"]
    with Client(server, trust) as client:
        client.send(get("/realtime"))
        assert b"wss://" in client.answer()[2]
        assert client.ended()


def test_tls_is_1_2_or_later(tls: TLSOptions) -> None:
    assert tls.context().minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_that_speaks_no_tls_is_counted_and_cut(serve: Serve, tls: TLSOptions) -> None:
    server = serve(tls=tls)
    with Client(server) as client:
        client.send(WHOLE)
        client.ended()  # perhaps after an alert, which is TLS's own answer
    until(lambda: not server.active)
    assert server.counters["tls_failures"] == 1


def test_silence_instead_of_a_tls_handshake_is_dropped_at_the_deadline(serve: Serve, tls: TLSOptions) -> None:
    server = serve(tls=tls, limits=Limits(handshake=0.3))
    with Client(server) as client:
        client.send(b"\x16\x03\x01\x02\x00")
        assert client.ended()
    assert server.counters["handshake_timeouts"] == 1


def test_silence_after_the_tls_handshake_is_dropped_too(serve: Serve, tls: TLSOptions, trust: ssl.SSLContext) -> None:
    server = serve(app=echo, tls=tls, limits=Limits(handshake=2.0))
    with Client(server, trust) as client:
        client.send(WHOLE[:9])
        assert client.answer()[0] == 408
    with Client(server, trust) as client:
        client.send(get("/", "Content-Length: 5", method="POST") + b"he")
        assert client.answer()[0] == 408


def test_files_that_cannot_serve_tls_are_named_at_once(tls: TLSOptions, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"certfile=.*missing\.pem"):
        TLSOptions(certfile=str(tmp_path / "missing.pem"), keyfile=tls.keyfile)
    with pytest.raises(ConfigurationError, match=r"keyfile=.*missing\.pem"):
        TLSOptions(certfile=tls.certfile, keyfile=str(tmp_path / "missing.pem"))
    swapped = TLSOptions(certfile=tls.keyfile, keyfile=tls.certfile)
    with pytest.raises(ConfigurationError, match="PEM"):
        HttpServer(host=HOST, port=0, path=None, upgrade=no_upgrade, tls=swapped)


# Beginning and end.


def test_options_that_cannot_work_are_refused(serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match="path"):
        serve(path="realtime")
    with pytest.raises(ConfigurationError, match="max_handshakes"):
        serve(max_handshakes=0)
    server = serve()
    with pytest.raises(PortInUse):
        serve(port=server.port)


def test_stop_lets_a_request_finish_and_takes_no_new_one(serve: Serve) -> None:
    entered, go_on = gevent.event.Event(), gevent.event.Event()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        entered.set()
        assert go_on.wait(PATIENCE)
        return echo(environ, start_response)

    server = serve(app=slow)
    with Client(server) as idle, Client(server) as busy:
        busy.send(WHOLE + WHOLE)
        assert entered.wait(PATIENCE)
        stopping = gevent.spawn(server.stop, PATIENCE)
        assert idle.ended()
        with pytest.raises(ConnectionRefusedError):
            Client(server)
        go_on.set()
        assert busy.answer()[0] == 200
        assert busy.ended()
    stopping.get(timeout=PATIENCE)
    assert server.active == 0
    assert server.counters["http_requests"] == 1


def test_stop_ends_what_does_not_finish_in_time(serve: Serve) -> None:
    entered, killed = gevent.event.Event(), gevent.event.Event()

    def stubborn(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        entered.set()
        try:
            gevent.event.Event().wait(PATIENCE)
        finally:
            killed.set()
        return []

    server = serve(app=stubborn)
    with Client(server) as client:
        client.send(WHOLE)
        assert entered.wait(PATIENCE)
        server.stop(timeout=0)
        assert killed.is_set()
        assert client.ended()
    assert server.active == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc, which is not here")
def test_a_stopped_server_leaves_no_greenlet_and_no_descriptor(tls: TLSOptions, trust: ssl.SSLContext) -> None:
    def living() -> tuple[int, int]:
        gc.collect()
        greenlets = [item for item in gc.get_objects() if isinstance(item, gevent.Greenlet) and not item.dead]
        return len(greenlets), len(os.listdir("/proc/self/fd"))

    gevent.get_hub()
    before = living()
    for secure in (False, True):
        server = HttpServer(
            host=HOST, port=0, path="/realtime", upgrade=no_upgrade, app=echo, tls=tls if secure else None
        )
        server.start()
        context = trust if secure else None
        clients = [Client(server, context) for _ in range(4)]
        clients[0].send(WHOLE)
        assert clients[0].answer()[0] == 200
        clients[1].send(get("/", "Host: twice"))
        clients[1].answer()
        clients[2].send(WHOLE[:20])
        clients += [Client(server) for _ in range(3)]  # these have not had a turn when the server stops
        assert living() > before
        server.stop(timeout=0.1)
        for client in clients:
            client.sock.close()
        del server, clients, client
        assert living() == before


def test_many_connections_leave_nothing_behind(serve: Serve) -> None:
    server = serve(app=echo)
    for _ in range(300):
        ask(server, get("/", "Connection: close"))
    until(lambda: not server.active)
    assert server.counters["accepted"] == server.counters["http_requests"] == 300
