"""Presence: who is here, and what each says of itself.

State only: no sockets, no clock, no greenlets. What changed is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from realtime.codes import ErrorCode
from realtime.config import Limits
from realtime.errors import Reject, UnknownClient

__all__ = ["PresenceList", "PresenceStore"]

Entry = dict[str, Any]


class PresenceList(list[Entry]):
    """Presence entries; ``total`` counts also those past the limit that are not listed."""

    total: int

    def __init__(self, entries: Iterable[Entry], total: int) -> None:
        super().__init__(entries)
        self.total = total


class PresenceStore:
    """One entry per connected client: ``{"id", "metadata", "rooms", "connected_at"}``.

    Entries are copies: changing one changes nothing here.

    :param limits: ``presence_listed`` applies.
    :param rooms_for: returns a client's rooms.
    :param members: returns a room's members.
    """

    def __init__(
        self, limits: Limits, rooms_for: Callable[[str], list[str]], members: Callable[[str], list[str]]
    ) -> None:
        self._limits = limits
        self._rooms_for = rooms_for
        self._members = members
        self._metadata: dict[str, dict[str, Any]] = {}
        self._connected_at: dict[str, float] = {}

    def add(self, client_id: str, metadata: dict[str, Any], connected_at: float) -> None:
        """A client connected; ``metadata`` is kept, not copied, so that its context sees updates."""
        self._metadata[client_id] = metadata
        self._connected_at[client_id] = connected_at

    def remove(self, client_id: str) -> bool:
        """A client left; return False if it was not here."""
        self._connected_at.pop(client_id, None)
        return self._metadata.pop(client_id, None) is not None

    def get(self, client_id: str) -> Entry | None:
        """Return a client's entry, or None if it is not connected."""
        metadata = self._metadata.get(client_id)
        return None if metadata is None else self._entry(client_id, metadata)

    def _entry(self, client_id: str, metadata: Mapping[str, Any]) -> Entry:
        return {
            "id": client_id,
            "metadata": dict(metadata),
            "rooms": self._rooms_for(client_id),
            "connected_at": self._connected_at[client_id],
        }

    def list(self, room: str | None = None, *, limit: int | None = None) -> PresenceList:
        """Return who is here, or who is in ``room``, in the order they came.

        :param limit: list at most so many, ``Limits.presence_listed`` if not given; ``.total`` counts all.
        """
        ids = list(self._metadata) if room is None else self._members(room)
        shown = ids[: self._limits.presence_listed if limit is None else max(0, limit)]
        return PresenceList((self._entry(id_, self._metadata[id_]) for id_ in shown), len(ids))

    def update(self, client_id: str, metadata: Mapping[str, Any]) -> Entry:
        """Merge ``metadata`` into a client's own (a key set to None stays, as None); return its entry.

        :raises UnknownClient: no such client is connected.
        :raises Reject: metadata is no mapping with string keys.
        """
        if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
            raise Reject("presence metadata must be an object with string keys", code=ErrorCode.BAD_MESSAGE)
        current = self._metadata.get(client_id)
        if current is None:
            raise UnknownClient(f"no client {client_id!r} is connected")
        current.update(metadata)
        return self._entry(client_id, current)
