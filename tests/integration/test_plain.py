"""Plain WebSockets: a blocking function per connection, against raw sockets."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from raw import DEADLINE, RawClient, frame

from realtime import ConfigurationError, ConnectionClosed, Limits, PortInUse, TimedOut
from realtime.transports.websocket import PlainServer, WebSocket, serve

Serve = Callable[..., PlainServer]


@pytest.fixture
def start() -> Iterator[Serve]:
    servers: list[PlainServer] = []

    def start(handler: Callable[[WebSocket], object], **options: Any) -> PlainServer:
        servers.append(serve(handler, port=0, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(timeout=1)


@pytest.fixture
def connect() -> Iterator[Callable[..., RawClient]]:
    clients: list[RawClient] = []

    def connect(server: PlainServer, path: str = "/", **options: Any) -> RawClient:
        clients.append(RawClient(server.port))
        clients[-1].upgrade(path, **options)
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def close_frame(code: int = 1000) -> bytes:
    return frame(8, struct.pack(">H", code))


def echo(ws: WebSocket) -> None:
    for data in ws:
        ws.send(data)


def test_text_comes_as_str_and_binary_as_bytes(start: Serve, connect: Any) -> None:
    kinds: list[Any] = []

    def handler(ws: WebSocket) -> None:
        for data in ws:
            kinds.append(data)
            ws.send(data)

    client = connect(start(handler))
    client.send(frame(1, "grüße".encode()) + frame(2, b"\x00\xff") + frame(1, b"") + close_frame())
    assert [client.read_frame() for _ in range(4)] == [
        (1, "grüße".encode()),
        (2, b"\x00\xff"),
        (1, b""),
        (8, b"\x03\xe8"),
    ]
    assert kinds == ["grüße", b"\x00\xff", ""]


def test_what_came_before_a_close_is_answered_before_it(start: Serve, connect: Any) -> None:
    client = connect(start(echo))
    client.send(b"".join(frame(1, b"%d" % number) for number in range(100)) + close_frame(4000))
    assert [client.read_frame() for _ in range(100)] == [(1, b"%d" % number) for number in range(100)]
    assert client.read_frame() == (8, struct.pack(">H", 4000))
    assert client.at_end()


def test_what_came_before_a_broken_frame_is_answered_before_the_end(start: Serve, connect: Any) -> None:
    client = connect(start(echo))
    client.send(frame(1, b"good") + frame(3, b"bad"))
    assert client.read_frame() == (1, b"good")
    assert client.read_close()[0] == 1002


def test_a_handler_that_never_looks_does_not_hold_the_end_back_for_ever(start: Serve, connect: Any) -> None:
    woken = Event()

    def handler(ws: WebSocket) -> None:
        ws.receive()
        woken.wait(DEADLINE)

    client = connect(start(handler, limits=Limits(close_handshake=0.2)))
    client.send(frame(1, b"x") + close_frame())
    assert client.read_close()[0] == 1000
    woken.set()


def test_receive_raises_when_nothing_comes_in_time_and_goes_on_afterwards(start: Serve, connect: Any) -> None:
    def handler(ws: WebSocket) -> None:
        with pytest.raises(TimedOut):
            ws.receive(timeout=0.01)
        ws.send("timed out")
        ws.send(ws.receive(timeout=DEADLINE))

    client = connect(start(handler))
    assert client.read_frame() == (1, b"timed out")
    client.send(frame(1, b"now"))
    assert client.read_frame() == (1, b"now")
    assert client.read_close()[0] == 1000


def test_receive_tells_how_the_connection_ended(start: Serve, connect: Any) -> None:
    ends: list[ConnectionClosed] = []
    ended = Event()

    def handler(ws: WebSocket) -> None:
        try:
            ws.receive()
        except ConnectionClosed as error:
            ends.append(error)
        with pytest.raises(ConnectionClosed):
            ws.send("too late")
        ended.set()

    client = connect(start(handler))
    client.send(frame(8, struct.pack(">H", 4001) + b"bye"))
    assert client.read_close()[0] == 4001
    assert ended.wait(DEADLINE)
    assert (ends[0].code, ends[0].reason) == (4001, "bye")


def test_a_handler_that_fails_closes_with_1011_and_harms_nobody(start: Serve, connect: Any) -> None:
    def handler(ws: WebSocket) -> None:
        if ws.request.path == "/timeout":
            with gevent.Timeout(0.01):
                gevent.sleep(DEADLINE)
        if ws.request.path == "/error":
            raise ZeroDivisionError
        echo(ws)

    server = start(handler)
    good = connect(server)
    for path in ("/error", "/timeout"):
        assert connect(server, path).read_close()[0] == 1011
    good.send(frame(1, b"still here"))
    assert good.read_frame() == (1, b"still here")


def test_a_handler_may_close_with_a_code_of_its_own(start: Serve, connect: Any) -> None:
    client = connect(start(lambda ws: ws.close(4321, "enough")))
    assert client.read_close() == (4321, "enough")


def test_a_slow_reader_makes_send_wait_and_loses_nothing(start: Serve, connect: Any) -> None:
    count, size = 64, 500_000  # 32 MB, far more than the outbox and the sockets hold
    sent = [0]

    def handler(ws: WebSocket) -> None:
        for number in range(count):
            ws.send(number.to_bytes(4, "big") * (size // 4))
            sent[0] += 1

    client = connect(start(handler))
    assert client.read_frame()[1][:4] == (0).to_bytes(4, "big")
    assert sent[0] < count
    for number in range(1, count):
        opcode, payload = client.read_frame()
        assert (opcode, payload) == (2, number.to_bytes(4, "big") * (size // 4))
    assert client.read_close()[0] == 1000


def test_a_message_far_larger_than_the_outbox_passes_while_the_client_pings(start: Serve, connect: Any) -> None:
    size = 20_000_000

    def handler(ws: WebSocket) -> None:
        ws.send(b"x" * size)
        ws.send("end")

    client = connect(start(handler))
    client.send(frame(9, b"?"))
    received: list[tuple[int, int]] = []
    while not received or received[-1][0] != 8:
        opcode, payload = client.read_frame()
        received.append((opcode, len(payload)))
        if opcode == 2:
            client.send(frame(9, b"?"))
    assert [item for item in received if item[0] in (1, 2)] == [(2, size), (1, 3)]


def test_a_client_that_takes_nothing_is_cut_off(start: Serve, connect: Any) -> None:
    ends: list[ConnectionClosed] = []
    ended = Event()

    def handler(ws: WebSocket) -> None:
        try:
            while True:
                ws.send(b"x" * 100_000)
        except ConnectionClosed as error:
            ends.append(error)
            ended.set()

    connect(start(handler, limits=Limits(backpressure_timeout=0.2, close_handshake=0.2)))
    assert ended.wait(DEADLINE)
    assert ends[0].code == 4008


@pytest.mark.parametrize("data", [None, 7, ["text"], {"type": "text"}])
def test_what_is_no_message_is_refused_to_the_handler(start: Serve, connect: Any, data: Any) -> None:
    def handler(ws: WebSocket) -> None:
        with pytest.raises(TypeError, match=type(data).__name__):
            ws.send(data)
        with pytest.raises(ValueError, match="surrogates"):
            ws.send("\ud800")
        ws.send("refused")

    assert connect(start(handler)).read_frame() == (1, b"refused")


def test_subprotocol_request_and_identity_are_there(start: Serve, connect: Any) -> None:
    def handler(ws: WebSocket) -> None:
        ws.send(f"{ws.subprotocol} {ws.request.query['x']} {ws.identity} {ws.remote_address}")

    server = start(handler, subprotocols=["b", "a"], authenticate=lambda request: request.headers["x-user"])
    client = connect(server, "/any/path?x=1", headers={"Sec-WebSocket-Protocol": "a, b", "X-User": "anna"})
    assert client.read_frame() == (1, b"b 1 anna 127.0.0.1")


def test_stopping_closes_everybody_with_1001(start: Serve, connect: Any) -> None:
    server = start(echo)
    client = connect(server)
    client.send(frame(1, b"x"))
    assert client.read_frame() == (1, b"x")
    stopping = gevent.spawn(server.stop)
    assert client.read_close()[0] == 1001
    client.send(close_frame(1001))
    assert client.at_end()
    stopping.get(timeout=DEADLINE)
    assert server.stats()["handlers"] == 0


def test_a_port_in_use_and_a_handler_that_is_none_are_named(start: Serve) -> None:
    server = start(echo)
    with pytest.raises(PortInUse, match=str(server.port)):
        serve(echo, port=server.port)
    with pytest.raises(ConfigurationError, match="handler"):
        serve("echo", port=0)  # type: ignore[arg-type]
