"""What the WebSocket protocol reports: events in the past tense, cheap to make."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from realtime.errors import ProtocolError

__all__ = ["BinaryReceived", "CloseReceived", "Event", "Failed", "PingReceived", "PongReceived", "TextReceived"]


class TextReceived(msgspec.Struct, frozen=True, gc=False):
    """A whole text message: valid UTF-8, still as bytes."""

    data: bytes


class BinaryReceived(msgspec.Struct, frozen=True, gc=False):
    """A whole binary message."""

    data: bytes


class PingReceived(msgspec.Struct, frozen=True, gc=False):
    """A ping; its pong is already among the replies."""

    data: bytes


class PongReceived(msgspec.Struct, frozen=True, gc=False):
    """A pong, asked for or not."""

    data: bytes


class CloseReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer's close frame; code 1005 if it had none. Our answer, if one is due, is among the replies."""

    code: int
    reason: str


class Failed(msgspec.Struct, frozen=True):
    """The peer broke the protocol; a close frame with ``error.code`` is among the replies."""

    error: ProtocolError


Event: TypeAlias = TextReceived | BinaryReceived | PingReceived | PongReceived | CloseReceived | Failed
