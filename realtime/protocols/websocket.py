"""The WebSocket protocol (RFC 6455) for either end, without I/O: bytes in, events out.

Feed what the socket gave to :meth:`WebSocketProtocol.receive_data`, act on the events, and write what its
``data_to_send`` and ``encode_*`` methods return. Strict: what the RFC forbids fails the connection with the
code the RFC names. Nothing here switches greenlets.
"""

from __future__ import annotations

import os
import sys
from enum import Enum

from realtime.codes import CloseCode
from realtime.config import Limits
from realtime.errors import ConnectionClosed, FrameError, ProtocolError
from realtime.protocols.assembly import Assembly
from realtime.protocols.deflate import PerMessageDeflate
from realtime.protocols.frames import (
    FIN,
    LENGTH_16,
    MASKED,
    MAX_CONTROL_PAYLOAD,
    RSV1,
    RSV2,
    RSV3,
    Opcode,
    apply_mask,
    binary_frame,
    encode_frame,
    parse_close,
    render_close,
    require_utf8,
    text_frame,
)
from realtime.protocols.websocket_events import (
    BinaryReceived,
    CloseReceived,
    Event,
    Failed,
    PingReceived,
    PongReceived,
    TextReceived,
)

__all__ = [
    "BinaryReceived",
    "CloseReceived",
    "Event",
    "Failed",
    "PingReceived",
    "PongReceived",
    "Role",
    "State",
    "TextReceived",
    "WebSocketProtocol",
]


class Role(Enum):
    """Which end we are: clients mask, servers do not (RFC 6455 section 5.1)."""

    SERVER = "server"
    CLIENT = "client"


class State(Enum):
    """How far the close handshake is (RFC 6455 section 7.1)."""

    OPEN = "open"
    CLOSING = "closing"  # our close frame is out, the peer's is not here yet
    CLOSED = "closed"  # both close frames were exchanged, or one end failed; what still arrives is ignored


_TRANSITIONS: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}


_OPCODES = frozenset(Opcode)
_FIRST_CONTROL = 8
_CONTINUATION, _TEXT, _BINARY = int(Opcode.CONTINUATION), int(Opcode.TEXT), int(Opcode.BINARY)
_CLOSE, _PING, _PONG = int(Opcode.CLOSE), int(Opcode.PING), int(Opcode.PONG)
_FIN_BINARY = FIN | _BINARY
_FIN_DATA = frozenset({FIN | _TEXT, _FIN_BINARY})
_OPEN, _CLOSED = State.OPEN, State.CLOSED
_BETWEEN_FRAMES = -1
_MAX_REPLIES = 1024  # pongs that wait at once; RFC 6455 section 5.5.3 allows to answer only the latest ping
_OTHER_LENGTH = sys.maxsize  # of a frame that is not the common case
_from_bytes = int.from_bytes


class WebSocketProtocol:
    """One end of a WebSocket after its handshake.

    :param role: which end we are.
    :param message_size: bytes of the largest message accepted, also after inflating; a larger one fails with
        1009 from the frame header on.
    :param fragments: fragments of one message that may be empty or small; each 64 bytes allow one more.
    :param deflate: what the handshake agreed on; None: no compression.

    ``state`` says how far the close handshake is; ``close_code`` and ``close_reason`` say how it ended, once
    it has: the peer's code (1005: none), the code we failed with, or 1006 if the connection was lost. Beside
    what a call left pending, a partial header and one message of ``message_size`` are all that is buffered.
    """

    __slots__ = (
        "_between",
        "_buffer",
        "_close_due",
        "_control",
        "_deflate",
        "_fin",
        "_fragments",
        "_head_size",
        "_key",
        "_mask_bit",
        "_message",
        "_message_size",
        "_opcode",
        "_plain",
        "_position",
        "_remaining",
        "_sent_close",
        "close_code",
        "close_reason",
        "has_pending",
        "replies",
        "role",
        "state",
    )

    def __init__(
        self,
        role: Role,
        *,
        message_size: int = Limits.message_size,
        fragments: int = Limits.fragments,
        deflate: PerMessageDeflate | None = None,
    ) -> None:
        self.role = role
        self.state = State.OPEN
        self.close_code: int | None = None
        self.close_reason = ""
        self.replies: list[bytes] = []
        """Frames owed to the peer, for :meth:`data_to_send`; testing this for emptiness is cheap."""
        self.has_pending = False
        """``receive_data`` stopped at ``max_messages``: call it again with ``b""`` to go on."""
        self._message_size = message_size
        self._fragments = fragments
        self._deflate = deflate
        self._mask_bit = MASKED if role is Role.SERVER else 0
        self._head_size = 6 if role is Role.SERVER else 2  # of a frame of up to 125 bytes
        self._plain = role is Role.SERVER and deflate is None
        self._sent_close: tuple[int, str] | None = None
        self._close_due = False  # our last frame is among the replies: messages may still go before it
        self._buffer = b""  # received, but not parsed from _position on
        self._position = 0
        self._between = True  # neither a frame nor a message has begun
        self._message: Assembly | None = None
        self._remaining = _BETWEEN_FRAMES  # payload bytes of the current frame that are to come
        self._opcode = _CONTINUATION
        self._fin = True
        self._key = b""
        self._control = b""

    # ---------------------------------------------------------------------------------------------- receiving

    def receive_data(self, data: bytes, max_messages: int = sys.maxsize) -> list[Event]:
        """Parse what arrived and return what it meant, in order. Never raises for what a peer sends.

        Stops after ``max_messages`` messages (control frames are not counted): the rest stays here,
        ``has_pending`` is true, and ``receive_data(b"", n)`` goes on. Whoever reads on regardless makes this
        buffer grow. After CloseReceived and Failed everything is ignored.
        """
        position = 0
        if self._buffer:
            data, position = self._join(data)
        if self.state is _CLOSED:
            return []
        events: list[Event] = []
        end = len(data)
        mask_bit, head_size, limit = self._mask_bit, self._head_size, self._message_size
        try:
            while position < end and max_messages > 0:
                # The common case at full speed: an unfragmented message of up to 64 KiB, all of it here.
                start = position + head_size
                if self._between and start <= end:
                    first = data[position]
                    length = data[position + 1] ^ mask_bit
                    if length >= LENGTH_16:
                        start += 2
                        extended = _from_bytes(data[position + 2 : position + 4], "big")
                        length = extended if length == LENGTH_16 <= extended else _OTHER_LENGTH
                    stop = start + length
                    if stop <= end and length <= limit and first in _FIN_DATA:
                        payload = data[start:stop]
                        if mask_bit:
                            mask = (data[start - 4 : start] * (length // 4 + 1))[:length]
                            number = _from_bytes(payload, "little") ^ _from_bytes(mask, "little")
                            payload = number.to_bytes(length, "little")
                        if first == _FIN_BINARY:
                            events.append(BinaryReceived(payload))
                        else:
                            if not payload.isascii():
                                require_utf8(payload)
                            events.append(TextReceived(payload))
                        max_messages -= 1
                        position = stop
                        continue
                before, count = position, len(events)
                position = self._advance(data, position, events)
                if position == before or self.state is _CLOSED:
                    break
                if len(events) > count and isinstance(events[-1], (TextReceived, BinaryReceived)):
                    max_messages -= 1
        except ProtocolError as error:
            self._fail(error, events)
        self._keep(data, position, stopped=max_messages <= 0)
        return events

    def receive_eof(self) -> list[Event]:
        """The peer will send no more: return what was pending, and end with 1006 unless already closed."""
        events = self.receive_data(b"") if self.has_pending else []
        if self.state is not _CLOSED:
            self._end(CloseCode.ABNORMAL, "")
        return events

    def data_to_send(self) -> list[bytes]:
        """Take the frames owed to the peer: pongs, the answer to its close frame, or the one we fail with.

        At most 1024 wait; a flood of pings beyond that is answered by a pong to the latest.
        """
        replies = self.replies
        self.replies = []
        self._close_due = False
        return replies

    def _join(self, data: bytes) -> tuple[bytes, int]:
        """Return what was left over followed by ``data``, and where to go on in it."""
        if not data:
            return self._buffer, self._position
        if self._position:
            return self._buffer[self._position :] + data, 0
        return self._buffer + data, 0

    def _keep(self, data: bytes, position: int, *, stopped: bool) -> None:
        """Hold on to what was not parsed: the start of a frame header, or all that max_messages left."""
        if position >= len(data) or self.state is _CLOSED:
            self._buffer, self._position, self.has_pending = b"", 0, False
        elif stopped:
            self._buffer, self._position, self.has_pending = data, position, True
        else:
            self._buffer, self._position, self.has_pending = data[position:], 0, False

    def _advance(self, data: bytes, position: int, events: list[Event]) -> int:
        """Parse one frame, or what there is of it; return the new position, the same if more is needed."""
        if self._remaining == _BETWEEN_FRAMES:
            start = self._read_header(data, position)
            if start == position:
                return position
            position = start
        payload = data[position : position + self._remaining]
        length = len(payload)
        if self._mask_bit and length:
            payload = apply_mask(payload, self._key)
        self._remaining -= length
        if self._opcode >= _FIRST_CONTROL:
            self._control += payload
            if not self._remaining:
                self._remaining = _BETWEEN_FRAMES
                self._between = self._message is None
                self._end_control(events)
            elif length & 3:
                self._rotate_key(length)
            return position + length
        message = self._message
        assert message is not None
        message.append(payload)
        if self._remaining:
            self._rotate_key(length)
        else:
            self._remaining = _BETWEEN_FRAMES
            if self._fin:
                self._message = None
                self._between = True
                events.append(message.finish())
        return position + length

    def _rotate_key(self, length: int) -> None:
        """Make the mask key begin where the next piece of the payload does."""
        offset = length & 3
        self._key = self._key[offset:] + self._key[:offset]

    def _read_header(self, data: bytes, position: int) -> int:
        """Parse and check a frame header; return where its payload begins, ``position`` if it is incomplete.

        What the first two bytes forbid is found before more have arrived, and a length that is too large
        before the mask key has. Raises FrameError or PayloadTooBig.
        """
        available = len(data) - position
        if available < 2:
            return position
        first, second = data[position], data[position + 1]
        opcode = first & 0x0F
        self._check_first_bytes(first, opcode, second)
        length = second & 0x7F
        start = position + 2
        if length >= LENGTH_16:
            size = 2 if length == LENGTH_16 else 8
            if available < 2 + size:
                return position
            length = _from_bytes(data[start : start + size], "big")
            start += size
            # 2**63 and more are forbidden too (section 5.2), but above all too big.
            if length < (LENGTH_16 if size == 2 else 1 << 16):
                raise FrameError(f"a length of {length} must be encoded in fewer bytes")
        message = self._message
        if opcode < _FIRST_CONTROL:
            if message is None:
                deflate = self._deflate if first & RSV1 else None
                message = Assembly(opcode == _TEXT, self._message_size, deflate)
            message.check_frame(length, self._fragments)
        if self._mask_bit:
            start += 4
            if start > len(data):
                return position
            self._key = data[start - 4 : start]
        if opcode < _FIRST_CONTROL:
            assert message is not None
            message.fragments += 1
            message.received += length
            self._message = message
            self._fin = first >= FIN
        else:
            self._control = b""
        self._opcode = opcode
        self._remaining = length
        self._between = False
        return start

    def _check_first_bytes(self, first: int, opcode: int, second: int) -> None:
        """Raise FrameError if a frame cannot begin with these two bytes (RFC 6455 sections 5.1 to 5.5)."""
        if opcode not in _OPCODES:
            raise FrameError(f"reserved opcode {opcode}")
        starts_message = opcode in (_TEXT, _BINARY)
        allowed = RSV1 if starts_message and self._deflate is not None else 0
        if first & (RSV1 | RSV2 | RSV3) & ~allowed:
            raise FrameError("a reserved bit is set that no extension gave a meaning")
        if second & MASKED != self._mask_bit:
            raise FrameError("a client must mask its frames" if self._mask_bit else "a server must not mask")
        if opcode >= _FIRST_CONTROL:
            if first < FIN:
                raise FrameError("a control frame must not be fragmented")
            if second & 0x7F > MAX_CONTROL_PAYLOAD:
                raise FrameError(f"a control frame holds at most {MAX_CONTROL_PAYLOAD} bytes")
        elif starts_message and self._message is not None:
            raise FrameError("a new message within a fragmented one")
        elif opcode == _CONTINUATION and self._message is None:
            raise FrameError("a continuation of no message")

    def _end_control(self, events: list[Event]) -> None:
        """Act on a whole control frame (RFC 6455 section 5.5). Raises FrameError or PayloadNotUtf8."""
        payload, self._control = self._control, b""
        if self._opcode == _PING:
            events.append(PingReceived(payload))
            pong = self._frame(_PONG, payload)
            if len(self.replies) < _MAX_REPLIES:
                self.replies.append(pong)
            else:
                self.replies[-1] = pong
        elif self._opcode == _PONG:
            events.append(PongReceived(payload))
        else:
            code, reason = parse_close(payload)
            if self.state is State.OPEN:
                self.replies.append(self._frame(_CLOSE, payload[:2]))
                self._close_due = True
            self._end(code, reason)
            events.append(CloseReceived(code, reason))

    # ------------------------------------------------------------------------------------------------ sending

    def encode_text(self, payload: bytes) -> bytes:
        """Return the frame of a text message. ``payload`` must be UTF-8; this is not checked.

        Frames must be written in the order they were encoded. Raises ConnectionClosed once a close frame of ours
        is out; while it is only among the replies a message may still go before it (RFC 6455 section 5.5.1).
        """
        if self._plain and self.state is _OPEN:
            return text_frame(payload)
        return self._encode(_TEXT, payload)

    def encode_binary(self, payload: bytes) -> bytes:
        """Return the frame of a binary message. See :meth:`encode_text`."""
        if self._plain and self.state is _OPEN:
            return binary_frame(payload)
        return self._encode(_BINARY, payload)

    def ping(self, payload: bytes = b"") -> bytes:
        """Return a ping of up to 125 bytes. Raises ValueError if longer, ConnectionClosed as encode_text."""
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"a ping holds at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
        self._require_open()
        return self._frame(_PING, payload)

    def close(self, code: int | None = CloseCode.NORMAL, reason: str = "") -> bytes:
        """Return our close frame, ``None`` for one without a code; further messages of the peer still arrive.

        Raises ValueError for a code that may not be sent (RFC 6455 section 7.4) or a reason over 123 bytes of
        UTF-8, and ConnectionClosed if a close frame went either way before.
        """
        payload = render_close(code, reason)
        self._require_open()
        self._sent_close = (CloseCode.NO_STATUS if code is None else code, reason)
        self._move(State.CLOSING)
        return self._frame(_CLOSE, payload)

    def _encode(self, opcode: int, payload: bytes) -> bytes:
        if not self._close_due:
            self._require_open()
        deflate = self._deflate
        if deflate is not None and len(payload) >= deflate.min_size:
            return self._frame(opcode, deflate.compress(payload), rsv1=True)
        return self._frame(opcode, payload)

    def _frame(self, opcode: int, payload: bytes, *, rsv1: bool = False) -> bytes:
        """Frame a payload for our role: a client's key must be unpredictable (RFC 6455 section 10.3)."""
        mask = None if self._mask_bit else os.urandom(4)
        return encode_frame(opcode, payload, rsv1=rsv1, mask=mask)

    # ------------------------------------------------------------------------------------------------- ending

    def _require_open(self) -> None:
        if self.state is not _OPEN:
            code, reason = self._sent_close or (CloseCode.ABNORMAL, "")
            if self.close_code is not None:
                code, reason = self.close_code, self.close_reason
            raise ConnectionClosed(code, reason)

    def _fail(self, error: ProtocolError, events: list[Event]) -> None:
        """Fail the connection (RFC 6455 section 7.1.7): say why unless our close frame is already out."""
        error.__traceback__ = error.__context__ = None  # these would keep the call's buffers alive
        if self.state is _OPEN:
            self.replies.append(self._frame(_CLOSE, render_close(error.code, str(error))))
            self._close_due = True
        self._end(int(error.code), str(error))
        events.append(Failed(error))

    def _end(self, code: int, reason: str) -> None:
        self.close_code = int(code)
        self.close_reason = reason
        self._message = None
        self._control = b""
        self._buffer, self._position, self.has_pending = b"", 0, False
        self._move(_CLOSED)

    def _move(self, state: State) -> None:
        assert state in _TRANSITIONS[self.state], f"{self.state} cannot become {state}"
        self.state = state
