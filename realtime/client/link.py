"""One connection of a Client: simple-websocket's client, with each of its faults guarded.

What simple-websocket 1.1 does by itself, and what stands before it here:

* It sends with one ``send`` of the socket, which may take less: :class:`~realtime.client.stream.Stream` sends all.
* Two threads that send at once corrupt the frames of wsproto below it: one lock.
* Its messages have no bound, or one that counts characters and closes with no code: :class:`_SizeGuard`, from the
  frame header on. Its list of messages grows while nobody reads: it is emptied after every ``recv``, and the stream
  reads no more while the client has no room.
* Its handshake waits forever, spins at an end of file, sends a Host without port, asks only the first address of a
  name, and leaves lying what comes with the answer: the stream connects, and our own handshake asks.
* It answers no close frame, names 1005 where a connection broke (1006), takes a ping within the closing handshake
  for the end of it, and its ``close`` lets its thread sit in ``recv`` for ever: see :meth:`Link.close`,
  :class:`_Connection`, and the stream, whose waits end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from simple_websocket.ws import Base
from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import CloseConnection, Event, Pong
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits
from wsproto.utilities import LocalProtocolError

from realtime.client.options import Address
from realtime.client.stream import Stream
from realtime.codes import CloseCode
from realtime.errors import ConnectionClosed, HandshakeError
from realtime.protocols.handshake import build_request, check_response, new_key
from realtime.protocols.http import HeadReader, parse_response

__all__ = ["Link"]

_RECEIVE = 64 * 1024  # bytes asked for at a time
_FRAGMENTS = 4096  # of one message, as the server bounds them
_REASON_BODY = 1024  # bytes of a refusal's text that are read and shown


class _SizeGuard(Extension):
    """Refuses a message that is too large from the frame header on that makes it so.

    To wsproto it is an extension, agreed upon by no peer, as those are shown every header before its payload comes.
    """

    name = "x-size-guard"

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._size = self._fragments = 0
        self.reason = ""

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if not opcode.iscontrol():
            if opcode is not Opcode.CONTINUATION:
                self._size = self._fragments = 0
            self._size += payload_length
            self._fragments += 1
            if self._size > self._bound:
                self.reason = f"a message may have at most {self._bound} bytes"
                return CloseReason.MESSAGE_TOO_BIG
            if self._fragments > _FRAGMENTS + self._size // 64:
                self.reason = f"a message in more than {_FRAGMENTS} fragments"
                return CloseReason.MESSAGE_TOO_BIG
        return RsvBits(False, False, False)


class _Connection(Connection):
    """Leaves pings unanswered where an answer would do harm.

    Once our close frame is out, answering is an error to wsproto, over which simple-websocket would end the connection
    with what still waits to be sent. And a server that pings on and on without reading must not fill the outbox (RFC
    6455 section 5.5.3 asks for the answer to the latest ping alone).
    """

    def __init__(self, guard: _SizeGuard, data: bytes, crowded: Callable[[], bool]) -> None:
        self._crowded = crowded
        super().__init__(ConnectionType.CLIENT, [guard], data)

    def send(self, event: Event) -> bytes:
        if isinstance(event, Pong) and (self.state is ConnectionState.LOCAL_CLOSING or self._crowded()):
            return b""
        return super().send(event)


class _CallersThread:
    """In the place of simple-websocket's own thread: the one that calls :meth:`Link.run` reads."""

    def __init__(self, target: Callable[[], None]) -> None:
        self.name = ""

    def start(self) -> None:
        """Nothing: see ``Link.run``."""


class Link(Base):  # type: ignore[misc]  # it has no types
    """One WebSocket to a server, open once it is made.

    :param stream: connected to the address.
    :param deliver: gets each message, in the thread that reads.
    :raises HandshakeError: the server refuses, with its status; 502 if its answer is wrong.
    :raises OSError: the connection broke, or the stream's ``tick`` gave up.
    """

    def __init__(
        self,
        stream: Stream,
        address: Address,
        *,
        headers: Sequence[tuple[str, str]],
        subprotocols: Sequence[str],
        message_size: int,
        response_head: int,
        deliver: Callable[[str | bytes], None],
    ) -> None:
        self._address = address
        self._headers = headers
        self._offered = subprotocols
        self._guard = _SizeGuard(message_size)
        self._head_limit = response_head
        self._deliver = deliver
        self._sending = threading.Lock()
        self._said_goodbye = False
        self.close_reason: int
        self.close_message: str | None
        self.input_buffer: list[str | bytes]
        super().__init__(stream, ConnectionType.CLIENT, receive_bytes=_RECEIVE, thread_class=_CallersThread)

    # The opening handshake ------------------------------------------------------------------------------

    def handshake(self) -> None:
        """Ask for a WebSocket; simple-websocket calls it."""
        key = new_key()
        self.sock.send(
            build_request(
                self._address.host_header,
                self._address.target,
                key,
                subprotocols=self._offered,
                headers=self._headers,
            )
        )
        reader = HeadReader(self._head_limit)
        try:
            while (head := reader.feed(self._receive())) is None:
                pass
        except HandshakeError as error:  # its words are for clients
            raise HandshakeError(502, f"the server's answer is not valid HTTP: {error.message}") from None
        try:
            accepted = check_response(head, key, subprotocols=self._offered)
        except HandshakeError as error:
            said = self._refusal(head, reader.leftover)
            raise HandshakeError(error.status, f"{error.message}{said}", error.headers) from None
        self.subprotocol = accepted.subprotocol
        self.ws.connection = _Connection(self._guard, reader.leftover, lambda: self.sock.crowded)
        self.close_reason, self.close_message = CloseCode.ABNORMAL, ""
        self.connected = True

    def _receive(self) -> bytes:
        data: bytes = self.sock.recv(_RECEIVE)
        if not data:
            raise ConnectionClosed(reason="the server ended the connection within the opening handshake")
        return data

    def _refusal(self, head: bytes, body: bytes) -> str:
        """Return what a refusing server says beside its status, if it is short text."""
        response = parse_response(head)
        length = response.headers.get("content-length", "")
        kind = response.headers.get("content-type", "")
        if response.status == 101 or not length.isdigit() or not kind.startswith("text/plain"):
            return ""
        wanted = min(int(length), _REASON_BODY)
        try:
            while len(body) < wanted:
                body += self._receive()
        except OSError:
            pass  # the status has been said
        text = " ".join(body[:wanted].decode("utf-8", "replace").split())
        return f": {text}" if text else ""

    # Messages -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Receive until the connection ends; ``close_reason`` and ``close_message`` then say why."""
        self._thread()

    def send(self, data: str | bytes) -> None:
        """Send a message without waiting: text, or binary.

        :raises ConnectionClosed: the connection ends or has ended; nobody has got the message.
        """
        with self._sending:
            if not self.connected or self._said_goodbye:
                raise ConnectionClosed(int(self.close_reason), self.close_message or "")
            try:
                super().send(data)
            except (OSError, LocalProtocolError) as error:
                raise ConnectionClosed(reason=str(error)) from None

    def close(self, reason: int | None = None, message: str | None = None) -> None:
        """Say goodbye; what the server answers, or its silence, ends :meth:`run`. Does not wait."""
        self._say_goodbye(reason or CloseCode.NORMAL, message or "")

    def fail(self, code: int, reason: str) -> ConnectionClosed:
        """End the connection, as it is of no use; return what to raise within ``tick``."""
        self._say_goodbye(code, reason)
        self.close_reason, self.close_message = code, reason
        return ConnectionClosed(code, reason)

    def _say_goodbye(self, code: int, reason: str) -> None:
        with self._sending:
            if self._said_goodbye:
                return
            self._said_goodbye = True
            try:
                self.sock.send(self.ws.send(CloseConnection(code=code, reason=reason or None)))
            except (OSError, LocalProtocolError):
                pass  # the connection is gone already

    # Inside simple-websocket's loop -----------------------------------------------------------------------

    def _thread(self) -> None:
        try:
            self.connected = self._handle_events()  # what came together with the handshake's answer
            super()._thread()
        finally:
            self.connected = False
            self.sock.close()

    def _handle_events(self) -> bool:
        going: bool = super()._handle_events()
        messages, self.input_buffer = self.input_buffer, []
        for data in messages:
            self._deliver(data)
        if not going:
            self._end()
        return going

    def _end(self) -> None:
        """Answer the server's close frame, or say what was wrong with what it sent (RFC 6455 section 7.1.7)."""
        if self._guard.reason:
            self.close_message = self._guard.reason
        broken = self.ws.state is ConnectionState.OPEN
        self._say_goodbye(int(self.close_reason), self.close_message or "" if broken else "")
        self.close_reason, self.close_message = int(self.close_reason), self.close_message or ""
