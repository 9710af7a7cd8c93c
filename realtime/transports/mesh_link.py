"""One link to another node: a socket, plain or TLS, the protocol on it, an outbox, and the greenlet that reads."""

from __future__ import annotations

import logging
import socket as stdlib_socket
import ssl
import time
from typing import Any, Protocol

import gevent
import gevent.ssl
from gevent.event import Event

from realtime.config import KiB, Limits, MeshOptions
from realtime.errors import MeshError
from realtime.flusher import Flusher
from realtime.outbox import Outbox
from realtime.protocols.mesh import MeshProtocol, State
from realtime.protocols.mesh_frames import SessionEvent
from realtime.protocols.mesh_handshake import Authenticated, ByeReceived, Hello, LinkEvent, LinkStarted, Reason, Role
from realtime.transports.mesh_dial import MeshAddress
from realtime.transports.sockets import PlainSocket, say_goodbye, take_over

__all__ = ["Link", "LinkOwner"]

log = logging.getLogger("realtime.mesh")

_READ, _WRITE = 1, 2  # libev's names for the two kinds of readiness
RECEIVE = 64 * KiB
TLS_RECORD = 16 * KiB  # the most that OpenSSL encrypts at a time (RFC 8446 section 5.1)
PARK_ABOVE = 0.5  # of an outbox: with what the system's buffers hold it must still fit into MeshOptions.resend
DISCARDED = 64  # reads of what comes after our farewell
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NO_FAREWELL = frozenset({Reason.LOST, Reason.SILENT, Reason.SLOW})  # the peer is gone, or does not read


class LinkOwner(Protocol):
    """Who a link belongs to. Only ``settle`` may wait."""

    def authenticated(self, link: Link) -> str | None:
        """The peer has proved itself: return None, or the Reason not to start, which counts if it is up to us.

        ``NODE_ID``, another node that lives has this id, always counts.
        """

    def started(self, link: Link) -> None:
        """The link is open: the outbox takes frames."""

    def received(self, link: Link, event: SessionEvent) -> None:
        """A frame came; call ``link.pause`` if the next should not. Raise MeshError to end the link."""

    def alive(self, link: Link) -> None:
        """Something came that is no whole frame yet, or the link is paused, so that nothing can be said of it."""

    def settle(self, link: Link) -> None:
        """All that was read has been told: do what takes time. Switches greenlets; nothing is read meanwhile."""

    def ended(self, link: Link) -> None:
        """``link.reason`` and ``link.details`` say why. Called once, also for links that never opened."""


class Link:
    """One link. It is the outbox's sink.

    ``run`` reads and keeps the deadline of the handshake in the greenlet that calls it, and only it closes the
    socket; whoever else wants the link to end says so with ``part``. Silence is its owner's business.

    :param sock: connected; the link owns it from now on.
    :param address: the peer's, for the log.
    """

    def __init__(
        self,
        sock: Any,
        protocol: MeshProtocol,
        address: MeshAddress,
        owner: LinkOwner,
        *,
        options: MeshOptions,
        flusher: Flusher,
    ) -> None:
        # gevent's socket waits by itself; here a watcher tells when to read, so the plain one is enough
        self._sock: Any = sock if isinstance(sock, gevent.ssl.SSLSocket) else take_over(sock)
        self._sock.setblocking(False)
        self.protocol = protocol
        self.address = address
        self.options = options
        self.reason: str | None = None
        """Why it ended, or is about to; None while it lasts."""
        self.details = ""
        self.was_open = False
        self.outbox = Outbox(self, flusher, Limits(outbox=options.outbox, park_above=PARK_ABOVE))
        self._owner = owner
        self._wake = Event()  # something to do for the reading greenlet
        loop = gevent.get_hub().loop
        self._reader = loop.io(self._sock.fileno(), _READ)
        self._writer = loop.io(self._sock.fileno(), _WRITE)
        self._paused = False
        self._left_over = False  # a pause has left what came unhandled
        self._deadline = time.monotonic() + options.authentication

    @property
    def peer(self) -> Hello:
        """What the peer says of itself: to be believed once it is authenticated."""
        assert self.protocol.peer is not None
        return self.protocol.peer

    @property
    def dialled(self) -> bool:
        """Whether we opened it."""
        return self.protocol.role is Role.DIALLER

    # The reading greenlet ----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the link until it has ended and its socket is closed. Switches greenlets."""
        try:
            self._reader.start(self._wake.set)
            self._wake.set()  # TLS may have read the first frame together with the end of its handshake
            self._send_replies()
            while self.reason is None:
                self._wait(self._patience())
                if self.reason is None and not self._paused:
                    self._receive()
            self._take_leave()
        except OSError as error:
            self._end(Reason.LOST, error.strerror or str(error))
        except Exception:
            log.exception("the link to %s failed", self.address)
            self._end(Reason.BROKEN, "internal error")
        finally:
            self._release()

    def _wait(self, seconds: float | None) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _receive(self) -> None:
        """Read once and handle everything in it, as far as the owner takes it. May switch."""
        try:
            if self._left_over:
                self._left_over = False
                self._handle_events()
                if self.reason is not None or self._paused:
                    return
            data = self._read()
            if data == b"":
                self._end(Reason.LOST, "connection closed")
                return
            if data and not self._take(data) and self.was_open:
                self._owner.alive(self)
        except MeshError as error:
            self.part(error.reason, str(error))
        if self.was_open:
            self._owner.settle(self)

    def _read(self) -> bytes | None:
        """Return what the socket has, None if that is nothing, or nothing at all at its end."""
        try:
            data: bytes = self._sock.recv(RECEIVE)
            if data and type(self._sock) is not PlainSocket:
                pending = self._sock.pending()  # decrypted already: the loop cannot see that it waits
                data += self._sock.recv(pending) if pending else b""
        except _NOT_NOW:
            return None
        return data

    def _take(self, data: bytes) -> bool:
        """Handle bytes; tell whether there was a whole frame in what has come so far."""
        self.protocol.receive_data(data)
        return self._handle_events()

    def _handle_events(self) -> bool:
        any_came = False
        while self.reason is None and not self._paused:
            event = self.protocol.next_event()
            if event is None:
                break
            any_came = True
            self._handle(event)
        self._send_replies()
        return any_came

    def _handle(self, event: LinkEvent) -> None:
        if isinstance(event, Authenticated):
            refusal = self._owner.authenticated(self)
            if refusal == Reason.NODE_ID or (refusal is not None and self.protocol.decides):
                self.part(refusal)
            elif self.protocol.decides:
                self.protocol.start()
                self._started()
        elif isinstance(event, LinkStarted):
            self._started()
        elif isinstance(event, ByeReceived):
            self._end(event.reason, event.text or "said by the peer")
        else:
            self._owner.received(self, event)

    def _started(self) -> None:
        self._send_replies()
        self.was_open = True
        self._owner.started(self)

    def _send_replies(self) -> None:
        if self.protocol.replies:
            self.outbox.put(self.protocol.data_to_send())

    # Time --------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Give up if the handshake takes too long. Return the seconds to wait for something to come, at most."""
        if self.protocol.state is not State.OPEN:
            left = self._deadline - time.monotonic()
            if left <= 0:
                self.part(Reason.TIMEOUT, f"no handshake within {self.options.authentication:g} s")
            return max(left, 0.0)
        if self._paused:
            self._owner.alive(self)
            return self.options.ping
        return None

    def pause(self) -> None:
        """Leave what comes in the socket, and what came with it unhandled: TCP pushes back."""
        if not self._paused and self.reason is None:
            self._paused = self._left_over = True
            self._reader.stop()

    def resume(self) -> None:
        """Read again, what had come with the last first. Called from any greenlet."""
        if self._paused and self.reason is None:
            self._paused = False
            self._reader.start(self._wake.set)
            self._wake.set()

    # Ending ------------------------------------------------------------------------------------------

    def part(self, reason: str, details: str = "") -> None:
        """End the link and tell the peer why; the owner is told at once. From any greenlet; never waits.

        What waits is sent first if we leave in peace, and dropped (counted) otherwise.
        """
        if self.reason is not None:
            return
        if reason != Reason.LEAVING:
            self.outbox.discard()
        # details may tell of our configuration: not for one who has proved nothing
        self.outbox.put_last(self.protocol.bye(reason, details if self.was_open else ""))
        self._end(reason, details)
        self.outbox.flush()

    def _end(self, reason: str, details: str) -> None:
        if self.reason is None:
            self.reason = reason
            self.details = details
            self._wake.set()
            self._owner.ended(self)

    def _take_leave(self) -> None:
        """Stay until the peer has read our last words: closing on unread input would take them back (RST)."""
        if self.protocol.state is State.CLOSED and not self.outbox.closed:
            return  # the peer's bye
        if self.reason in _NO_FAREWELL:
            return
        deadline = time.monotonic() + self.options.farewell
        if self._paused:
            self._reader.start(self._wake.set)
        for _ in range(DISCARDED):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._wait(left)
            if self._read() == b"":
                return

    def _release(self) -> None:
        """Give everything back. What was never sent is counted by the outbox."""
        self._end(Reason.LEAVING, "cut off")  # only where the greenlet was killed
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()
        self.outbox.close()
        self._sock.close()

    # Writing: the outbox's sink -----------------------------------------------------------------------

    def write(self, frames: list[bytes]) -> int:
        """Send what the socket takes."""
        sent = 0
        try:
            sent = self._sock.send(frames[0] if len(frames) == 1 else b"".join(frames))
        except _NOT_NOW:
            pass
        if not sent and type(self._sock) is not PlainSocket:
            # OpenSSL has encrypted a record already, and must be offered the same bytes again
            self.outbox.keep_first(TLS_RECORD)
        return sent

    def watch_writable(self) -> None:
        """Resume the outbox once the socket can take more."""
        self._writer.start(self._writable)

    def _writable(self) -> None:
        self._writer.stop()
        self.outbox.resume()

    def broken(self, error: OSError) -> None:
        """A write failed."""
        self._end(Reason.LOST, error.strerror or str(error))

    def overflowed(self) -> None:
        """The node does not read: its link is dropped, so that it does not take the memory of the others."""
        self.part(Reason.SLOW, f"more than {self.options.outbox} bytes wait for it")

    def finished(self) -> None:
        """Our last words are out; we send no more."""
        if type(self._sock) is not PlainSocket:
            say_goodbye(self._sock)
            return
        try:
            self._sock.shutdown(stdlib_socket.SHUT_WR)
        except OSError as error:
            self._end(Reason.LOST, error.strerror or str(error))
