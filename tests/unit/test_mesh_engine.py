"""The engine that runs a core: what comes from a node is delivered in order, and while that lasts not read on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from types import SimpleNamespace
from typing import Any

import gevent
import msgpack
import pytest
from gevent.event import Event

from realtime.config import MeshOptions
from realtime.message import Outbound
from realtime.protocols.mesh_actions import Action, NodeSuspect
from realtime.protocols.mesh_bodies import Call, ToRoom, decode_body, encode
from realtime.protocols.mesh_calls import pack_question
from realtime.protocols.mesh_core import MeshCore
from realtime.protocols.mesh_frames import DataReceived, ResumeReceived
from realtime.protocols.mesh_handshake import Hello
from realtime.protocols.mesh_pending import MOST_PENDING
from realtime.transports import mesh_engine
from realtime.transports.mesh_engine import Engine

PATIENCE = 60.0
OPTIONS = MeshOptions(ping=1.0, suspect=2.0, down=4.0)


class Here:
    """Clients of this node, to whom each message is delivered when the test says so."""

    def __init__(self, deliver: Callable[[], object]) -> None:
        self.rooms: list[str | None] = []
        self._deliver = deliver

    def deliver_to_room(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        self.rooms.append(room)
        self._deliver()
        return 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was not to be used")


class Sent:
    """The outbox of a link."""

    def __init__(self, frames: list[bytes]) -> None:
        self.put = frames.append

    def flush(self) -> None:
        """Everything is on its way."""


class Engines:
    """An engine with a link to one other node, which is played by the test."""

    def __init__(self, deliver: Callable[[], object] = bool, now: float = 0.0) -> None:
        self.core = MeshCore("me", b"m" * 16, "me:1", OPTIONS, random=Random(1), now=now)
        self.here = Here(deliver)
        self.told: list[Action] = []
        self.jobs: list[Callable[[], None]] = []
        news: Any = SimpleNamespace(resolved=self.told.append, happened=self.told.append)
        self.engine = Engine(self.core, self.here, news, self.jobs.append)  # type: ignore[arg-type]
        self.frames: list[bytes] = []
        self.engine.links = {"ann": SimpleNamespace(outbox=Sent(self.frames))}  # type: ignore[assignment]
        self.core.link_started(Hello("ann", "default", b"a" * 16, b"n" * 16), now)
        self.core.received("ann", ResumeReceived(5, 0, 0, False), now)

    def comes(self, body: object, now: float = 0.0) -> None:
        """A frame of the other node is read."""
        received = self.core._peers.known["ann"].session.received
        self.core.received("ann", DataReceived(received + 1, 0, encode(body)), now)


def body_of(frame: bytes) -> bytes:
    """Return what follows the header of a data frame."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(frame)
    *_, length = unpacker.unpack()
    return unpacker.read_bytes(length)  # type: ignore[no-any-return]


def test_a_new_link_is_not_read_on_while_what_came_on_the_one_before_is_delivered() -> None:
    delivering, may_go_on = Event(), Event()

    def deliver() -> None:
        delivering.set()
        assert may_go_on.wait(PATIENCE)

    subject = Engines(deliver)
    subject.comes(ToRoom("first", {"json": b"1"}))
    subject.comes(ToRoom("second", {"json": b"2"}))
    before = gevent.spawn(subject.engine.settle, "ann")
    assert delivering.wait(PATIENCE)
    subject.comes(ToRoom("third", {"json": b"3"}))
    after = gevent.spawn(subject.engine.settle, "ann")
    gevent.idle()
    assert not after.ready()
    may_go_on.set()
    gevent.joinall([before, after], timeout=PATIENCE, raise_error=True)
    assert after.ready()
    assert subject.here.rooms == ["first", "second", "third"]


def test_a_node_is_not_silent_while_slow_clients_keep_us_from_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(mesh_engine, "monotonic", lambda: clock.now)

    def deliver() -> None:  # takes 1 s each time, in which the clock of the node goes on
        for _ in range(20):
            clock.now += 0.05
            subject.core.tick(clock.now)

    subject = Engines(deliver, now=clock.now)
    for _ in range(10):
        subject.comes(ToRoom("tea", {"json": b"1"}), clock.now)
    subject.engine.settle("ann")
    assert len(subject.here.rooms) == 10
    assert not any(isinstance(action, NodeSuspect) for action in subject.told)
    for _ in range(50):  # but silence that is not our doing is told
        clock.now += 0.05
        subject.core.tick(clock.now)
    subject.engine.act()
    assert NodeSuspect("ann") in subject.told


def test_a_node_that_asks_more_than_any_waits_for_is_refused() -> None:
    subject = Engines()
    body = pack_question("call", {})
    for token in range(MOST_PENDING + 1):
        subject.comes(Call(token, "nobody", body, 1.0))
    subject.engine.settle("ann")
    assert len(subject.jobs) == MOST_PENDING
    assert subject.core.counters["calls_refused"] == 1
    answer: Any = decode_body(body_of(subject.frames[-1]))
    assert (answer.token, answer.ok) == (MOST_PENDING, False)
    assert b"busy" in answer.body
    subject.jobs[0]()  # one has ended: the next may come
    subject.comes(Call(MOST_PENDING + 1, "nobody", body, 1.0))
    subject.engine.settle("ann")
    assert len(subject.jobs) == MOST_PENDING + 1
