"""When to look at which connection again: pings, pong deadlines and close deadlines of a whole server.

One heap and one greenlet, not a timer and a greenlet per connection.
"""

from __future__ import annotations

import heapq
import time
import weakref
from itertools import count
from typing import Protocol

import gevent

__all__ = ["Heartbeats", "Watched"]

LONGEST_SLEEP = 1.0  # seconds: what is added meanwhile and due earlier waits no longer than this
SHORTEST_SLEEP = 0.01


class Watched(Protocol):
    """Something that wants to be looked at in time."""

    def tick(self, now: float) -> float | None:
        """Do what is due at ``now`` (monotonic seconds); return when to be called again, None for never."""


class Heartbeats:
    """Calls ``tick`` of everything added when it asked for it, at most a second late."""

    def __init__(self) -> None:
        # weak, so that a connection that has ended is not kept until it would have been due
        self._heap: list[tuple[float, int, weakref.ref[Watched]]] = []
        self._order = count()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, watched: Watched) -> None:
        """Call ``watched.tick`` at ``due``, monotonic seconds."""
        heapq.heappush(self._heap, (due, next(self._order), weakref.ref(watched)))

    def run_due(self, now: float) -> float:
        """Tick everything that is due; return the seconds until the next is."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            watched = heapq.heappop(heap)[2]()
            again = watched.tick(now) if watched is not None else None
            if watched is not None and again is not None:
                self.add(max(again, now + SHORTEST_SLEEP), watched)
        return min(max(heap[0][0] - now, SHORTEST_SLEEP), LONGEST_SLEEP) if heap else LONGEST_SLEEP

    def start(self) -> None:
        """Start the greenlet."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End the greenlet and forget everything. Switches greenlets."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
        self._heap.clear()

    def _run(self) -> None:
        while True:
            gevent.sleep(self.run_due(time.monotonic()))
