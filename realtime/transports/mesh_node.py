"""Another node, as handlers and applications see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from realtime.config import MiB
from realtime.connection import Connection
from realtime.hub import Hub
from realtime.message import Message, Wire
from realtime.outbox import Outbox
from realtime.transports.mesh_links import Links

__all__ = ["Node", "NodeConnection"]

MOST_EVENTS = 16_384  # of a node that wait for its handlers while an answer of the node is waited for
MOST_EVENT_BYTES = 16 * MiB


@dataclass(frozen=True)
class Node:
    """Another node, as ``mesh.nodes()`` shows it."""

    id: str
    address: str | None
    """Where it says it can be reached."""
    state: str
    """``"up"``; or ``"suspect"``, while nothing has been heard of it for ``MeshOptions.suspect``."""
    linked: bool
    """Whether there is a link to it at the moment."""
    since: float
    """When it joined, seconds since the epoch."""
    clients: int
    """How many clients it has, as far as known."""


class NodeConnection(Connection):
    """Another node as handlers see it: ``context`` of its events. No client: not in rooms, not in presence.

    It outlives a link, so that what a node did before its link broke is handled before what it does after.

    :param send: sends the body of an event to the node.
    """

    __slots__ = ("_hub", "_links", "_questions", "_send")

    transport = "mesh"

    def __init__(self, hub: Hub, node: str, wire: Wire, links: Links, send: Callable[[str, bytes], object]) -> None:
        super().__init__(wire=wire)
        self.id = node
        self.outbox = Outbox(self, hub.flusher, hub.limits)
        self._hub = hub
        self._links = links
        self._send = send
        self._questions = 0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody here waits for an answer of the node, which comes behind what it has sent before."""
        return self._questions > 0 or super().is_awaited

    def asked(self) -> None:
        """Somebody waits for an answer of the node: read on, even if its handlers are busy. ``answered`` follows."""
        self._questions += 1
        self._hub.resume_if_room(self)

    def answered(self) -> None:
        """One waits no longer."""
        self._questions -= 1

    def joined(self) -> None:
        """The node is there, again perhaps."""
        self.connected_at = time.time()
        self.closed = False
        link = self._links.get(self.id)
        self.remote_address = link.address.host if link is not None and not link.address.is_unix else None

    def left(self) -> None:
        """The node has left."""
        self.closed = True

    def tell(self, event: str, **payload: Any) -> None:
        """Put an event of our own in line with what the node sent, and stop reading where far too many wait."""
        self._hub.receive_event(self, Message(event, {"node": self.id, **payload}))
        self._pause_if_full(self._hub.limits.inbox_while_waiting)

    def take(self, message: Message, size: int) -> bool:
        """Put an event of the node in line, and stop reading where that fills the inbox.

        What was read before reading stopped is kept: ``RECEIVE`` bytes more. False if the event is refused, because
        far too many wait, as reading had to go on.

        :param size: bytes of the event.
        """
        if len(self.inbox) >= MOST_EVENTS or self.inbox_bytes >= MOST_EVENT_BYTES:
            return False
        self._hub.receive_event(self, message, size)
        self._pause_if_full(self._hub.limits.inbox)
        return True

    def _pause_if_full(self, most: int) -> None:
        full = len(self.inbox) >= most or self.inbox_bytes >= self._hub.limits.inbox_bytes
        if full and not self.is_awaited:
            self.paused = True
            self.pause_reading()  # each time: the link may be another than the one that was paused

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return self.closed and not self.busy and not self.inbox

    def transmit(self, frame: bytes) -> None:
        """Send the body of an event."""
        self._send(self.id, frame)

    def end(self, code: int, reason: str) -> None:
        """Nodes are not disconnected by handlers; their links end by themselves."""

    def pause_reading(self) -> None:
        """Let TCP push back."""
        link = self._links.get(self.id)
        if link is not None:
            link.pause()

    def resume_reading(self) -> None:
        """Read again."""
        link = self._links.get(self.id)
        if link is not None:
            link.resume()
