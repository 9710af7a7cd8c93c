"""Messages: what came in, what goes out, and the two codecs between them and bytes.

In: :class:`Message`, decoded strictly, because what one client gets in is broadcast to the others: no NaN,
no lone surrogate, no number past 64 bits, no bottomless nesting. Out: :class:`Outbound`, encoded once per
codec and finished once per :class:`Wire`, so that a thousand members of a room share the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, NamedTuple, Protocol

import msgpack
import msgspec

from realtime.delivery import Delivery, Perishable, left_of
from realtime.errors import BadMessage

__all__ = ["CODECS", "JSON", "MSGPACK", "Codec", "Mark", "Message", "Outbound", "Stamped", "Wire"]

TYPE_LENGTH = 255  # characters of a type and of an ack id
MSGPACK_SUBPROTOCOL = "realtime.msgpack.v1"


class Message(msgspec.Struct):
    """One message from a client, as a handler sees it.

    ``params`` holds what a template such as ``chat:message:[room_id]`` matched, and is empty otherwise.
    """

    type: str
    payload: Any = None
    room: str | None = None
    target: str | list[str] | None = None
    ack: str | int | None = None
    params: dict[str, str] = msgspec.field(default_factory=dict)


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=TYPE_LENGTH)]


class _Incoming(msgspec.Struct):
    """The shape a client may send; unknown keys are ignored. Not Message, whose params are ours to fill."""

    type: _Name
    payload: Any = None
    room: str | None = None
    target: str | list[str] | None = None
    ack: Annotated[str, msgspec.Meta(max_length=TYPE_LENGTH)] | int | None = None


class _OnlyAck(msgspec.Struct):
    ack: Annotated[str, msgspec.Meta(max_length=TYPE_LENGTH)] | int | None = None


class _Outgoing(msgspec.Struct, omit_defaults=True):
    type: str
    payload: Any = msgspec.UNSET
    room: Any = msgspec.UNSET
    timestamp: int = -1  # always given, so never left out
    ack: Any = msgspec.UNSET
    cursor: Any = msgspec.UNSET  # only in what was encoded before: see ``Stamped``


class Codec(Protocol):
    """Bytes to Message and back."""

    name: str

    def decode(self, data: bytes) -> Message:
        """Return the message in ``data``; raise BadMessage ."""

    def encode(self, value: Any) -> bytes:
        """Return ``value`` as bytes; raise BadMessage for what the format cannot carry."""


_EXPECTED = 'a message is an object such as {"type": "chat:message", "payload": "hi"}'
# "is there a run of 19 digits": translating and searching is 3 times as fast as a regular expression
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
MAX_DEPTH = 128  # objects and lists inside each other: what is let in must be possible to send on, wrapped
_MAX_INT = 2**64 - 1
_MIN_INT = -(2**63)


def _refuse_unsafe_values(value: Any) -> None:
    """Raise BadMessage for a number that not every JSON reader can take, or a type JSON does not know.

    Iterative: the decoders have bounded the nesting, this must not depend on it.
    """
    waiting = [value]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is int:
            if not _MIN_INT <= value <= _MAX_INT:
                raise BadMessage("an integer is outside the 64-bit range")
        elif kind is float:
            if not math.isfinite(value):
                raise BadMessage("NaN and infinity are not allowed")
        elif kind is dict:
            if not all(type(key) is str for key in value):
                raise BadMessage("the keys of an object must be strings")
            waiting.extend(value.values())
        elif kind is list:
            waiting.extend(value)
        elif kind not in (str, bool, bytes, type(None)):
            raise BadMessage(f"{kind.__name__} values are not allowed")


def _refuse_deep_nesting(value: Any) -> None:
    """Raise BadMessage for more than MAX_DEPTH objects and lists inside each other."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) is dict or type(item) is list
        ]
    if level:
        raise BadMessage(f"nested more than {MAX_DEPTH} deep")


def _message_from(incoming: _Incoming) -> Message:
    return Message(incoming.type, incoming.payload, incoming.room, incoming.target, incoming.ack)


class JsonCodec:
    """JSON (RFC 8259) in text frames: msgspec is strict about NaN, surrogates and trailing data by itself."""

    name = "json"

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Incoming).decode
        self._decode_ack = msgspec.json.Decoder(_OnlyAck).decode
        self._encode = msgspec.json.Encoder().encode

    def decode(self, data: bytes) -> Message:
        try:
            incoming = self._decode(data)
        except msgspec.ValidationError as error:
            raise BadMessage(f"{error}; {_EXPECTED}", ack=self._ack_of(data)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadMessage(f"not JSON: {_clearer(error)}; {_EXPECTED}") from None
        except RecursionError:
            raise BadMessage(f"nested more than {MAX_DEPTH} deep") from None
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
            try:
                _refuse_deep_nesting(incoming.payload)
            except BadMessage as error:
                raise BadMessage(error.message, ack=incoming.ack) from None
        if _LONG_NUMBER in data.translate(_DIGITS_TO_ZERO):
            try:
                _refuse_unsafe_values([incoming.payload, incoming.ack])
            except BadMessage as error:
                raise BadMessage(error.message, ack=self._ack_of(data)) from None
        return _message_from(incoming)

    def _ack_of(self, data: bytes) -> str | int | None:
        """Find the ack id in a message that is otherwise wrong, so that the asker learns which it was."""
        try:
            ack = self._decode_ack(data).ack
            _refuse_unsafe_values(ack)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadMessage):
            return None
        return ack

    def encode(self, value: Any) -> bytes:
        try:
            data = self._encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadMessage(f"cannot be sent as JSON: {error}") from None
        if _LONG_NUMBER in data.translate(_DIGITS_TO_ZERO):
            _refuse_unsafe_values(msgspec.json.decode(data))
        return data


class MsgpackCodec:
    """MessagePack in binary frames, for clients that offer ``realtime.msgpack.v1``.

    Decoding takes msgpack's own reader because it refuses map keys that are no strings before it makes a
    dict of them: hostile integer keys that all collide cost seconds otherwise.
    """

    name = "msgpack"

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode

    def decode(self, data: bytes) -> Message:
        try:
            value = msgpack.unpackb(data, strict_map_key=True, ext_hook=_refuse_extension)
        except BadMessage:
            raise
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise BadMessage(f"not MessagePack: {str(error) or 'nested too deep'}; {_EXPECTED}") from None
        try:
            _refuse_deep_nesting(value)
            _refuse_unsafe_values(value)
            return _message_from(msgspec.convert(value, _Incoming))
        except msgspec.ValidationError as error:
            raise BadMessage(f"{error}; {_EXPECTED}", ack=_ack_in(value)) from None
        except BadMessage as error:
            raise BadMessage(error.message, ack=_ack_in(value)) from None

    def encode(self, value: Any) -> bytes:
        """As JSON would be: keys become strings, dates ISO 8601; bytes stay bytes."""
        try:
            return self._encode(msgspec.to_builtins(value, str_keys=True, builtin_types=(bytes,)))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadMessage(f"cannot be sent as MessagePack: {error}") from None


def _clearer(error: Exception) -> str:
    """Say in full what msgspec says of a string that ends within a surrogate pair."""
    text = str(error)
    return f"{text}, or half of a surrogate pair in a string" if "truncated" in text else text


def _refuse_extension(code: int, data: bytes) -> Any:
    raise BadMessage(f"MessagePack extension type {code} is not allowed")


def _ack_in(value: Any) -> str | int | None:
    ack = value.get("ack") if isinstance(value, dict) else None
    if isinstance(ack, str) and len(ack) <= TYPE_LENGTH:
        return ack
    return ack if type(ack) is int else None


JSON = JsonCodec()
MSGPACK = MsgpackCodec()
CODECS: dict[str, Codec] = {codec.name: codec for codec in (JSON, MSGPACK)}
_READERS: dict[Codec, Callable[[bytes], _Outgoing]] = {
    JSON: msgspec.json.Decoder(_Outgoing).decode,
    MSGPACK: msgspec.msgpack.Decoder(_Outgoing).decode,
}
_DECODERS: dict[Codec, Callable[[bytes], Any]] = {
    JSON: msgspec.json.Decoder().decode,
    MSGPACK: msgspec.msgpack.Decoder().decode,
}


class Wire:
    """How one kind of connection wants its messages: a codec, and the step from payload to finished frame.

    Compared by identity: make one per kind of connection, not one per connection.

    :param unfinish: the way back. Without it a client that resumes its session must come back by this same wire.
    """

    __slots__ = ("codec", "finish", "unfinish")

    def __init__(
        self, codec: Codec, finish: Callable[[bytes], bytes], unfinish: Callable[[bytes], bytes] | None = None
    ) -> None:
        self.codec = codec
        self.finish = finish
        self.unfinish = unfinish


class Mark(NamedTuple):
    """Which message of a room it is: the ``sequence``-th of an ``origin``, published ``at`` so many seconds."""

    origin: str
    sequence: int
    at: float


_KEYS = frozenset(("type", "payload", "room", "timestamp"))


class Outbound:
    """One message to any number of clients.

    :param message: a mapping with ``type`` and optionally ``payload`` and ``room``, or a received Message.
    :param timestamp: milliseconds since the epoch.
    :param room: the room it goes to, which wins over the message's own.
    :param ack: set by ``call``: the id the client's answer must carry.
    :param delivery: what may become of it where it has to wait; None: it waits until it is sent.
    :param expires: when ``delivery.ttl`` is over, seconds of ``time.monotonic()``.
    :raises BadMessage: no type, or an unknown key.
    """

    __slots__ = ("_encoded", "_finished", "_outgoing", "delivery", "expires", "mark")

    mark: Mark | None
    """Its place among the messages of a room that keeps them."""

    def __init__(
        self,
        message: Mapping[str, Any] | Message,
        timestamp: int,
        *,
        room: str | None = None,
        ack: str | int | None = None,
        delivery: Delivery | None = None,
        expires: float | None = None,
    ) -> None:
        self.delivery = delivery
        self.expires = expires
        outgoing = _outgoing(message, timestamp)
        self._outgoing: _Outgoing | None = outgoing
        self.mark = None
        if room is not None:
            outgoing.room = room
        if ack is not None:
            outgoing.ack = ack
        self._encoded: dict[Codec, bytes] = {}
        self._finished: dict[Wire, bytes] = {}

    @classmethod
    def relayed(
        cls,
        bodies: Mapping[str, bytes],
        *,
        delivery: Delivery | None = None,
        expires: float | None = None,
        mark: Mark | None = None,
    ) -> Outbound:
        """Return a message that was encoded before, by names of codecs; there must be one.

        :raises BadMessage: no body in a codec of ours.
        """
        message = cls.__new__(cls)
        message.delivery = delivery
        message.expires = expires
        message.mark = mark
        message._outgoing = None
        message._encoded = {CODECS[name]: body for name, body in bodies.items() if name in CODECS}
        message._finished = {}
        if not message._encoded:
            raise BadMessage(f"encoded as {', '.join(bodies) or 'nothing'}; {' or '.join(CODECS)} is needed")
        return message

    @property
    def type(self) -> str:
        """The name of the event. Raises BadMessage where another node encoded something else."""
        return self._content().type

    @property
    def may_drop(self) -> bool:
        """Whether a full outbox drops it, rather than end the connection."""
        return self.delivery is not None and self.delivery.may_drop

    @property
    def volatile(self) -> bool:
        """Whether nobody is to wait for room for it."""
        return self.delivery is not None and self.delivery.volatile

    def delivery_left(self, now: float) -> Delivery | None:
        """Return its options as they are now: with what is left of ``ttl``."""
        return None if self.delivery is None else left_of(self.delivery, self.expires, now)

    def encoded(self, codec: Codec) -> bytes:
        """Return the payload bytes, encoded on first use. Raises BadMessage if it cannot be encoded."""
        data = self._encoded.get(codec)
        if data is None:
            data = self._encoded[codec] = codec.encode(self._content())
        return data

    def codecs(self) -> Collection[Codec]:
        """Return the codecs in which it has been encoded."""
        return self._encoded.keys()

    def shown(self, codec: Codec) -> dict[str, Any]:
        """Return the message as a client that speaks ``codec`` reads it."""
        shown: dict[str, Any] = _DECODERS[codec](self.encoded(codec))
        return shown

    def _content(self) -> _Outgoing:
        """Return what to encode; what another node encoded is decoded first, MessagePack rather than JSON,
        which has no bytes."""
        if self._outgoing is None:
            codec = MSGPACK if MSGPACK in self._encoded else JSON
            try:
                self._outgoing = _READERS[codec](self._encoded[codec])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadMessage(f"a node encoded what is no message: {error}") from None
        return self._outgoing

    def finished(self, wire: Wire) -> bytes:
        """Return the finished frame for connections of this wire, made on first use."""
        frame = self._finished.get(wire)
        if frame is None:
            frame = wire.finish(self.encoded(wire.codec))
            if self.delivery is not None:
                frame = Perishable(frame)
                frame.delivery = self.delivery
                frame.expires = self.expires
            self._finished[wire] = frame
        return frame


class Stamped(Outbound):
    """A message with a cursor, which each node adds itself: the message is encoded once for all of them."""

    __slots__ = ("_cursor", "_plain")

    def __init__(self, plain: Outbound, cursor: str) -> None:
        self._plain = plain
        self._cursor = cursor
        self.delivery = plain.delivery
        self.expires = plain.expires
        self.mark = plain.mark
        self._encoded = {}
        self._finished = {}

    @property
    def type(self) -> str:
        """The name of the event."""
        return self._plain.type

    def encoded(self, codec: Codec) -> bytes:
        """Return the payload bytes. Raises BadMessage if it cannot be encoded."""
        data = self._encoded.get(codec)
        if data is None:
            data = self._encoded[codec] = _with_cursor(codec, self._plain.encoded(codec), self._cursor)
        return data


def _with_cursor(codec: Codec, body: bytes, cursor: str) -> bytes:
    """Return an encoded message with one more key: at its end, without decoding it."""
    if codec is JSON:
        return b'%b,"cursor":"%b"}' % (body[:-1], cursor.encode())
    if not 0x80 <= body[0] < 0x8F:  # no fixmap with room for another key: not of our encoder
        return codec.encode({**msgspec.msgpack.decode(body), "cursor": cursor})
    return b"%c%b%b%b" % (body[0] + 1, body[1:], _CURSOR_KEY, MSGPACK.encode(cursor))


_CURSOR_KEY = MSGPACK.encode("cursor")


def _outgoing(message: Mapping[str, Any] | Message, timestamp: int) -> _Outgoing:
    """Check a message to be sent and give it the server's shape."""
    if type(message) is Message:
        outgoing = _Outgoing(message.type, message.payload, timestamp=timestamp)
        if message.room is not None:
            outgoing.room = message.room
        return outgoing
    if type(message) is not dict and not isinstance(message, Mapping):
        raise BadMessage(f"a message is a dict with a 'type', not {type(message).__name__}")
    name = message.get("type")
    if not isinstance(name, str) or not name:
        raise BadMessage(f"a message needs a non-empty string 'type', got {name!r}")
    if not _KEYS.issuperset(message):
        unknown = ", ".join(sorted(map(repr, set(message) - _KEYS)))
        raise BadMessage(f"unknown key {unknown} in a message; allowed are {', '.join(sorted(_KEYS))}")
    outgoing = _Outgoing(name, message.get("payload", msgspec.UNSET), timestamp=message.get("timestamp", timestamp))
    if type(outgoing.timestamp) is not int:
        raise BadMessage(f"timestamp={outgoing.timestamp!r}: must be milliseconds since the epoch, an int")
    room = message.get("room")
    if room is not None:
        if not isinstance(room, str):
            raise BadMessage(f"room={room!r}: must be a string")
        outgoing.room = room
    return outgoing
