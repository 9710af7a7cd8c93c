"""Calls whose answers have not come, by the id that the answers carry."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

from realtime.client.wire import ClientMessage
from realtime.codes import ErrorCode
from realtime.errors import CallFailed, RealtimeError, TimedOut

__all__ = ["OVERFLOW", "Calls", "Overtaken", "Pending", "Question", "Repetition"]

OVERFLOW = "overflow"  # the code of a streamed answer that nobody reads fast enough


class Overtaken(RealtimeError):
    """A question was not sent, because of what happened while it waited: to be asked later. Never told to callers."""


class Pending(Protocol):
    """What waits for an answer."""

    was_sent: bool
    """Whether the server may have it: then it is never sent again."""

    def may_go(self) -> bool:
        """Tell, when it could be sent, whether it still should be; if not, it fails with Overtaken."""

    def item(self, item: Any) -> None:
        """A piece of a streamed answer."""

    def succeed(self, result: Any) -> None:
        """The end of it."""

    def fail(self, error: RealtimeError) -> None:
        """The end of it."""


class Question:
    """A call for which a thread waits.

    :param items: pieces of a streamed answer that may wait to be read; 0: they only show that the answer comes.
    :param heard: told the result by the thread that reads, before the next message is.
    :param may_go: see Pending.
    """

    def __init__(
        self,
        items: int = 0,
        heard: Callable[[Any], None] | None = None,
        may_go: Callable[[], bool] = lambda: True,
    ) -> None:
        self._heard_result = heard
        self.may_go = may_go
        self.was_sent = False
        self._capacity = items
        self._changed = threading.Condition()
        self._items: deque[Any] = deque()
        self._heard = 0
        self._ended = False
        self._result: Any = None
        self._error: RealtimeError | None = None

    def item(self, item: Any) -> None:
        with self._changed:
            self._heard += 1
            if self._ended:
                return
            if self._capacity and len(self._items) >= self._capacity:
                self._ended = True
                self._error = CallFailed(f"more than {self._capacity} items waited to be read", code=OVERFLOW)
            elif self._capacity:
                self._items.append(item)
            self._changed.notify_all()

    def succeed(self, result: Any) -> None:
        if self._heard_result is not None:
            self._heard_result(result)
        self._end(result, None)

    def fail(self, error: RealtimeError) -> None:
        self._end(None, error)

    def _end(self, result: Any, error: RealtimeError | None) -> None:
        with self._changed:
            if not self._ended:
                self._ended, self._result, self._error = True, result, error
                self._changed.notify_all()

    @property
    def overflowed(self) -> bool:
        """Whether items were lost, so that the rest is of no use."""
        return isinstance(self._error, CallFailed) and self._error.code == OVERFLOW

    def result(self, timeout: float) -> Any:
        """Wait for the end of the answer and return it.

        :param timeout: seconds without an answer or an item.
        :raises TimedOut: they have passed.
        :raises RealtimeError: what it failed with.
        """
        with self._changed:
            while not self._ended:
                self._wait(timeout)
            if self._error is not None:
                raise self._error
            return self._result

    def next_item(self, timeout: float) -> tuple[bool, Any]:
        """Wait for an item and return ``(True, item)``, or at the end ``(False, result)``; raises as :meth:`result`."""
        with self._changed:
            while not self._items and not self._ended:
                self._wait(timeout)
            if self._items:
                return True, self._items.popleft()
            if self._error is not None:
                raise self._error
            return False, self._result

    def _wait(self, timeout: float) -> None:
        """Wait for one change; raise TimedOut if nothing was heard for ``timeout`` seconds."""
        heard, deadline = self._heard, time.monotonic() + timeout
        while heard == self._heard and not self._ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"no answer within {timeout:g} s")
            self._changed.wait(min(left, threading.TIMEOUT_MAX))


class Repetition:
    """Something that is said again after a reconnect: nobody waits for it."""

    def __init__(self, succeeded: Callable[[Any], None], failed: Callable[[RealtimeError], None]) -> None:
        self.was_sent = True
        self._succeeded = succeeded
        self._failed = failed

    def may_go(self) -> bool:
        return True

    def item(self, item: Any) -> None:
        """Of no interest."""

    def succeed(self, result: Any) -> None:
        self._succeeded(result)

    def fail(self, error: RealtimeError) -> None:
        self._failed(error)


class Calls:
    """Those that wait. Any thread may ask; the one that reads gives the answers."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}
        self._numbers = count(1)

    def add(self, pending: Pending) -> str:
        """Return an id no other call of this client has."""
        ack = f"c{next(self._numbers)}"
        self._pending[ack] = pending
        return ack

    def forget(self, ack: str) -> None:
        """Nobody waits any more."""
        self._pending.pop(ack, None)

    def __contains__(self, ack: str) -> bool:
        return ack in self._pending

    def take(self, message: ClientMessage) -> bool:
        """Settle the call that a message answers; False if it answers none that waits."""
        kind, payload = message.type, message.payload
        if not kind.startswith("system:") or not isinstance(payload, dict):
            return False
        ack = payload.get("ack")
        pending = self._pending.get(ack) if isinstance(ack, str) else None
        if pending is None:
            return False
        assert isinstance(ack, str)
        if kind == "system:stream":
            pending.item(payload.get("item"))
            return True
        if kind not in ("system:ack", "system:error"):
            return False
        self.forget(ack)
        if kind == "system:ack":
            pending.succeed(payload.get("result"))
        else:
            pending.fail(_failure(payload))
        return True

    def fail_all(self, make_error: Callable[[], RealtimeError], *, unsent_too: bool) -> None:
        """End those that wait, each with an error of its own, as tracebacks grow on what is raised twice."""
        for ack, pending in list(self._pending.items()):
            if unsent_too or pending.was_sent:
                self.forget(ack)
                pending.fail(make_error())


def _failure(payload: dict[str, Any]) -> CallFailed:
    details = payload.get("details")
    message = str(payload.get("message", ""))
    code = str(payload.get("code", ErrorCode.REJECTED))
    return CallFailed(message, code=code, details=None if details is None else str(details))
