"""Rooms: two mirrored maps, so that leaving costs a member's own rooms and not all rooms.

State only: no sockets, no clock, no greenlets. What changed is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from realtime.cluster import Alone, Cluster, is_local
from realtime.config import Limits
from realtime.errors import BadRoom, TooManyRooms, unknown_client
from realtime.room_rules import JoinRule, RoomRules
from realtime.room_watch import RoomWatch, Unwatched

__all__ = ["RoomManager"]

_NOBODY: dict[str, None] = {}


class Keeper(Protocol):
    """Who keeps the history of rooms."""

    def entered(self, room: str, client_id: str) -> None:
        """A client of this node is in a room now. May park."""

    def left(self, room: str, client_id: str, *, is_empty: bool) -> None:
        """A client of this node is no longer in a room; ``is_empty``: no client of this node is."""


class RoomManager:
    """Who is in which room. A room exists while it has members.

    :param limits: ``rooms_per_client`` and ``room_name`` apply.
    :param is_connected: tells whether a client id may join at all.
    """

    def __init__(self, limits: Limits, is_connected: Callable[[str], bool]) -> None:
        self._limits = limits
        self._is_connected = is_connected
        self.rules = RoomRules()
        self.cluster: Cluster = Alone()
        """Told who comes and goes here, and asked who is in rooms elsewhere."""
        self.keeper: Keeper | None = None
        """Told which rooms have members here."""
        self.watch: RoomWatch = Unwatched()
        """Told of every change, here and elsewhere."""
        # dicts as ordered sets: members are listed, and served, in the order they joined
        self._members: dict[str, dict[str, None]] = {}
        self._rooms: dict[str, dict[str, None]] = {}

    def configure(
        self,
        pattern: str,
        *,
        join: bool | JoinRule = False,
        leave: bool = True,
        history: int = 0,
        ttl: float = 120.0,
        recover: bool = False,
        presence: bool = False,
    ) -> None:
        """Say what holds for rooms whose names match a shell pattern (``fnmatch``) such as ``"chat:*"``.

        Where several patterns match a name, the one configured first counts.

        :param join: whether clients may join by themselves, with ``system:join``: no, yes, or a function
            ``(context, room)`` that tells and may wait. Handlers put clients into any room.
        :param leave: whether they may leave by themselves, with ``system:leave``.
        :param history: how many of a room's last messages are kept for ``toolkit.rooms.history``, and for who comes
            back; bounded by ``Limits.history_room`` bytes as well. 0: none.
        :param ttl: seconds that each is kept.
        :param recover: messages carry a ``cursor``, and who joins with one is sent what it missed first.
        :param presence: whether who joins is told who is there and who comes and goes: see ``join``.
        :raises ConfigurationError: no pattern, or an option that is none of these.
        """
        self.rules.add(
            pattern, join=join, leave=leave, history=history, ttl=ttl, recover=recover, presence=presence
        )

    def join(self, room: str, client_id: str, *, presence: bool | None = None) -> bool:
        """Put a client into a room; return False if it was there already.

        A client of another node is put there by that node: then this parks, ``Limits.ack_timeout`` at most. So it
        does, shortly, for the first member on this node of a room that keeps its history.

        :param presence: whether it gets ``presence:state``, and ``presence:diff`` for as long as it is in the room;
            as the room's rule says, if not given. True also for one that is in it already and gets none so far.
        :raises BadRoom: the name is no string, empty or longer than ``Limits.room_name``.
        :raises TooManyRooms: the client is in ``Limits.rooms_per_client`` rooms.
        :raises UnknownClient: no such client is connected.
        """
        rooms = self._rooms.get(client_id, _NOBODY)
        if room.__class__ is str and room in rooms:
            if presence:
                self.watch.watch(room, client_id)
            return False
        self.check_name(room)
        if not self._is_connected(client_id):
            return bool(self._ask_its_node(client_id, "join", room, presence=presence))
        if len(rooms) >= self._limits.rooms_per_client:
            raise TooManyRooms(f"a client may be in {self._limits.rooms_per_client} rooms at once")
        self.adopt(room, client_id)
        if self.rules.shows_presence(room) if presence is None else presence:
            self.watch.watch(room, client_id)
        if self.rules.keep_history and self.keeper is not None and self.contains_here(room, client_id):
            self.keeper.entered(room, client_id)  # not for one that was too slow for what it has just been told
        return True

    def adopt(self, room: str, client_id: str) -> None:
        """A client of this node is in a room: unchecked, as for one that was in it at another node."""
        self._rooms.setdefault(client_id, {})[room] = None
        self._members.setdefault(room, {})[client_id] = None
        self.cluster.room_joined(room, client_id)
        self.watch.member_changed(room, client_id)

    def release(self, room: str, client_id: str) -> None:
        """A client is in a room at another node from now on: nothing of it goes to the client from here."""
        del self._rooms[client_id][room]
        if not self._rooms[client_id]:
            del self._rooms[client_id]
        self._forget_member(room, client_id)

    def _ask_its_node(self, client_id: str, operation: str, room: str, **arguments: Any) -> Any:
        if not self.cluster.has(client_id):
            raise unknown_client(client_id)
        return self.cluster.ask(client_id, operation, {"room": room, **arguments}, self._limits.ack_timeout)

    def check_name(self, room: object) -> None:
        """Raise BadRoom unless ``room`` can be the name of a room."""
        if not isinstance(room, str):
            raise BadRoom(f"a room name must be a string, got {type(room).__name__}")
        if not room:
            raise BadRoom("a room name must not be empty")
        if not room.isascii() and any("\ud800" <= character <= "\udfff" for character in room):
            raise BadRoom("a room name must be valid Unicode, got half of a surrogate pair")
        if len(room) > self._limits.room_name:
            raise BadRoom(f"a room name may have {self._limits.room_name} characters, got {len(room)}")

    def leave(self, room: str, client_id: str) -> bool:
        """Take a client out of a room; return False if it was not there. Parks for one of another node."""
        rooms = self._rooms.get(client_id)
        if rooms is None or room not in rooms:
            return self.cluster.has(client_id) and bool(self._ask_its_node(client_id, "leave", room))
        del rooms[room]
        if not rooms:
            del self._rooms[client_id]
        self._forget_member(room, client_id)
        self.cluster.room_left(room, client_id)
        self.watch.member_changed(room, client_id)
        return True

    def leave_all(self, client_id: str) -> list[str]:
        """Take a client out of all its rooms; return which they were."""
        rooms = self.forget(client_id)
        for room in rooms:
            self.cluster.room_left(room, client_id)
        return rooms

    def forget(self, client_id: str) -> list[str]:
        """A client is gone, as the cluster is told by ``client_went``; return the rooms it was in."""
        rooms = list(self._rooms.pop(client_id, _NOBODY))
        for room in rooms:
            self._forget_member(room, client_id)
            self.watch.member_changed(room, client_id)
        return rooms

    def _forget_member(self, room: str, client_id: str) -> None:
        members = self._members[room]
        del members[client_id]
        if not members:
            del self._members[room]
        if self.keeper is not None and self.rules.keep_history:
            self.keeper.left(room, client_id, is_empty=not members)

    def members(self, room: str, *, scope: str = "cluster") -> list[str]:
        """Return the ids of a room's members; none if unknown.

        First this node's, in the order they joined; then those of each other node, in the order in which this node
        heard of them, mostly that in which they joined. So two nodes name the same members in different orders.

        :param scope: ``"local"``: this node's alone.
        """
        own = list(self._members.get(room, _NOBODY))
        return own if is_local(scope) else own + list(self.cluster.members(room))

    def each_member(self, room: str) -> Iterable[str]:
        """Iterate over this node's members of a room without a copy: not across a greenlet switch, nor a join."""
        return self._members.get(room, _NOBODY)

    def count(self, room: str) -> int:
        """Return the number of a room's members, on all nodes."""
        return len(self._members.get(room, _NOBODY)) + len(self.cluster.members(room))

    def rooms_for(self, client_id: str) -> list[str]:
        """Return the rooms a client of this node is in, in the order it joined them."""
        return list(self._rooms.get(client_id, _NOBODY))

    def contains(self, room: str, client_id: str) -> bool:
        """Tell whether a client is in a room, whichever node it is on."""
        return client_id in self._members.get(room, _NOBODY) or self.cluster.is_member(room, client_id)

    def contains_here(self, room: str, client_id: str) -> bool:
        """Tell whether a client of this node is in a room."""
        return client_id in self._members.get(room, _NOBODY)

    def list(self, *, scope: str = "cluster") -> dict[str, int]:
        """Return every room with its number of members.

        :param scope: ``"local"``: those of this node alone.
        """
        counts = {room: len(members) for room, members in self._members.items()}
        if not is_local(scope):
            for room, count in self.cluster.rooms().items():
                counts[room] = counts.get(room, 0) + count
        return counts
