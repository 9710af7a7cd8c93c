"""What the mesh core wants done and what it has to tell: drained with ``MeshCore.take_actions()``.

The first three are orders to whoever owns the sockets, the next four to whoever owns the clients, the rest news.
Made for every frame and every delivery, they are msgspec's structs: a frozen dataclass costs ten times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from realtime.delivery import Delivery

__all__ = [
    "Action",
    "CallAnswered",
    "CallLost",
    "ClientCame",
    "ClientFound",
    "ClientLost",
    "ClientWent",
    "ConfirmFailed",
    "Confirmed",
    "DeliverToClient",
    "DeliverToRoom",
    "Dial",
    "EndLink",
    "Gap",
    "IdTaken",
    "MeshEvent",
    "MetadataReplaced",
    "NodeJoined",
    "NodeLeft",
    "NodeRefuted",
    "NodeSuspect",
    "RoomJoined",
    "RoomLeft",
    "RunCall",
    "SendFrame",
]

# Orders about links ------------------------------------------------------------------------------------


class SendFrame(Struct, frozen=True):
    """Send these bytes on the link to a node, in order. A long body comes as a SendFrame of its own."""

    node: str
    data: bytes


class Dial(Struct, frozen=True):
    """Connect to this address, and tell the core what came of it: ``link_started`` or ``dial_ended``."""

    address: str


class EndLink(Struct, frozen=True):
    """End the link to a node, for this Reason. The core takes it as ended already."""

    node: str
    reason: str
    details: str = ""


# Orders about clients of this node ----------------------------------------------------------------------


class DeliverToRoom(Struct, frozen=True):
    """Deliver to our members of a room, or to all our clients.

    If ``confirm`` is not None, say ``core.delivered(origin, confirm, count)`` when that is done.
    """

    origin: str
    room: str | None
    bodies: Mapping[str, bytes]
    except_ids: Sequence[str]
    delivery: Delivery | None
    confirm: int | None
    mark: tuple[str, int, float] | None = None


class DeliverToClient(Struct, frozen=True):
    """Deliver to one of our clients, if it is still here."""

    origin: str
    client: str
    bodies: Mapping[str, bytes]
    delivery: Delivery | None


class RunCall(Struct, frozen=True):
    """Do what ``body`` asks for a client of ours, or of this node itself, where ``client`` is empty.

    Then say ``core.answer(origin, token, ok, body)``; before it with ``more=True`` what there is already.
    """

    origin: str
    token: int
    client: str
    body: bytes
    timeout: float


class MeshEvent(Struct, frozen=True):
    """A node sent an event."""

    node: str
    body: bytes


# What became of what we asked ----------------------------------------------------------------------------


class CallAnswered(Struct, frozen=True):
    """The answer of a node to a call, or a part of it, after which ``more`` follows."""

    token: int
    node: str
    ok: bool
    body: bytes
    more: bool = False


class CallLost(Struct, frozen=True):
    """There will be no answer. ``reason`` is ``"timeout"``, ``"gone"`` (the node) or ``"lost"`` (the question)."""

    token: int
    reason: str


class Confirmed(Struct, frozen=True):
    """A node has delivered a message to so many clients."""

    token: int
    node: str
    count: int


class ConfirmFailed(Struct, frozen=True):
    """A node will not confirm a message; ``reason`` as in CallLost."""

    token: int
    node: str
    reason: str


# Nodes -----------------------------------------------------------------------------------------------------


class NodeJoined(Struct, frozen=True):
    """A node has a link with us for the first time since it started, or since it left. One NodeLeft follows."""

    node: str
    address: str | None


class NodeSuspect(Struct, frozen=True):
    """A node has been silent for ``MeshOptions.suspect``."""

    node: str


class NodeRefuted(Struct, frozen=True):
    """A suspected node was heard."""

    node: str


class NodeLeft(Struct, frozen=True):
    """A node is gone: ``reason`` is ``"leaving"``, ``"down"`` or ``"restarted"``. Its clients went before this."""

    node: str
    reason: str


class IdTaken(Struct, frozen=True):
    """Another node of the cluster has our own id, and lives: what is known of either is of no use."""


class Gap(Struct, frozen=True):
    """``count`` frames to (``"out"``) or from (``"in"``) a node were lost for good; state is sent anew.

    None: it is not known how many, as the node has forgotten what it said.
    """

    node: str
    direction: str
    count: int | None


# Clients of other nodes ---------------------------------------------------------------------------------------


class ClientCame(Struct, frozen=True):
    """A node has a new client; ``core.entry(client)`` tells more."""

    node: str
    client: str


class ClientMoved(Struct, frozen=True):
    """A node has a client that another one, or we, announced: it is the node's from now on. No ClientCame."""

    node: str
    client: str


class ClientWent(Struct, frozen=True):
    """A client of a node is gone. It left its rooms before."""

    node: str
    client: str


class ClientFound(Struct, frozen=True):
    """A client was in these rooms before its node joined: that node told nobody here of it."""

    node: str
    client: str
    rooms: Sequence[str]


class ClientLost(Struct, frozen=True):
    """A client is gone with its node, which could tell nobody here that it left these rooms. ClientWent follows."""

    node: str
    client: str
    rooms: Sequence[str]


class RoomJoined(Struct, frozen=True):
    """A client of a node joined a room."""

    node: str
    room: str
    client: str


class RoomLeft(Struct, frozen=True):
    """A client of a node left a room."""

    node: str
    room: str
    client: str


class MetadataReplaced(Struct, frozen=True):
    """A client of a node shows other metadata."""

    node: str
    client: str


Action = (
    SendFrame
    | Dial
    | EndLink
    | DeliverToRoom
    | DeliverToClient
    | RunCall
    | MeshEvent
    | CallAnswered
    | CallLost
    | Confirmed
    | ConfirmFailed
    | NodeJoined
    | NodeSuspect
    | NodeRefuted
    | NodeLeft
    | IdTaken
    | Gap
    | ClientCame
    | ClientMoved
    | ClientFound
    | ClientLost
    | ClientWent
    | RoomJoined
    | RoomLeft
    | MetadataReplaced
)
