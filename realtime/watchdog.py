"""Names the handler that holds the event loop, while it does.

A native thread looks at a counter that the loop advances each turn. Where the loop is neither waiting for
events nor advancing, the stack of its thread tells which line of whose code it stands on.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

import gevent
from gevent.monkey import get_original

__all__ = ["Watchdog"]

log = logging.getLogger("realtime")

# the real ones: the thread must run while gevent's loop is stuck
_sleep = get_original("time", "sleep")
_start_new_thread = get_original("_thread", "start_new_thread")
_get_ident = get_original("_thread", "get_ident")

_OURS = (__package__ or "realtime").replace(".", "/") + "/"
_MACHINERY = (_OURS, "gevent/", "/threading.py", "/contextvars.py")


class Watchdog:
    """Watches one event loop from a thread of its own.

    :param threshold: seconds the loop may be held before a warning.
    """

    def __init__(self, threshold: float) -> None:
        self.count = 0
        self._threshold = threshold
        self._turn = 0
        self._waiting = True
        self._watchers: list[Any] = []
        self._generation = 0

    def start(self) -> None:
        """Watch the current thread's loop."""
        loop = gevent.get_hub().loop
        # libev calls prepare right before it waits for events, check right after. gevent switches to greenlets in
        # a prepare watcher of its own: ours must come after that one, or they would pass for waiting.
        try:
            self._watchers = [
                loop.prepare(ref=False, priority=loop.MINPRI),  # type: ignore[attr-defined]
                loop.check(ref=False, priority=loop.MAXPRI),  # type: ignore[attr-defined]
            ]
        except TypeError:
            return  # gevent's libuv loop has none of these: there handlers that hold it are not named
        self._watchers[0].start(self._before_wait)
        self._watchers[1].start(self._after_wait)
        self._generation += 1
        self._waiting = True
        loop.run_callback(self._after_wait)  # the first turn runs greenlets before it ever waits
        _start_new_thread(self._watch, (_get_ident(), self._generation))

    def stop(self) -> None:
        """Watch no more; the thread ends within one period."""
        self._generation += 1
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers = []

    def _before_wait(self) -> None:
        self._waiting = True

    def _after_wait(self) -> None:
        self._waiting = False
        self._turn += 1

    def _watch(self, ident: int, generation: int) -> None:
        """The thread."""
        seen, held, warned = -1, 0.0, False
        period = self._threshold / 4
        while self._generation == generation:
            _sleep(period)
            if self._waiting or self._turn != seen:
                seen, held, warned = self._turn, 0.0, False
                continue
            held += period
            if held >= self._threshold and not warned:
                warned = self._warn(ident, held)
                held = 0.0  # a handler may begin to hold it in the very turn in which the machine has

    def _warn(self, ident: int, held: float) -> bool:
        """Tell who holds the loop; return whether it is anybody."""
        frame = sys._current_frames().get(ident)
        try:
            culprit = _culprit(frame)
        finally:
            del frame
        if culprit is None:
            # nobody's handler: mostly the machine that gave this process no time
            log.debug("the event loop stood still for more than %.0f ms", held * 1000)
            return False
        self.count += 1
        log.warning("the event loop is held for more than %.0f ms by %s", held * 1000, culprit)
        return True


def _culprit(frame: FrameType | None) -> str | None:
    """Name the innermost line that is the application's own, and the handler it was called from; None if none is."""
    line = handler = None
    while frame is not None:
        filename = frame.f_code.co_filename
        if not any(part in filename for part in _MACHINERY):
            where = f"{filename}:{frame.f_lineno} in {frame.f_code.co_name}"
            line = line or where
            handler = frame.f_code.co_name
        frame = frame.f_back
    if line is None:
        return None
    return f"handler {handler} ({line})"
