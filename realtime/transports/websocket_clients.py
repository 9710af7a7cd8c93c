"""The kernel's clients that come by WebSocket, whoever opened the connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from realtime.config import Heartbeat
from realtime.connection import Connection
from realtime.errors import ConfigurationError
from realtime.hub import Hub
from realtime.message import JSON, MSGPACK, MSGPACK_SUBPROTOCOL, Codec, Wire
from realtime.outbox import Outbox
from realtime.protocols.deflate import DeflateOptions, compress_once, inflate_once
from realtime.protocols.frames import RSV1, Opcode, binary_frame, encode_frame, payload_of, text_frame
from realtime.transports.channel import Channel
from realtime.transports.upgrades import Opening

__all__ = ["SUBPROTOCOLS", "ClientOpener", "WebSocketConnection", "shared_compression"]

SUBPROTOCOLS = (MSGPACK_SUBPROTOCOL, "realtime.json.v1")
_JSON_FRAMES = Wire(JSON, text_frame, payload_of)
_MSGPACK_FRAMES = Wire(MSGPACK, binary_frame, payload_of)


class WebSocketConnection(Connection):
    """A client of the kernel on a WebSocket."""

    __slots__ = ("_binary", "_channel", "_hub", "heartbeat")

    transport = "websocket"

    def __init__(
        self, hub: Hub, channel: Channel, wire: Wire, identity: Any, address: Any, heartbeat: Heartbeat | None
    ) -> None:
        super().__init__(wire=wire, identity=identity, remote_address=address)
        self._hub = hub
        self._channel = channel
        self._binary = wire.codec is MSGPACK
        self.heartbeat = heartbeat
        self.outbox = Outbox(channel, hub.flusher, hub.limits)

    # What the channel tells --------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages the inbox takes now."""
        return self._hub.room_for(self)

    def message_received(self, data: bytes, is_text: bool) -> None:
        """Hand a message to the hub; one of the wrong kind is refused there."""
        if is_text is self._binary:
            self._hub.refuse(self, f"this connection speaks {self.wire.codec.name}: send {self._expected()} frames")
        else:
            self._hub.receive(self, data)

    def _expected(self) -> str:
        return "binary" if self._binary else "text"

    def is_done(self) -> bool:
        """A client that ends leaves at once; what it had sent is handled all the same."""
        return True

    def hung_up(self) -> None:
        """Take what is left, whatever the inbox holds."""
        if self.line is None or self.line.current:  # else another connection carries the client
            self.client.leaving = True

    def channel_closed(self, code: int, reason: str) -> None:
        """The client is gone."""
        self._hub.disconnect(self, reason, code=code)

    # What the hub wants ---------------------------------------------------------------------------------

    def transmit(self, frame: bytes) -> None:
        """Everything goes through the outbox, whose sink is the channel."""
        self.outbox.put(frame)

    def end(self, code: int, reason: str) -> None:
        """Begin the close handshake."""
        self._channel.close(code, reason)

    def pause_reading(self) -> None:
        """Let TCP push back."""
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._channel.resume_reading()


class ClientOpener:
    """Introduces each connection that opens to a kernel.

    :param deflate: from :func:`shared_compression`.
    """

    def __init__(self, hub: Hub, heartbeat: Heartbeat | None, deflate: DeflateOptions | None) -> None:
        self._hub = hub
        self._heartbeat = heartbeat
        self._deflate = deflate
        self._wires: dict[tuple[Codec, int], Wire] = {}

    def owner_of(self, opening: Opening) -> tuple[WebSocketConnection, Outbox]:
        """Make the kernel's connection."""
        connection = WebSocketConnection(
            self._hub,
            opening.channel,
            self._wire_for(opening),
            opening.identity,
            opening.request.remote_address,
            self._heartbeat,
        )
        return connection, connection.outbox

    def opened(self, owner: WebSocketConnection) -> None:
        """Introduce the client to the kernel."""
        self._hub.connect(owner)

    def _wire_for(self, opening: Opening) -> Wire:
        """One Wire per codec and compression, so that broadcasts are finished once for each."""
        binary = opening.accepted.subprotocol == MSGPACK_SUBPROTOCOL
        agreed = opening.accepted.deflate
        if agreed is None or self._deflate is None:
            return _MSGPACK_FRAMES if binary else _JSON_FRAMES
        codec: Codec = MSGPACK if binary else JSON
        key = (codec, agreed.send_window_bits)
        if key not in self._wires:
            self._wires[key] = Wire(codec, _deflating(self._deflate, binary, agreed.send_window_bits), _inflated)
        return self._wires[key]


def shared_compression(compression: DeflateOptions | bool) -> DeflateOptions | None:
    """Return options under which one compressed frame fits every member of a room."""
    if isinstance(compression, DeflateOptions):
        if not compression.server_no_context_takeover:
            raise ConfigurationError(
                "compression=DeflateOptions(...): the kernel compresses once per broadcast, which needs "
                "server_no_context_takeover=True"
            )
        return compression
    return DeflateOptions(server_no_context_takeover=True) if compression else None


def _deflating(options: DeflateOptions, binary: bool, window_bits: int) -> Callable[[bytes], bytes]:
    """Return the step from payload to compressed frame."""
    plain = binary_frame if binary else text_frame
    opcode = Opcode.BINARY if binary else Opcode.TEXT

    def finish(payload: bytes) -> bytes:
        if len(payload) < options.min_size:
            return plain(payload)
        compressed = compress_once(
            payload, window_bits=window_bits, level=options.level, memory_level=options.memory_level
        )
        return encode_frame(opcode, compressed, rsv1=True)

    return finish


def _inflated(frame: bytes) -> bytes:
    """Return the payload of a frame that may be compressed."""
    payload = payload_of(frame)
    return inflate_once(payload) if frame[0] & RSV1 else payload
