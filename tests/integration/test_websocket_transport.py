"""The kernel's WebSocket server: its door (authentication, origins, HTTP beside it) and how it stops."""

from __future__ import annotations

import json
import socket as plain_socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
import trustme
from gevent.event import Event
from raw import DEADLINE, RawClient, frame, request

import realtime.transports.websocket_clients as websocket_module
from realtime import ConfigurationError, Limits, RealtimeKernel, Reject, WebSocketTransport
from realtime.protocols.deflate import DeflateOptions

Start = Callable[..., tuple[RealtimeKernel, int]]


@pytest.fixture
def start() -> Iterator[Start]:
    kernels: list[RealtimeKernel] = []

    def start(*, limits: Limits | None = None, **options: Any) -> tuple[RealtimeKernel, int]:
        transport = WebSocketTransport(port=0, path="/realtime", **options)
        kernel = RealtimeKernel([transport], log_level="critical", limits=limits)
        kernels.append(kernel)

        @kernel.on("who")
        def who(message: Any, context: Any, toolkit: Any) -> Any:
            return {"identity": context.identity, "address": context.remote_address, "transport": context.transport}

        @kernel.on("join")
        def join(message: Any, context: Any, toolkit: Any) -> None:
            toolkit.rooms.join(message.room)

        kernel.start()
        return kernel, transport.port

    yield start
    for kernel in kernels:
        kernel.stop(timeout=2)


def answer_of(port: int, data: bytes) -> tuple[str, bytes]:
    """Send a request; return the head of the answer and its body, up to the end of the connection."""
    client = RawClient(port, first=data)
    head = client.read_head()
    body = client.buffer
    while data := client.sock.recv(65536):
        body += data
    client.close()
    return head, body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


def call(client: RawClient, message: dict[str, Any]) -> Any:
    client.send_json({"ack": 1, **message})
    answer = client.read_json()
    assert answer["type"] == "system:ack", answer
    return answer["payload"].get("result")


# The door -----------------------------------------------------------------------------------------------


def test_authenticate_sees_the_request_and_its_result_is_the_identity(start: Start) -> None:
    seen: list[Any] = []

    def authenticate(request: Any) -> Any:
        gevent.sleep(0)  # it may wait
        seen.append(request)
        return {"name": request.cookies["user"]}

    _, port = start(authenticate=authenticate)
    client = RawClient(port)
    client.upgrade("/realtime?token=a%20b&x=1", headers={"Cookie": "user=anna; theme=dark", "X-Custom": "yes"})
    assert call(client, {"type": "who"}) == {
        "identity": {"name": "anna"},
        "address": "127.0.0.1",
        "transport": "websocket",
    }
    assert seen[0].query["token"] == "a b"
    assert seen[0].headers["x-custom"] == "yes"
    assert seen[0].path == "/realtime"
    assert seen[0].remote_address == "127.0.0.1"
    client.close()


def refuse_with(error: BaseException) -> Callable[[Any], Any]:
    def authenticate(request: Any) -> Any:
        raise error

    return authenticate


@pytest.mark.parametrize(
    ("error", "status"),
    [(Reject("no token", status=401), 401), (Reject("not you"), 403), (ZeroDivisionError("secret"), 500)],
)
def test_a_refused_client_gets_an_http_answer_and_never_connects(start: Start, error: Exception, status: int) -> None:
    kernel, port = start(authenticate=refuse_with(error))
    head, body = answer_of(port, request("/realtime"))
    assert head.startswith(f"HTTP/1.1 {status} ")
    if isinstance(error, Reject):
        assert error.message in body.decode()
    else:
        assert b"secret" not in body
    assert kernel.stats()["counters"].get("connected", 0) == 0


def test_an_authenticate_that_gives_a_coroutine_lets_nobody_in(start: Start) -> None:
    given = asynchronous(None)
    kernel, port = start(authenticate=lambda request: given)
    assert answer_of(port, request("/realtime"))[0].startswith("HTTP/1.1 500 ")
    assert kernel.stats()["counters"].get("connected", 0) == 0
    given.close()


def test_a_client_that_is_gone_before_it_is_answered_never_connects(start: Start) -> None:
    asked, answer = Event(), Event()
    seen: list[str] = []

    def authenticate(request: Any) -> str:
        asked.set()
        answer.wait(DEADLINE)
        return "ann"

    kernel, port = start(authenticate=authenticate)
    kernel.on("client:connected", lambda message, context, toolkit: seen.append(context.identity))
    client = RawClient(port)
    client.send(request("/realtime"))
    assert asked.wait(DEADLINE)
    client.reset_and_wait()
    answer.set()
    later = RawClient(port)
    later.upgrade("/realtime")
    assert call(later, {"type": "who"})["identity"] == "ann"
    assert seen == ["ann"]
    assert kernel.stats()["clients"] == len(kernel.presence.list()) == 1
    later.close()


def test_an_authenticate_that_takes_too_long_is_answered(start: Start) -> None:
    _, port = start(authenticate=lambda request: gevent.sleep(DEADLINE), limits=Limits(handshake=0.1))
    head, _ = answer_of(port, request("/realtime"))
    assert head.startswith("HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        (None, None, 101),
        (None, "http://127.0.0.1", 101),
        (None, "https://evil.example", 403),
        (None, "http://127.0.0.1:81", 403),
        (None, "null", 403),
        (["https://app.example"], "https://app.example", 101),
        (["https://app.example"], "https://app.example.evil", 403),
        (["https://app.example"], "http://127.0.0.1", 403),
        ("*", "https://evil.example", 101),
    ],
)
def test_pages_of_other_hosts_may_not_connect(start: Start, allowed: Any, origin: str | None, status: int) -> None:
    _, port = start(allowed_origins=allowed)
    client = RawClient(port)
    client.send(request("/realtime", headers={"Origin": origin} if origin else {}))
    assert client.read_head().startswith(f"HTTP/1.1 {status} ")
    client.close()


def test_any_wsgi_app_answers_the_other_paths_of_the_port(start: Start) -> None:
    flask = pytest.importorskip("flask", reason="pip install flask")
    app = flask.Flask("app")

    @app.post("/sum")
    def sum_up() -> Any:
        return {"sum": sum(flask.request.get_json())}

    _, port = start(app=app)
    body = b"[1, 2, 3]"
    head = f"POST /sum HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head, answer = answer_of(port, head.encode() + b"Connection: close\r\n\r\n" + body)
    assert head.startswith("HTTP/1.1 200 ")
    assert json.loads(answer) == {"sum": 6}
    client = RawClient(port)
    client.upgrade("/realtime")
    client.close()


def test_a_path_that_no_one_serves_is_404(start: Start) -> None:
    _, port = start()
    assert answer_of(port, get("/nothing"))[0].startswith("HTTP/1.1 404 ")
    assert answer_of(port, request("/nothing"))[0].startswith("HTTP/1.1 404 ")


def test_opening_the_websocket_path_in_a_browser_explains_itself(start: Start) -> None:
    _, port = start()
    head, body = answer_of(port, get("/realtime"))
    assert head.startswith("HTTP/1.1 426 ")
    assert "\r\nUpgrade: websocket" in head
    assert b"new WebSocket(" in body


def test_tls_carries_both_websockets_and_pages(start: Start, tmp_path: Any) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    certfile.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(keyfile)
    kernel, port = start(tls=(str(certfile), str(keyfile)))

    @kernel.on("big")
    def big(message: Any, context: Any, toolkit: Any) -> Any:
        return message.payload * 2

    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    client = RawClient(port)
    client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
    client.upgrade("/realtime")
    assert call(client, {"type": "who"})["address"] == "127.0.0.1"
    text = "x" * 300_000
    assert call(client, {"type": "big", "payload": text}) == text * 2
    client.close()
    assert kernel.transports[0].url == f"wss://127.0.0.1:{port}/realtime"  # type: ignore[attr-defined]


def test_a_plain_client_on_a_tls_port_is_dropped_and_others_are_served(start: Start, tmp_path: Any) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pem = tmp_path / "both.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    _, port = start(tls=(str(pem), str(pem)))
    plain = RawClient(port)
    plain.send(request("/realtime"))
    assert plain.at_end()
    plain.close()
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    client = RawClient(port)
    client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
    client.upgrade("/realtime")
    client.close()


def test_two_kernels_may_share_a_port(start: Start) -> None:
    first = WebSocketTransport(port=0, path="/realtime", reuse_port=True)
    kernel = RealtimeKernel([first], log_level="critical")
    kernel.start()
    second = RealtimeKernel([WebSocketTransport(port=first.port, path="/realtime", reuse_port=True)])
    second.start()
    try:
        for _ in range(20):
            client = RawClient(first.port)
            client.upgrade("/realtime")
            client.close()
    finally:
        kernel.stop(1)
        second.stop(1)
    connected = [k.stats()["counters"].get("connected", 0) for k in (kernel, second)]
    assert sum(connected) == 20


async def asynchronous(request: Any) -> None:
    """Would return a coroutine, which is true: everybody would be let in."""


# Options that cannot work ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"port": 70_000}, "port=70000"),
        ({"port": "8080"}, "port='8080'"),
        ({"path": "realtime"}, "path='realtime'"),
        ({"host": ""}, "host=''"),
        ({"app": "app"}, "app='app'"),
        ({"port": -1}, "port=-1"),
        ({"host": 5}, "host=5"),
        ({"path": "/a?b"}, "path='/a?b'"),
        ({"tls": 5}, "tls=5"),
        ({"allowed_origins": 5}, "allowed_origins=5"),
        ({"compression": "no"}, "compression='no'"),
        ({"authenticate": True}, "authenticate=True"),
        ({"authenticate": lambda: None}, "(request)"),
        ({"authenticate": asynchronous}, "async"),
        ({"allowed_origins": "https://app.example/"}, "https://app.example/"),
        ({"allowed_origins": ["app.example"]}, "app.example"),
        ({"tls": "cert.pem"}, "tls='cert.pem'"),
        ({"tls": ("missing.pem", "missing.key")}, "missing.pem"),
        ({"heartbeat": 25}, "heartbeat=25"),
        ({"compression": DeflateOptions()}, "server_no_context_takeover"),
    ],
)
def test_an_option_that_cannot_work_is_named_at_once(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        WebSocketTransport(**options)
    assert named in str(caught.value)


# Compression ------------------------------------------------------------------------------------------------


def test_a_broadcast_is_compressed_once_for_all_its_members(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, port = start(compression=True)
    made: list[bytes] = []
    original = websocket_module.compress_once

    def counted(payload: bytes, **options: Any) -> bytes:
        made.append(payload)
        return original(payload, **options)

    monkeypatch.setattr(websocket_module, "compress_once", counted)
    clients = [RawClient(port) for _ in range(5)]
    for client in clients:
        head = client.upgrade("/realtime", headers={"Sec-WebSocket-Extensions": "permessage-deflate"})
        assert "server_no_context_takeover" in head
        assert call(client, {"type": "join", "room": "r"}) is None
    kernel.broadcast({"type": "news", "payload": "abc" * 1000}, "r")
    for client in clients:
        first, length = client.read(2)
        assert first == 0xC1  # FIN, RSV1, text
        size = length if length < 126 else int.from_bytes(client.read(2), "big")
        text = zlib.decompressobj(-15).decompress(client.read(size) + b"\0\0\xff\xff")
        assert json.loads(text)["payload"] == "abc" * 1000
        client.close()
    assert len(made) == 1


# Stopping -----------------------------------------------------------------------------------------------------


def test_stopping_lets_handlers_finish_and_tells_clients_when_to_come_back(start: Start) -> None:
    kernel, port = start()
    entered, release = Event(), Event()

    @kernel.on("slow")
    def slow(message: Any, context: Any, toolkit: Any) -> str:
        entered.set()
        release.wait(DEADLINE)
        return "finished"

    client, idle = RawClient(port), RawClient(port)
    for opened in (client, idle):
        opened.upgrade("/realtime")
    client.send_json({"type": "slow", "ack": 1})
    assert entered.wait(DEADLINE)
    stopping = gevent.spawn(kernel.stop, DEADLINE)
    gevent.sleep(0)
    release.set()
    assert client.read_json()["payload"] == {"ack": 1, "result": "finished"}
    for opened in (client, idle):
        code, reason = opened.read_close()
        assert code == 4013
        assert float(reason.removeprefix("retry_after=")) >= 0
        opened.send(frame(8, (4013).to_bytes(2, "big")))
        assert opened.at_end()
        opened.close()
    stopping.get(timeout=DEADLINE)
    with pytest.raises(ConnectionRefusedError):
        RawClient(port)


def test_stopping_wakes_handlers_that_wait_for_their_client(start: Start) -> None:
    kernel, port = start()
    ended: list[str] = []
    entered = Event()

    @kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> None:
        entered.set()
        try:
            toolkit.wait_for("never")
        except ConnectionError as error:
            ended.append(str(error))

    client = RawClient(port)
    client.upgrade("/realtime")
    client.send_json({"type": "wait"})
    assert entered.wait(DEADLINE)
    stopping = gevent.spawn(kernel.stop, DEADLINE)
    code, reason = client.read_close()
    client.send(frame(8, (4013).to_bytes(2, "big")))
    client.at_end()
    stopping.get(timeout=DEADLINE)
    assert ended == [f"{code} {reason}"]
    client.close()


def test_a_client_that_never_answers_does_not_keep_the_server_from_stopping(start: Start) -> None:
    kernel, port = start()
    client = RawClient(port)
    client.upgrade("/realtime")
    with gevent.Timeout(DEADLINE):
        kernel.stop(timeout=0.3)
    assert not kernel.running
    assert kernel.stats()["clients"] == 0
    client.close()


def test_a_busy_server_comes_to_rest(start: Start) -> None:
    """Clients that never stop sending do not keep handlers running."""
    kernel, port = start()
    client = RawClient(port)
    client.upgrade("/realtime")
    sending = threading.Event()

    def send_forever() -> None:
        try:
            while True:
                client.send(frame(1, b'{"type": "who"}') * 100)
                gevent.sleep(0)
        except OSError:
            sending.set()

    def read_forever() -> None:
        try:
            while client.sock.recv(65536):
                pass
        except OSError:
            pass

    greenlets = [gevent.spawn(send_forever), gevent.spawn(read_forever)]
    with gevent.Timeout(DEADLINE):
        while kernel.stats()["counters"].get("received", 0) < 1000:
            gevent.sleep(0)
        kernel.stop(timeout=2 * DEADLINE)  # half of it would be the handlers' time
    gevent.killall(greenlets)
    client.close()


# What is under way when the server stops ------------------------------------------------------------------------


def test_a_client_in_its_handshake_when_the_server_stops_gets_in_and_is_told_to_come_back(start: Start) -> None:
    asked, answer = Event(), Event()

    def authenticate(request: Any) -> str:
        asked.set()
        answer.wait(DEADLINE)
        return "anna"

    kernel, port = start(authenticate=authenticate)
    client = RawClient(port)
    client.send(request("/realtime"))
    assert asked.wait(DEADLINE)
    stopping = gevent.spawn(kernel.stop, timeout=DEADLINE)
    gevent.sleep(0)
    answer.set()
    assert client.read_head().startswith("HTTP/1.1 101 ")
    code, reason = client.read_close()
    assert (code, reason.partition("=")[0]) == (4013, "retry_after")
    client.send(frame(8, code.to_bytes(2, "big")))
    stopping.get(timeout=DEADLINE)
    client.close()


def test_a_client_that_was_just_accepted_when_the_server_stops_gets_in_too(start: Start) -> None:
    kernel, port = start()
    client = RawClient(port)
    while not kernel.stats()["transports"][0]["in_http"]:
        gevent.sleep(0)
    stopping = gevent.spawn(kernel.stop, timeout=DEADLINE)
    gevent.sleep(0)
    client.send(request("/realtime"))
    assert client.read_head().startswith("HTTP/1.1 101 ")
    assert client.read_close()[0] == 4013
    client.send(frame(8, b"\x0f\xad"))
    stopping.get(timeout=DEADLINE)
    client.close()


def test_a_request_in_progress_is_answered_before_the_server_has_stopped(start: Start) -> None:
    asked, answer = Event(), Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        asked.set()
        answer.wait(DEADLINE)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"here you are"]

    kernel, port = start(app=app)
    client = RawClient(port)
    client.send(b"GET /slow HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert asked.wait(DEADLINE)
    stopping = gevent.spawn(kernel.stop, timeout=DEADLINE)
    gevent.sleep(0)
    answer.set()
    assert client.read_head().startswith("HTTP/1.1 200 ")
    assert client.at_end()
    stopping.get(timeout=DEADLINE)
    client.close()


# A socket that listens already ------------------------------------------------------------------------------------


def test_it_takes_connections_from_a_listening_socket_that_is_given_to_it() -> None:
    listening = plain_socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    transport = WebSocketTransport(port=1, path="/realtime")
    transport.listen_on(listening)
    kernel = RealtimeKernel([transport], log_level="critical")
    client = RawClient(port)  # waits in the socket
    kernel.start()
    try:
        assert transport.port == port
        client.upgrade("/realtime")
    finally:
        kernel.stop(timeout=2)
        client.close()
    with pytest.raises(ConnectionRefusedError):
        RawClient(port)


@pytest.mark.parametrize("kind", [plain_socket.SOCK_STREAM, plain_socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_socket_that_does_not_listen_is_refused(kind: int) -> None:
    with plain_socket.socket(plain_socket.AF_INET, kind) as sock, pytest.raises(ConfigurationError, match="listen"):
        WebSocketTransport().listen_on(sock)


def test_what_is_no_socket_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a listening socket"):
        WebSocketTransport().listen_on(3)  # type: ignore[arg-type]
