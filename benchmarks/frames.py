"""The little of RFC 6455 a load generator needs: masked frames out, a walk over frames in.

A message of a benchmark carries a running number of five digits, so that every message and every delivery of
one measurement has the same length; ``counting`` relies on that to count frames at the speed of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "CLOSE",
    "DIGITS",
    "MASK",
    "PING",
    "SEQUENCES",
    "TEXT",
    "client_frame",
    "number",
    "server_frame",
    "walk",
]

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
MASK = bytes.fromhex("a1b2c3d4")
"""One key for all frames: a server must unmask whatever the key is, and the frames can be made beforehand."""

DIGITS = 5
_FIRST = int("1".ljust(DIGITS, "0"))
SEQUENCES = 10_000
"""How many running numbers there are before they start again."""


def number(index: int) -> int:
    """The running number of the ``index``-th message: always of ``DIGITS`` digits."""
    return _FIRST + index % SEQUENCES


def _header(opcode: int, size: int, masked: int) -> bytes:
    first = 0x80 | opcode
    if size < 126:
        return bytes([first, masked | size])
    if size < 1 << 16:
        return bytes([first, masked | 126]) + size.to_bytes(2, "big")
    return bytes([first, masked | 127]) + size.to_bytes(8, "big")


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A whole masked frame, as a client must send it."""
    size = len(payload)
    key = int.from_bytes(MASK * (size // 4 + 1), "big") >> 8 * (4 - size % 4)
    masked = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
    return _header(opcode, size, 0x80) + MASK + masked


def server_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A whole unmasked frame, as a server sends it."""
    return _header(opcode, len(payload), 0) + payload


def walk(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield ``(opcode, payload, end)`` of every whole unmasked frame at the front of ``data``.

    ``end`` is the offset behind the frame; what follows the last one is the start of a frame still arriving.
    """
    at, size = 0, len(data)
    while at + 2 <= size:
        length, body = data[at + 1], at + 2
        if length == 126:
            length, body = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, body = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        end = body + length
        if end > size or body > size:
            return
        yield data[at] & 0x0F, data[body:end], end
        at = end
