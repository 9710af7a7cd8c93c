"""Presence: who is here, and what each says of itself.

State only: no sockets, no clock, no greenlets. What changed is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from realtime.cluster import Alone, Cluster, Entry, is_local
from realtime.codes import ErrorCode
from realtime.config import Limits
from realtime.errors import Reject, unknown_client
from realtime.room_watch import RoomWatch, Unwatched
from realtime.rooms import RoomManager
from realtime.routing import check_function

if TYPE_CHECKING:
    from realtime.connection import Context

__all__ = ["Entry", "PresenceList", "PresenceStore"]

UpdateRule = Callable[["Context", Any], object]


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
    :param rooms: who is in which room.
    """

    def __init__(self, limits: Limits, rooms: RoomManager) -> None:
        self._limits = limits
        self._rooms = rooms
        self.cluster: Cluster = Alone()
        """Told what clients here show, and asked for those elsewhere."""
        self.watch: RoomWatch = Unwatched()
        """Told of every change of what clients show, here and elsewhere."""
        self._metadata: dict[str, dict[str, Any]] = {}
        self._connected_at: dict[str, float] = {}
        self._keys: dict[str, str] = {}  # where it is not the client's id
        self.update_rule: bool | UpdateRule = False

    def configure(self, *, update: bool | UpdateRule) -> None:
        """Say whether clients may change their own metadata by themselves, with ``system:presence``.

        :param update: no (as it is by default), yes, or a function ``(context, metadata)`` that tells. It gets
            whatever the client sent, and may wait. Handlers update anything.
        :raises ConfigurationError: it is neither.
        """
        if not isinstance(update, bool):
            check_function(update, 2, "presence.configure(update=...)", "(context, metadata)")
        self.update_rule = update

    def add(self, client_id: str, metadata: dict[str, Any], connected_at: float, key: str | None = None) -> None:
        """A client connected; ``metadata`` is kept, not copied, so that its context sees updates.

        :param key: what several clients have in common that are one presence; its id if not given.
        """
        if key is not None and key != client_id:
            self._keys[client_id] = key
        self._metadata[client_id] = metadata
        self._connected_at[client_id] = connected_at

    def remove(self, client_id: str) -> bool:
        """A client left; return False if it was not here."""
        self._connected_at.pop(client_id, None)
        self._keys.pop(client_id, None)
        return self._metadata.pop(client_id, None) is not None

    def has(self, client_id: str) -> bool:
        """Tell whether a client is connected, to whichever node."""
        return client_id in self._metadata or self.cluster.has(client_id)

    def get(self, client_id: str) -> Entry | None:
        """Return a client's entry, whichever node it is on, or None if it is not connected."""
        metadata = self._metadata.get(client_id)
        return self.cluster.entry(client_id) if metadata is None else self._entry(client_id, metadata)

    def key(self, client_id: str) -> str:
        """Return the key of a client's presence, whichever node it is on; its id if it is not connected."""
        if client_id in self._metadata:
            return self._keys.get(client_id, client_id)
        return self.cluster.key(client_id)

    def _entry(self, client_id: str, metadata: Mapping[str, Any]) -> Entry:
        return {
            "id": client_id,
            "metadata": dict(metadata),
            "rooms": self._rooms.rooms_for(client_id),
            "connected_at": self._connected_at[client_id],
        }

    def list(
        self, room: str | None = None, *, limit: int | None = None, scope: str = "cluster"
    ) -> PresenceList:
        """Return who is here, or who is in ``room``: this node's clients first, each node's in the order they came.

        :param limit: list at most so many, ``Limits.presence_listed`` if not given; ``.total`` counts all.
        :param scope: ``"local"``: this node's clients alone.
        """
        if room is not None:
            ids = self._rooms.members(room, scope=scope)
        else:
            ids = list(self._metadata)
            if not is_local(scope):
                ids += self.cluster.clients()
        shown = ids[: self._limits.presence_listed if limit is None else max(0, limit)]
        return PresenceList(filter(None, map(self.get, shown)), len(ids))

    def own(self) -> Iterable[Entry]:
        """Iterate over the entries of this node's clients: not across a greenlet switch."""
        return (self._entry(client_id, metadata) for client_id, metadata in self._metadata.items())

    def update(self, client_id: str, metadata: Mapping[str, Any]) -> Entry:
        """Merge ``metadata`` into a client's own (a key set to None stays, as None); return its entry.

        :raises UnknownClient: no such client is connected.
        :raises Reject: metadata is no mapping with string keys.
        """
        if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
            raise Reject("presence metadata must be an object with string keys", code=ErrorCode.BAD_MESSAGE)
        current = self._metadata.get(client_id)
        if current is None:
            raise unknown_client(client_id)
        current.update(metadata)
        self.cluster.metadata_replaced(client_id, current)
        self.watch.client_changed(client_id)
        return self._entry(client_id, current)
