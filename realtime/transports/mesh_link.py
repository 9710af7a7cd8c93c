"""One link to another node: a socket, the protocol on it, an outbox, and the greenlet that reads."""

from __future__ import annotations

import logging
import socket as stdlib_socket
import time
from typing import Any, Protocol

import gevent
from gevent.event import Event

from realtime.config import KiB, Limits, MeshOptions
from realtime.errors import MeshError
from realtime.outbox import Flusher, Outbox
from realtime.protocols.mesh import (
    Authenticated,
    ByeReceived,
    EventReceived,
    Hello,
    LinkEvent,
    LinkStarted,
    MeshProtocol,
    PingReceived,
    Reason,
    Role,
    State,
)
from realtime.transports.mesh_dial import MeshAddress
from realtime.transports.sockets import take_over

__all__ = ["Link", "LinkOwner"]

log = logging.getLogger("realtime.mesh")

_READ, _WRITE = 1, 2  # libev's names for the two kinds of readiness
RECEIVE = 64 * KiB
DISCARDED = 64  # reads of what comes after our farewell
_NO_FAREWELL = frozenset({Reason.LOST, Reason.SILENT, Reason.SLOW})  # the peer is gone, or does not read


class LinkOwner(Protocol):
    """Who a link belongs to. None of these may wait."""

    def authenticated(self, link: Link) -> str | None:
        """The peer has proved itself: return None, or the Reason not to start, which counts if it is up to us."""

    def started(self, link: Link) -> None:
        """The link is open: the outbox takes events."""

    def event_received(self, link: Link, body: bytes) -> None:
        """An event came; call ``link.pause`` if the next should not."""

    def ended(self, link: Link) -> None:
        """``link.reason`` and ``link.details`` say why. Called once, also for links that never opened."""


class Link:
    """One link. It is the outbox's sink.

    ``run`` reads, pings and keeps the deadlines in the greenlet that calls it, and only it closes the socket;
    whoever else wants the link to end says so with ``part``.

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
        self._sock = take_over(sock)
        self._sock.setblocking(False)
        self.protocol = protocol
        self.address = address
        self.options = options
        self.reason: str | None = None
        """Why it ended, or is about to; None while it lasts."""
        self.details = ""
        self.was_open = False
        self.outbox = Outbox(self, flusher, Limits(outbox=options.outbox))
        self._owner = owner
        self._wake = Event()  # something to do for the reading greenlet
        loop = gevent.get_hub().loop
        self._reader = loop.io(self._sock.fileno(), _READ)
        self._writer = loop.io(self._sock.fileno(), _WRITE)
        self._paused = False
        self._alive = self._began = time.monotonic()
        self._next_ping = self._due = self._began
        self._pings = 0

    @property
    def peer(self) -> Hello:
        """What the peer says of itself: to be believed once it is authenticated."""
        assert self.protocol.peer is not None
        return self.protocol.peer

    @property
    def dialled(self) -> bool:
        """Whether we opened it."""
        return self.protocol.role is Role.DIALLER

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life; 0 while we do not read."""
        return 0.0 if self._paused else time.monotonic() - self._alive

    # The reading greenlet ----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the link until it has ended and its socket is closed. Switches greenlets."""
        try:
            self._reader.start(self._wake.set)
            self._send_replies()
            while self.reason is None:
                self._wait(self._time_to_wait())
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

    def _wait(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _receive(self) -> None:
        """Read once and handle everything in it, as far as the owner takes it."""
        try:
            self._handle_events()  # what a pause left
            if self.reason is not None or self._paused:
                return
            try:
                data = self._sock.recv(RECEIVE)
            except (BlockingIOError, InterruptedError):
                data = None
            if data == b"":
                self._end(Reason.LOST, "connection closed")
                return
            if data:
                self._alive = time.monotonic()
                self.protocol.receive_data(data)
            self._handle_events()
        except MeshError as error:
            self.part(error.reason, str(error))

    def _handle_events(self) -> None:
        while self.reason is None and not self._paused:
            event = self.protocol.next_event()
            if event is None:
                break
            self._handle(event)
        self._send_replies()

    def _handle(self, event: LinkEvent) -> None:
        if isinstance(event, EventReceived):
            self._owner.event_received(self, event.body)
        elif isinstance(event, PingReceived):
            if not self.outbox.size:  # what waits there is as good a sign of life
                self.outbox.put(self.protocol.pong(event.number))
        elif isinstance(event, Authenticated):
            refusal = self._owner.authenticated(self)
            if self.protocol.decides:
                if refusal is None:
                    self.protocol.start()
                    self._started()
                else:
                    self.part(refusal)
        elif isinstance(event, LinkStarted):
            self._started()
        elif isinstance(event, ByeReceived):
            self._end(event.reason, event.text or "said by the peer")

    def _started(self) -> None:
        self._send_replies()
        self.was_open = True
        self._next_ping = time.monotonic() + self.options.ping
        self._owner.started(self)

    def _send_replies(self) -> None:
        replies = self.protocol.data_to_send()
        if replies:
            self.outbox.put(replies)

    # Time --------------------------------------------------------------------------------------------

    def _time_to_wait(self) -> float:
        """Do what is due: give up, or ping. Return the seconds until something is due again."""
        now = time.monotonic()
        late = now - self._due
        if late > 0:  # this process was held up: that is not the peer's silence
            self._alive = min(self._alive + late, now)
            self._began += late
        wait = self._give_up_or_ping(now)
        self._due = now + wait
        return wait

    def _give_up_or_ping(self, now: float) -> float:
        options = self.options
        if self.protocol.state is not State.OPEN:
            left = self._began + options.authentication - now
            if left <= 0:
                self.part(Reason.TIMEOUT, f"no handshake within {options.authentication:g} s")
            return max(left, 0.0)
        if self._paused:
            self._alive = now  # it may well have spoken: we do not listen
        left = self._alive + options.down - now
        if left <= 0:
            self.part(Reason.SILENT, f"no sign of life for {options.down:g} s")
            return 0.0
        if now >= self._next_ping:
            self._next_ping = now + options.ping
            if not self.outbox.size:  # what waits there is as good a sign of life
                self._pings += 1
                self.outbox.put(self.protocol.ping(self._pings))
        return min(left, self._next_ping - now)

    def pause(self) -> None:
        """Leave what comes in the socket, and what came with it unhandled: TCP pushes back."""
        if not self._paused and self.reason is None:
            self._paused = True
            self._reader.stop()

    def resume(self) -> None:
        """Read again, what had come with the last first. Called from any greenlet."""
        if self._paused and self.reason is None:
            self._paused = False
            self._alive = time.monotonic()
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
            try:
                if not self._sock.recv(RECEIVE):
                    return
            except (BlockingIOError, InterruptedError):
                pass

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
        try:
            return self._sock.send(frames[0] if len(frames) == 1 else b"".join(frames))
        except (BlockingIOError, InterruptedError):
            return 0

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
        try:
            self._sock.shutdown(stdlib_socket.SHUT_WR)
        except OSError as error:
            self._end(Reason.LOST, error.strerror or str(error))
