"""Who is told that rooms change: the one place where live presence, or an engine in its place, listens."""

from __future__ import annotations

from typing import Protocol

__all__ = ["RoomWatch", "Unwatched"]


class RoomWatch(Protocol):
    """Told of this node's clients and of those on other nodes alike. Never switches greenlets, never raises.

    It is not told what became of a client, but to look: after each of these, rooms and presence show how it is now.
    So it does no harm to be told twice, late, or of what has changed again.
    """

    def member_changed(self, room: str, client_id: str) -> None:
        """A client came into a room, or is no longer in it."""

    def client_changed(self, client_id: str) -> None:
        """A client shows other metadata."""

    def watch(self, room: str, client_id: str) -> None:
        """A client of this node, a member of the room, wants to be told of changes until it leaves."""


class Unwatched(RoomWatch):
    """Nobody listens."""

    def member_changed(self, room: str, client_id: str) -> None:
        """Nobody to tell."""

    def client_changed(self, client_id: str) -> None:
        """Nobody to tell."""

    def watch(self, room: str, client_id: str) -> None:
        """Nothing is told."""
