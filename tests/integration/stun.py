"""A TURN client of a few lines (RFC 5389, RFC 5766): asks a server to allocate a relay, with a long-term credential."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct

__all__ = ["allocate"]

MAGIC = 0x2112A442
ALLOCATE = 0x0003
ALLOCATED = 0x0103
USERNAME, MESSAGE_INTEGRITY, ERROR_CODE, REALM, NONCE, RELAYED, TRANSPORT = 6, 8, 9, 0x14, 0x15, 0x16, 0x19
UDP = struct.pack("!B3x", 17)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _request(attributes: bytes, key: bytes | None) -> bytes:
    """Return an Allocate request; with a key it is signed (RFC 5389, section 15.4)."""
    transaction = os.urandom(12)
    signature = 24 if key is not None else 0
    message = struct.pack("!HHI", ALLOCATE, len(attributes) + signature, MAGIC) + transaction + attributes
    if key is not None:
        message += _attribute(MESSAGE_INTEGRITY, hmac.new(key, message, hashlib.sha1).digest())
    return message


def _answer(datagram: bytes) -> tuple[int, dict[int, bytes]]:
    """Return the type and the attributes of a STUN message."""
    kind, length, magic = struct.unpack_from("!HHI", datagram)
    assert magic == MAGIC
    attributes: dict[int, bytes] = {}
    position = 20
    while position < 20 + length:
        name, size = struct.unpack_from("!HH", datagram, position)
        attributes[name] = datagram[position + 4 : position + 4 + size]
        position += 4 + size + -size % 4
    return kind, attributes


def _error(attributes: dict[int, bytes]) -> int:
    _, _, hundreds, rest = struct.unpack_from("!BBBB", attributes[ERROR_CODE])
    return int(hundreds * 100 + rest)


def allocate(address: tuple[str, int], username: str, credential: str, timeout: float) -> int | None:
    """Ask for a relay over UDP; return None if there is one now, or else the error's code, such as 401."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect(address)
        client.send(_request(_attribute(TRANSPORT, UDP), None))
        kind, challenge = _answer(client.recv(2048))
        assert _error(challenge) == 401, "who asks without a credential must be refused"
        realm, nonce = challenge[REALM], challenge[NONCE]
        key = hashlib.md5(b":".join((username.encode(), realm, credential.encode()))).digest()
        attributes = b"".join(
            (
                _attribute(TRANSPORT, UDP),
                _attribute(USERNAME, username.encode()),
                _attribute(REALM, realm),
                _attribute(NONCE, nonce),
            )
        )
        client.send(_request(attributes, key))
        kind, attributes_of_answer = _answer(client.recv(2048))
        if kind == ALLOCATED:
            assert RELAYED in attributes_of_answer
            return None
        return _error(attributes_of_answer)
