"""A goodbye counts however soon the connection is gone after it, and nothing else is one: raw sockets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from raw import DEADLINE, RawClient, frame

from realtime import Limits, RealtimeKernel, WebSocketTransport

GOODBYE = frame(8, struct.pack(">H", 1001))


class Rig:
    """A kernel, and what it knows of the one client that has a session there."""

    def __init__(self) -> None:
        self.transport = WebSocketTransport(0, "/")
        self.kernel = RealtimeKernel([self.transport], limits=Limits(session_grace=300.0), log_level="critical")
        self.kernel.rooms.configure("tea", join=True)
        self.taken: list[Any] = []
        self.end: Any = None
        self.left = Event()
        self.kernel.on("number", lambda message, context, toolkit: self.taken.append(message.payload))
        self.kernel.on("client:disconnected", self._went)
        self.kernel.start()

    def _went(self, message: Any, context: Any, toolkit: Any) -> None:
        self.end = message.payload["code"]
        self.left.set()

    def client(self) -> RawClient:
        """One with a session, in the room "tea"."""
        client = RawClient(self.transport.port)
        client.upgrade()
        client.send_json({"type": "system:hello", "payload": {"session": True}})
        client.send_json({"type": "system:join", "room": "tea", "ack": 1})
        client.read_json()  # the welcome
        client.read_json()  # the join's
        return client

    def tell(self) -> None:
        self.kernel.broadcast({"type": "told", "payload": "x" * 100}, "tea")


@pytest.fixture
def rig() -> Iterator[Rig]:
    running = Rig()
    yield running
    running.kernel.stop()


def test_who_does_not_wait_for_the_answer_has_said_goodbye_all_the_same(rig: Rig) -> None:
    client = rig.client()
    client.send(GOODBYE)
    client.sock.close()  # both are there before the server reads
    assert rig.left.wait(DEADLINE)
    assert rig.end == 1001


@pytest.mark.parametrize("unread", [False, True], ids=["ended", "reset"])
def test_a_goodbye_counts_though_the_server_finds_out_by_writing(rig: Rig, unread: bool) -> None:
    client = rig.client()
    if unread:
        rig.tell()
        gevent.sleep(0)  # flushed
        gevent.sleep(0)
    client.send(b"".join(frame(1, b'{"type": "number", "payload": %d}' % n) for n in range(100)) + GOODBYE)
    client.sock.close()
    for _ in range(1000):  # so much that it is written before the loop reads again, in several pieces
        rig.tell()
    assert rig.left.wait(DEADLINE)
    assert (rig.end, rig.taken) == (1001, list(range(100)))


def test_an_end_without_a_word_is_waited_for_though_messages_came_before_it(rig: Rig) -> None:
    client = rig.client()
    rig.tell()
    gevent.sleep(0)
    gevent.sleep(0)
    client.send(frame(1, b'{"type": "number", "payload": 7}'))
    client.sock.close()
    for _ in range(1000):
        rig.tell()
    with gevent.Timeout(DEADLINE):
        while not (rig.taken and rig.kernel.stats()["sessions"]["away"]):
            gevent.sleep(0.005)
    assert (rig.taken, rig.end) == ([7], None)
