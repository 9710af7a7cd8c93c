"""A WebSocket client of raw bytes over gevent's socket, knowing nothing of realtime: it may break every rule."""

from __future__ import annotations

import json
import socket as plain_socket
import struct
from pathlib import Path
from typing import Any

import gevent.socket

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
DEADLINE = 60.0  # seconds any wait may take before the test fails


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\1\2\3\4"
) -> bytes:
    """Write one frame; ``mask=None`` leaves it unmasked."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    bit = 0 if mask is None else 0x80
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", len(payload))
    if mask is None:
        return head + payload
    repeated = mask * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")
    return head + mask + number.to_bytes(len(payload), "big")


def request(path: str = "/", *, headers: dict[str, str] | None = None) -> bytes:
    """Write the opening handshake."""
    fields = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def connect_saying(address: tuple[str, int], first: bytes) -> gevent.socket.socket:
    """Connect to a server of this process that has no turn before it has been told something: its first deadline
    cannot pass before that, however long this process stands still."""
    with plain_socket.create_connection(address, timeout=DEADLINE) as sock:  # the system takes it, not yet the server
        sock.sendall(first)
        connected = gevent.socket.socket(fileno=sock.detach())
    connected.settimeout(DEADLINE)
    return connected


def _knows_connection(port: int, remote: int) -> bool:
    """Tell whether the system has a connection of ``port`` on 127.0.0.1 to another one there: one that was reset is
    none, though its socket may still be read."""
    wanted = [f"0100007F:{number:04X}" for number in (port, remote)]
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(line.split()[1:3] == wanted for line in lines)


class RawClient:
    """One TCP connection to a server on loopback.

    :param first: what it says before a server of this process has a turn: see ``connect_saying``.
    """

    def __init__(self, port: int, *, receive_buffer: int | None = None, first: bytes | None = None) -> None:
        self.buffer = b""
        if first is not None:
            assert receive_buffer is None
            self.sock = connect_saying(("127.0.0.1", port), first)
            return
        self.sock = gevent.socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(DEADLINE)
        try:
            self.sock.connect(("127.0.0.1", port))
        except OSError:
            self.sock.close()
            raise

    def upgrade(self, path: str = "/", *, headers: dict[str, str] | None = None) -> str:
        """Open a WebSocket; return the response's head."""
        self.send(request(path, headers=headers))
        head = self.read_head()
        assert head.startswith("HTTP/1.1 101 "), head
        return head

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_json(self, message: Any) -> None:
        self.send(frame(1, json.dumps(message).encode()))

    def read_head(self) -> str:
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                break
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def read(self, size: int) -> bytes:
        """Read exactly ``size`` bytes; raise EOFError at the end of the stream."""
        while len(self.buffer) < size:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def read_frame(self) -> tuple[int, bytes]:
        """Read one frame of the server's: its opcode (with FIN and RSV checked) and payload."""
        first, length = self.read(2)
        assert first & 0x80, "servers here do not fragment"
        assert not length & 0x80, "a server must not mask"
        if length == 126:
            (length,) = struct.unpack(">H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.read(8))
        return first & 0x0F, self.read(length)

    def read_json(self) -> Any:
        opcode, payload = self.read_frame()
        assert opcode == 1, (opcode, payload[:200])
        return json.loads(payload)

    def read_close(self) -> tuple[int, str]:
        """Read up to the close frame; return its code and reason."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == 8:
                return (int.from_bytes(payload[:2], "big"), payload[2:].decode()) if payload else (1005, "")

    def at_end(self) -> bool:
        """Whether the server ended the connection: waits for it."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            pass
        return True

    def reset(self) -> None:
        """End the connection with an RST."""
        self.sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def reset_and_wait(self) -> None:
        """End the connection with an RST, and wait until the system has told the server's socket of it."""
        here, there = self.sock.getsockname()[1], self.sock.getpeername()[1]
        self.reset()
        with gevent.Timeout(DEADLINE):
            while _knows_connection(there, here):
                gevent.sleep(0.001)

    def close(self) -> None:
        self.sock.close()
