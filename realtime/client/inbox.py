"""Messages on their way from the thread that reads to the one that runs handlers, or to who waits for one of them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from realtime.client.options import ClientLimits
from realtime.client.wire import ClientMessage
from realtime.errors import QueueFull, RealtimeError, TimedOut
from realtime.events import ANY

__all__ = ["Entry", "Inbox"]


@dataclass(frozen=True)
class Entry:
    """A message that waits."""

    message: ClientMessage
    size: int
    source: object
    """The link it came by; None for what the client tells itself."""
    claimed: bool = True
    """False: ``wait_for`` has it, or may have it, and only ``"*"`` handlers hear of it here."""


class _Failable(Protocol):
    def fail(self, error: RealtimeError) -> None:
        """End a wait."""


class _Waiter:
    """A ``wait_for`` that goes on."""

    def __init__(self, type: str) -> None:
        self.type = type
        self.message: ClientMessage | None = None
        self.error: RealtimeError | None = None
        self.done = threading.Event()

    def takes(self, message: ClientMessage) -> bool:
        return self.message is None and self.error is None and self.type in (ANY, message.type)

    def take(self, message: ClientMessage) -> None:
        self.message = message
        self.done.set()

    def fail(self, error: RealtimeError) -> None:
        self.error = error
        self.done.set()


class Inbox:
    """Bounded by its reader: ``is_full`` asks to read no more, ``on_room`` is told when reading may go on.

    :param handled: tells whether handlers listen to a type.
    :param stats: counts ``unclaimed``: dropped although nothing handled them and nobody had waited for them yet.
    """

    def __init__(
        self,
        limits: ClientLimits,
        *,
        handled: Callable[[str], bool],
        on_room: Callable[[], None],
        stats: Counter[str],
    ) -> None:
        self._limits = limits
        self._handled = handled
        self._on_room = on_room
        self._stats = stats
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._full = False
        self._end: Callable[[], RealtimeError] | None = None
        self._waiters: list[_Waiter] = []
        self._unclaimed: deque[Entry] = deque()
        self._unclaimed_bytes = 0
        self._handler: int | None = None  # the thread that runs handlers
        self._handler_waits: _Failable | None = None

    def begin(self) -> None:
        """Messages will come, whatever :meth:`end` said before."""
        self._end = None

    # From the thread that reads ---------------------------------------------------------------------------

    def put(self, message: ClientMessage, size: int, source: object) -> None:
        """Add a message from the server. Never waits; ask :meth:`is_full` before reading on."""
        with self._lock:
            entry = Entry(message, size, source, self._claim(message, size))
            if entry.claimed or self._handled(ANY):
                self._append(entry)

    def tell(self, message: ClientMessage) -> None:
        """Add something that the client says itself."""
        with self._lock:
            self._append(Entry(message, 0, None))

    def hear(self, message: ClientMessage, size: int, source: object) -> None:
        """Add an answer to a call, of which only ``"*"`` handlers hear."""
        with self._lock:
            if self._handled(ANY):
                self._append(Entry(message, size, source, claimed=False))

    def is_full(self) -> bool:
        """Tell whether to read no more for now. Then a handler that waits for an answer waits no longer."""
        if not self._full:
            return False
        with self._lock:
            waits, self._handler_waits = self._handler_waits, None
            count, size = len(self._entries), self._bytes
        if waits is not None:
            waits.fail(QueueFull(f"{count} messages of {size} bytes wait for this handler: no answer can come in"))
        return self._full

    def end(self, make_error: Callable[[], RealtimeError]) -> None:
        """No more will come: what is there is handled, then :meth:`take` returns None; waits fail."""
        with self._lock:
            self._end = make_error
            waiters, self._waiters = self._waiters, []
            self._changed.notify_all()
        for waiter in waiters:
            waiter.fail(make_error())

    # From others ------------------------------------------------------------------------------------------

    def wait_for(self, type: str, timeout: float) -> ClientMessage:
        """Take the first message of a type, ``"*"`` for any, that no handler has had: one that is here, or comes.

        :raises TimedOut: none came within ``timeout`` seconds.
        :raises RealtimeError: what :meth:`end` was told, or QueueFull in a handler.
        """
        waiter = _Waiter(type)
        with self._lock:
            found = self._find(waiter)
            if found is not None:
                return found
            if self._end is not None:
                raise self._end()
            self._waiters.append(waiter)
        try:
            with self.waiting(waiter):
                waiter.done.wait(min(timeout, threading.TIMEOUT_MAX))
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        if waiter.message is not None:
            return waiter.message
        raise waiter.error or TimedOut(f"no {type!r} within {timeout:g} s")

    def waiting(self, what: _Failable) -> _Waiting:
        """While this context lasts, what is waited for fails should the inbox fill up, if a handler is who waits."""
        return _Waiting(self, what)

    # From the thread that runs handlers -------------------------------------------------------------------

    def take(self) -> Entry | None:
        """Wait for the next message; None at the end."""
        with self._lock:
            self._handler = threading.get_ident()
            while not self._entries:
                if self._end is not None:
                    return None
                self._changed.wait()
            entry = self._entries.popleft()
            has_room = self._remove(entry)
        if has_room:
            self._on_room()
        return entry

    def discard(self) -> int:
        """Forget what waits for handlers; return how many messages that is."""
        with self._lock:
            count = sum(entry.claimed and entry.source is not None for entry in self._entries)
            self._entries = deque(entry for entry in self._entries if entry.source is None)
            self._bytes = 0
            self._full = False
        return count

    # Inside, with the lock ----------------------------------------------------------------------------------

    def _claim(self, message: ClientMessage, size: int) -> bool:
        """Give the message to a wait that wants it, or keep it for one; True if it is the handlers'."""
        if message.ack is not None:
            return True  # a question: the handlers' thread answers it
        for waiter in self._waiters:
            if waiter.takes(message):
                waiter.take(message)
                return False
        if self._handled(message.type):
            return True
        self._keep(Entry(message, size, None))
        return False

    def _keep(self, entry: Entry) -> None:
        self._unclaimed.append(entry)
        self._unclaimed_bytes += entry.size
        while (
            len(self._unclaimed) > self._limits.unclaimed or self._unclaimed_bytes > self._limits.unclaimed_bytes
        ):
            self._unclaimed_bytes -= self._unclaimed.popleft().size
            self._stats["unclaimed"] += 1

    def _find(self, waiter: _Waiter) -> ClientMessage | None:
        for entry in self._unclaimed:
            if waiter.takes(entry.message):
                self._unclaimed.remove(entry)
                self._unclaimed_bytes -= entry.size
                return entry.message
        for index, entry in enumerate(self._entries):
            is_free = entry.source is not None and entry.claimed and entry.message.ack is None
            if is_free and waiter.takes(entry.message):
                self._entries[index] = Entry(entry.message, entry.size, entry.source, claimed=False)
                return entry.message
        return None

    def _append(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._bytes += entry.size
        if len(self._entries) >= self._limits.inbox or self._bytes >= self._limits.inbox_bytes:
            self._full = True
        self._changed.notify()

    def _remove(self, entry: Entry) -> bool:
        """Count one less; tell whether reading may go on by that."""
        self._bytes -= entry.size
        if not self._full:
            return False
        # not at once: stopping and going on for every message would cost more than it handles
        self._full = len(self._entries) > self._limits.inbox // 2 or self._bytes > self._limits.inbox_bytes // 2
        return not self._full


class _Waiting:
    def __init__(self, inbox: Inbox, what: _Failable) -> None:
        self._inbox = inbox
        self._what = what

    def __enter__(self) -> None:
        inbox = self._inbox
        if inbox._handler != threading.get_ident():
            return
        with inbox._lock:
            inbox._handler_waits = self._what
        if inbox._full:
            inbox._on_room()  # has the reader find out, and say so

    def __exit__(self, *_: object) -> None:
        inbox = self._inbox
        if inbox._handler == threading.get_ident():
            with inbox._lock:
                inbox._handler_waits = None
