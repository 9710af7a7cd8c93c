"""The client of a MemoryTransport, as tests drive it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, Protocol

import msgpack
from gevent.event import Event

from realtime.codes import CloseCode, ErrorCode
from realtime.config import KiB, MiB
from realtime.errors import CallFailed, ConnectionClosed, TimedOut

__all__ = ["Closing", "MemoryClient", "ServerSide"]

PATIENCE = 10.0  # seconds that a client waits unless told otherwise
SEND_BUFFER = 64 * KiB  # what the server has not read yet, as in a socket: past it send() waits
RECEIVE_BUFFER = 16 * MiB  # what the test has not taken yet: past it the client counts as one that does not read


class Closing(bytes):
    """The last frame of a connection: what a close frame is to a WebSocket."""

    code: int
    reason: str

    @classmethod
    def of(cls, code: int, reason: str) -> Closing:
        """Make one; it has a byte because an outbox counts bytes."""
        closing = cls(b"\0")
        closing.code = int(code)
        closing.reason = reason
        return closing


class ServerSide(Protocol):
    """The server's end of the connection."""

    id: str

    def received(self, data: bytes) -> None:
        """A message came in."""

    def client_closed(self, code: int, reason: str) -> None:
        """The client said goodbye."""

    def client_vanished(self, code: int, reason: str) -> None:
        """The client is gone without a word."""

    def writable(self) -> None:
        """The client reads again."""


class MemoryClient:
    """One client, as a test drives it. Made by ``MemoryTransport.connect``.

    It reads by itself, as a browser does, and keeps what came until the test takes it. Every wait parks only
    the calling greenlet, and has a timeout: ``TimedOut`` says what came instead. Use it in the kernel's thread.
    """

    _connection: ServerSide  # given by the transport

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.close_code: int | None = None
        """How it ended, once the client knows; None while it is open."""
        self.close_reason = ""
        self._reading = True
        self._received: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        self._buffered = 0
        self._changed = Event()
        self._server_reads = True
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._acks = count(1)

    def __repr__(self) -> str:
        state = "open" if self.close_code is None else f"closed with {self.close_code}"
        return f"<MemoryClient {self.id} {state}, {len(self._received)} received>"

    @property
    def id(self) -> str:
        """The id the kernel gave it."""
        return self._connection.id

    @property
    def closed(self) -> bool:
        """Whether the connection has ended and the client knows."""
        return self.close_code is not None

    @property
    def received(self) -> list[dict[str, Any]]:
        """What came and was not taken yet, oldest first."""
        return list(self._received)

    # Sending ------------------------------------------------------------------------------------------

    def send(self, message: Mapping[str, Any] | str | bytes, *, timeout: float = PATIENCE) -> None:
        """Send a message; text or bytes go as they are, so that garbage can be sent too.

        :param timeout: seconds to wait while the server, whose inbox is full, does not read.
        :raises TimedOut: it did not read in time.
        :raises ConnectionClosed: the connection has ended.
        """
        if isinstance(message, str):
            data = message.encode("utf-8", "surrogatepass")
        elif isinstance(message, bytes):
            data = message
        else:
            data = msgpack.packb(dict(message)) if self.codec == "msgpack" else json.dumps(dict(message)).encode()
        self._wait(
            lambda: self.closed or self._server_reads or self._unread_size + len(data) <= SEND_BUFFER,
            timeout,
            lambda: f"the server did not read {self._unread_size} bytes within {timeout:g} s",
        )
        self._raise_if_closed()
        self._hand_in(data)

    def answer(self, question: Mapping[str, Any], result: Any = None) -> None:
        """Answer a message that the server sent by ``call``."""
        self.send({"type": "system:ack", "payload": {"ack": question["ack"], "result": result}})

    def refuse(self, question: Mapping[str, Any], message: str, *, code: str = ErrorCode.REJECTED) -> None:
        """Answer a message that the server sent by ``call`` with an error."""
        self.send({"type": "system:error", "payload": {"ack": question["ack"], "message": message, "code": code}})

    def _hand_in(self, data: bytes) -> None:
        self._unread.append(data)
        self._unread_size += len(data)
        self._hand_over()

    def _hand_over(self) -> None:
        """Let the server read what it wants to."""
        while self._unread and self._server_reads:
            data = self._unread.popleft()
            self._unread_size -= len(data)
            if isinstance(data, Closing):
                self._connection.client_closed(data.code, data.reason)
            else:
                self._connection.received(data)
        self._changed.set()

    # Receiving ------------------------------------------------------------------------------------------

    def receive(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Take the next message. Switches greenlets.

        :raises TimedOut: none came in time.
        :raises ConnectionClosed: the connection has ended and every message was taken.
        """
        self._wait(lambda: bool(self._received or self.closed), timeout, lambda: f"no message within {timeout:g} s")
        if not self._received:
            self._raise_if_closed()
        return self._pop(0)

    def receive_until(self, type: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Take messages until one of this type comes, and return that one. Raises like ``receive``."""
        passed: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self.receive(max(0.0, deadline - time.monotonic()))
            except TimedOut:
                raise TimedOut(f"no {type!r} within {timeout:g} s; what came: {passed or 'nothing'}") from None
            if message["type"] == type:
                return message
            passed.append(message)

    def call(
        self,
        type: str,
        payload: Any = None,
        *,
        room: str | None = None,
        target: str | list[str] | None = None,
        timeout: float = PATIENCE,
    ) -> Any:
        """Send a message with an ack id and return the result. Other messages stay where they are.

        :raises CallFailed: the server answered with an error; ``.code`` and ``.message`` are its words.
        :raises TimedOut: no answer came in time.
        :raises ConnectionClosed: the connection has ended.
        """
        ack = self._ask(type, payload, room, target)
        return self._outcome(self._take_about(ack, ("system:ack", "system:error"), timeout))

    def stream(
        self, type: str, payload: Any = None, *, room: str | None = None, timeout: float = PATIENCE
    ) -> Iterator[Any]:
        """Send a message that is answered with a stream and yield its items. Raises like ``call``.

        :param timeout: seconds to wait for each item.
        """
        ack = self._ask(type, payload, room, None)
        while True:
            message = self._take_about(ack, ("system:stream", "system:ack", "system:error"), timeout)
            if message["type"] != "system:stream":
                self._outcome(message)
                return
            yield message["payload"]["item"]

    def _ask(self, type: str, payload: Any, room: str | None, target: str | list[str] | None) -> int:
        ack = next(self._acks)
        optional = {"payload": payload, "room": room, "target": target}
        self.send({"type": type, "ack": ack, **{key: value for key, value in optional.items() if value is not None}})
        return ack

    def _take_about(self, ack: int, types: tuple[str, ...], timeout: float) -> dict[str, Any]:
        """Take the first message of these types that is about ``ack``, out of the middle if need be."""

        def found() -> int | None:
            for index, message in enumerate(self._received):
                if message["type"] in types and message["payload"].get("ack") == ack:
                    return index
            return None

        self._wait(
            lambda: found() is not None or self.closed,
            timeout,
            lambda: f"no answer within {timeout:g} s; what came: {self.received or 'nothing'}",
        )
        index = found()
        if index is None:
            self._raise_if_closed()
        return self._pop(index or 0)

    @staticmethod
    def _outcome(message: dict[str, Any]) -> Any:
        payload = message["payload"]
        if message["type"] == "system:error":
            details = f" ({payload['details']})" if "details" in payload else ""
            raise CallFailed(payload["message"] + details, code=payload["code"])
        return payload.get("result")

    def _pop(self, index: int) -> dict[str, Any]:
        message = self._received[index]
        del self._received[index]
        self._buffered -= self._sizes[index]
        del self._sizes[index]
        if self._takes():
            self._connection.writable()
        return message

    def _takes(self) -> bool:
        """Whether it reads."""
        return self._reading and self._buffered < RECEIVE_BUFFER

    def _take(self, frame: bytes) -> None:
        """A whole frame arrives."""
        if isinstance(frame, Closing):
            self._end(frame.code, frame.reason)
            return
        self._received.append(msgpack.unpackb(frame) if self.codec == "msgpack" else json.loads(frame))
        self._sizes.append(len(frame))
        self._buffered += len(frame)
        self._changed.set()

    # A slow client ------------------------------------------------------------------------------------

    def stop_reading(self) -> None:
        """Take nothing from now on: what is sent to this client piles up in its outbox."""
        self._reading = False

    def resume_reading(self) -> None:
        """Read again: what waits in the outbox comes."""
        self._reading = True
        self._connection.writable()

    # Ending -----------------------------------------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL, reason: str = "", *, timeout: float = PATIENCE) -> None:
        """Say goodbye: the server handles what was sent before. What it sent still can be received.

        :param timeout: seconds to wait until the server has read up to here.
        :raises TimedOut: it has not.
        """
        if self.closed:
            return
        self.resume_reading()
        self._hand_in(Closing.of(code, reason))
        self._wait(lambda: self.closed, timeout, lambda: f"the server did not read the close within {timeout:g} s")

    def kill(self) -> None:
        """Vanish without goodbye, as a crash or a lost network would."""
        if not self.closed:
            self._end(CloseCode.ABNORMAL, "connection lost")
            self._connection.client_vanished(CloseCode.ABNORMAL, "connection lost")

    def wait_closed(self, timeout: float = PATIENCE) -> int:
        """Wait until the server has closed the connection; return the close code. Switches greenlets.

        :raises TimedOut: it has not.
        """
        self._wait(lambda: self.closed, timeout, lambda: f"still open after {timeout:g} s")
        assert self.close_code is not None
        return self.close_code

    def _end(self, code: int, reason: str) -> None:
        """The client knows that it is over."""
        if not self.closed:
            self.close_code = int(code)
            self.close_reason = reason
            self._unread.clear()
            self._unread_size = 0
            self._changed.set()

    def _raise_if_closed(self) -> None:
        if self.close_code is not None:
            raise ConnectionClosed(self.close_code, self.close_reason)

    def _wait(self, done: Callable[[], bool], timeout: float, complaint: Callable[[], str]) -> None:
        """Park until ``done()``; raise TimedOut with ``complaint()``. Switches only if there is need to wait."""
        deadline = time.monotonic() + timeout
        while not done():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimedOut(complaint())
            self._changed.clear()
            self._changed.wait(remaining)
