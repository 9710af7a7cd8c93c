"""The bytes of one connection: an outbox in front of a socket that never blocks, with TLS where it is wanted.

simple-websocket takes this for its socket and is guarded by that: what it sends is sent whole and in order, however
little the kernel takes at a time; what it receives waits in the kernel while there is no room for more; and each of
its waits ends, because this one does. One thread reads, and writes what is left over; any thread may send.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from realtime.errors import ConnectionClosed

__all__ = ["Stream"]

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_PIECE = 64 * 1024  # bytes asked of the socket at a time


class _Encryption:
    """TLS without I/O. OpenSSL's connections may not be used by two threads at once: the stream's lock sees to that."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def feed(self, data: bytes) -> None:
        """Take what the peer sent; nothing is the end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def shake_hands(self) -> bool:
        """Go on with the handshake; tell whether it is done. Raises ssl.SSLError."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self) -> bytes | None:
        """Return what can be read, ``b""`` at the end, None if more is needed. Raises ssl.SSLError."""
        found = bytearray()
        try:
            while data := self._tls.read(_PIECE):
                found += data
        except ssl.SSLWantReadError:
            return bytes(found) or None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            pass
        return bytes(found)

    def encrypt(self, data: bytes) -> bytes:
        """Return what goes over the network for ``data``."""
        if data:
            self._tls.write(data)
        return self._outgoing.read()


class Stream:
    """One TCP connection, from its name on.

    :param tls: encrypts it; None for plain TCP.
    :param outbox: bytes that may wait before :meth:`wait_for_room` waits.
    :param tick: called before each wait; returns the seconds it may take, None for any, or raises ConnectionClosed.
    :param paused: tells whether there is no room for more input; :meth:`wake` has it asked again.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None,
        outbox: int,
        tick: Callable[[], float | None],
        paused: Callable[[], bool],
    ) -> None:
        self.heard_at = time.monotonic()
        """When the last bytes came."""
        self.error: OSError | None = None
        """What ended it."""
        self._context = tls
        self._bound = outbox
        self._tick = tick
        self._paused = paused
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._outbox: deque[bytes | memoryview] = deque()
        self._waiting = 0  # bytes in it
        self._sock: socket.socket | None = None
        self._encryption: _Encryption | None = None
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._watched = 0
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._selector.register(self._wakened, _READ)

    # Opening --------------------------------------------------------------------------------------------

    def open(self, host: str, port: int) -> None:
        """Connect to the first of a host's addresses that answers. Looking up the name is the resolver's wait.

        :raises OSError: nobody answers, or TLS fails: the certificate is not trusted, for instance.
        """
        failure: OSError | None = None
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for index, (family, kind, protocol, _, address) in enumerate(found):
            left = self._tick()
            # each has its share of the time: one whose packets are lost must not keep us from the others
            share = math.inf if left is None else left / (len(found) - index)
            try:
                self._connect(socket.socket(family, kind, protocol), address, time.monotonic() + share)
                break
            except ConnectionClosed:
                raise  # out of time, or wanted no more: not this address's fault
            except OSError as error:
                failure = error
        else:
            raise failure or OSError(f"{host} has no address")
        if self._context is not None:
            self._encrypt(_Encryption(self._context, host))

    def _connect(self, sock: socket.socket, address: Any, deadline: float) -> None:
        try:
            sock.setblocking(False)
            number = sock.connect_ex(address)
            self._sock = sock
            if number == errno.EINPROGRESS:
                while not self._wait(_WRITE, deadline):
                    if time.monotonic() >= deadline:
                        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self._watch(0)
            self._sock = None
            sock.close()
            raise

    def _encrypt(self, encryption: _Encryption) -> None:
        done = False
        while not done:
            done = encryption.shake_hands()
            self._put(encryption.encrypt(b""))
            while not done:
                data = self._read_raw()
                if data is not None:
                    if not data:
                        raise ConnectionClosed(reason="the server ended the connection within the TLS handshake")
                    encryption.feed(data)
                    break
        self._encryption = encryption

    # What simple-websocket calls -------------------------------------------------------------------------

    def send(self, data: bytes) -> int:
        """Send all of it, now or as soon as the peer takes it. Never waits: ask :meth:`wait_for_room` before.

        :raises OSError: the connection is broken, and the peer has not got all of it.
        """
        with self._lock:
            self._put(self._encryption.encrypt(data) if self._encryption else bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        """Wait for what the peer sends; ``b""`` at the end. Writes what waits in the outbox meanwhile.

        :raises OSError: the connection is broken, or ``tick`` wants no more of it.
        """
        try:
            if self._encryption is not None:  # what came together with the end of its handshake, above all
                with self._lock:
                    data = self._encryption.decrypt()
                if data is not None:
                    return data
            while True:
                data = self._read_raw()
                if data is not None and self._encryption is not None:
                    data = self._decrypt(data)
                if data is not None:
                    return data
        except OSError as error:
            self.error = error
            raise

    def close(self) -> None:
        """Let go of everything. What still waits in the outbox is lost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._outbox.clear()
            self._waiting = 0
            self._room.notify_all()
        self._selector.close()
        self._waker.close()
        self._wakened.close()
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was first
            self._sock.close()

    # What the client calls -------------------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Whether more than the bound waits in the outbox."""
        return self._waiting > self._bound

    def wait_for_room(self, timeout: float) -> bool:
        """Wait while more than the bound waits in the outbox; False if that takes longer than ``timeout`` seconds."""
        if not self.crowded:
            return True
        with self._room:
            return self._room.wait_for(lambda: not self.crowded, min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Have the reading thread look around: at ``tick``, ``paused`` and the outbox. From any thread."""
        with self._lock:
            self._wake()

    # Inside -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._closed:
            return
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            pass  # it has a thousand reasons to wake up already

    def _put(self, data: bytes) -> None:
        if self._closed or self._sock is None:
            raise ConnectionClosed(reason="the connection is closed")
        if self._outbox:
            self._outbox.append(data)
            self._waiting += len(data)
            return
        done = self._write(data)
        if done < len(data):
            self._outbox.append(memoryview(data)[done:])  # a copy for every piece would cost the square of the size
            self._waiting += len(data) - done
            self._wake()  # not before it is there: the reader looks without the lock

    def _write(self, data: bytes | memoryview) -> int:
        assert self._sock is not None
        done = 0
        try:
            while done < len(data):
                done += self._sock.send(memoryview(data)[done:] if done else data)
        except (BlockingIOError, InterruptedError):
            pass
        return done

    def _flush(self) -> None:
        with self._lock:
            while self._outbox:
                first = self._outbox[0]
                done = self._write(first)
                self._waiting -= done
                if done < len(first):
                    self._outbox[0] = memoryview(first)[done:]
                    break
                self._outbox.popleft()
            if not self.crowded:
                self._room.notify_all()

    def _read_raw(self) -> bytes | None:
        """Wait, write what waits; return bytes from the network, ``b""`` at the end, None if there are none yet."""
        if self._outbox:
            self._flush()
        reading = 0 if self._paused() else _READ
        ready = self._wait(reading | (_WRITE if self._outbox else 0))
        if not ready & _READ:
            return None
        assert self._sock is not None
        try:
            data = self._sock.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return None
        self.heard_at = time.monotonic()
        return data

    def _decrypt(self, data: bytes) -> bytes | None:
        assert self._encryption is not None
        with self._lock:
            self._encryption.feed(data)
            plain = self._encryption.decrypt()
            answer = self._encryption.encrypt(b"")  # TLS 1.3 may want new keys
            if answer:
                self._put(answer)
        return plain

    def _wait(self, events: int, deadline: float = math.inf) -> int:
        """Wait once for the socket or a call of ``wake``; return what the socket is ready for."""
        self._watch(events)
        ready = 0
        timeout = self._tick()
        if deadline < math.inf:
            left = deadline - time.monotonic()
            timeout = left if timeout is None else min(left, timeout)
        for key, found in self._selector.select(timeout):
            if key.fileobj is self._wakened:
                self._drain()
            else:
                ready |= found
        return ready

    def _drain(self) -> None:
        try:
            while self._wakened.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _watch(self, events: int) -> None:
        if events == self._watched or self._sock is None:
            return
        if not events:
            self._selector.unregister(self._sock)
        elif self._watched:
            self._selector.modify(self._sock, events)
        else:
            self._selector.register(self._sock, events)
        self._watched = events

