"""Members of rooms who are not to get what is new yet: first comes what they missed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gevent.event import Event

from realtime.config import Limits
from realtime.cursors import Position
from realtime.errors import TimedOut

__all__ = ["Holds"]


class Holds:
    """Who is held, in which room, and where it is there. Several may hold one member at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[str, dict[str, _Held]] = {}

    def hold(self, room: str, client_id: str, position: Position | None = None) -> _Hold:
        """Return a context in which a member gets nothing of a room but what is replayed to it.

        :param position: of the member, moved by who replays; None for one that is where the room is.
        """
        return _Hold(self._held, room, client_id, position)

    def members(self, room: str) -> Collection[str]:
        """Return who is held in a room."""
        return self._held.get(room, _NOBODY)

    def without(self, room: str, except_ids: Collection[str]) -> Collection[str]:
        """Return whom to leave out of what is new: those, and who is held."""
        held = self._held.get(room)
        return except_ids if held is None else {*except_ids, *held}

    def position(self, room: str, client_id: str, otherwise: Position) -> Position:
        """Return how far a member is: where it is held, or else where the room is."""
        held = self._held.get(room, _NOBODY).get(client_id)
        return otherwise if held is None or held.position is None else dict(held.position)

    def wait_until_let_go(self, room: str, client_id: str) -> None:
        """Park while somebody holds a member: until then it is not where the room is, ``Limits.ack_timeout`` at most.

        :raises TimedOut: it takes longer.
        """
        held = self._held.get(room, _NOBODY).get(client_id)
        if held is not None and not held.over.wait(self._limits.ack_timeout):
            raise TimedOut(f"what client {client_id} missed of room {room!r} is still being sent to it")

    def clear(self) -> None:
        """Let everybody go."""
        for members in self._held.values():
            for held in members.values():
                held.over.set()
        self._held.clear()


class _Held:
    """A member that is held: by how many, where it is, and the end of it."""

    __slots__ = ("holders", "over", "position")

    def __init__(self) -> None:
        self.holders = 0
        self.over = Event()
        self.position: Position | None = None


class _Hold:
    """Several may hold one member at once."""

    __slots__ = ("_client_id", "_held", "_position", "_room")

    def __init__(
        self, held: dict[str, dict[str, _Held]], room: str, client_id: str, position: Position | None
    ) -> None:
        self._held = held
        self._position = position
        self._room = room
        self._client_id = client_id

    def __enter__(self) -> None:
        members = self._held.setdefault(self._room, {})
        held = members.setdefault(self._client_id, _Held())
        held.holders += 1
        held.position = self._position if held.position is None else held.position

    def __exit__(self, *_: object) -> None:
        members = self._held.get(self._room)
        if members is None or self._client_id not in members:  # it was stopped meanwhile
            return
        held = members[self._client_id]
        held.holders -= 1
        if not held.holders:
            held.over.set()
            del members[self._client_id]
            if not members:
                del self._held[self._room]


_NOBODY: Mapping[str, _Held] = {}
