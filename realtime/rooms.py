"""Rooms: two mirrored maps, so that leaving costs a member's own rooms and not all rooms.

State only: no sockets, no clock, no greenlets. What changed is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from realtime.config import Limits
from realtime.errors import BadRoom, TooManyRooms, UnknownClient

__all__ = ["RoomManager"]

_NOBODY: dict[str, None] = {}


class RoomManager:
    """Who is in which room. A room exists while it has members.

    :param limits: ``rooms_per_client`` and ``room_name`` apply.
    :param is_connected: tells whether a client id may join at all.
    """

    def __init__(self, limits: Limits, is_connected: Callable[[str], bool]) -> None:
        self._limits = limits
        self._is_connected = is_connected
        # dicts as ordered sets: members are listed, and served, in the order they joined
        self._members: dict[str, dict[str, None]] = {}
        self._rooms: dict[str, dict[str, None]] = {}

    def join(self, room: str, client_id: str) -> bool:
        """Put a client into a room; return False if it was there already.

        :raises BadRoom: the name is no string, empty or longer than ``Limits.room_name``.
        :raises TooManyRooms: the client is in ``Limits.rooms_per_client`` rooms.
        :raises UnknownClient: no such client is connected.
        """
        rooms = self._rooms.get(client_id, _NOBODY)
        if room.__class__ is str and room in rooms:
            return False
        self.check_name(room)
        if not self._is_connected(client_id):
            raise UnknownClient(f"no client {client_id!r} is connected")
        if len(rooms) >= self._limits.rooms_per_client:
            raise TooManyRooms(f"a client may be in {self._limits.rooms_per_client} rooms at once")
        self._rooms.setdefault(client_id, {})[room] = None
        self._members.setdefault(room, {})[client_id] = None
        return True

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
        """Take a client out of a room; return False if it was not there."""
        rooms = self._rooms.get(client_id)
        if rooms is None or room not in rooms:
            return False
        del rooms[room]
        if not rooms:
            del self._rooms[client_id]
        self._forget_member(room, client_id)
        return True

    def leave_all(self, client_id: str) -> list[str]:
        """Take a client out of all its rooms; return which they were."""
        rooms = list(self._rooms.pop(client_id, _NOBODY))
        for room in rooms:
            self._forget_member(room, client_id)
        return rooms

    def _forget_member(self, room: str, client_id: str) -> None:
        members = self._members[room]
        del members[client_id]
        if not members:
            del self._members[room]

    def members(self, room: str) -> list[str]:
        """Return the ids of a room's members in the order they joined; empty for an unknown room."""
        return list(self._members.get(room, _NOBODY))

    def each_member(self, room: str) -> Iterable[str]:
        """Iterate over a room's members without a copy: not across a greenlet switch, nor a join."""
        return self._members.get(room, _NOBODY)

    def count(self, room: str) -> int:
        """Return the number of a room's members."""
        return len(self._members.get(room, _NOBODY))

    def rooms_for(self, client_id: str) -> list[str]:
        """Return the rooms a client is in, in the order it joined them."""
        return list(self._rooms.get(client_id, _NOBODY))

    def contains(self, room: str, client_id: str) -> bool:
        """Tell whether a client is in a room."""
        return client_id in self._members.get(room, _NOBODY)

    def list(self) -> dict[str, int]:
        """Return every room with its number of members."""
        return {room: len(members) for room, members in self._members.items()}
