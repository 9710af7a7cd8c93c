"""The link between two nodes: bytes in, events out. No sockets, no clock, no randomness.

The wire is a stream of MessagePack arrays, each ``[kind, field, ...]``; fields a receiver does not know are
ignored, so that later ones can be added. All are short; what is long follows its frame as plain bytes, announced
by their number, so that a length past the limit is refused before any of it is read.

=======  ==========================================================  =======================================
kind     fields                                                      sent
=======  ==========================================================  =======================================
hello    version, cluster, node, instance, nonce, address or nil     the dialler first, then the listener
proof    HMAC-SHA256 of both hellos                                  the dialler first, then the listener
start                                                                by the node with the smaller id: this is
                                                                     the one link between the two
ping                                                                 any time once started: we live
bye      reason, text                                                last of all, at any time
=======  ==========================================================  =======================================

Once started, the frames of ``mesh_frames`` may come too.

The dialler proves the secret first: whoever just connects learns a node's name and cluster, but nothing to try
secrets on. The proofs cover both hellos and say who dialled, so none can be replayed or sent back. Between two
nodes one of them alone says which link stays, the smaller: however many they dial at once, both always agree.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgpack
import msgspec

from realtime.config import KiB
from realtime.errors import MeshError
from realtime.protocols.mesh_frames import (
    NEWS_SIZE,
    AckReceived,
    DataReceived,
    GapReceived,
    Kind,
    NewsReceived,
    PingReceived,
    ResumeReceived,
    data_size,
)
from realtime.protocols.mesh_handshake import (
    NAME_LENGTH,
    WIRE_VERSION,
    Authenticated,
    ByeReceived,
    Hello,
    LinkEvent,
    LinkStarted,
    Reason,
    Role,
)

__all__ = ["MeshProtocol", "State"]

TEXT_LENGTH = 255  # characters of a bye's reason and text
NONCE_LENGTH = 16  # bytes
FRAME_SIZE = 4 * KiB  # of a frame without its body
_FIELDS = 16  # of a frame


class State(Enum):
    """How far a link has come."""

    GREETING = "waiting for the peer's hello"
    PROVING = "waiting for the peer's proof"
    DECIDING = "both proved the secret; it is up to us to start"
    WAITING = "both proved the secret; it is up to the peer to start"
    OPEN = "open"
    CLOSED = "closed"


_ALLOWED: dict[State, frozenset[Kind]] = {
    State.GREETING: frozenset({Kind.HELLO, Kind.BYE}),
    State.PROVING: frozenset({Kind.PROOF, Kind.BYE}),
    State.DECIDING: frozenset({Kind.BYE}),
    State.WAITING: frozenset({Kind.START, Kind.BYE}),
    State.OPEN: frozenset(Kind) - {Kind.HELLO, Kind.PROOF, Kind.START},
    State.CLOSED: frozenset(),
}
"""What a peer may send in each state; what it leads to is in the method named after the kind."""

_TEXT = (str,)
_BYTES = (bytes,)
_NUMBER = (int,)
_SHAPES: dict[Kind, tuple[tuple[type, ...], ...]] = {
    Kind.HELLO: (_NUMBER, _TEXT, _TEXT, _BYTES, _BYTES, (str, type(None))),
    Kind.PROOF: (_BYTES,),
    Kind.START: (),
    Kind.PING: (),
    Kind.BYE: (_TEXT, _TEXT),
    Kind.RESUME: (_NUMBER, _NUMBER, _NUMBER, (bool,)),
    Kind.DATA: (_NUMBER, _NUMBER, _NUMBER),
    Kind.ACK: (_NUMBER,),
    Kind.GAP: (_NUMBER, _NUMBER),
    Kind.NEWS: (_NUMBER,),
}


_DATA = Kind.DATA.value
_pack: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode


class MeshProtocol:
    """One side of one link.

    Feed it with ``receive_data``, then call ``next_event`` until it returns None: one at a time, so that a
    reader may stop in between when it is given more than it can take. What is to be sent in answer is in
    ``data_to_send``.

    :param hello: what we say of ourselves, with a fresh nonce.
    :param secret: the key of the proofs; empty where there is none.
    :param message_size: the longest message taken, bytes; see ``data_size``.
    """

    def __init__(self, role: Role, hello: Hello, *, secret: bytes, message_size: int) -> None:
        self.role = role
        self.hello = hello
        self.peer: Hello | None = None
        self.state = State.GREETING
        self._secret = secret
        self._data_size = data_size(message_size)
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=4 * FRAME_SIZE,
            max_array_len=_FIELDS,
            max_map_len=0,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
        self._unread = memoryview(b"")
        self._began = False  # the first byte has been seen
        self._fed = 0  # bytes given to the unpacker since its last whole frame
        self._dry = True  # it holds no whole frame
        self._body: bytearray | None = None
        self._missing = 0  # bytes of the body
        self._whole: Callable[[bytes], LinkEvent] = NewsReceived  # what it is the body of
        self.replies: list[bytes] = []
        """What is to be sent, for ``data_to_send``; testing this for emptiness is cheap."""
        self._hellos: dict[Role, list[Any]] = {}
        if role is Role.DIALLER:
            self._greet()

    # What we say -----------------------------------------------------------------------------------

    @property
    def decides(self) -> bool:
        """Whether it is up to us which link to this peer stays. Only once the peer is known."""
        return self.peer is not None and self.hello.node < self.peer.node

    def data_to_send(self) -> bytes:
        """Return what is to be sent now, once."""
        replies, self.replies = self.replies, []
        return b"".join(replies)

    def start(self) -> None:
        """Decide for this link: it is open from now on."""
        assert self.state is State.DECIDING, self.state
        self._send(Kind.START)
        self.state = State.OPEN

    def bye(self, reason: str, text: str = "") -> bytes:
        """End the link; return the last frame. What is received from now on is ignored."""
        self.state = State.CLOSED
        self._unread = memoryview(b"")
        return self.data_to_send() + _pack((Kind.BYE.value, reason, text[:TEXT_LENGTH]))

    def _send(self, kind: Kind, *fields: object) -> None:
        self.replies.append(_pack((kind.value, *fields)))

    def _greet(self) -> None:
        own = self.hello
        fields = [WIRE_VERSION, own.cluster, own.node, own.instance, own.nonce, own.address]
        self._hellos[self.role] = fields
        self._send(Kind.HELLO, *fields)

    def _proof(self, role: Role) -> bytes:
        """The proof that ``role`` gives: it covers everything both have said."""
        said = ["realtime mesh proof", role.value, self._hellos[Role.DIALLER], self._hellos[Role.LISTENER]]
        return hmac.digest(self._secret, _pack(said), "sha256")

    # What we hear ------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; call ``next_event`` until it returns None before the next."""
        if self.state is not State.CLOSED:
            self._unread = memoryview(bytes(self._unread) + data if self._unread else data)

    def next_event(self) -> LinkEvent | None:
        """Return what the peer did next, or None if that has not arrived.

        :raises MeshError: the peer broke the protocol or is refused. The link is of no use any more; ``bye`` tells
            the peer.
        """
        while self.state is not State.CLOSED:
            if self._body is not None:
                return self._take_body()
            frame = self._next_frame()
            if frame is None:
                return None
            event = self._handle(frame)
            if event is not None:
                return event
        return None

    def _next_frame(self) -> Any:
        """Return the next whole MessagePack value, or None if it has not arrived."""
        if not self._began and self._unread:
            self._began = True
            if not 0x91 <= self._unread[0] <= 0x9F:  # saves waiting for what a wild length promises
                raise MeshError("no mesh node: what it said first is no frame")
        while True:
            if self._dry:
                if not self._unread:
                    return None
                if self._fed >= FRAME_SIZE:
                    raise MeshError(f"a frame of more than {FRAME_SIZE} bytes")
                self._feed()
            try:
                frame = self._unpacker.unpack()
            except msgpack.OutOfData:
                self._dry = True
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                raise MeshError(f"not MessagePack as nodes speak it: {str(error) or type(error).__name__}") from None
            else:
                self._fed = 0
                if frame is None:
                    raise MeshError("a frame must be an array, got None")
                return frame

    def _feed(self) -> None:
        """Give the unpacker a little more: never so much that it could hold more than a few frames."""
        piece, self._unread = self._unread[:FRAME_SIZE], self._unread[FRAME_SIZE:]
        self._fed += len(piece)
        self._dry = False
        self._unpacker.feed(piece)

    def _handle(self, frame: Any) -> LinkEvent | None:
        if _is_data(frame) and self.state is State.OPEN:  # nearly all frames are: saves them the tables
            return self._on_data(frame[1:])
        if type(frame) is not list or not frame or type(frame[0]) is not int:
            raise MeshError(f"a frame must be an array that begins with a number, got {_shown(frame)}")
        try:
            kind = Kind(frame[0])
        except ValueError:
            raise MeshError(f"unknown kind of frame: {frame[0]}") from None
        if kind not in _ALLOWED[self.state]:
            raise MeshError(f"unexpected {kind.name.lower()}: {self.state.value}")
        if kind is Kind.HELLO and len(frame) > 1 and frame[1] != WIRE_VERSION:
            # before the shape is looked at: another version may have another one
            raise MeshError(
                f"speaks version {_shown(frame[1])} of the wire, not {WIRE_VERSION}", reason=Reason.VERSION
            )
        fields = frame[1:]
        shape = _SHAPES[kind]
        if len(fields) < len(shape) or any(
            type(field) not in types for field, types in zip(fields, shape, strict=False)
        ):
            raise MeshError(f"a {kind.name.lower()} with the wrong fields: {_shown(fields)}")
        return _HANDLERS[kind](self, fields)

    def _on_hello(self, fields: list[Any]) -> None:
        _, cluster, node, instance, nonce, address = fields[: len(_SHAPES[Kind.HELLO])]
        for name in (cluster, node, address if address is not None else "-"):
            if not 0 < len(name) <= NAME_LENGTH or not name.isprintable():
                raise MeshError(f"a hello with a bad name: {_shown(name)}")
        if len(instance) != NONCE_LENGTH or len(nonce) != NONCE_LENGTH:
            raise MeshError(f"a hello whose instance or nonce is not of {NONCE_LENGTH} bytes")
        own = self.hello
        self.peer = Hello(node, cluster, instance, nonce, address)
        if cluster != own.cluster:
            raise MeshError(f"of cluster {cluster!r}, not {own.cluster!r}", reason=Reason.CLUSTER)
        if instance == own.instance:
            raise MeshError("this node itself", reason=Reason.SELF)
        if node == own.node:
            raise MeshError(f"another node with our id, {node!r}", reason=Reason.NODE_ID)
        self.state = State.PROVING
        theirs = Role.LISTENER if self.role is Role.DIALLER else Role.DIALLER
        self._hellos[theirs] = fields
        if self.role is Role.DIALLER:
            self._send(Kind.PROOF, self._proof(Role.DIALLER))
        else:
            self._greet()

    def _on_proof(self, fields: list[Any]) -> Authenticated:
        assert self.peer is not None
        theirs = Role.LISTENER if self.role is Role.DIALLER else Role.DIALLER
        if not hmac.compare_digest(fields[0], self._proof(theirs)):
            raise MeshError(f"{self.peer.node!r} does not know our secret", reason=Reason.SECRET)
        if self.role is Role.LISTENER:
            self._send(Kind.PROOF, self._proof(Role.LISTENER))
        self.state = State.DECIDING if self.decides else State.WAITING
        return Authenticated(self.peer)

    def _on_start(self, fields: list[Any]) -> LinkStarted:
        self.state = State.OPEN
        return LinkStarted()

    def _on_ping(self, fields: list[Any]) -> PingReceived:
        return PingReceived()

    def _on_resume(self, fields: list[Any]) -> ResumeReceived:
        return ResumeReceived(*fields[: len(_SHAPES[Kind.RESUME])])

    def _on_data(self, fields: list[Any]) -> LinkEvent | None:
        sequence, acknowledged, length = fields[:3]
        return self._begin_body(length, self._data_size, lambda body: DataReceived(sequence, acknowledged, body))

    def _on_ack(self, fields: list[Any]) -> AckReceived:
        return AckReceived(fields[0])

    def _on_gap(self, fields: list[Any]) -> GapReceived:
        return GapReceived(fields[0], fields[1])

    def _on_news(self, fields: list[Any]) -> LinkEvent | None:
        return self._begin_body(fields[0], NEWS_SIZE, NewsReceived)

    def _begin_body(self, length: int, most: int, whole: Callable[[bytes], LinkEvent]) -> LinkEvent | None:
        """A frame announced its body: return the event if all of it is here."""
        if not 0 < length <= most:
            raise MeshError(f"a body of {length} bytes; from 1 to {most} are allowed")
        body = self._unpacker.read_bytes(length)
        if len(body) == length:
            return whole(body)
        self._body = bytearray(body)
        self._missing = length - len(body)
        self._whole = whole
        return self._take_body()

    def _on_bye(self, fields: list[Any]) -> ByeReceived:
        reason, text = fields[:2]
        self.state = State.CLOSED
        return ByeReceived(_printable(reason), _printable(text))

    def _take_body(self) -> LinkEvent | None:
        """Move bytes that arrived to the body that is under way; return the event when it is whole."""
        body = self._body
        assert body is not None
        body += self._unread[: self._missing]
        taken = min(self._missing, len(self._unread))
        self._unread = self._unread[taken:]
        self._missing -= taken
        if self._missing:
            return None
        self._body = None
        return self._whole(bytes(body))


_HANDLERS: dict[Kind, Callable[[MeshProtocol, list[Any]], LinkEvent | None]] = {
    Kind.HELLO: MeshProtocol._on_hello,
    Kind.PROOF: MeshProtocol._on_proof,
    Kind.START: MeshProtocol._on_start,
    Kind.PING: MeshProtocol._on_ping,
    Kind.BYE: MeshProtocol._on_bye,
    Kind.RESUME: MeshProtocol._on_resume,
    Kind.DATA: MeshProtocol._on_data,
    Kind.ACK: MeshProtocol._on_ack,
    Kind.GAP: MeshProtocol._on_gap,
    Kind.NEWS: MeshProtocol._on_news,
}


def _is_data(frame: Any) -> bool:
    """Tell whether a frame is a complete data frame."""
    return (
        type(frame) is list
        and len(frame) > 3
        and type(frame[0]) is type(frame[1]) is type(frame[2]) is type(frame[3]) is int
        and frame[0] == _DATA
    )


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _shown(value: object) -> str:
    """Return a short text of what a stranger sent, fit for a log."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:TEXT_LENGTH])
