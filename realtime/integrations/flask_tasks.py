"""Functions that run beside the handlers, for as long as the kernel does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from gevent.pool import Group

__all__ = ["Tasks"]

log = logging.getLogger("realtime.flask")

STOPPING = 1.0  # seconds for tasks to end once they were told to


class Tasks:
    """A service of the kernel that owns one greenlet for each function."""

    def __init__(self) -> None:
        self._early: list[Callable[[], Any]] = []  # before the kernel runs
        self._group: Group | None = None
        self._failed = 0

    def spawn(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run a function now, or as soon as the kernel has started. In the kernel's thread; never switches."""
        task = partial(function, *args, **kwargs)
        if self._group is None:
            self._early.append(task)
        else:
            self._group.spawn(self._run, task)

    def on_start(self) -> None:
        """Run what was given early."""
        self._group = Group()
        early, self._early = self._early, []
        for task in early:
            self._group.spawn(self._run, task)

    def on_stop(self) -> None:
        """End what still runs, with GreenletExit where it waits."""
        group, self._group = self._group, None
        if group is not None:
            group.kill(timeout=STOPPING)

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        return {"name": "flask tasks", "running": len(self._group) if self._group else 0, "failed": self._failed}

    def _run(self, task: Callable[[], Any]) -> None:
        try:
            task()
        except Exception:
            self._failed += 1
            log.exception("a function given to spawn failed")
