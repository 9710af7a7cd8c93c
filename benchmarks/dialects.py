"""The two protocols spoken: a JSON envelope in a text frame, and Socket.IO's packets around the same."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Protocol

from benchmarks.frames import PING, TEXT, client_frame, number, walk

__all__ = [
    "ROOM",
    "Dialect",
    "JsonDialect",
    "OpeningFailed",
    "SocketIoDialect",
    "message_payload",
    "request",
    "upgrade_response",
]

ROOM = "benchmark"
_TEXT = "The quick brown fox jumps over the lazy dog, and back again."
_KEY = base64.b64encode(b"realtime-bench--").decode()


class OpeningFailed(Exception):
    """A server answered the handshake with something else than a usable session."""


def _accept_for(key: str) -> str:
    """``Sec-WebSocket-Accept`` for a key (RFC 6455 section 4.2.2)."""
    guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1((key + guid).encode()).digest()).decode()


_ACCEPT = f"sec-websocket-accept: {_accept_for(_KEY)}".lower().encode()


def message_payload(index: int) -> dict[str, Any]:
    """The payload of the ``index``-th message."""
    return {"seq": number(index), "text": _TEXT}


class Dialect(Protocol):
    """How to talk to one kind of server. Frames are finished bytes; ``index`` counts messages from 0."""

    path: str

    def message(self, kind: str, index: int) -> bytes:
        """The frame of one ``echo`` or ``chat`` message."""

    def join(self) -> bytes:
        """The frame that enters ``ROOM``; the server answers once it has."""

    def read(self, payload: bytes) -> tuple[str, Any]:
        """``(kind, payload)`` of a text message from the server; the payload as it was sent."""

    def open(self, stage: int, data: bytes) -> tuple[int, bytes, bytes]:
        """One step of opening a session: ``(next stage, bytes to send, unused data)``; stage -1 is ready."""

    def answer(self, opcode: int, payload: bytes) -> bytes:
        """The frame a client owes for a heartbeat, or nothing."""


def request(path: str, host: str) -> bytes:
    """The upgrade request, the same for every server."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def upgrade_response() -> bytes:
    """The answer to ``request``."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {_accept_for(_KEY)}\r\n\r\n"
    ).encode()


def _upgraded(data: bytes) -> bytes | None:
    """What follows the server's 101, or None while its header is still arriving."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end]
    if not head.startswith(b"HTTP/1.1 101 ") or _ACCEPT not in head.lower():
        raise OpeningFailed(f"not upgraded: {head[:200]!r}")
    return data[end + 4 :]


class JsonDialect:
    """``{"type", "payload", "room"}`` in, the same and ``timestamp`` out, one text frame each."""

    path = "/realtime"

    def message(self, kind: str, index: int) -> bytes:
        message = {"type": kind, "payload": message_payload(index)}
        if kind == "chat":
            message["room"] = ROOM
        return client_frame(json.dumps(message).encode())

    def join(self) -> bytes:
        return client_frame(json.dumps({"type": "join", "room": ROOM}).encode())

    def read(self, payload: bytes) -> tuple[str, Any]:
        message = json.loads(payload)
        return message["type"], message.get("payload")

    def open(self, stage: int, data: bytes) -> tuple[int, bytes, bytes]:
        rest = _upgraded(data)
        return (0, b"", data) if rest is None else (-1, b"", rest)

    def answer(self, opcode: int, payload: bytes) -> bytes:
        return client_frame(payload, 0xA) if opcode == PING else b""


class SocketIoDialect:
    """Socket.IO 5 over Engine.IO 4's websocket: ``0{..}``, ``40``, ``42["event",{..}]``, ``2`` and ``3``."""

    path = "/socket.io/?EIO=4&transport=websocket"

    def message(self, kind: str, index: int) -> bytes:
        message: dict[str, Any] = {"payload": message_payload(index)}
        if kind == "chat":
            message["room"] = ROOM
        return self._event(kind, message)

    def join(self) -> bytes:
        return self._event("join", {"room": ROOM})

    def _event(self, name: str, message: dict[str, Any]) -> bytes:
        return client_frame(b"42" + json.dumps([name, message]).encode())

    def read(self, payload: bytes) -> tuple[str, Any]:
        if not payload.startswith(b"42"):
            return "", None
        name, message = json.loads(payload[2:])
        return name, message.get("payload")

    def open(self, stage: int, data: bytes) -> tuple[int, bytes, bytes]:
        if stage == 0:
            rest = _upgraded(data)
            if rest is None:
                return 0, b"", data
            stage, data = 1, rest
        for opcode, payload, end in walk(data):
            if opcode != TEXT:
                raise OpeningFailed(f"unexpected frame {opcode:#x} while opening: {payload[:200]!r}")
            if stage == 1 and payload.startswith(b"0{"):
                return 2, client_frame(b"40"), data[end:]
            if stage == 2 and payload.startswith(b"40"):
                return -1, b"", data[end:]
            raise OpeningFailed(f"unexpected packet while opening: {payload[:200]!r}")
        return stage, b"", data

    def answer(self, opcode: int, payload: bytes) -> bytes:
        if opcode == PING:
            return client_frame(payload, 0xA)
        return client_frame(b"3") if opcode == TEXT and payload == b"2" else b""
