"""One WebSocket over one socket: reads in bulk, feeds the protocol, keeps the close handshake and its deadlines.

No greenlet belongs to a channel. The event loop calls it when the socket can be read, so an idle connection
costs a watcher and a few small objects.
"""

from __future__ import annotations

import logging
import math
import socket as stdlib_socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol

import gevent
import gevent.ssl

from realtime.codes import CloseCode
from realtime.config import Heartbeat, KiB, Limits
from realtime.outbox import Outbox
from realtime.protocols.websocket import (
    BinaryReceived,
    CloseReceived,
    Failed,
    State,
    TextReceived,
    WebSocketProtocol,
)
from realtime.transports.heartbeat import Heartbeats
from realtime.transports.sockets import LentTLS, PlainSocket, bytes_queued, has_hung_up, say_goodbye, take_over

__all__ = ["Channel", "ChannelOwner"]

log = logging.getLogger("realtime.websocket")

_READ, _WRITE = 1, 2  # libev's names for the two kinds of readiness
RECEIVE = 64 * KiB
TLS_RECORD = 16 * KiB  # the most that OpenSSL encrypts at a time (RFC 8446 section 5.1)
PAUSED_LOOK = 1.0  # seconds between looks at a connection that is not read because its inbox is full
LINGER = 1.0  # seconds after the close handshake for the peer to end the TCP connection


class ChannelOwner(Protocol):
    """Who a channel's messages are for."""

    def room(self) -> int:
        """How many messages can be taken now; at least 1 while reading is not paused. 0, once the peer has hung up,
        if what it sent last is too much: the rest is not read."""

    def message_received(self, data: bytes, is_text: bool) -> None:
        """A whole message: text is valid UTF-8, still as bytes. Must not wait."""

    def is_done(self) -> bool:
        """Whether everything received so far has been dealt with, so that the connection may end.

        If not, the end is held back until ``release_end``, ``Limits.close_handshake`` seconds at most.
        """

    def hung_up(self) -> None:
        """No more can come than the socket holds now; it is all read. Must not wait."""

    def channel_closed(self, code: int, reason: str) -> None:
        """The connection is over for the application; called once. Must not wait."""


class Channel:
    """A WebSocket after its handshake. It is the outbox's sink.

    :param sock: non-blocking; the channel owns it.
    :param protocol: what was agreed on in the handshake.
    :param heartbeats: where to be called in time; None for ``heartbeat`` means no pings.
    """

    __slots__ = (
        "__weakref__",
        "_alive",
        "_begun",
        "_close_by",
        "_ended",
        "_eof",
        "_failure",
        "_heartbeat",
        "_heartbeats",
        "_held",
        "_held_until",
        "_last_read",
        "_limits",
        "_look_at",
        "_on_end",
        "_over",
        "_owner",
        "_paused",
        "_pinged",
        "_processing",
        "_progress",
        "_queued",
        "_reader",
        "_sock",
        "_writer",
        "outbox",
        "protocol",
    )

    outbox: Outbox
    _owner: ChannelOwner

    def __init__(
        self,
        sock: Any,
        protocol: WebSocketProtocol,
        *,
        limits: Limits,
        heartbeat: Heartbeat | None,
        heartbeats: Heartbeats,
    ) -> None:
        # gevent's socket waits by itself; here the loop tells when to read, so the plain one is enough
        self._sock: Any = sock if isinstance(sock, (gevent.ssl.SSLSocket, LentTLS)) else take_over(sock)
        self._sock.setblocking(False)
        self.protocol = protocol
        self._limits = limits
        self._heartbeat = heartbeat
        self._heartbeats = heartbeats
        self._on_end: tuple[Callable[[], None], ...] = ()
        self._reader = gevent.get_hub().loop.io(self._sock.fileno(), _READ)
        self._writer: Any = None
        self._begun = False
        self._paused = False
        self._over = False  # the owner was told
        self._ended = False  # the socket is closed
        self._alive = time.monotonic()
        self._progress = 0
        self._queued = 0  # bytes in the socket that the peer had not taken, when last looked at
        self._look_at = math.inf  # when Heartbeats will next call tick
        self._held: CloseReceived | Failed | None = None  # the end, until the owner is done
        self._held_until = 0.0
        self._eof = False  # the peer will send no more
        self._last_read = False  # it has said so: what the socket holds is read whatever the inbox holds
        self._failure: str | None = None  # why a write failed: what the socket holds is read, and that is the end
        self._processing = False
        self._pinged: float | None = None
        self._close_by: float | None = None

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once the socket has been closed."""
        self._on_end += (callback,)

    def attach(self, owner: ChannelOwner, outbox: Outbox, response: bytes) -> None:
        """Know who the messages are for, and answer the handshake; empty: somebody has."""
        self._owner = owner
        self.outbox = outbox
        if response:
            outbox.put_first(response)
        outbox.flush()  # before anything that answers what came with the request

    def begin(self, leftover: bytes) -> None:
        """Begin to read; ``leftover`` came with the request. Called once the owner is ready."""
        if self._ended:
            return  # the owner, or its first messages, found it broken
        self._begun = True
        self._reader.start(self._readable)
        if self._heartbeat is not None:
            self._look(self._alive + self._heartbeat.interval)
        if leftover:
            self._process(leftover)

    @property
    def is_open(self) -> bool:
        """Whether messages can still be sent."""
        return not self._over and self.protocol.state is State.OPEN

    # Reading ---------------------------------------------------------------------------------------

    def _readable(self) -> bool:
        """The loop's callback: one read, and everything in it handled. Returns whether anything was there."""
        try:
            data = self._sock.recv(RECEIVE)
            if data and type(self._sock) is not PlainSocket:
                data += self._decrypted_rest()
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if self._failure is not None:
                self._lost(self._failure)
            return False
        except OSError as error:
            self._lost(str(error))
            return False
        if not data:
            self._eof = True
            if self._close_by is not None and self.outbox.size:  # so nothing has failed
                self._reader.stop()  # it said goodbye, and may still read what it was sent before
                return False
            self.protocol.receive_eof()
            self._lost("connection lost")
            return False
        self._alive = time.monotonic()
        self._process(data)
        return True

    def _decrypted_rest(self) -> bytes:
        """Return what TLS has decrypted already: the loop cannot see that it waits."""
        pending = self._sock.pending()
        return self._sock.recv(pending) if pending else b""

    def _process(self, data: bytes) -> None:
        outermost, self._processing = not self._processing, True
        try:
            self._take(data)
        finally:
            self._processing = not outermost
        if outermost and self._failure is not None:
            self._read_last()

    def _take(self, data: bytes) -> None:
        protocol, owner = self.protocol, self._owner
        try:
            while True:
                room = owner.room()
                if not room:
                    self._end(CloseCode.ABNORMAL, "it left more behind than may wait")
                    return
                for event in protocol.receive_data(data, room):
                    if isinstance(event, (TextReceived, BinaryReceived)):
                        if self._close_by is None:
                            owner.message_received(event.data, type(event) is TextReceived)
                    elif isinstance(event, (CloseReceived, Failed)):
                        self._hold_end(event)
                if protocol.replies and self._held is None:
                    self.outbox.put_first(b"".join(protocol.data_to_send()))
                if not protocol.has_pending or self._paused:
                    return
                data = b""
        except Exception:
            log.exception("a connection failed")
            self._end(CloseCode.INTERNAL_ERROR, "internal error")

    def pause_reading(self) -> None:
        """Leave what comes in the socket: TCP pushes back."""
        if not self._paused and not self._ended and not self._last_read:
            self._paused = True
            self._reader.stop()
            self._look(time.monotonic() + PAUSED_LOOK)

    def resume_reading(self) -> None:
        """Read again, what had been read but not parsed first."""
        if self._paused and not self._ended:
            self._paused = False
            self._alive = time.monotonic()
            if self.protocol.has_pending:
                self._process(b"")
            if not self._paused and not self._ended and not self._eof and self._held is None:
                self._reader.start(self._readable)

    # Writing: the outbox's sink ------------------------------------------------------------------------

    def write(self, frames: list[bytes]) -> int:
        """Send what the socket takes."""
        sent = 0
        try:
            sent = self._sock.send(frames[0] if len(frames) == 1 else b"".join(frames))
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        if not sent and type(self._sock) is not PlainSocket:
            # OpenSSL has encrypted a record already, and must be offered the same bytes again
            self.outbox.keep_first(TLS_RECORD)
        return sent

    def watch_writable(self) -> None:
        """Resume the outbox once the socket can take more."""
        if self._ended:
            return
        if self._writer is None:
            self._writer = gevent.get_hub().loop.io(self._sock.fileno(), _WRITE)
        self._writer.start(self._writable)

    def _writable(self) -> None:
        self._writer.stop()
        self.outbox.resume()

    def broken(self, error: OSError) -> None:
        """A write failed: the peer is gone. What it said before that counts, above all a goodbye.

        A browser that leaves a page resets the connection if it has not read everything, right behind its close frame.
        """
        self._failure = str(error)
        if not self._processing:
            self._read_last()

    def _read_last(self) -> None:
        """Take what is left in the socket, as much as may wait, and end.

        One read a turn as ever, so that others get theirs: it may hold megabytes of the smallest frames.
        """
        if self._ended:
            return
        if not self._begun or self._eof or self._held is not None:  # its owner is not ready, or no more counts
            self._lost(self._failure or "")
            return
        self._read_the_rest()
        self._look(time.monotonic() + PAUSED_LOOK)  # should the socket not be readable: where TLS has failed

    def overflowed(self) -> None:
        """The slow consumer is cut off: what waits is dropped so that the close frame comes soon."""
        self.outbox.discard()
        self.close(CloseCode.SLOW_CONSUMER, "slow consumer")

    def finished(self) -> None:
        """Our close frame is out. If the peer's came, say that we will send no more."""
        if self.protocol.state is State.CLOSED and not self._ended:
            self._close_by = time.monotonic() + LINGER
            self._look(self._close_by)
            try:
                if type(self._sock) is not PlainSocket:
                    say_goodbye(self._sock)
                self._sock.shutdown(stdlib_socket.SHUT_WR)
            except OSError:
                self._lost("connection lost")  # the peer did not wait for our answer; its goodbye counts
            if self._eof:
                self._lost("connection closed")

    # Ending ----------------------------------------------------------------------------------------

    def close(self, code: int, reason: str = "") -> None:
        """Begin the close handshake after what waits in the outbox. The owner is told at once; never waits."""
        self.release_end()
        if self._over or self.protocol.state is not State.OPEN:
            return
        self._finish_with(self.protocol.close(code, reason))
        self._tell_owner(code, reason)

    def _hold_end(self, event: CloseReceived | Failed) -> None:
        """The last event there is: it takes effect once what came before it has been dealt with."""
        self._held = event
        if self._over or self._owner.is_done():
            self.release_end()
        else:
            self._reader.stop()
            self._held_until = time.monotonic() + self._limits.close_handshake
            self._look(self._held_until)

    def release_end(self) -> None:
        """The owner has dealt with everything: end, if that was held back. Never waits."""
        event, self._held = self._held, None
        if self._ended or event is None:
            return
        if not self._eof:
            self._reader.start(self._readable)
        if isinstance(event, CloseReceived):
            self._peer_closed(event)
        else:
            self._failed(event)

    def _peer_closed(self, event: CloseReceived) -> None:
        """The peer's close frame: answered, if we had not sent ours."""
        if self.protocol.replies:
            self._finish_with(b"".join(self.protocol.data_to_send()))
        elif not self.outbox.size:
            self.finished()
        self._tell_owner(event.code, event.reason or "closed by the client")

    def _failed(self, event: Failed) -> None:
        """The peer broke the protocol: say so, after what it is still owed."""
        self._finish_with(b"".join(self.protocol.data_to_send()))
        self._tell_owner(event.error.code, str(event.error))

    def _finish_with(self, frames: bytes) -> None:
        """Send the last frames, and give the peer until the deadline to end the connection."""
        self._close_by = time.monotonic() + self._limits.close_handshake
        self._look(self._close_by)
        self.outbox.put_last(frames)
        self.outbox.flush()
        if self._paused:
            self.resume_reading()

    def _tell_owner(self, code: int, reason: str) -> None:
        if not self._over:
            self._over = True
            self._owner.channel_closed(int(code), reason)

    def _lost(self, reason: str) -> None:
        """The TCP connection is gone, or not worth waiting for."""
        code = self.protocol.close_code
        self._end(CloseCode.ABNORMAL if code is None else code, reason)

    def _end(self, code: int, reason: str) -> None:
        """Close the socket and release everything. Whatever was not sent is counted by the outbox."""
        if self._ended:
            return
        self._ended = True
        for watcher in (self._reader, self._writer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self.outbox.close()
        self._sock.close()
        self._tell_owner(code, reason)
        for callback in self._on_end:
            callback()

    def abort(self, code: int = CloseCode.ABNORMAL, reason: str = "aborted") -> None:
        """Close the socket now, without a handshake."""
        self._end(code, reason)

    # Deadlines --------------------------------------------------------------------------------------

    def tick(self, now: float) -> float | None:
        """Called by Heartbeats: ping, or give up. Returns when to be called again."""
        if self._ended or now < self._look_at:  # an earlier look has made this one needless
            return None
        again = self._look_now(now)
        self._look_at = math.inf if again is None else again
        return again

    def _look(self, due: float) -> None:
        """Ask for a look at ``due``, unless an earlier one is coming."""
        if due < self._look_at:
            self._look_at = due
            self._heartbeats.add(due, self)

    def _look_now(self, now: float) -> float | None:
        if self._close_by is not None:
            if now < self._close_by:
                return self._close_by
            self._lost("the close handshake was not answered in time")
            return None
        if self._held is not None:
            if now < self._held_until:
                return self._held_until
            self.release_end()
            return self._close_by
        if self._failure is not None:
            return now + PAUSED_LOOK if self._readable() else None
        if self._paused and has_hung_up(self._sock):
            self._read_the_rest()
            return None if self._ended else now + PAUSED_LOOK
        due = self._check_life(now, self._heartbeat) if self._heartbeat is not None else None
        if self._paused and not self._ended:
            return now + PAUSED_LOOK if due is None else min(due, now + PAUSED_LOOK)
        return due

    def _read_the_rest(self) -> None:
        """The peer has ended: take what is left whatever the inbox holds, so that it leaves now and not later."""
        self._last_read = True
        self._owner.hung_up()
        self.resume_reading()

    def _check_life(self, now: float, heartbeat: Heartbeat) -> float | None:
        if self._takes_bytes():
            self._alive = now
        if self._pinged is not None and self._alive < self._pinged:
            if now < self._pinged + heartbeat.timeout:
                return self._pinged + heartbeat.timeout
            if self._paused and not self._queued:
                self._alive = now  # it took the ping; its pong waits where we do not read
                return now + heartbeat.interval
            return self._give_up(now, heartbeat)
        if now < self._alive + heartbeat.interval:
            return self._alive + heartbeat.interval
        self._pinged = now
        self.outbox.put_first(self.protocol.ping())
        return now + min(heartbeat.timeout, heartbeat.interval)

    def _takes_bytes(self) -> bool:
        """Tell whether the peer took bytes since the last look: a slow reader lives, though our ping is stuck."""
        progress, queued = self.outbox.progress, bytes_queued(self._sock)
        took = progress != self._progress or queued < self._queued
        self._progress, self._queued = progress, queued
        return took

    def _give_up(self, now: float, heartbeat: Heartbeat) -> float | None:
        """No sign of life: leave word, in case the peer wakes up, and close."""
        if not self._paused:
            self._readable()  # after a blocked loop its pong may be here, not yet looked at
            if self._ended or self._close_by is not None:
                return self._close_by
            if self._pinged is not None and self._alive >= self._pinged:
                return self._alive + heartbeat.interval
        reason = f"no pong within {heartbeat.timeout:g} s"
        self.outbox.discard()
        self.outbox.put_last(self.protocol.close(CloseCode.HEARTBEAT_TIMEOUT, reason))
        self.outbox.flush()
        self._end(CloseCode.HEARTBEAT_TIMEOUT, reason)
        return None
