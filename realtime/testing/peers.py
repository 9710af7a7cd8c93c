"""Both ends of the conformance suite: the clients that it drives, and the handlers they meet."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Protocol

import gevent
import greenlet
from gevent.event import Event

from realtime.connection import Context
from realtime.errors import CallFailed, ConnectionClosed, Reject, TimedOut
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.toolkit import Toolkit
from realtime.transports.base import Transport

__all__ = ["ConformanceClient", "Peer", "Serving", "living_greenlets", "wait_until"]

PATIENCE = 60.0  # seconds until a wait is a failure; nothing waits this long when all is well


def wait_until(done: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Wait until ``done()``; it may itself wait. Switches greenlets.

    :raises TimedOut: it was not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise TimedOut(f"not so within {timeout:g} s")
        gevent.sleep(0.002)


def living_greenlets() -> list[greenlet.greenlet]:
    """Return this thread's greenlets that have begun and not ended, but for gevent's own and the caller."""
    current, hub = gevent.getcurrent(), gevent.get_hub()
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), greenlet.greenlet)  # isinstance() would ask a dead weakref.proxy too
        and thing is not current
        and thing is not hub
        and thing.parent is hub
        and bool(thing)
    ]


class ConformanceClient(Protocol):
    """A client of the transport that is tested: the only thing to write besides the transport.

    One that can stop reading (``TransportConformance.can_stop_reading``) has ``stop_reading()`` and
    ``resume_reading()`` too.
    """

    def send(self, message: Mapping[str, Any] | str | bytes) -> None:
        """Send a message, encoded; text or bytes as they are."""

    def receive(self, timeout: float) -> dict[str, Any]:
        """Return the next message, decoded.

        :raises TimedOut: none came in time.
        :raises ConnectionClosed: the server closed; with its code and reason.
        """

    def close(self) -> None:
        """Say goodbye as clients of this transport do."""

    def kill(self) -> None:
        """Vanish without goodbye. Harmless once closed."""


class Peer:
    """A client with what the tests need beside its four methods."""

    def __init__(self, client: ConformanceClient) -> None:
        self.client: Any = client
        self._kept: deque[dict[str, Any]] = deque()
        self._acks = 0

    def send(self, type: str, payload: Any = None, **fields: Any) -> None:
        """Send a message."""
        self.client.send({"type": type, "payload": payload, **fields})

    def send_raw(self, data: str | bytes) -> None:
        """Send text or bytes as they are."""
        self.client.send(data)

    def receive(self) -> dict[str, Any]:
        """Return the next message."""
        if self._kept:
            return self._kept.popleft()
        message: dict[str, Any] = self.client.receive(PATIENCE)
        return message

    def receive_until(self, type: str) -> dict[str, Any]:
        """Return the next message of this type; drop what comes before."""
        while True:
            message = self.receive()
            if message["type"] == type:
                return message

    def call(self, type: str, payload: Any = None, **fields: Any) -> Any:
        """Send with an ack id; return the result or raise CallFailed. Other messages are kept."""
        self._acks += 1
        self.send(type, payload, ack=self._acks, **fields)
        return self.outcome_of(self._acks)

    def outcome_of(self, ack: int) -> Any:
        """Wait for the answer to ``ack``: return the result or raise CallFailed. Other messages are kept."""
        passed: list[dict[str, Any]] = []
        try:
            while True:
                message = self.receive()
                answer = message["payload"] if message["type"] in ("system:ack", "system:error") else {}
                if answer.get("ack") != ack:
                    passed.append(message)
                elif message["type"] == "system:error":
                    raise CallFailed(answer["message"], code=answer["code"])
                else:
                    return answer.get("result")
        finally:
            self._kept.extendleft(reversed(passed))

    def refused(self, type: str, payload: Any = None, **fields: Any) -> tuple[str, str]:
        """Like ``call`` for what must be refused: return the code and the message."""
        try:
            result = self.call(type, payload, **fields)
        except CallFailed as error:
            return error.code, error.message
        raise AssertionError(f"{type} was answered with {result!r} and not refused")

    def answer(self, question: Mapping[str, Any], result: Any) -> None:
        """Answer a ``call`` of the server's."""
        self.send("system:ack", {"ack": question["ack"], "result": result})

    def received_before_close(self) -> tuple[list[dict[str, Any]], ConnectionClosed]:
        """Take everything until the server closes; return it, and how it closed."""
        messages: list[dict[str, Any]] = []
        while True:
            try:
                messages.append(self.receive())
            except ConnectionClosed as closed:
                return messages, closed


class Behaviour:
    """The handlers that the suite's clients talk to, and what these saw."""

    def __init__(self, kernel: RealtimeKernel) -> None:
        self.kernel = kernel
        self.released = Event()
        self.recorded: dict[str, list[Any]] = {}
        self.journal: list[tuple[str, Any]] = []  # (client id, what happened), over all clients
        self.ends: dict[str, Any] = {}  # payloads of client:disconnected
        self.streamed = 0
        self._register_plain()
        self._register_rooms()
        self._register_waiting()

    def journal_of(self, client_id: str) -> list[Any]:
        """Return what happened to one client."""
        return [entry for id_, entry in self.journal if id_ == client_id]

    def _register_plain(self) -> None:
        kernel = self.kernel

        @kernel.on("echo")
        def echo(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return message.payload

        @kernel.on("who")
        def who(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return {"id": context.id, "transport": context.transport, "connected_at": context.connected_at}

        @kernel.on("record")
        def record(message: Message, context: Context, toolkit: Toolkit) -> None:
            if message.payload % 3 == 0:
                gevent.sleep(0)  # others of this client must not overtake
            self.recorded.setdefault(context.id, []).append(message.payload)

        @kernel.on("recorded")
        def recorded(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return self.recorded.get(context.id, [])

        @kernel.on("log this")
        def log_this(message: Message, context: Context, toolkit: Toolkit) -> str:
            self.journal.append((context.id, message.payload))
            return context.id

        @kernel.on("client:connected")
        def connected(message: Message, context: Context, toolkit: Toolkit) -> None:
            self.journal.append((context.id, "connected"))

        @kernel.on("client:disconnected")
        def disconnected(message: Message, context: Context, toolkit: Toolkit) -> None:
            self.journal.append((context.id, "disconnected"))
            self.ends[context.id] = message.payload

        @kernel.on("stream")
        def stream(message: Message, context: Context, toolkit: Toolkit) -> Generator[int, None, str]:
            yield from range(message.payload)
            return "done"

        @kernel.on("stream big")
        def stream_big(message: Message, context: Context, toolkit: Toolkit) -> Iterator[str]:
            for _ in range(message.payload["items"]):
                self.streamed += 1
                yield "x" * message.payload["size"]

        @kernel.on("reject")
        def reject(message: Message, context: Context, toolkit: Toolkit) -> None:
            raise Reject("not you", code="forbidden")

        @kernel.on("fail")
        def fail(message: Message, context: Context, toolkit: Toolkit) -> None:
            raise RuntimeError("a secret detail")

    def _register_rooms(self) -> None:
        kernel = self.kernel

        @kernel.on("join")
        def join(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.join(message.room or "")

        @kernel.on("leave")
        def leave(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.leave(message.room or "")

        @kernel.on("members")
        def members(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return toolkit.rooms.members(message.room or "")

        @kernel.on("say")
        def say(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.broadcast({"type": "said", "payload": message.payload})

        @kernel.on("say to others")
        def say_to_others(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.broadcast({"type": "said", "payload": message.payload}, except_self=True)

        @kernel.on("tell")
        def tell(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.send(message.target or "", {"type": "told", "payload": message.payload})

        @kernel.on("presence:update")
        def update(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return toolkit.presence.update(message.payload)

        @kernel.on("presence:list")
        def presence_list(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return toolkit.presence.list(message.room)

    def _register_waiting(self) -> None:
        kernel = self.kernel

        @kernel.on("release")
        def release(message: Message, context: Context, toolkit: Toolkit) -> None:
            self.released.set()

        @kernel.on("wait for release")
        def wait_for_release(message: Message, context: Context, toolkit: Toolkit) -> str:
            return "released" if self.released.wait(PATIENCE) else "not released"

        @kernel.on("wait for stop")
        def wait_for_stop(message: Message, context: Context, toolkit: Toolkit) -> str:
            toolkit.reply("waiting")
            wait_until(lambda: not kernel.running)
            return "finished"

        @kernel.on("ask")
        def ask(message: Message, context: Context, toolkit: Toolkit) -> Any:
            target = message.target if isinstance(message.target, str) else context.id
            return toolkit.call(target, {"type": "question", "payload": message.payload}, timeout=PATIENCE)

        @kernel.on("ask once released")
        def ask_once_released(message: Message, context: Context, toolkit: Toolkit) -> Any:
            self.released.wait(PATIENCE)
            return ask(message, context, toolkit)

        @kernel.on("ask briefly")
        def ask_briefly(message: Message, context: Context, toolkit: Toolkit) -> Any:
            return toolkit.call(context.id, {"type": "question"}, timeout=0.01)

        @kernel.on("ask and tell how it failed")
        def ask_and_tell(message: Message, context: Context, toolkit: Toolkit) -> Any:
            try:
                return ask(message, context, toolkit)
            except CallFailed as error:
                return [error.code, error.message]

        @kernel.on("converse")
        def converse(message: Message, context: Context, toolkit: Toolkit) -> Any:
            toolkit.reply("who are you?")
            try:
                name = toolkit.wait_for("name", timeout=PATIENCE).payload
                toolkit.reply(f"how old are you, {name}?")
                return [name, toolkit.wait_for("age", timeout=PATIENCE).payload]
            except ConnectionClosed:
                self.journal.append((context.id, "broke off"))
                raise

        @kernel.on("converse once released")
        def converse_once_released(message: Message, context: Context, toolkit: Toolkit) -> Any:
            self.released.wait(PATIENCE)
            return converse(message, context, toolkit)


class Serving(Behaviour):
    """A running kernel with the transport, for one test."""

    def __init__(self, kernel: RealtimeKernel, transport: Transport, connect: Callable[[], ConformanceClient]) -> None:
        super().__init__(kernel)
        self.transport = transport
        self.peers: list[Peer] = []
        self._connect = connect

    def connect(self) -> Peer:
        """Connect a client."""
        peer = Peer(self._connect())
        self.peers.append(peer)
        return peer

    def counter(self, name: str) -> int:
        """Return a counter of the kernel's."""
        return int(self.kernel.stats()["counters"].get(name, 0))
