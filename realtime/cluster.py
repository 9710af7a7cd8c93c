"""The seam between a kernel and the other nodes of its cluster: all that rooms, presence and delivery know of them.

A :class:`Cluster` is what the mesh implements, or an existing engine in its place. It is told what happens to
this node's clients, carries messages to those of other nodes, and knows who is there. A :class:`ClusterNode` is
this node as the cluster sees it. Every node is the only authority on its own clients; what is known of others may
lag behind by a moment. ``realtime.testing.ClusterConformance`` proves an implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

from realtime.codes import CloseCode
from realtime.errors import ConfigurationError, ConnectionClosed, unknown_client
from realtime.message import Outbound

__all__ = ["Alone", "Cluster", "ClusterNode", "RoomAnswers", "is_local"]

Entry = dict[str, Any]
"""A client as presence shows it: ``{"id", "metadata", "rooms", "connected_at"}``."""


class ClusterNode(Protocol):
    """This node, for its cluster to use. Called in the kernel's thread."""

    def deliver_to_room(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Deliver to this node's members of a room, or to all its clients; return to how many. May switch."""

    def deliver_to_client(self, client_id: str, message: Outbound) -> bool:
        """Deliver to one client of this node without waiting; False if it has gone."""

    def perform(self, client_id: str, operation: str, arguments: Mapping[str, Any]) -> Any:
        """Do what another node asks for a client of this one, or with an empty id of this node itself; return the
        result. Switches greenlets.

        :raises RealtimeError: as the operation does here; ``UnknownClient`` if the client has gone.
        """

    def client_appeared(self, client_id: str, node: str) -> None:
        """A client that another node has, this one perhaps, has appeared at a node. Must not wait."""

    def client_vanished(self, client_id: str) -> None:
        """No other node has a client any more. Must not wait."""

    def client_found(self, client_id: str, rooms: Collection[str]) -> None:
        """A client of another node is in these rooms since before that node was known here. Must not wait.

        So whatever its node told those who share the rooms did not reach this node.
        """

    def client_lost(self, client_id: str, rooms: Collection[str]) -> None:
        """A client of another node is gone from these rooms because its node is. Must not wait.

        So its node could not tell those who share the rooms. Told once; not while this node itself leaves.
        """

    def call_room(
        self, room: str, message: Mapping[str, Any], except_ids: Collection[str], timeout: float
    ) -> Generator[list[tuple[str, Any]], None, list[str]]:
        """Ask this node's members of a room: yield their answers, as ``RoomAnswers.answered`` takes them, and return
        who has not answered. Switches greenlets.

        :raises RealtimeError: they cannot be asked this.
        """

    def own_clients(self) -> Iterable[tuple[Entry, str, str]]:
        """Return this node's clients, each with the name of its codec and its presence's key: what a cluster that
        starts later missed."""

    def member_changed(self, room: str, client_id: str) -> None:
        """A client of another node came into a room or left it, which ``Cluster.is_member`` tells. Never switches.

        To be called for each, also where a whole node goes. To be told too often does no harm.
        """

    def client_changed(self, client_id: str) -> None:
        """A client of another node shows other metadata, which ``Cluster.entry`` has. Never switches."""


Then = Callable[[Any, Exception | None], None]
"""Told what a node answered, or why there is no answer. Must not wait, nor raise."""


class RoomAnswers(Protocol):
    """Who wants to know what members of a room on other nodes answer. None of these waits."""

    def asked(self, node: str, members: Collection[str]) -> None:
        """Members on a node are being asked: ``answered`` any number of times and ``ended`` once follow."""

    def answered(self, node: str, answers: Collection[tuple[str, Any]]) -> None:
        """Clients of a node have answered, each with a result or a CallFailed."""

    def ended(self, node: str, missing: Collection[str] | None) -> None:
        """No more answers come from a node; ``missing`` did not answer. None: it is not known who was asked there."""


class Cluster(ABC):
    """What joins nodes. Where no other node is, everything here does nothing, quickly.

    None of these switches greenlets unless it says so, as rooms and presence are asked in the middle of a delivery.
    So an engine that keeps its truth elsewhere, in hashes of a Redis for instance, answers from a copy that what it
    is told keeps up to date, and hands on what it sends to a greenlet of its own.

    What is told without a switch in between reaches each other node together: a client that came by moving is in its
    rooms there from the first moment.
    """

    node_id: str = ""
    """This node's name among the others; empty where there can be none."""

    # Told: of this node's own clients -----------------------------------------------------------------

    @abstractmethod
    def client_came(
        self, client_id: str, metadata: Mapping[str, Any], connected_at: float, codec: str, key: str
    ) -> None:
        """A client connected to this node. ``codec`` names what it speaks: ``"json"`` or ``"msgpack"``.

        ``key`` is the key of its presence: 1 to 255 characters.
        """

    @abstractmethod
    def client_went(self, client_id: str) -> None:
        """A client of this node is gone, and out of all its rooms."""

    @abstractmethod
    def client_moved(self, client_id: str) -> None:
        """A client of this node is one of another now, which has announced it; ``client_went`` follows once what was
        sent to it here has been passed on."""

    @abstractmethod
    def room_joined(self, room: str, client_id: str) -> None:
        """A client of this node is in a room now."""

    @abstractmethod
    def room_left(self, room: str, client_id: str) -> None:
        """A client of this node left a room."""

    @abstractmethod
    def metadata_replaced(self, client_id: str, metadata: Mapping[str, Any]) -> None:
        """A client of this node shows other metadata now."""

    # Asked: to reach clients of other nodes -------------------------------------------------------------

    @abstractmethod
    def publish(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Send to the members of a room, or to all clients, on other nodes; return to how many as far as known.

        :raises MessageTooBig: larger than nodes take.
        """

    @abstractmethod
    def publish_confirmed(
        self,
        room: str | None,
        message: Outbound,
        except_ids: Collection[str],
        timeout: float,
        sent: Callable[[], None],
    ) -> int:
        """As ``publish``; parks until every node it went to has delivered it, and returns to how many clients.

        :param sent: is called once it is on its way. May switch.
        :raises NotConfirmed: not all of them said so within ``timeout`` seconds; names those that did not.
        """

    @abstractmethod
    def call_room(
        self,
        room: str,
        message: Mapping[str, Any],
        except_ids: Collection[str],
        timeout: float,
        answers: RoomAnswers,
    ) -> Callable[[], None]:
        """Ask the members of a room on other nodes, which have ``timeout`` seconds; tell ``answers`` what they say.

        :returns: a function after whose call ``answers`` is told nothing more.
        :raises BadMessage, MessageTooBig: it cannot go to other nodes.
        """

    @abstractmethod
    def send(self, client_id: str, message: Outbound) -> bool:
        """Send to one client of another node; False if no other node has it. May park, as ``Toolkit.send`` does."""

    @abstractmethod
    def ask(self, client_id: str, operation: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Have the node of a client do something for it and return the result: parks this greenlet.

        :raises UnknownClient: no other node has the client.
        :raises TimedOut: no answer within ``timeout`` seconds.
        :raises RealtimeError: what the operation raised there.
        """

    # Asked: of other nodes themselves --------------------------------------------------------------------

    @abstractmethod
    def node_ids(self) -> Collection[str]:
        """Return the names of the other nodes."""

    @abstractmethod
    def reaches(self, node: str) -> bool:
        """Tell whether a question to a node leaves at once; False while the way there is broken, or the node gone."""

    @abstractmethod
    def ask_node(
        self, node: str, operation: str, arguments: Mapping[str, Any], timeout: float, then: Then
    ) -> None:
        """Ask a node; ``then`` is told the answer in the order of what the node sends: what it sent before has been
        delivered to the clients here, and nothing that it sent after.

        Where the question is lost at once, ``then`` may be told so before this returns. Not where this raises.

        :raises ConnectionClosed: there is no such node.
        :raises BadMessage, MessageTooBig: arguments that cannot be sent.
        """

    @abstractmethod
    def forward(self, node: str, client_id: str, message: Outbound) -> None:
        """Send to a client that a node has, whether or not the node has announced it."""

    @abstractmethod
    def gather(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Sequence[Any]:
        """Have every other node do something; return the results of those that did it. Parks this greenlet.

        What was told of this node's rooms before arrives there before the question.

        :param timeout: seconds; who has not answered by then is left out.
        """

    # Asked: who is on other nodes -----------------------------------------------------------------------

    @abstractmethod
    def members(self, room: str) -> Collection[str]:
        """Return the members of a room on other nodes, node by node, in the order in which this one heard of them."""

    @abstractmethod
    def is_member(self, room: str, client_id: str) -> bool:
        """Tell whether a client of another node is in a room."""

    @abstractmethod
    def rooms(self) -> Mapping[str, int]:
        """Return the rooms of other nodes with their number of members there."""

    @abstractmethod
    def clients(self) -> Collection[str]:
        """Return the ids of all clients of other nodes."""

    @abstractmethod
    def has(self, client_id: str) -> bool:
        """Tell whether another node has this client."""

    @abstractmethod
    def home(self, client_id: str) -> str | None:
        """Return the other node that has this client; None if there is none."""

    @abstractmethod
    def entry(self, client_id: str) -> Entry | None:
        """Return a copy of the entry of a client of another node; None if there is none."""

    @abstractmethod
    def key(self, client_id: str) -> str:
        """Return the key of the presence of a client of another node; ``client_id`` if there is none."""


class Alone(Cluster):
    """The cluster of a kernel without one: there are no other nodes."""

    def client_came(
        self, client_id: str, metadata: Mapping[str, Any], connected_at: float, codec: str, key: str
    ) -> None:
        """Nobody to tell."""

    def client_went(self, client_id: str) -> None:
        """Nobody to tell."""

    def client_moved(self, client_id: str) -> None:
        """Nobody to tell."""

    def room_joined(self, room: str, client_id: str) -> None:
        """Nobody to tell."""

    def room_left(self, room: str, client_id: str) -> None:
        """Nobody to tell."""

    def metadata_replaced(self, client_id: str, metadata: Mapping[str, Any]) -> None:
        """Nobody to tell."""

    def publish(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Nobody is elsewhere."""
        return 0

    def publish_confirmed(
        self,
        room: str | None,
        message: Outbound,
        except_ids: Collection[str],
        timeout: float,
        sent: Callable[[], None],
    ) -> int:
        """Nobody is elsewhere, so everybody has confirmed."""
        sent()
        return 0

    def call_room(
        self,
        room: str,
        message: Mapping[str, Any],
        except_ids: Collection[str],
        timeout: float,
        answers: RoomAnswers,
    ) -> Callable[[], None]:
        """Nobody is elsewhere."""
        return lambda: None

    def send(self, client_id: str, message: Outbound) -> bool:
        """Nobody is elsewhere."""
        return False

    def ask(self, client_id: str, operation: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Nobody is elsewhere."""
        raise unknown_client(client_id)

    def node_ids(self) -> Collection[str]:
        """There are none."""
        return ()

    def reaches(self, node: str) -> bool:
        """There are none."""
        return False

    def ask_node(
        self, node: str, operation: str, arguments: Mapping[str, Any], timeout: float, then: Then
    ) -> None:
        """There are none."""
        raise ConnectionClosed(CloseCode.ABNORMAL, f"there is no node {node!r}")

    def forward(self, node: str, client_id: str, message: Outbound) -> None:
        """There are none."""

    def home(self, client_id: str) -> str | None:
        """Nobody is elsewhere."""
        return None

    def gather(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Sequence[Any]:
        """Nobody is elsewhere."""
        return ()

    def members(self, room: str) -> Collection[str]:
        """Nobody is elsewhere."""
        return ()

    def is_member(self, room: str, client_id: str) -> bool:
        """Nobody is elsewhere."""
        return False

    def rooms(self) -> Mapping[str, int]:
        """No rooms are elsewhere."""
        return {}

    def clients(self) -> Collection[str]:
        """Nobody is elsewhere."""
        return ()

    def has(self, client_id: str) -> bool:
        """Nobody is elsewhere."""
        return False

    def entry(self, client_id: str) -> Entry | None:
        """Nobody is elsewhere."""
        return None

    def key(self, client_id: str) -> str:
        """Nobody is elsewhere."""
        return client_id


def is_local(scope: str) -> bool:
    """Tell whether ``scope`` is ``"local"``, this node alone, and not ``"cluster"``.

    :raises ConfigurationError: it is neither.
    """
    if scope not in ("cluster", "local"):
        raise ConfigurationError(f"scope={scope!r}: must be 'cluster' or 'local'")
    return scope == "local"
