"""What clients in a call are told of one another: who joins, is back, goes, or is lost with its node."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from realtime.errors import ConnectionClosed, MessageTooBig, UnknownClient
from realtime.kernel import RealtimeKernel
from realtime.signaling.call_rooms import CallRooms
from realtime.signaling.elsewhere import Asked, Elsewhere, Shown
from realtime.signaling.participants import Participant, Participants

__all__ = ["CallNews"]


class CallNews:
    """Tells this node's clients, and has other nodes tell theirs."""

    def __init__(
        self, kernel: RealtimeKernel, rooms: CallRooms, participants: Participants, elsewhere: Elsewhere
    ) -> None:
        self._kernel = kernel
        self._rooms = rooms
        self._participants = participants
        self._elsewhere = elsewhere
        elsewhere.heard_of = self._heard_of
        self.counters = rooms.counters

    def peer(self, peer: str, own: str, call: str, elsewhere: dict[str, Shown]) -> dict[str, Any]:
        """Return what a client is told of another: who is polite follows from the ids, so both sides agree."""
        participant = self._participants.get(peer, call)
        shown = elsewhere.get(peer) if participant is None else participant.shown()
        if shown is None:  # put into the call by the application, or its node does not answer
            entry = self._kernel.presence.get(peer)
            shown = {"metadata": entry["metadata"]} if entry and entry["metadata"] else {}
        return {"id": peer, "polite": own < peer, **shown}

    def announce(self, call: str, payload: dict[str, Any], joiner: Participant | None = None) -> None:
        """Tell the others of one that has joined, or is back. May stall, or park, for crowded outboxes.

        Those that are known here are told by name, so that it reaches who is just moving. Other nodes tell the rest: of
        two that join in the same moment, neither's node knows of the other yet. These are asked first: who leaves while
        others are told has been counted there as one that knows.
        """
        others = self._rooms.others(call, payload["id"])
        here = set(self._kernel.rooms.members(call, scope="local"))
        asked = self._elsewhere.announce(call, payload, others)
        self._tell_of(call, payload)
        for one in others:
            if one not in here:
                self._tell_one(call, one, {**payload, "polite": one < payload["id"]})
        if asked and joiner is not None and joiner.met:
            self._kernel.hub.workers.submit(partial(self._tell_missed, joiner, asked))

    def _tell_of(self, call: str, payload: dict[str, Any], skip: Collection[str] = ()) -> None:
        """Tell this node's clients in a call of one that has joined it. May stall for crowded outboxes."""
        joiner = payload["id"]
        silent = {joiner, *skip, *self._rooms.entering_in(call)}
        here = set(self._kernel.rooms.members(call, scope="local")) - silent
        for is_polite in (True, False):  # a receiver is polite iff its id is the smaller one
            told = {one for one in here if (one < joiner) is is_polite}
            if told:
                message = {"type": self._rooms.event("peer-joined"), "payload": {**payload, "polite": is_polite}}
                self._rooms.tell_here(call, message, silent | (here - told))

    def _tell_one(self, call: str, client_id: str, payload: dict[str, Any]) -> None:
        try:
            self._kernel.send(client_id, {"type": self._rooms.event("peer-joined"), "payload": payload, "room": call})
        except (UnknownClient, ConnectionClosed, MessageTooBig):
            pass  # it has gone, or takes nothing so large

    def _heard_of(self, call: str, payload: dict[str, Any], told: Collection[str]) -> None:
        """A client of another node has joined a call, or is back, and its node has told these; who listed it when it
        joined itself knows, too."""
        joiner = payload["id"]
        if not self._rooms.contains(call, joiner):
            return  # it has left meanwhile
        knew = [record.id for record in self._records(call) if joiner in record.met]
        self._tell_of(call, payload, [*told, *knew])

    def _records(self, call: str) -> list[Participant]:
        """Return those of this node's clients in a call."""
        members = self._kernel.rooms.members(call, scope="local")
        return [record for one in members if (record := self._participants.get(one, call)) is not None]

    def _tell_missed(self, joiner: Participant, asked: Asked) -> None:
        """In a worker: tell a joiner of those on other nodes that left before their node could know of it."""
        self._elsewhere.wait(asked)  # what a node did before it heard of the joiner is known now
        knew = {one for answer in asked if answer.ready() for one in answer.value or ()}
        for one in [*joiner.met]:
            if self._participants.get(joiner.id, joiner.call) is not joiner:
                return  # it has left, or gone
            if one in joiner.met and one not in knew and not self._rooms.contains(joiner.call, one):
                payload = {"room": self._rooms.name(joiner.call), "from": one, "reason": "lost"}
                message = {"type": self._rooms.event("bye"), "payload": payload}
                self._rooms.tell_here(joiner.call, message, set(self._rooms.others(joiner.call, joiner.id)))

    def say_bye(self, call: str, client_id: str, **words: Any) -> None:
        """Tell the others that one has gone, and why. May stall for crowded outboxes."""
        payload = {"room": self._rooms.name(call), "from": client_id, **words}
        self._rooms.tell_others(call, {"type": self._rooms.event("bye"), "payload": payload}, client_id)

    # Of other nodes ------------------------------------------------------------------------------------

    def lost(self, client_id: str, rooms: Collection[str]) -> None:
        """A client of another node is gone with its node: have this node's clients told. Never waits."""
        for call in self._rooms.calls_among(rooms):
            for record in self._records(call):
                record.met.discard(client_id)
        self._submit_for(self._tell_lost, client_id, rooms)

    def found(self, client_id: str, rooms: Collection[str]) -> None:
        """A client was in calls before its node was known: have this node's clients told. Never waits."""
        self._submit_for(self._tell_found, client_id, rooms)

    def _submit_for(self, tell: Callable[[str, str], None], client_id: str, rooms: Collection[str]) -> None:
        for call in self._rooms.calls_among(rooms):
            self._kernel.hub.workers.submit(partial(tell, call, client_id))

    def _tell_lost(self, call: str, client_id: str) -> None:
        self.counters["ended_with_their_node"] += 1
        payload = {"room": self._rooms.name(call), "from": client_id, "reason": "lost"}
        message = {"type": self._rooms.event("bye"), "payload": payload}
        self._rooms.tell_here(call, message, self._rooms.entering_in(call))

    def _tell_found(self, call: str, client_id: str) -> None:
        elsewhere = self._elsewhere.shown(call, [client_id])
        if not self._rooms.contains(call, client_id):
            return  # it has left meanwhile
        self.counters["found_with_their_node"] += 1
        payload = {"room": self._rooms.name(call), **self.peer(client_id, "", call, elsewhere)}
        self._tell_of(call, payload)
