"""What waits to be sent while there is no connection."""

from __future__ import annotations

from dataclasses import dataclass

from realtime.client.calls import Pending
from realtime.client.options import ClientLimits
from realtime.errors import QueueFull

__all__ = ["SendQueue", "Unsent"]


@dataclass(frozen=True, eq=False)
class Unsent:
    """A message that waits for a connection."""

    data: bytes
    call: Pending | None
    """Whose question it is."""


class SendQueue:
    """In order, and bounded. Not for several threads at once: the client's lock sees to that."""

    def __init__(self, limits: ClientLimits) -> None:
        self._entries: dict[Unsent, None] = {}
        self._bytes = 0
        self._limits = limits

    def put(self, data: bytes, call: Pending | None) -> None:
        """Add a message. Raises QueueFull."""
        if len(self._entries) >= self._limits.queue or self._bytes + len(data) > self._limits.queue_bytes:
            raise QueueFull(
                f"not connected, and {len(self._entries)} messages of {self._bytes} bytes wait already: "
                f"no room for {len(data)} more"
            )
        self._entries[Unsent(data, call)] = None
        self._bytes += len(data)

    def take(self) -> Unsent | None:
        """Return what was put first; None once there is nothing."""
        first = next(iter(self._entries), None)
        if first is not None:
            self._remove(first)
        return first

    def put_back(self, entry: Unsent) -> None:
        """Have what was taken last be the first again."""
        self._entries = {entry: None, **self._entries}
        self._bytes += len(entry.data)

    def withdraw(self, call: Pending) -> None:
        """Take back the question of a call that was given up."""
        for entry in list(self._entries):
            if entry.call is call:
                self._remove(entry)

    def clear(self) -> int:
        """Forget all; return how many messages that were no calls are lost by it."""
        lost = sum(entry.call is None for entry in self._entries)
        self._entries.clear()
        self._bytes = 0
        return lost

    def _remove(self, entry: Unsent) -> None:
        del self._entries[entry]
        self._bytes -= len(entry.data)
