"""One client's session, and what carries it at present."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from realtime.codes import CloseCode
from realtime.connection import Connection
from realtime.message import Wire
from realtime.outbox import Outbox
from realtime.session_ring import Ring
from realtime.session_wire import changed
from realtime.sink import Keeper

if TYPE_CHECKING:
    from realtime.hub import Hub

__all__ = ["Line", "Nowhere", "Session", "State"]


class State(Enum):
    """What is known of the client of a session."""

    CARRIED = "carried"
    AWAY = "away"
    OVER = "over"


class Session:
    """One client, and what is needed to go on with it.

    :param client: the connection it first came by.
    :param ring: what was sent to it.
    """

    __slots__ = (
        "client",
        "closing",
        "deadline",
        "end",
        "line",
        "received",
        "ring",
        "state",
        "tokens",
        "told",
        "unheard",
        "unwritten",
    )

    line: Line
    """What carries it; while the client is away, what its messages wait in."""

    def __init__(self, client: Connection, ring: Ring) -> None:
        self.client = client
        self.ring = ring
        self.state = State.CARRIED
        self.closing = False
        """The server has closed it: it cannot be resumed."""
        self.tokens: tuple[str, ...] = ()
        """Those it can be resumed with, the newest last: the one before is good until the newest has arrived."""
        self.received = 0
        """Messages the client has sent."""
        self.told = 0
        """Of those the client knows."""
        self.unheard = 0
        """Bytes of the others."""
        self.unwritten = 0
        """Frames that waited when a connection ended."""
        self.deadline = 0.0
        self.end: tuple[str, int] = ("", int(CloseCode.ABNORMAL))
        """How the last connection ended: reason and close code."""


class Line(Keeper):
    """One connection as the carrier of a session; without a connection, the time that the client is away."""

    __slots__ = ("connection", "outbox", "session", "wire")

    def __init__(self, session: Session, connection: Connection | None, outbox: Outbox, wire: Wire) -> None:
        self.session = session
        self.connection = connection
        self.outbox = outbox
        self.wire = wire

    @property
    def current(self) -> bool:
        """Whether no other line has taken over."""
        return self.session.line is self

    def keep(self, frame: bytes) -> None:
        """A message for the client was accepted."""
        ring = self.session.ring
        if ring.add(frame):
            ring.trim(self.outbox.size, self.outbox.waiting)

    def unkeep(self, frame: bytes) -> None:
        """One that waited was dropped."""
        self.session.ring.remove(frame)

    def put_late(self, frame: bytes) -> bool:
        """A message came for a connection that has ended: it goes where the client's messages go now."""
        session = self.session
        if not self.current:
            return session.line.outbox.put(changed(frame, self.wire, session.line.wire))
        self.keep(frame)  # nobody has told yet that the connection is over
        return True

    def left(self, count: int) -> None:
        """The connection has ended with so many frames unwritten."""
        if self.current:
            self.session.unwritten += count


class Nowhere:
    """Where the outbox of a client that is away writes to: all waits."""

    def __init__(self, hub: Hub, session: Session) -> None:
        self._hub = hub
        self._session = session

    def write(self, frames: list[bytes]) -> int:
        """Take nothing."""
        return 0

    def watch_writable(self) -> None:
        """It never is."""

    def broken(self, error: OSError) -> None:
        """Never called."""

    def finished(self) -> None:
        """Never called."""

    def overflowed(self) -> None:
        """More was sent to the client than it may come back to."""
        self._hub.counters["sessions_overflowed"] += 1
        self._hub.remove(self._session.client, "too much was sent while it was away", code=CloseCode.SLOW_CONSUMER)
