"""What is asked of a socket directly, past gevent: it never waits, whether or not the process is monkey-patched."""

from __future__ import annotations

import fcntl
import select
import socket as stdlib_socket
import ssl
import sys
import termios
from typing import Any

from gevent.monkey import get_original

__all__ = ["LentTLS", "PlainSocket", "bytes_queued", "has_hung_up", "say_goodbye", "take_over"]

PlainSocket: type[stdlib_socket.socket] = get_original("socket", "socket")
_new_poller = get_original("select", "poll")
_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


def has_hung_up(sock: Any) -> bool:
    """Tell whether the peer has ended its side, or the connection broke, without reading anything."""
    poller = _new_poller()
    poller.register(sock.fileno(), _HANG_UP)
    return bool(poller.poll(0))


def bytes_queued(sock: Any) -> int:
    """Return how many bytes wait in the socket for the peer to take them; 0 where the system does not tell."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    except OSError:
        return 0


def say_goodbye(sock: Any) -> None:
    """Send TLS's close_notify (RFC 8446 section 6.1); the peer's own is not waited for."""
    try:
        sock.unwrap()
    except (OSError, ValueError):
        pass


class LentTLS:
    """A TLS socket, gevent's or of the ``ssl`` module, whose owner lends it: closing it ends the connection and leaves
    the object, with its descriptor, to the owner."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self.pending = sock.pending
        self.recv = sock.recv
        self.send = sock.send
        self.setblocking = sock.setblocking
        self.shutdown = sock.shutdown
        self.unwrap = sock.unwrap

    def close(self) -> None:
        """End the connection."""
        try:
            self.shutdown(stdlib_socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended


def take_over(sock: Any) -> stdlib_socket.socket:
    """Turn gevent's socket into a plain one with the same descriptor."""
    family, kind, protocol = sock.family, sock.type, sock.proto
    return PlainSocket(family, kind, protocol, fileno=sock.detach())
