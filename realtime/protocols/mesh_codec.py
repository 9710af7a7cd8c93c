"""The body of an event between nodes: a message in MessagePack."""

from __future__ import annotations

from typing import Any

from realtime.errors import BadMessage
from realtime.message import MSGPACK, TYPE_LENGTH, Message

__all__ = ["HANDLER_FAILED", "LIFECYCLE", "MESH_EVENTS", "EventCodec"]

LIFECYCLE = (
    "mesh:joined",
    "mesh:left",
    "mesh:suspect",
    "mesh:recovered",
    "mesh:client-connected",
    "mesh:client-disconnected",
)
"""What a node tells its own handlers of others; never sent."""

HANDLER_FAILED = "system:error"
"""What the kernel answers when a handler of an event fails: the other node logs it."""


class EventCodec:
    """MessagePack both ways, for the names that nodes may send each other.

    What is encoded is decoded again at once, once for all receivers: a payload no node would take (NaN,
    numbers past 64 bits) fails where it was sent, not on every other node.
    """

    name = "mesh"

    def encode(self, value: Any) -> bytes:
        """Return the body. Raises BadMessage for a name or payload that cannot go to a node."""
        _check_name(value.type)
        data = MSGPACK.encode(value)
        try:
            MSGPACK.decode(data)
        except BadMessage as error:
            raise BadMessage(f"cannot be sent to a node: {error.message.partition(';')[0]}") from None
        return data

    def decode(self, data: bytes) -> Message:
        """Return the message. Raises BadMessage."""
        message = MSGPACK.decode(data)
        _check_name(message.type)
        return message


MESH_EVENTS = EventCodec()


def _check_name(name: str) -> None:
    if name == HANDLER_FAILED:
        return
    if not name.startswith("mesh:"):
        raise BadMessage(f"{name!r}: what nodes send each other is named mesh:...")
    if name in LIFECYCLE:
        raise BadMessage(f"{name!r} is what a node tells its own handlers; choose another name")
    if len(name) > TYPE_LENGTH:
        raise BadMessage(f"an event name of {len(name)} characters; at most {TYPE_LENGTH} are allowed")
