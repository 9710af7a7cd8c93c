"""Readers of every speed: who reads gets everything, who does not is cut off, and nobody waits for another."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from raw import DEADLINE, RawClient, frame, request

from realtime import Heartbeat, Limits, RealtimeKernel, WebSocketTransport

Start = Callable[..., tuple[RealtimeKernel, int]]


@pytest.fixture
def start() -> Iterator[Start]:
    kernels: list[RealtimeKernel] = []

    def start(*, limits: Limits | None = None, **options: Any) -> tuple[RealtimeKernel, int]:
        kernel = RealtimeKernel([WebSocketTransport(port=0, path="/ws", **options)], log_level="error", limits=limits)
        kernels.append(kernel)

        @kernel.on("join")
        def join(message: Any, context: Any, toolkit: Any) -> str:
            toolkit.rooms.join("room")
            return str(context.id)

        kernel.start()
        return kernel, kernel.transports[0].port  # type: ignore[attr-defined]

    yield start
    for kernel in kernels:
        kernel.stop(timeout=2)


@pytest.fixture
def join() -> Iterator[Callable[..., tuple[RawClient, str]]]:
    """Connect a client that is in the room; return it and its id."""
    clients: list[RawClient] = []

    def join(port: int, **options: Any) -> tuple[RawClient, str]:
        client = RawClient(port, **options)
        clients.append(client)
        client.upgrade("/ws")
        client.send_json({"type": "join", "ack": 1})
        return client, client.read_json()["payload"]["result"]

    yield join
    for client in clients:
        client.close()


def read_numbers(client: RawClient, count: int) -> list[int]:
    """Read messages until ``count`` have come that carry a number."""
    numbers: list[int] = []
    while len(numbers) < count:
        message = client.read_json()
        if message["type"] == "number":
            numbers.append(message["payload"][0])
    return numbers


def numbered(number: int, size: int) -> dict[str, Any]:
    return {"type": "number", "payload": [number, "x" * size]}


PATIENT = Limits(park_timeout=DEADLINE)  # the client is no slower than this process, which may stand still for a while


def test_large_replies_wait_until_they_fit(start: Start, join: Any) -> None:
    kernel, port = start(limits=PATIENT)

    @kernel.on("go")
    def go(message: Any, context: Any, toolkit: Any) -> None:
        for number in range(20):
            toolkit.reply(numbered(number, 600_000))  # two do not fit into the outbox at once

    client, _ = join(port, receive_buffer=65536)
    client.send_json({"type": "go"})
    assert read_numbers(client, 20) == list(range(20))
    assert "closed_slow_consumer" not in kernel.stats()["counters"]


def test_a_crowd_of_senders_does_not_overfill_a_healthy_client(start: Start, join: Any) -> None:
    kernel, port = start(limits=PATIENT)
    client, id_ = join(port, receive_buffer=65536)

    def send_five(first: int) -> None:
        for number in range(first, first + 5):
            kernel.send(id_, numbered(number, 60_000))

    senders = [gevent.spawn(send_five, first) for first in range(0, 150, 5)]
    assert sorted(read_numbers(client, 150)) == list(range(150))
    for sender in senders:
        sender.get(timeout=DEADLINE)


def test_a_publisher_that_never_yields_does_not_cut_readers_that_keep_up(start: Start, join: Any) -> None:
    kernel, port = start()
    client, _ = join(port)
    reader = gevent.spawn(read_numbers, client, 3_000)
    for number in range(3_000):  # 30 MB in one go: only the stall lets anybody else run
        kernel.broadcast(numbered(number, 10_000), "room")
    assert reader.get(timeout=DEADLINE) == list(range(3_000))
    assert kernel.stats()["counters"]["stalls"] > 0


def test_a_slow_reader_that_takes_bytes_outlives_pong_deadlines(start: Start, join: Any) -> None:
    kernel, port = start(heartbeat=Heartbeat(interval=0.2, timeout=2.0))
    client, id_ = join(port, receive_buffer=8192)
    kernel.send(id_, numbered(0, 900_000))  # our pings wait behind it, in the socket and in the outbox
    received = b""
    while len(received) < 900_000:
        received += client.sock.recv(8192)
        gevent.sleep(0.025)  # all of it takes longer than interval and deadline
    assert kernel.stats()["clients"] == 1


def test_a_client_that_hangs_up_while_it_is_not_read_leaves_and_its_messages_are_handled(
    start: Start, join: Any
) -> None:
    kernel, port = start()
    release, gone = Event(), Event()
    handled: list[int] = []

    @kernel.on("slow")
    def slow(message: Any, context: Any, toolkit: Any) -> None:
        release.wait(DEADLINE)
        handled.append(message.payload)

    @kernel.on("client:disconnected")
    def left(message: Any, context: Any, toolkit: Any) -> None:
        gone.set()

    client, id_ = join(port)
    for number in range(100):
        client.send_json({"type": "slow", "payload": number})
    client.send(frame(8, struct.pack(">H", 1000)))
    client.sock.shutdown(gevent.socket.SHUT_WR)
    with gevent.Timeout(DEADLINE):
        while kernel.rooms.members("room"):
            gevent.sleep(0.01)
    assert handled == []
    release.set()
    assert gone.wait(DEADLINE)
    assert handled == list(range(100))
    assert kernel.presence.get(id_) is None


def test_a_client_that_pipelines_large_messages_is_held_back_not_refused(start: Start, join: Any) -> None:
    kernel, port = start()

    @kernel.on("take")
    def take(message: Any, context: Any, toolkit: Any) -> int:
        gevent.sleep(0.002)
        return len(message.payload)

    client, _ = join(port)
    sizes = [900_000, 900_000, 900_000, 900_000, 900_000, 900_000, 5, 5, 5, 5, 5, 5, 5, 5] * 3
    data = b"".join(
        frame(1, json.dumps({"type": "take", "payload": "x" * size, "ack": n}).encode()) for n, size in enumerate(sizes)
    )
    sender = gevent.spawn(client.send, data)
    answers = [client.read_json()["payload"] for _ in sizes]
    assert answers == [{"ack": number, "result": size} for number, size in enumerate(sizes)]
    sender.get(timeout=DEADLINE)


def test_a_stream_to_a_fast_reader_lets_others_be_served(start: Start, join: Any) -> None:
    kernel, port = start()
    made = [0]

    @kernel.on("stream")
    def stream(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        for number in range(20_000):
            made[0] = number
            yield number

    @kernel.on("made")
    def tell(message: Any, context: Any, toolkit: Any) -> int:
        return made[0]

    reader, _ = join(port)
    other, _ = join(port)
    reader.send_json({"type": "stream", "ack": "s"})
    other.send_json({"type": "made", "ack": 1})
    reading = gevent.spawn(lambda: [reader.read_json() for _ in range(20_001)])
    assert other.read_json()["payload"]["result"] < 19_999
    messages = reading.get(timeout=6 * DEADLINE)
    assert [message["payload"].get("item") for message in messages] == [*range(20_000), None]


def test_what_is_sent_with_the_handshake_is_answered_after_it(start: Start) -> None:
    _, port = start()
    client = RawClient(port)
    client.send(request("/ws") + frame(9, b"early") + frame(1, b'{"type": "join", "ack": 1}'))
    assert client.read_head().startswith("HTTP/1.1 101 ")
    assert client.read_frame() == (10, b"early")
    assert client.read_json()["payload"]["ack"] == 1
    client.close()


def test_a_client_that_says_goodbye_with_much_still_to_come_gets_it(start: Start, join: Any) -> None:
    kernel, port = start()
    client, id_ = join(port, receive_buffer=8192)
    for number in range(6):
        kernel.send(id_, numbered(number, 150_000))
    client.send(frame(8, struct.pack(">H", 1000)))
    client.sock.shutdown(gevent.socket.SHUT_WR)
    assert read_numbers(client, 6) == list(range(6))
    assert client.read_close()[0] == 1000
