"""Expiry: a greenlet that sleeps until the next thing ends, and does not wake while nothing can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

import gevent
from gevent.event import Event

__all__ = ["Expiry"]

log = logging.getLogger("realtime")

STOPPING = 1.0  # seconds for the greenlet to end
AFTER_FAILURE = 1.0  # seconds until it is tried again


class Expiry:
    """Calls ``expire`` when something is due.

    :param expire: does away with what is due at a moment of ``time.monotonic``; returns when the next thing is,
        or None. May switch greenlets.
    """

    def __init__(self, expire: Callable[[float], float | None]) -> None:
        self._expire = expire
        self._changed = Event()
        self._wakes_at: float | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End the greenlet. Switches. A second call does nothing."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(timeout=STOPPING)

    def due(self, moment: float) -> None:
        """Something ends at ``moment``: see to it that the greenlet is awake then. Never switches."""
        if self._wakes_at is None or moment < self._wakes_at:
            self._wakes_at = moment
            self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                self._wakes_at = self._expire(monotonic())
            except Exception:
                log.exception("expiry failed")
                self._wakes_at = monotonic() + AFTER_FAILURE
            self._changed.wait(None if self._wakes_at is None else max(0.0, self._wakes_at - monotonic()))
