"""What goes over a Client's connection: messages from the server, requests to it, in JSON or MessagePack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from realtime.errors import BadMessage
from realtime.message import JSON, MSGPACK, MSGPACK_SUBPROTOCOL

__all__ = ["JSON_WIRE", "MSGPACK_WIRE", "ClientMessage", "ClientWire"]


class ClientMessage(msgspec.Struct):
    """One message from the server, as a handler of a Client sees it; also what the client tells of itself."""

    type: str
    payload: Any = None
    room: str | None = None
    ack: str | int | None = None
    """The server asks: see ``Client.answer``."""
    timestamp: int | None = None
    """Milliseconds since the epoch."""
    cursor: str | None = None
    """How far a recoverable room is with this message: see ``Client.join``."""


class _Request(msgspec.Struct, omit_defaults=True):
    type: str
    payload: Any = None
    room: str | None = None
    target: str | Sequence[str] | None = None
    ack: str | int | None = None


class ClientWire:
    """One of the two codecs, from a Client's side."""

    def __init__(self, *, binary: bool) -> None:
        self._codec = MSGPACK if binary else JSON
        decoder = msgspec.msgpack.Decoder(ClientMessage) if binary else msgspec.json.Decoder(ClientMessage)
        self._decode: Any = decoder.decode
        self._is_binary = binary
        self.subprotocols = (MSGPACK_SUBPROTOCOL,) if binary else ()

    def request(
        self,
        type: str,
        payload: Any = None,
        *,
        room: str | None = None,
        target: str | Sequence[str] | None = None,
        ack: str | int | None = None,
    ) -> bytes:
        """Return a message's bytes. Raises BadMessage for what cannot be sent."""
        for name, value in (("type", type), ("room", room)):
            if not isinstance(value, str) and (name == "type" or value is not None):
                raise BadMessage(f"{name}={value!r}: must be a string")
        if not type or room == "":
            raise BadMessage(f"{'type' if not type else 'room'}='': must not be empty")
        if target is not None and not isinstance(target, str):
            ids = list(target) if isinstance(target, Iterable) else [target]
            if not all(isinstance(one, str) for one in ids):
                raise BadMessage(f"target={target!r}: must be the id of a client, or a list of them")
            target = ids
        return self._codec.encode(_Request(type, payload, room, target, ack))

    def frame(self, data: bytes) -> str | bytes:
        """Return what simple-websocket sends as the right kind of frame."""
        return data if self._is_binary else data.decode()

    def message(self, data: str | bytes) -> ClientMessage:
        """Return the message that came. Raises BadMessage if it is none."""
        if isinstance(data, str) is self._is_binary:
            raise BadMessage("a text frame, not MessagePack" if self._is_binary else "a binary frame, not JSON text")
        try:
            message: ClientMessage = self._decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadMessage(f"no message: {error}") from None
        return message


JSON_WIRE = ClientWire(binary=False)
MSGPACK_WIRE = ClientWire(binary=True)
