"""Calls of handlers that are left at a node, while the session of their client goes on at another.

The node that hands a session over tells which calls are open, and for how long. At the new node each is waited for as
long, and the answer goes back the way that the client has come.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from realtime.codes import CloseCode, ErrorCode
from realtime.connection import Connection
from realtime.conversation import Answer
from realtime.errors import CallFailed, ConnectionClosed, RealtimeError

if TYPE_CHECKING:
    from realtime.hub import Hub

__all__ = ["CallsLeft"]

log = logging.getLogger("realtime")

ANSWER_TIMEOUT = 5.0  # seconds for a node to have heard of an answer


class _Distant:
    """Who waits at another node."""

    __slots__ = ("_ack", "_client_id", "_hub", "_node", "deadline")

    def __init__(self, hub: Hub, node: str, client_id: str, ack: int, deadline: float) -> None:
        self._hub = hub
        self._node = node
        self._client_id = client_id
        self._ack = ack
        self.deadline = deadline

    def set(self, result: Any) -> None:
        """It answered."""
        self._tell({"result": result})

    def set_exception(self, error: BaseException) -> None:
        """It refused, or went away."""
        if isinstance(error, CallFailed):
            self._tell({"failed": [error.message, error.code]})
        else:
            self._tell({"closed": getattr(error, "code", CloseCode.ABNORMAL)})

    def _tell(self, said: dict[str, Any]) -> None:
        said |= {"client": self._client_id, "ack": self._ack}
        try:
            self._hub.cluster.ask_node(self._node, "answer", said, ANSWER_TIMEOUT, _ignore)
        except RealtimeError as error:
            log.debug("an answer cannot be passed on to node %s: %s", self._node, error)


class _Carried:
    """An open call that a client has brought along: waited for until the call has ended, and no longer."""

    __slots__ = ("_timer", "deadline", "to")

    def __init__(self, client: Connection, ack: int, to: Answer) -> None:
        self.to = to
        """Who waits: here, or at another node."""
        self.deadline = to.deadline
        self._timer = gevent.get_hub().loop.timer(max(0.0, self.deadline - monotonic()))
        self._timer.start(partial(self._expire, client, ack))

    def _expire(self, client: Connection, ack: int) -> None:
        self.release()
        if client.calls:
            client.calls.pop(ack, None)

    def release(self) -> None:
        """Wait for nothing any more."""
        self._timer.close()

    def set(self, result: Any) -> None:
        """It answered."""
        self.release()
        self.to.set(result)

    def set_exception(self, error: BaseException) -> None:
        """It refused, or went away."""
        self.release()
        self.to.set_exception(error)


class CallsLeft:
    """Those of one hub, at either side of a move."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._departed: dict[str, tuple[Connection, float]] = {}  # and until when they may be asked about

    def clear(self) -> None:
        """Forget all."""
        for client, _ in self._departed.values():
            _release(client)
        self._departed.clear()

    # The old node ------------------------------------------------------------------------------------------

    def left(self, client: Connection) -> list[tuple[int, float]]:
        """Return a client's open calls, each with the seconds that are left to answer it."""
        now = monotonic()
        return [(ack, max(0.0, answer.deadline - now)) for ack, answer in (client.calls or {}).items()]

    def keep(self, client: Connection) -> None:
        """A client moves: its answers will come from where it is then."""
        if client.calls:
            self._departed.pop(client.id, None)  # the last to begin is the last to expire
            self._departed[client.id] = client, monotonic() + self._hub.limits.session_grace

    def forget_old(self, now: float) -> float | None:
        """Forget clients that no handler waits for any more; return when to look again."""
        while self._departed and next(iter(self._departed.values()))[1] < now:
            client, _ = self._departed.pop(next(iter(self._departed)))
            if client.calls:  # a handler waits for longer
                self._departed[client.id] = client, now + self._hub.limits.session_grace
        return next(iter(self._departed.values()))[1] if self._departed else None

    def take_answer(self, arguments: Mapping[str, Any]) -> bool:
        """A client that has moved has answered a call of a handler here; False if none waits any more."""
        answer = self._take(arguments["client"], arguments["ack"])
        if answer is None:
            return False
        if "failed" in arguments:
            text, code = arguments["failed"]
            answer.set_exception(CallFailed(str(text), code=str(code or ErrorCode.REJECTED)))
        elif "closed" in arguments:
            answer.set_exception(ConnectionClosed(int(arguments["closed"]), "the client has disconnected"))
        else:
            answer.set(arguments.get("result"))
        return True

    def _take(self, client_id: str, ack: int) -> Answer | None:
        """Return what waits here for an answer of a client that has moved, or was here on its way; None if nothing."""
        client, _ = self._departed.get(client_id, (None, 0.0))
        return client.calls.pop(ack, None) if client is not None and client.calls else None

    # The new node ------------------------------------------------------------------------------------------

    def carry_on(self, client: Connection, node: str, calls: Sequence[tuple[int, float]]) -> None:
        """Let a client that comes from a node answer what ``left`` told of it there."""
        if calls:
            client.calls = {ack: _Carried(client, ack, self._asker(client, node, ack, left)) for ack, left in calls}

    def _asker(self, client: Connection, node: str, ack: int, left: float) -> Answer:
        """Return who waits for an answer: the handler if that is here, else the way back that the client has come."""
        known = self._take(client.id, ack)
        if isinstance(known, _Carried):
            known.release()
            return known.to
        return known or _Distant(self._hub, node, client.id, ack, monotonic() + left)


def _release(client: Connection) -> None:
    for answer in (client.calls or {}).values():
        if isinstance(answer, _Carried):
            answer.release()


def _ignore(result: Any, error: Exception | None) -> None:
    """Nobody waits for it."""
