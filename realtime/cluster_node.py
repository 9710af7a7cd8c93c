"""This node as its cluster sees it: what other nodes send to and ask of the clients here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any

from realtime import conversation
from realtime.cluster import ClusterNode, Entry
from realtime.connection import Connection
from realtime.errors import BadMessage, MessageTooBig, unknown_client
from realtime.hub import Hub
from realtime.message import Outbound
from realtime.outbox import Outbox
from realtime.recovery import Replay
from realtime.room_calls import RoomCall, answers_to_pass_on
from realtime.threads import HomeThread

__all__ = ["LocalNode"]

MOST_STALLS = 20  # for one member that makes no progress: 0.1 s with the default Limits.stall


class _Patience:
    """Which slow members may hold up what comes from other nodes: those that read at least a little.

    All rooms of a link share its order, so who reads nothing would slow down everybody behind it. It is left to
    its outbox, which drops its messages or cuts it off.
    """

    def __init__(self) -> None:
        self._stalls: dict[Outbox, tuple[int, int]] = {}  # progress at the time, and stalls since

    def waits_for(self, outbox: Outbox) -> bool:
        """Tell whether to stall once more for a crowded outbox."""
        progress, stalls = self._stalls.get(outbox, (-1, 0))
        if progress != outbox.progress:
            if progress < 0:
                self._forget_closed()
            stalls = 0
        if stalls >= MOST_STALLS:
            return False
        self._stalls[outbox] = outbox.progress, stalls + 1
        return True

    def _forget_closed(self) -> None:
        for outbox in [outbox for outbox in self._stalls if outbox.closed]:
            del self._stalls[outbox]


class LocalNode(ClusterNode):
    """The hub's clients, for a cluster to use."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._patience = _Patience()
        self._operations: dict[str, Callable[[Connection, Mapping[str, Any]], Any]] = {
            "call": self._call,
            "disconnect": self._disconnect,
            "drain": self._drain,
            "join": self._join,
            "leave": self._leave,
        }
        departures = hub.sessions.departures
        self._own_operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "history": hub.history.share,
            "claim": departures.hand_over,
            "aware": departures.aware,
            "answer": hub.sessions.calls.take_answer,
        }

    def deliver_to_room(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Deliver to this node's members of a room, or to all its clients; return to how many.

        Switches where members are crowded, ``Limits.stall`` at most, so that the pushing back reaches the sender;
        for one that makes no progress ``MOST_STALLS`` times.
        """
        hub, waits_for = self._hub, self._patience.waits_for
        try:
            if room is None:
                moved = hub.sessions.departures.forward_to_room(None, message, except_ids)
                return moved + hub.deliver_to(hub.connections, message, except_ids, waits_for=waits_for)
            messages = hub.history.receive(room, message, except_ids)
            moved = sum(hub.sessions.departures.forward_to_room(room, outbound, skip) for outbound, skip in messages)
            return moved + hub.deliver_all(hub.rooms.each_member(room), messages, waits_for=waits_for)
        except (BadMessage, MessageTooBig) as error:
            hub.undeliverable(error)
            return 0

    def deliver_to_client(self, client_id: str, message: Outbound) -> bool:
        """Deliver to one client without waiting; False if it has gone."""
        connection = self._hub.connections.get(client_id)
        if connection is None:
            if self._hub.sessions.departures.forward(client_id, message):
                return True
            self._hub.counters["relayed_to_gone"] += 1
            return False
        self._hub.put_relayed(connection, message)
        return True

    def client_found(self, client_id: str, rooms: Collection[str]) -> None:
        """A client of another node was in these rooms before that node was known here."""
        for tell in self._hub.on_found:
            tell(client_id, rooms)

    def client_lost(self, client_id: str, rooms: Collection[str]) -> None:
        """A client of another node is gone from these rooms because its node is."""
        for tell in self._hub.on_lost:
            tell(client_id, rooms)

    def client_appeared(self, client_id: str, node: str) -> None:
        """A client that another node has, this one perhaps, has appeared at a node."""
        self._hub.sessions.departures.arrived(client_id, node)

    def client_vanished(self, client_id: str) -> None:
        """No other node has a client any more."""
        self._hub.sessions.departures.vanished(client_id)

    def own_clients(self) -> Iterable[tuple[Entry, str, str]]:
        """Return this node's clients, each with the name of its codec and its presence's key."""
        connections, presence = self._hub.connections, self._hub.presence
        return [
            (entry, connections[entry["id"]].wire.codec.name, presence.key(entry["id"])) for entry in presence.own()
        ]

    def member_changed(self, room: str, client_id: str) -> None:
        """A client of another node came into a room or left it."""
        self._hub.live_presence.member_changed(room, client_id)

    def client_changed(self, client_id: str) -> None:
        """A client of another node shows other metadata."""
        self._hub.live_presence.client_changed(client_id)

    def perform(self, client_id: str, operation: str, arguments: Mapping[str, Any]) -> Any:
        """Do what another node asks for a client of this one. Switches greenlets.

        :raises RealtimeError: as the operation does here; ``UnknownClient`` if the client has gone.
        :raises BadMessage: an operation of a later version, or arguments it cannot have.
        """
        if not client_id:
            return self._perform_here(operation, arguments)
        function = self._operations.get(operation)
        if function is None:
            raise BadMessage(f"no operation {operation!r}; there are {', '.join(self._operations)}")
        connection = self._hub.connections.get(client_id)
        if connection is None:
            raise unknown_client(client_id)
        return function(connection, arguments)

    def _perform_here(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """Do what another node asks of this one itself."""
        functions = {**self._hub.node_operations, **self._own_operations}
        function = functions.get(operation)
        if function is None:
            raise BadMessage(f"no operation {operation!r} of a node; there are {', '.join(functions)}")
        return function(arguments)

    def call_room(
        self, room: str, message: Mapping[str, Any], except_ids: Collection[str], timeout: float
    ) -> Generator[list[tuple[str, Any]], None, list[str]]:
        """Ask this node's members of a room, for another node: see ``answers_to_pass_on``. Switches greenlets."""
        call = RoomCall(self._hub, HomeThread(), timeout)
        call.ask(room, message, except_ids, elsewhere=False)
        return answers_to_pass_on(call)

    def _call(self, connection: Connection, arguments: Mapping[str, Any]) -> Any:
        return conversation.call(self._hub, connection, arguments["message"], arguments["timeout"])

    def _disconnect(self, connection: Connection, arguments: Mapping[str, Any]) -> None:
        self._hub.close(connection, arguments["code"], arguments["reason"])

    def _drain(self, connection: Connection, arguments: Mapping[str, Any]) -> bool:
        """Wait until the client's outbox is no longer crowded: a sender elsewhere parks meanwhile."""
        return connection.outbox.wait_for_room(self._hub.limits.park_timeout)

    def _join(self, connection: Connection, arguments: Mapping[str, Any]) -> Any:
        room, presence = arguments["room"], arguments.get("presence")
        if "since" in arguments:
            return list(Replay(self._hub).join(connection, room, arguments["since"], presence))
        return self._hub.rooms.join(room, connection.id, presence=presence)

    def _leave(self, connection: Connection, arguments: Mapping[str, Any]) -> bool:
        return self._hub.rooms.leave(arguments["room"], connection.id)
