"""Sessions that go on at another node of the cluster than they began.

The node a client comes back to asks the one that its token names. That one hands over what it knows, and passes on
what still comes for the client until every node knows where it is:

1. The old node answers with the state, and from then on forwards each message for the client, behind the answer.
2. The new node has the client from the moment of the answer, and announces it; nobody announces that it left.
3. A node that sees it at both sends to the new one alone. Once the old node sees it at the new one it keeps it for
   what other nodes send, and asks each whether it has seen that too.
4. When all have, nothing more can come: the old node withdraws what it had announced.

Messages of rooms that keep their history are not forwarded: the new node replays those after the old one's last.
What the new node does is in ``realtime.session_arrivals``, and what becomes of open calls in
``realtime.session_calls``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
import msgspec

from realtime.connection import Connection
from realtime.conversation import moved
from realtime.delivery import Perishable, left_of
from realtime.errors import BadMessage, RealtimeError
from realtime.message import MSGPACK, Outbound, Wire
from realtime.outbox import Outbox
from realtime.session_wire import Refusal

if TYPE_CHECKING:
    from realtime.session_line import Session
    from realtime.sessions import Sessions

__all__ = ["CLAIM_TIMEOUT", "Departures"]

log = logging.getLogger("realtime")

CLAIM_TIMEOUT = 5.0  # seconds for the old node to answer
AWARE_TIMEOUT = 5.0  # seconds for another node to see the client at its new one
AWARE_ATTEMPTS = 3  # as long as the node is there: together longer than one that hangs stays in the cluster
HANDLERS_FINISH = 1.0  # seconds that handing over waits for the handler that runs
LOOK = 0.01  # seconds between looks at what nothing announces


class _Forward:
    """Where the outbox of a client that has moved writes to: its new node."""

    def __init__(self, departures: Departures, client_id: str, node: str, wire: Wire) -> None:
        self._departures = departures
        self._client_id = client_id
        self._node = node
        self._wire = wire

    def write(self, frames: list[bytes]) -> int:
        """Send each on."""
        assert self._wire.unfinish is not None
        for frame in frames:
            bodies = {self._wire.codec.name: self._wire.unfinish(bytes(frame))}
            delivery, expires = (frame.delivery, frame.expires) if isinstance(frame, Perishable) else (None, None)
            self._departures.relay(
                self._client_id, self._node, Outbound.relayed(bodies, delivery=delivery, expires=expires)
            )
        return sum(map(len, frames))

    def watch_writable(self) -> None:
        """Never called: all is taken."""

    def broken(self, error: OSError) -> None:
        """Never called."""

    def finished(self) -> None:
        """Never called."""

    def overflowed(self) -> None:
        """Never called."""


def _options(frame: bytes) -> Any:
    """Return a frame's delivery options with what is left of ``ttl``, for another node; None if it has none."""
    if not isinstance(frame, Perishable):
        return None
    return msgspec.to_builtins(left_of(frame.delivery, frame.expires, time.monotonic()))


class _Moving(NamedTuple):
    """A client that was handed over to a node, and is not seen there yet."""

    session: Session
    node: str
    rooms: frozenset[str]
    """All it was in."""
    rooms_left: frozenset[str]
    """Those in which it still is here: all but the rooms that keep their history."""


class _Late:
    """A client that has moved, for the messages of nodes that do not know it yet."""

    def __init__(self, node: str, rooms: frozenset[str], kept: frozenset[str]) -> None:
        self.node = node
        self.rooms = rooms
        self.kept = kept
        """Those of its rooms that keep their history."""
        self.asked: set[str] = set()
        self.unaware: set[str] = set()
        """Those of the nodes asked that have not answered."""


class Departures:
    """The old node's side of every move, for one hub."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._hub = sessions.hub
        self._moving: dict[str, _Moving] = {}
        self._late: dict[str, _Late] = {}
        self._went: dict[str, tuple[str, float]] = {}  # tokens: where their sessions went, and until when it matters

    def clear(self) -> None:
        """Forget all."""
        for memory in (self._moving, self._late, self._went):
            memory.clear()

    def where(self, token: str) -> str | None:
        """Return the other node that has the session of a token, as far as can be told from here."""
        went = self._went.get(token)
        node = went[0] if went is not None else token.rpartition(".")[0]
        return node if node in self._hub.cluster.node_ids() else None

    # Handing over ------------------------------------------------------------------------------------------

    def hand_over(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Give a session away, if who asks may have it. Waits a little for the client's handler: switches."""
        token, node = arguments["token"], arguments["node"]
        deadline = time.monotonic() + CLAIM_TIMEOUT / 2
        while self._sessions.arrivals.is_coming(token) and time.monotonic() < deadline:
            gevent.sleep(LOOK)  # its client is faster than it
        session = self._sessions.find(token)
        if session is not None and self._is_of(session, arguments["identity"]):
            line = session.line
            self._let_handlers_finish(session.client)
            session = self._sessions.find(token)
            if session is not None and session.line is not line and session.line.connection is not None:
                return {"refused": "UNKNOWN"}  # its client has come back here meanwhile
        if session is None:
            went = self._went.get(token)
            return {"moved": went[0]} if went is not None and went[0] != node else {"refused": "UNKNOWN"}
        if not self._is_of(session, arguments["identity"]):
            self._hub.counters["sessions_foreign"] += 1
            return {"refused": "UNKNOWN"}
        refusal = self._sessions.objection(session, session.client.wire, arguments["received"])
        if refusal is None and session.client.wire.unfinish is None:
            refusal = Refusal.CODEC
        if refusal is not None:
            return {"refused": refusal.name}
        return self._part_with(session, node, arguments["received"])

    def _is_of(self, session: Session, identity: Any) -> bool:
        """Compare with an identity that came through the mesh, as ours would have come."""
        try:
            return bool(MSGPACK.encode(session.client.identity) == MSGPACK.encode(identity))
        except BadMessage:
            return False

    def _let_handlers_finish(self, client: Connection) -> None:
        """So that what the client sends next, to its new node, is not handled before what it sent here."""
        deadline = time.monotonic() + HANDLERS_FINISH
        while client.busy and not client.is_awaited and time.monotonic() < deadline:
            gevent.sleep(LOOK)

    def _part_with(self, session: Session, node: str, received: int) -> dict[str, Any]:
        """Return a session's state; from now on its messages go to the node."""
        self._sessions.cut_off(session, "its client has come back to another node")
        hub, client, ring = self._hub, session.client, session.ring
        self._sessions.send_again_from(session, received)
        wire = client.wire
        assert wire.unfinish is not None
        rooms = hub.rooms.rooms_for(client.id)
        logs = {room: one for room in rooms if (one := hub.history.log_of(room)) is not None}
        state = {
            "node": hub.cluster.node_id,
            "id": client.id,
            "metadata": client.metadata,
            "connected_at": client.connected_at,
            "rooms": rooms,
            "watched": hub.live_presence.watched_by(client.id),
            "positions": {
                room: hub.history.holds.position(room, client.id, one.position) for room, one in logs.items()
            },
            "codec": wire.codec.name,
            "first": ring.first,
            "bodies": [wire.unfinish(frame) for frame in ring.frames],
            "options": [_options(frame) for frame in ring.frames],
            "received": session.received,
            "answers": client.answers,
            "calls": self._sessions.calls.left(client),
        }
        try:
            MSGPACK.encode(state)
        except BadMessage as error:  # what an application put into its metadata
            log.warning("client %s cannot move to node %s: %s", client.id, node, error)
            return {"refused": Refusal.IDENTITY.name}
        now = time.monotonic()
        self.forget_old(now)
        for token in session.tokens:
            self._went[token] = node, now + hub.limits.session_grace
        self._sessions.calls.keep(client)
        for waiter in client.waiters or ():
            waiter.result.set_exception(moved())
        client.waiters = None
        client.departed = True
        hub.live_presence.hand_over(client.id)  # behind the state that the new node shows, changes told here are wrong
        outbox = Outbox(_Forward(self, client.id, node, wire), hub.flusher, hub.limits)
        self._sessions.let_go(session, outbox)
        for room in logs:  # the new node replays these by itself
            hub.rooms.release(room, client.id)
        self._moving[client.id] = _Moving(session, node, frozenset(rooms), frozenset(hub.rooms.rooms_for(client.id)))
        hub.counters["sessions_moved_out"] += 1
        return state

    def forget_old(self, now: float) -> float | None:
        """Forget what has expired, the first first; return when more does."""
        while self._went and next(iter(self._went.values()))[1] < now:
            del self._went[next(iter(self._went))]
        return next(iter(self._went.values()))[1] if self._went else None

    def removed(self, client_id: str) -> None:
        """A client is gone, though another node should have it: it was not seen there in time."""
        self._moving.pop(client_id, None)

    def arrived(self, client_id: str, node: str) -> None:
        """A client that may be one of ours is seen at another node: where it went, or where it has gone on to."""
        if client_id in self._moving:
            moving = self._moving[client_id]
            rooms = self._part_from(client_id)
            late = self._late[client_id] = _Late(node, rooms, moving.rooms - moving.rooms_left)
            if self._hub.cluster.home(client_id) is None:  # it has come and gone in one turn
                self._all_know(client_id)
            else:
                self._ask_who_is_unaware(client_id, late)

    def vanished(self, client_id: str) -> None:
        """No other node has a client any more, as it has said goodbye there: who still sees it here is told."""
        if client_id in self._late:
            self._all_know(client_id)

    def is_coming_home(self, client_id: str) -> None:
        """A client is about to be here again, perhaps before all know that it had left."""
        if client_id in self._moving:  # not even this node has seen where it was
            self._part_from(client_id)
            self._hub.cluster.client_went(client_id)
        elif client_id in self._late:
            self._all_know(client_id)

    def _part_from(self, client_id: str) -> frozenset[str]:
        """The client is not one of ours any more; return the rooms in which it was here until now."""
        moving, hub = self._moving.pop(client_id), self._hub
        rooms, watched = frozenset(hub.rooms.rooms_for(client_id)), frozenset(hub.live_presence.watched_by(client_id))
        if watched or rooms != moving.rooms_left:
            hub.workers.submit(partial(self._catch_up, client_id, rooms, moving.rooms_left, watched))
        self._sessions.abandon(moving.session)
        hub.release(moving.session.client)
        return rooms

    def _catch_up(
        self, client_id: str, rooms: frozenset[str], handed: frozenset[str], watched: frozenset[str]
    ) -> None:
        """In a worker: have the client join, watch and leave at its new node what it did here while it moved."""
        try:
            for room in (rooms - handed) | watched:
                self._hub.rooms.join(room, client_id, presence=room in watched)
            for room in handed - rooms:
                self._hub.rooms.leave(room, client_id)
        except RealtimeError as error:
            log.warning("client %s is not in all its rooms after it moved: %s", client_id, error)

    def wait_until_seen(self, client_id: str, timeout: float = CLAIM_TIMEOUT) -> None:
        """Wait until a client that was handed over is seen at its new node. Switches."""
        deadline = time.monotonic() + timeout
        while client_id in self._moving and time.monotonic() < deadline:
            gevent.sleep(LOOK)

    def wait_for_members(self, room: str, timeout: float) -> None:
        """Wait until members of a room that were handed over are seen at their new nodes. Switches only for such.

        :param timeout: seconds that there are for all that is asked of the members: half of them at most are taken
            here, as one whose new node is dead is not seen at all, and the others are still to answer.
        """
        deadline = time.monotonic() + min(timeout / 2, CLAIM_TIMEOUT)
        for client_id, moving in list(self._moving.items()):
            if room in moving.rooms:
                self.wait_until_seen(client_id, deadline - time.monotonic())

    def _ask_who_is_unaware(self, client_id: str, late: _Late) -> None:
        """Ask every node there is whether it sends here what is for the client; once none does, withdraw it.

        Its new node as well: what that had sent before is behind no other's answer.
        """
        nodes = [node for node in self._hub.cluster.node_ids() if node not in late.asked]
        late.asked.update(nodes)
        late.unaware.update(nodes)
        for node in nodes:
            self._ask_whether_aware(client_id, late, node, AWARE_ATTEMPTS)
        if not nodes:
            self._all_know(client_id)

    def _ask_whether_aware(self, client_id: str, late: _Late, node: str, attempts: int) -> None:
        def then(result: Any, error: Exception | None) -> None:
            if self._late.get(client_id) is not late:
                return  # it is home again
            if result is not True and attempts > 1 and node in self._hub.cluster.node_ids():
                self._ask_whether_aware(client_id, late, node, attempts - 1)
                return
            late.unaware.discard(node)
            if not late.unaware:
                self._ask_who_is_unaware(client_id, late)  # of nodes that have joined meanwhile

        try:
            question = {"client": client_id, "node": self._hub.cluster.node_id}
            self._hub.cluster.ask_node(node, "aware", question, 2 * AWARE_TIMEOUT, then)
        except RealtimeError as error:
            log.debug("node %s cannot be asked: %s", node, error)
            then(None, error)

    def _all_know(self, client_id: str) -> None:
        del self._late[client_id]
        self._hub.cluster.client_went(client_id)

    def aware(self, arguments: Mapping[str, Any]) -> bool:
        """Wait until nothing for a client is sent any more to a node that it has left. Switches.

        :returns: False if that did not come to be in time.
        """
        hub, client_id, node = self._hub, arguments["client"], arguments["node"]
        deadline = time.monotonic() + AWARE_TIMEOUT
        while client_id not in hub.connections and hub.cluster.home(client_id) == node:
            if time.monotonic() >= deadline:
                return False
            gevent.sleep(LOOK)
        return True

    # What still comes to the old node ------------------------------------------------------------------------

    def relay(self, client_id: str, node: str, message: Outbound) -> None:
        """Send what is for a client that has moved to ``node`` to where it is now."""
        hub, moving = self._hub, self._moving.get(client_id)
        hub.counters["sessions_forwarded"] += 1
        if moving is not None:  # where the cluster sees it until it is seen there is where it came from
            hub.cluster.forward(moving.node, client_id, message)
        elif client_id in hub.connections:  # it is home again
            hub.put_relayed(hub.connections[client_id], message)
        else:
            hub.cluster.forward(hub.cluster.home(client_id) or node, client_id, message)

    def forward(self, client_id: str, message: Outbound) -> bool:
        """Another node sends to a client that has moved; False if it has not."""
        late = self._late.get(client_id)
        if late is None:
            return False
        self.relay(client_id, late.node, message)
        return True

    def forward_to_room(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Another node sends to a room, or to all, and does not except a client that has moved: return how many."""
        found = [
            (client_id, late.node)
            for client_id, late in self._late.items()
            if (room is None or room in late.rooms) and client_id not in except_ids
        ]
        for client_id, node in found:
            self.relay(client_id, node, message)
        return len(found)

    def moved_from(self, room: str, except_ids: Collection[str]) -> list[str]:
        """Return the members of a room that a node may still take for clients of this one, though they have moved."""
        return [
            client_id
            for client_id, late in self._late.items()
            if (room in late.rooms or room in late.kept) and client_id not in except_ids
        ]
