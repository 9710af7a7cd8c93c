"""Another node, as handlers and applications see it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from gevent.event import Event

from realtime.connection import Connection
from realtime.hub import Hub
from realtime.message import Message, Wire
from realtime.protocols.mesh import Reason
from realtime.transports.mesh_link import Link

__all__ = ["Node", "NodeConnection"]


@dataclass(frozen=True)
class Node:
    """Another node, as ``mesh.nodes()`` shows it."""

    id: str
    address: str | None
    """Where it says it can be reached."""
    state: str
    """``"up"``, or ``"suspect"`` while it has been silent for ``MeshOptions.suspect``."""
    since: float
    """When the link to it started, seconds since the epoch."""
    dialled: bool
    """Whether we opened the link."""


class NodeConnection(Connection):
    """Another node as handlers see it: ``context`` of its events. No client: not in rooms, not in presence.

    It outlives a link, so that what a node did before its link broke is handled before what it does after.
    """

    __slots__ = ("_hub", "link", "unlinked")

    transport = "mesh"

    def __init__(self, hub: Hub, node: str, wire: Wire) -> None:
        super().__init__(wire=wire)
        self.id = node
        self.closed = True
        self.link: Link | None = None
        self.unlinked = Event()
        self._hub = hub

    def linked(self, link: Link) -> None:
        """Speak through this link from now on."""
        self.link = link
        self.outbox = link.outbox
        self.remote_address = link.address.host
        self.connected_at = time.time()
        self.closed = False
        self.unlinked.clear()
        if self.paused:
            link.pause()

    def lost(self) -> None:
        """There is no link any more."""
        self.link = None
        self.closed = True
        self.unlinked.set()

    def tell(self, event: str, reason: str, details: str, **more: Any) -> None:
        """Put a lifecycle event in line with what the node sent."""
        payload = {"node": self.id, "reason": reason, "details": details, **more}
        self._hub.receive_event(self, Message(event, payload))

    def take(self, message: Message) -> None:
        """Put an event of the node in line, and stop reading where that fills the inbox."""
        self._hub.receive_event(self, message)
        limits = self._hub.limits
        most = limits.inbox_while_waiting if self.is_awaited else limits.inbox
        if len(self.inbox) >= most and not self.paused:
            self.paused = True
            self.pause_reading()

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return self.link is None and not self.busy and not self.inbox

    def transmit(self, frame: bytes) -> None:
        """Everything goes through the link's outbox."""
        self.outbox.put(frame)

    def end(self, code: int, reason: str) -> None:
        """End the link."""
        if self.link is not None:
            self.link.part(Reason.LEAVING, reason)

    def pause_reading(self) -> None:
        """Let TCP push back."""
        if self.link is not None:
            self.link.pause()

    def resume_reading(self) -> None:
        """Read again."""
        if self.link is not None:
            self.link.resume()
