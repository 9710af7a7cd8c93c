"""The flusher: every outbox that was written to is flushed once per turn of the event loop."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from gevent.hub import Hub as GeventHub

if TYPE_CHECKING:
    from realtime.outbox import Outbox

__all__ = ["Flusher"]

log = logging.getLogger("realtime")


class Flusher:
    """Flushes every outbox that was written to, once per loop turn. One per hub of gevent."""

    __slots__ = ("_dirty", "_expiring", "_loop", "counters")

    def __init__(self, hub: GeventHub, counters: Counter[str]) -> None:
        self._loop = hub.loop
        self._dirty: list[Outbox] = []
        self._expiring: list[Outbox] = []
        self.counters = counters

    def add(self, outbox: Outbox) -> None:
        """Have ``outbox`` flushed before the loop next waits for events."""
        if not self._dirty:
            self._loop.run_callback(self._flush_all)
        self._dirty.append(outbox)

    def add_expiring(self, outbox: Outbox) -> None:
        """``outbox``, which is flushed in this turn, has got what may have expired by then."""
        self._expiring.append(outbox)

    def _flush_all(self) -> None:
        dirty, self._dirty = self._dirty, []
        if self._expiring:
            expiring, self._expiring = self._expiring, []
            for outbox in expiring:
                outbox.drop_expired()
        for outbox in dirty:
            try:
                outbox.flush()
            except Exception:  # a transport that fails to end must not keep the others' messages
                log.exception("a transport failed to end a connection")
