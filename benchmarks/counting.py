"""Counting deliveries exactly, and fast enough that the load generator is not what is measured.

All deliveries of one measurement have the same length and the same header, because the payload has a fixed
size and the timestamp 13 digits. So what was read is normally a whole number of such frames: one ``struct``
call takes out all their headers and one comparison shows, by induction, that every frame is where and what it
should be. Nothing is sampled. The running number of the last frame must be the one due after so many
deliveries, which shows a loss, a repeat or a swap at once. Whatever is not of that form, such as a ping among
the deliveries or a frame in two pieces, is walked frame by frame and parsed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator

from benchmarks.clients import Client, Target, send_all
from benchmarks.dialects import Dialect
from benchmarks.frames import CLOSE, DIGITS, SEQUENCES, TEXT, number, walk

__all__ = ["TIMESTAMPS", "Counter", "DeliveryFailed", "Shape", "await_answer", "learn_shape"]

_SIZE = 256 * 1024
_MOST = 64
"""Frames in one read that are compared at once; more are walked."""

TIMESTAMPS = 35
"""``SO_TIMESTAMPNS``: the kernel notes when data arrived, however late we come to read it."""


class DeliveryFailed(Exception):
    """A server hung up, or sent something that is no delivery."""


class Shape:
    """What every delivery of one measurement looks like."""

    def __init__(self, frame: bytes, payload_at: int, index: int) -> None:
        """``frame`` is a whole delivery with the running number ``index``, its payload at ``payload_at``."""
        self.length = len(frame)
        self.header = frame[:payload_at]
        self.number_from_end = len(frame) - frame.index(str(number(index)).encode(), payload_at)


_Uniform = tuple[int, Callable[[bytearray], tuple[bytes, ...]], tuple[bytes, ...], int]


class Counter:
    """Reads clients' sockets and counts deliveries of one ``kind``."""

    def __init__(self, dialect: Dialect, kind: str, shape: Shape) -> None:
        self._dialect = dialect
        self._kind = kind
        self._uniform = dict(self._uniform_reads(shape))
        self._numbers = [str(number(index)).encode() for index in range(SEQUENCES)]
        self._buffer = bytearray(_SIZE)
        self._view = memoryview(self._buffer)
        self.disordered = 0
        """Reads whose last delivery was not the one due."""

    @staticmethod
    def _uniform_reads(shape: Shape) -> Iterator[tuple[int, _Uniform]]:
        """By the size of a read: its frames, what takes out their headers, and what these must be."""
        header = len(shape.header)
        for count in range(1, _MOST + 1):
            size = count * shape.length
            headers = struct.Struct(f"{header}s{shape.length - header}x" * count)
            yield size, (count, headers.unpack_from, (shape.header,) * count, size - shape.number_from_end)

    def read(self, client: Client) -> int:
        """Receive once; how many deliveries are complete now."""
        if client.tail:
            return self._walk(client, self._append(client, client.recv_into))
        return self._count(client, client.recv_into(self._buffer))

    def read_stamped(self, client: Client) -> tuple[int, int]:
        """The same, and when the kernel had received it (nanoseconds since the epoch)."""
        stamp = 0

        def receive(view: memoryview) -> int:
            nonlocal stamp
            size, ancillary, _, _ = client.sock.recvmsg_into([view], 64)
            for _, kind, data in ancillary:
                if kind == TIMESTAMPS:
                    seconds, nanoseconds = struct.unpack("qq", data)
                    stamp = seconds * 1_000_000_000 + nanoseconds
            return size

        if client.tail:
            return self._walk(client, self._append(client, receive)), stamp
        return self._count(client, receive(self._view)), stamp

    def _append(self, client: Client, receive: Callable[[memoryview], int]) -> int:
        """Receive behind what the last read left over; the size of both, 0 at the end of the stream."""
        left = len(client.tail)
        self._buffer[:left] = client.tail
        size = receive(self._view[left:])
        return left + size if size else 0

    def _count(self, client: Client, size: int) -> int:
        """Count what lies in the buffer, ``client.tail`` being empty."""
        uniform = self._uniform.get(size)
        if uniform is None:
            return self._walk(client, size)
        count, headers_of, headers, number_at = uniform
        buffer = self._buffer
        if headers_of(buffer) != headers:
            return self._walk(client, size)
        received = client.received = client.received + count
        if buffer[number_at : number_at + DIGITS] != self._numbers[(received - 1) % SEQUENCES]:
            self.disordered += 1
        return count

    def _walk(self, client: Client, size: int) -> int:
        """The slow way: every frame by itself."""
        if not size:
            raise DeliveryFailed("the server hung up")
        data, at, count = bytes(self._view[:size]), 0, 0
        for opcode, payload, end in walk(data):
            at = end
            if opcode == CLOSE:
                raise DeliveryFailed(f"closed by the server: {payload!r}")
            if answer := self._dialect.answer(opcode, payload):
                send_all(client, answer)
            elif opcode == TEXT and self._dialect.read(payload)[0] == self._kind:
                count += 1
            elif opcode == TEXT:
                raise DeliveryFailed(f"no delivery: {payload[:200]!r}")
        client.tail = data[at:]
        client.received += count
        return count


def learn_shape(target: Target, clients: list[Client], sender: Client, kind: str) -> Shape:
    """Send message 0 and read it, whole and parsed, on every client that must get it.

    :raises DeliveryFailed: if a delivery's payload is not what was sent.
    """
    send_all(sender, target.dialect.message(kind, 0))
    sender.sent += 1
    expected = None
    for client in clients:
        frame, payload_at, payload = _receive_one(target.dialect, client, kind)
        client.received += 1
        if expected is None:
            expected = payload
            shape = Shape(frame, payload_at, 0)
        if payload != expected or payload["seq"] != number(0) or len(frame) != shape.length:
            raise DeliveryFailed(f"not what was sent: {frame[:300]!r}")
    return shape


def _receive_one(dialect: Dialect, client: Client, kind: str) -> tuple[bytes, int, dict[str, object]]:
    """The next message of ``kind``: its frame, where the payload starts in it, and its payload."""
    client.sock.settimeout(10.0)
    try:
        while True:
            start = 0
            for opcode, body, end in walk(client.tail):
                frame = client.tail[start:end]
                start = end
                if opcode != TEXT:
                    continue
                name, payload = dialect.read(body)
                if name == kind:
                    client.tail = client.tail[end:]
                    return frame, len(frame) - len(body), payload
                if name.startswith("system:"):
                    raise DeliveryFailed(json.dumps(payload))
            client.tail = client.tail[start:]
            data = client.sock.recv(65536)
            if not data:
                raise DeliveryFailed("the server hung up")
            client.tail += data
    except TimeoutError:
        raise DeliveryFailed(f"no {kind!r} within 10 s") from None
    finally:
        client.sock.setblocking(False)


def await_answer(dialect: Dialect, client: Client, kind: str) -> None:
    """Wait for one message of ``kind``."""
    _receive_one(dialect, client, kind)
