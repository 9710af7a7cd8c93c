"""The outbox: the only thing that touches a connection's sending side.

Frames are appended whole and flushed together, once per turn of the event loop, with one write. What the
socket does not take waits here, counted in bytes; past the limit each message's own policy decides.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from typing import Any

import gevent
from gevent.event import Event

from realtime.config import KiB, Limits
from realtime.delivery import Perishable
from realtime.flusher import Flusher
from realtime.sink import Keeper, Sink

__all__ = ["Outbox", "stall"]

log = logging.getLogger("realtime")

FLUSH_AT = 64 * KiB  # a handler that publishes without yielding is flushed whenever this much waits
WRITE_AT_ONCE = 256 * KiB  # joining more than this for one write would copy what the socket won't take
NEVER = math.inf  # when an outbox without messages that expire has to look for such
CONTROL_ROOM = 64 * KiB  # for pongs and pings beyond Limits.outbox


class Outbox:
    """Frames that wait for one connection, bounded in bytes.

    ``frames`` may hold, besides what waits, the unsent rest of a frame as a memoryview: only ever first,
    and never dropped, because half of it is already on its way.
    """

    __slots__ = (
        "_blocked",
        "_drained",
        "_expires",
        "_flusher",
        "_frames",
        "_scheduled",
        "_sink",
        "_urgent",
        "away",
        "closed",
        "keeper",
        "limit",
        "park_at",
        "progress",
        "size",
    )

    def __init__(self, sink: Sink, flusher: Flusher, limits: Limits) -> None:
        self._sink = sink
        self._flusher = flusher
        self._frames: list[Any] = []  # of bytes; the first may be a memoryview
        self._scheduled = False  # a flush will come by itself: next turn, or when writable
        self._blocked = False  # the socket is full
        self._drained: Event | None = None  # set when bytes have left, made by the first who waits
        self._expires = NEVER  # no message that waits does so before
        self._urgent = 0  # bytes of control frames among those that wait
        self.keeper: Keeper | None = None
        self.size = 0
        self.limit = limits.outbox
        self.park_at = int(limits.outbox * limits.park_above)
        self.closed = False
        self.away = False  # nobody is there to read: it waits for who comes back
        self.progress = 0  # bytes written while the socket was full: a sign of life of a slow reader

    def put(self, frame: bytes) -> bool:
        """Append a finished frame; return False if it was dropped or the outbox is closed. Never switches."""
        size = self.size + len(frame)
        if size > self.limit or type(frame) is Perishable:  # a closed outbox has a limit of -1
            return self._put_carefully(frame)
        self.size = size
        self._frames.append(frame)
        if self.keeper is not None:
            self.keeper.keep(frame)
        if not self._scheduled:
            self._scheduled = True
            self._flusher.add(self)
        if size > FLUSH_AT and not self._blocked:
            self.flush()
        return True

    @property
    def waiting(self) -> int:
        """How many frames wait, with one that is half sent."""
        return len(self._frames)

    def put_unbounded(self, frame: bytes) -> bool:
        """Append one frame whatever its size: for callers that wait for room first and own its memory."""
        if self.closed:
            return self._put_carefully(frame)
        limit, self.limit = self.limit, self.size + len(frame)
        accepted = self.put(frame)
        if not self.closed:
            self.limit = limit
        return accepted

    def put_beyond(self, frame: bytes) -> bool:
        """Append a frame at its place in the order, whether or not it fits: ``settle`` with its size must follow.

        The limit is as much higher until then, so that nobody else has less room for it.
        """
        if not self.closed:
            self.limit += len(frame)
        return self.put(frame)

    def settle(self, size: int, timeout: float) -> bool:
        """Wait until what was put beyond the limit fits; cut the connection off if it does not. Switches greenlets.

        :param size: bytes by which the limit is higher for it.
        :param timeout: seconds.
        :returns: False if it was cut off.
        """
        try:
            self._wait_until(lambda: self._is_within(size), timeout)
        finally:  # whatever ends the waiting
            self.limit -= size
        if self.size > self.limit and not self.closed:
            self._overflow()
            return False
        return True

    def _is_within(self, size: int) -> bool:
        """Tell whether all that waits fits below a limit that is ``size`` lower."""
        if self.size > self.limit - size:
            if not self._blocked:
                self.flush()
            self.drop_expired()
        return self.closed or self.size <= self.limit - size

    def put_apart(self, frame: bytes) -> None:
        """Append a small frame that belongs to the connection and not to the session it carries: not kept."""
        if self.closed:
            return
        if self.size + len(frame) > self.limit:
            self._overflow()
            return
        self._frames.append(frame)
        self.size += len(frame)
        self._flush_soon()

    def replay(self, frames: Collection[bytes]) -> None:
        """Append frames that are kept already, and are no reason to call their receiver slow."""
        if self.closed or not frames:
            return
        size = sum(map(len, frames))
        self.limit += size
        self.park_at += size
        self._frames.extend(frames)
        self.size += size
        self._flush_soon()

    def put_first(self, frame: bytes) -> None:
        """Append a control frame before everything that is not yet under way (RFC 6455 section 5.5).

        At most ``CONTROL_ROOM`` bytes of them wait, whatever else does: who makes us owe more and reads nothing
        is cut off.
        """
        if self.closed:
            return
        if self._urgent + len(frame) > CONTROL_ROOM:
            self._overflow()
            return
        frames = self._frames
        frames.insert(1 if frames and type(frames[0]) is memoryview else 0, frame)
        self.size += len(frame)
        self._urgent += len(frame)
        self._flush_soon()

    def put_last(self, frame: bytes) -> None:
        """Append a frame, such as a close frame, after which everything is refused."""
        if self.closed:
            return
        self.closed = True
        self.limit = -1
        self._frames.append(frame)
        self.size += len(frame)
        self._wake()
        self._flush_soon()

    def _put_carefully(self, frame: bytes) -> bool:
        """Append a frame with delivery options, or one that may not fit. The slow path of put()."""
        counters = self._flusher.counters
        may_drop = isinstance(frame, Perishable) and frame.delivery.may_drop
        if not self.closed:
            if isinstance(frame, Perishable) and not self._has_use(frame):
                return False
            if self.size + len(frame) > self.limit:
                self.drop_expired()
                if not self._blocked:
                    self.flush()
        if self.closed:  # perhaps because a flush found the connection broken
            return self._put_late(frame)
        if self.size + len(frame) > self.limit:
            if not may_drop:
                self._overflow()
                return False
            if not self._make_room(len(frame)):
                counters["dropped_newest"] += 1
                return False
        self.size += len(frame)
        self._frames.append(frame)
        if self.keeper is not None:
            self.keeper.keep(frame)
        self._flush_soon()
        return True

    def _put_late(self, frame: bytes) -> bool:
        """The outbox is closed: somebody keeps the frame, or it is lost."""
        if self.keeper is not None:
            return self.keeper.put_late(frame)
        self._flusher.counters["dropped_after_close"] += 1
        return False

    def _has_use(self, frame: Perishable) -> bool:
        """Tell whether a frame is still to be sent, as far as its options say; drop the one that it replaces."""
        delivery = frame.delivery
        if frame.expires is not None:
            if time.monotonic() >= frame.expires:
                self._flusher.counters["expired"] += 1
                return False
            self._expires = min(self._expires, frame.expires)
            if not self._blocked:  # else it is looked at when the socket takes something again
                self._flusher.add_expiring(self)
        if delivery.conflate is not None:
            self._forget_key(delivery.conflate)
        if delivery.volatile and (self.away or not self.has_room(len(frame))):
            self._flusher.counters["dropped_volatile"] += 1
            return False
        return True

    def _flush_soon(self) -> None:
        """See to it that a flush comes; put() has this in place, because it is the hot path."""
        if not self._scheduled:
            self._scheduled = True
            self._flusher.add(self)

    def _overflow(self) -> None:
        """Cut the slow consumer off."""
        self._flusher.counters["closed_slow_consumer"] += 1
        self._sink.overflowed()

    def _forget_key(self, key: str) -> None:
        """Drop the waiting frame of this key, if there is one: a newer one comes, at its place in the order."""
        for index, waiting in enumerate(self._frames):
            if isinstance(waiting, Perishable) and waiting.delivery.conflate == key:
                del self._frames[index]
                self.size -= len(waiting)
                if self.keeper is not None:
                    self.keeper.unkeep(waiting)
                self._flusher.counters["dropped_conflated"] += 1
                return

    def _make_room(self, needed: int) -> bool:
        """Drop the oldest of the frames that may be dropped until ``needed`` bytes fit; none if they never will."""
        missing = self.size + needed - self.limit
        chosen: set[int] = set()
        for index, frame in enumerate(self._frames):
            if missing <= 0:
                break
            if isinstance(frame, Perishable) and frame.delivery.may_drop:
                chosen.add(index)
                missing -= len(frame)
        if missing > 0:
            return False
        if self.keeper is not None:
            for index in sorted(chosen, reverse=True):
                self.keeper.unkeep(self._frames[index])
        self._frames = [frame for index, frame in enumerate(self._frames) if index not in chosen]
        self.size = sum(map(len, self._frames))
        self._flusher.counters["dropped_oldest"] += len(chosen)
        return True

    def drop_expired(self) -> None:
        """Drop the frames whose time is over, if there can be any."""
        if self._expires == NEVER or time.monotonic() < self._expires:
            return
        now = time.monotonic()
        self._expires = NEVER
        kept = []
        for frame in self._frames:
            if isinstance(frame, Perishable) and frame.expires is not None:
                if now >= frame.expires:
                    self.size -= len(frame)
                    if self.keeper is not None:
                        self.keeper.unkeep(frame)
                    continue
                self._expires = min(self._expires, frame.expires)
            kept.append(frame)
        dropped = len(self._frames) - len(kept)
        if dropped:
            self._frames = kept
            self._flusher.counters["expired"] += dropped
            self._wake()

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it. Never switches."""
        if self._blocked:
            return
        self._scheduled = False
        frames = self._frames
        if not frames:
            return
        try:
            while frames:
                batch = frames if self.size <= WRITE_AT_ONCE else _first_bytes(frames, WRITE_AT_ONCE)
                offered = self.size if batch is frames else sum(map(len, batch))
                taken = self._sink.write(batch)
                if batch is frames and taken == offered:  # nearly always, for each member of each message
                    frames.clear()
                    self.size -= taken
                    self._urgent = 0
                    if self._drained is not None:
                        self._drained.set()
                    break
                self._forget(batch, offered, taken)
                if taken < offered:
                    self._blocked = self._scheduled = True
                    self._sink.watch_writable()
                    return
        except OSError as error:
            self.close()
            self._sink.broken(error)
            return
        except Exception as error:
            log.exception("a transport failed to write")
            self.close()
            self._sink.broken(OSError(str(error)))
            return
        if self.closed:
            self._sink.finished()

    def _forget(self, batch: list[Any], offered: int, taken: int) -> None:
        """Remove ``taken`` bytes from the front."""
        if not taken:
            return
        frames = self._frames
        self.size -= taken
        self._urgent = max(0, self._urgent - taken)  # they go first
        if taken == offered:
            del frames[: len(batch)]
        else:
            whole = 0
            while taken >= len(frames[whole]):
                taken -= len(frames[whole])
                whole += 1
            del frames[:whole]
            if taken:
                frames[0] = memoryview(frames[0])[taken:]
        self._wake()

    def _wake(self) -> None:
        """Let those who wait for room look again."""
        if self._drained is not None:
            self._drained.set()

    def keep_first(self, size: int) -> None:
        """The sink took nothing and yet must be offered the same first ``size`` bytes again.

        The frames they belong to count as half-sent from now on: nothing overtakes or replaces them.
        """
        frames = self._frames
        whole = 0
        while whole < len(frames) and size > 0:
            size -= len(frames[whole])
            whole += 1
        frames[:whole] = [memoryview(b"".join(frames[:whole]))]

    def resume(self) -> None:
        """The socket can take more: called by the sink after ``watch_writable``."""
        self._blocked = False
        self.drop_expired()
        before = self.size
        self.flush()
        self.progress += before - self.size

    def has_room(self, size: int = 0) -> bool:
        """Tell whether ``size`` bytes more can go without waiting: below the high-water mark, and they fit."""
        if self.size > self.park_at or self.size + size > self.limit:
            if not self._blocked:
                self.flush()
            self.drop_expired()
            return self.closed or (self.size <= self.park_at and self.size + min(size, self.limit) <= self.limit)
        return True

    def wait_for_room(self, timeout: float, size: int = 0) -> bool:
        """Park this greenlet until ``size`` bytes more can go, or the outbox is closed. Switches greenlets.

        Those who are woken look again one after the other, so a crowd of senders cannot overfill it.

        :param timeout: seconds; 0 only asks.
        :returns: whether there is room.
        """
        return self._wait_until(lambda: self.has_room(size), timeout)

    def _wait_until(self, is_ready: Callable[[], bool], timeout: float) -> bool:
        """Park this greenlet until something holds that is told again whenever bytes have left. Switches."""
        if is_ready():
            return True
        if timeout <= 0 or gevent.getcurrent() is gevent.get_hub():
            return False
        deadline = time.monotonic() + timeout
        while not is_ready():
            if self._drained is None or self._drained.is_set():
                self._drained = Event()
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._drained.wait(remaining):
                if self._blocked:
                    self.resume()  # after a blocked loop there may be room, and nobody has been told of it yet
                return is_ready()
        return True

    def discard(self) -> None:
        """Drop all that is not under way (counted), keeping only the rest of a half-sent frame."""
        frames = self._frames
        kept = frames[:1] if frames and type(frames[0]) is memoryview else []
        self._left(len(frames) - len(kept))
        self._frames = kept
        self.size = sum(map(len, kept))
        self._urgent = 0
        self._wake()

    def close(self) -> None:
        """Refuse everything from now on, drop (and count) what was never sent, and wake whoever waits."""
        self.closed = True
        self.limit = -1
        if self._frames:
            self._left(len(self._frames))
            self._frames = []
        self.size = 0
        self._wake()

    def _left(self, count: int) -> None:
        """So many frames will not be written: somebody keeps them, or they are lost."""
        if self.keeper is not None:
            self.keeper.left(count)
        else:
            self._flusher.counters["dropped_undelivered"] += count


def stall(crowded: Collection[Outbox], timeout: float) -> None:
    """Wait for crowded outboxes, at most ``timeout`` seconds for all of them together. Switches greenlets.

    So that a fast publisher cannot cut healthy members off, and a lazy one costs it little.
    """
    deadline = time.perf_counter() + timeout
    for outbox in crowded:
        remaining = deadline - time.perf_counter()
        if remaining <= 0:
            return
        outbox.wait_for_room(remaining)


def _first_bytes(frames: list[Any], at_least: int) -> list[Any]:
    """Return the first frames that together have ``at_least`` bytes, or all."""
    total = 0
    for count, frame in enumerate(frames, 1):
        total += len(frame)
        if total >= at_least:
            return frames[:count]
    return frames[:]
