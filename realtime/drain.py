"""Stopping without losing anybody: nobody new, handlers finish, clients are told to come back."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import gevent

from realtime.codes import CloseCode
from realtime.hub import Hub

if TYPE_CHECKING:
    from realtime.kernel import TransportLike

__all__ = ["SIGNALS", "check_close", "come_back", "drain"]

log = logging.getLogger("realtime")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BATCH = 100  # clients told at once
BATCH_PAUSE = 0.05  # seconds between batches: their reconnects come spread out too
RETRY_SPREAD = 5.0  # seconds over which the retry hints are spread
_CLOSABLE = frozenset({1000, 1001, 1008, 1011})


def check_close(code: int, reason: str) -> None:
    """Raise ValueError unless a server may close with this code and reason (RFC 6455 sections 5.5, 7.4)."""
    if not isinstance(code, int) or not (code in _CLOSABLE or 3000 <= code <= 4999):
        raise ValueError(f"code={code!r}: must be 1000, 1001, 1008, 1011 or 3000 to 4999")
    if len(reason.encode()) > 123:
        raise ValueError(f"reason: at most 123 bytes of UTF-8, got {len(reason.encode())}")


def drain(hub: Hub, transports: Sequence[TransportLike], timeout: float) -> None:
    """Take the kernel down within ``timeout`` seconds. Switches greenlets.

    Half the time is for handlers to finish; a handler that waits for its client is woken by the client's
    disconnection instead.
    """
    deadline = time.monotonic() + timeout
    try:
        for transport in transports:
            _try(transport.on_drain)
        _let_handlers_finish(hub, deadline - timeout / 2)
        _tell_clients(hub, deadline)
        _wait_until(lambda: not hub.connections and not any(t.closing() for t in transports), deadline)
        hub.workers.wait_quiet(max(0.0, deadline - time.monotonic()))
    finally:  # also when the caller's own timeout strikes
        for transport in transports:
            _try(transport.on_stop)
        for connection in list(hub.connections.values()):
            hub.remove(connection, "server stopped", code=CloseCode.GOING_AWAY)


def _let_handlers_finish(hub: Hub, deadline: float) -> None:
    """Read nothing more, and wait until every handler has ended or waits for its client."""
    hub.draining = True
    for connection in hub.connections.values():
        if not connection.paused and not connection.is_awaited:
            connection.pause()

    def only_waiting() -> bool:
        return hub.workers.busy_others() <= hub.workers.parked_jobs

    _wait_until(only_waiting, deadline)


def _tell_clients(hub: Hub, deadline: float) -> None:
    """Close every client with 4013 and a hint when to come back, a batch at a time."""
    connections = list(hub.connections.values())
    for start in range(0, len(connections), BATCH):
        for connection in connections[start : start + BATCH]:
            _try(hub.close, connection, CloseCode.DRAINING, come_back())
        if start + BATCH < len(connections) and time.monotonic() < deadline:
            gevent.sleep(BATCH_PAUSE)


def come_back() -> str:
    """Return the close reason that tells a client when to try again, spread so that not all come at once."""
    return f"retry_after={random.uniform(0, RETRY_SPREAD):.2f}"


def _wait_until(done: Callable[[], bool], deadline: float) -> None:
    while not done() and time.monotonic() < deadline:
        gevent.sleep(0.01)


def _try(function: Callable[..., object], *args: object) -> None:
    """Call; log what fails, because the rest must be stopped all the same."""
    try:
        function(*args)
    except Exception:
        log.exception("while stopping")
