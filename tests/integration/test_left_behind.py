"""What a client leaves behind in its socket waits within bounds, whatever it poured in before it went: raw sockets."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from raw import DEADLINE, RawClient, frame

from realtime import ConnectionClosed, KiB, Limits, MiB, RealtimeKernel, WebSocketTransport
from realtime.connection import Connection
from realtime.transports.websocket import WebSocket, serve

BUFFER = 200 * KiB  # of the server's sockets, which the system doubles: what comes stays there until it is read
GOODBYE = frame(8, struct.pack(">H", 1000))
MOST = 1000
SLOW = frame(1, b'{"type": "slow"}')


def number(payload: int) -> bytes:
    return frame(1, b'{"type":"n","payload":%d}' % payload)


class Rig:
    """A kernel whose handler of "slow" waits for ``go``, and what its handler of numbers has got."""

    def __init__(self, limits: Limits, **options: Any) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.port = listening.getsockname()[1]
        transport = WebSocketTransport(self.port, "/", **options)
        transport.listen_on(listening)
        self.kernel = RealtimeKernel([transport], limits=limits, log_level="error")
        self.taken: list[Any] = []
        self.slow, self.go = Event(), Event()
        self.kernel.on("slow", self._slow)
        self.kernel.on("n", lambda message, context, toolkit: self.taken.append(message.payload))
        self.kernel.start()

    def _slow(self, message: Any, context: Any, toolkit: Any) -> None:
        self.slow.set()
        self.go.wait()

    def client(self, **options: Any) -> tuple[RawClient, Connection]:
        """One whose first message is being handled for as long as this test likes."""
        client = RawClient(self.port)
        client.upgrade(**options)
        client.send(SLOW)
        assert self.slow.wait(DEADLINE)
        (connection,) = self.kernel.hub.connections.values()
        return client, connection

    def until(self, condition: Callable[[], object]) -> None:
        with gevent.Timeout(DEADLINE):
            while not condition():
                gevent.sleep(0.001)

    def count(self, name: str) -> int:
        return int(self.kernel.stats()["counters"].get(name, 0))


@pytest.fixture
def start() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def start(limits: Limits, **options: Any) -> Rig:
        rigs.append(Rig(limits, **options))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.go.set()
        rig.kernel.stop(2)


def pour(client: RawClient, data: bytes) -> None:
    """Send as much as goes at all, and reset the connection."""
    client.sock.settimeout(0.5)
    try:
        client.sock.sendall(data)
    except TimeoutError:
        pass  # the server has ceased to read
    client.reset()


def test_100_000_tiny_messages_that_a_client_pours_in_before_it_goes_wait_within_bounds(
    start: Callable[..., Rig],
) -> None:
    rig = start(Limits(inbox_at_end=MOST))
    client, connection = rig.client()
    pour(client, b"".join(map(number, range(100_000))))
    rig.until(lambda: not rig.kernel.hub.connections)
    assert len(connection.inbox) == MOST
    assert rig.count("cut_off_at_end") == 1
    assert connection.end_code == 1006
    rig.go.set()
    rig.until(lambda: len(rig.taken) == MOST)
    assert rig.taken == list(range(MOST))


def test_all_is_handled_that_a_client_says_before_its_goodbye_if_it_is_no_more_than_may_wait(
    start: Callable[..., Rig],
) -> None:
    rig = start(Limits(inbox_at_end=MOST))
    client, connection = rig.client()
    client.send(b"".join(map(number, range(MOST - 1))) + GOODBYE)
    client.close()
    rig.until(lambda: not rig.kernel.hub.connections)
    assert (len(connection.inbox), connection.end_code) == (MOST - 1, 1000)
    assert rig.count("cut_off_at_end") == 0
    rig.go.set()
    rig.until(lambda: len(rig.taken) == MOST - 1)
    assert rig.taken == list(range(MOST - 1))


def test_what_is_inflated_counts_not_what_came(start: Callable[..., Rig]) -> None:
    limits = Limits(message_size=100 * KiB, inbox_bytes=1 * MiB)
    rig = start(limits, compression=True)
    client, connection = rig.client(headers={"Sec-WebSocket-Extensions": "permessage-deflate"})
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = b'{"type":"n","payload":"%s"}' % (b"x" * 99 * KiB)
    bombs = [(squeezer.compress(text) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4] for _ in range(600)]
    data = b"".join(frame(1, bomb, rsv=4) for bomb in bombs)
    assert len(data) < BUFFER
    client.send(data)
    client.close()
    rig.until(lambda: not rig.kernel.hub.connections)
    assert rig.count("cut_off_at_end") == 1
    one_read = limits.inbox * limits.message_size
    assert connection.inbox_bytes <= limits.inbox_bytes + limits.message_size + MiB + one_read
    rig.go.set()
    rig.until(lambda: not connection.inbox)


def test_a_client_that_is_cut_off_and_comes_back_to_its_session_loses_nothing(start: Callable[..., Rig]) -> None:
    rig = start(Limits(inbox_at_end=MOST))
    client = RawClient(rig.port)
    client.upgrade()
    client.send_json({"type": "system:hello", "payload": {"session": True}})
    token = client.read_json()["payload"]["session"]["token"]
    said = [SLOW, *map(number, range(3 * MOST))]
    pour(client, b"".join(said))
    rig.until(lambda: rig.kernel.stats()["sessions"]["away"])
    assert rig.count("cut_off_at_end") == 1
    again = RawClient(rig.port)
    again.upgrade()
    again.send_json({"type": "system:hello", "payload": {"session": {"token": token, "received": 0}}})
    session = again.read_json()["payload"]["session"]
    assert session["resumed"] is True
    rig.go.set()
    again.send(b"".join(said[session["received"] :]))
    rig.until(lambda: len(rig.taken) == 3 * MOST)
    assert rig.taken == list(range(3 * MOST))
    again.close()


def test_others_are_served_while_what_a_client_left_behind_is_read(start: Callable[..., Rig]) -> None:
    rig = start(Limits())
    client, connection = rig.client()
    client.send(b"".join(map(number, range(16))))  # not read from any more
    rig.until(lambda: connection.paused)
    client.sock.settimeout(0.5)
    try:
        client.sock.sendall(frame(9) * 100_000)
    except TimeoutError:
        pass
    rig.kernel.broadcast({"type": "news"})
    gevent.sleep(0.01)
    client.close()  # a reset, as it has not read the news
    rig.kernel.broadcast({"type": "news"})  # the server finds out by writing
    turns = 0
    with gevent.Timeout(DEADLINE):
        while rig.kernel.hub.connections:
            gevent.sleep(0.001)
            turns += 1
    assert turns > 2
    assert len(connection.inbox) == 16


def test_a_plain_handler_gets_what_may_wait_and_then_hears_that_there_was_more() -> None:
    taken: list[str | bytes] = []
    opened, go, done = Event(), Event(), Event()
    ended: list[ConnectionClosed] = []
    sockets: list[WebSocket] = []

    def handler(ws: WebSocket) -> None:
        sockets.append(ws)
        opened.set()
        go.wait()
        try:
            while True:
                taken.append(ws.receive())
        except ConnectionClosed as closed:
            ended.append(closed)
        done.set()

    with serve(handler, port=0, limits=Limits(inbox_at_end=MOST)) as server:
        client = RawClient(server.port)
        client.upgrade()
        assert opened.wait(DEADLINE)
        pour(client, b"".join(frame(1, b"%d" % n) for n in range(100_000)))
        with gevent.Timeout(DEADLINE):
            while not sockets[0].closed:
                gevent.sleep(0.001)
        go.set()
        assert done.wait(DEADLINE)
    assert taken == [str(n) for n in range(MOST)]
    assert ended[0].code == 1006
    assert "more" in ended[0].reason
