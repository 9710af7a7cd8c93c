"""Live presence: clients that are told who is in a room, and then who comes, goes and changes.

``presence:state`` comes once, with the join, and has ``{"room", "presences", "total"}``; presences are
``{key: {"metas": [{"id", ...metadata}]}}``. Then comes ``presence:diff``, in batches, with ``{"room", "joins",
"leaves", "updates", "total"}``, the three in the shape of presences. A key is an identity, or the id of a client
without one; it joins with the first of its clients and leaves with the last, with the metas shown last; what changes
between is an update, with all its metas. ``total`` is the number of keys.

A room with more than ``Limits.presence_listed`` clients, or whose metas take more than a quarter of
``Limits.outbox``, is shown as a number: its state and diffs are ``{"room", "total"}``. Where it becomes one or is
one no more, another ``presence:state`` takes the place of all that was known; so it does where the session of a watcher
goes on at another node, which tells it who is there as that node sees it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from realtime.config import Limits
from realtime.errors import BadMessage, MessageTooBig
from realtime.expiry import Expiry
from realtime.presence_diff import STATE, Bounds, RoomPresence, Shown, shown
from realtime.room_watch import RoomWatch

if TYPE_CHECKING:
    from realtime.hub import Hub
    from realtime.outbox import Outbox

__all__ = ["LivePresence"]

log = logging.getLogger("realtime")

TURN = 0.01  # seconds of telling until others get the loop


class LivePresence(RoomWatch):
    """The watched rooms of one node, and the greenlet that tells what changed in them.

    Clients are told by the node they are on. A room takes memory here only while somebody of this node watches it.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._bounds = _bounds(hub.limits)
        self._rooms: dict[str, RoomPresence] = {}
        self._due: list[tuple[float, str]] = []  # a heap; rooms that nobody watches any more may be in it
        self._teller = Expiry(self._tell_due)

    # Lifecycle -------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Begin to tell."""
        self._teller.start()

    def on_stop(self) -> None:
        """End the greenlet. Switches."""
        self._teller.stop()
        self._rooms.clear()
        self._due.clear()

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        rooms = self._rooms.values()
        return {"watched_rooms": len(rooms), "watchers": sum(room.watchers for room in rooms)}

    # What happens ----------------------------------------------------------------------------------------

    def member_changed(self, room: str, client_id: str) -> None:
        """A client of any node came into a room, or is no longer in it."""
        presence = self._rooms.get(room)
        if presence is None:
            return
        if presence.watches(client_id) and client_id not in self._hub.rooms.each_member(room):
            self._unwatch(room, presence, client_id)
            if room not in self._rooms:
                return
        due = presence.due
        if self._hub.rooms.contains(room, client_id):
            presence.put(client_id, self._hub.presence.key(client_id), monotonic())
        else:
            presence.drop(client_id, monotonic())
        if due is None and presence.due is not None:
            self._schedule(room, presence.due)

    def client_changed(self, client_id: str) -> None:
        """A client of any node shows other metadata."""
        if not self._rooms:
            return
        entry = self._hub.presence.get(client_id)
        for room in entry["rooms"] if entry is not None else ():
            self.member_changed(room, client_id)

    def watch(self, room: str, client_id: str) -> None:
        """Tell a client of this node, a member of the room, who is there, and then what changes until it leaves."""
        presence = self._rooms.get(room)
        if presence is None:
            presence = self._rooms[room] = self._presence_of(room)
        if presence.watches(client_id):
            return
        due = presence.due
        state = presence.watch(client_id, monotonic())
        self._tell(room, STATE, state, (client_id,))
        if due is None and presence.due is not None:
            self._schedule(room, presence.due)

    def watched_by(self, client_id: str) -> list[str]:
        """Return the rooms that a client of this node watches."""
        rooms = self._hub.rooms.rooms_for(client_id)
        return [room for room in rooms if room in self._rooms and self._rooms[room].watches(client_id)]

    def hand_over(self, client_id: str) -> None:
        """A client of this node is told by another from now on: tell it nothing more."""
        for room in self.watched_by(client_id):
            self._unwatch(room, self._rooms[room], client_id)

    def page(self, room: str, after: str) -> dict[str, Any]:
        """Return some of a room's presences: see ``RoomPresence.page``."""
        presence = self._rooms.get(room) or self._presence_of(room)
        return presence.page(after)

    def _presence_of(self, room: str) -> RoomPresence:
        """Return who is in a room now."""
        made, now, store = RoomPresence(self._bounds, self._shown), monotonic(), self._hub.presence
        for client_id in self._hub.rooms.members(room):
            made.put(client_id, store.key(client_id), now)
        return made

    def _shown(self, client_id: str) -> Shown:
        entry = self._hub.presence.get(client_id)
        try:
            return shown(client_id, entry["metadata"] if entry is not None else {})
        except BadMessage as error:
            self._hub.counters["metadata_not_shown"] += 1
            log.warning("what client %s shows cannot be told to others: %s", client_id, error)
            return shown(client_id, {})

    def _unwatch(self, room: str, presence: RoomPresence, client_id: str) -> None:
        presence.unwatch(client_id)
        if not presence.watchers:  # forget it
            del self._rooms[room]
            if not self._rooms:
                self._due.clear()

    # Telling ---------------------------------------------------------------------------------------------

    def _schedule(self, room: str, due: float) -> None:
        heappush(self._due, (due, room))
        self._teller.due(due)

    def _tell_due(self, now: float) -> float | None:
        """In the greenlet: tell what is due; return when something is again."""
        turn = now + TURN
        while self._due and self._due[0][0] <= now:
            _, room = heappop(self._due)
            presence = self._rooms.get(room)
            if presence is None or presence.due is None or presence.due > now:
                continue
            for notice in presence.flush(now):
                self._tell(room, notice.type, notice.payload, notice.watchers)
            if monotonic() > turn:
                gevent.sleep(0)
                turn = monotonic() + TURN
        return self._due[0][0] if self._due else None

    def _tell(self, room: str, kind: str, payload: Mapping[str, Any], watchers: Sequence[str]) -> None:
        """Send to watchers without waiting: what overtook a state or a diff would be told in the wrong order."""
        message = self._hub.outbound({"type": kind, "payload": {"room": room, **payload}}, room=room)
        try:
            self._hub.deliver_to(watchers, message, waits_for=_for_nobody)
        except (BadMessage, MessageTooBig) as error:
            self._hub.counters["presence_not_told"] += len(watchers)
            log.warning("presence of room %r cannot be told: %s", room, error)


def _bounds(limits: Limits) -> Bounds:
    # as MessagePack it may take twice the bytes, and a diff shows who left beside who is there
    return Bounds(limits.presence_listed, limits.outbox // 4, limits.presence_quiet, limits.presence_busy)


def _for_nobody(outbox: Outbox) -> bool:
    return False
