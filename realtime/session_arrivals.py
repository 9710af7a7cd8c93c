"""Sessions that come from another node of the cluster: the node that a client comes back to asks for its session.

How nodes hand a session over, and lose nothing meanwhile, is told in ``realtime.session_departures``.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from realtime.codes import CloseCode
from realtime.connection import Connection
from realtime.cursors import Position
from realtime.delivery import Delivery, expires_at
from realtime.errors import BadMessage, RealtimeError
from realtime.message import CODECS, Outbound, Wire
from realtime.recovery import Replay
from realtime.session_departures import CLAIM_TIMEOUT
from realtime.session_wire import UNCLEAN, Refusal, Wish

if TYPE_CHECKING:
    from realtime.sessions import Sessions

__all__ = ["Arrivals"]

log = logging.getLogger("realtime")

CLAIM_PATIENCE = 2.0  # seconds for the old node to answer where there is no link to it: time for one to come back
MOST_HOPS = 4  # moves of one session that a token may be behind


def _frames(state: dict[str, Any], wire: Wire) -> list[bytes]:
    """Return what was sent to a client of another node, and may not have arrived, as frames of a wire.

    :raises BadMessage: the other codec cannot carry what is in it.
    :raises KeyError: it was encoded in a codec that is not known here.
    """
    codec = CODECS[state["codec"]].name
    now = time.monotonic()
    frames = []
    for body, options in zip(state["bodies"], state["options"], strict=True):
        delivery = None if options is None else msgspec.convert(options, Delivery)
        expires = expires_at(delivery, now)
        frames.append(Outbound.relayed({codec: body}, delivery=delivery, expires=expires).finished(wire))
    return frames


class _MovedClient(Connection):
    """A client that first came to another node: never a connection of its own, others carry it."""

    __slots__ = ("transport",)

    def transmit(self, frame: bytes) -> None:
        """Its outbox is always another's."""
        raise AssertionError("a client without a connection")

    def end(self, code: int, reason: str) -> None:
        """As well."""
        raise AssertionError("a client without a connection")


class Arrivals:
    """The new node's side of every move, for one hub."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._hub = sessions.hub
        self._claiming: set[Connection] = set()
        self._waiting_for: dict[str, list[tuple[Connection, Wish, str | int | None]]] = {}
        """By token on its way here: who came with it meanwhile, as a client does that was cut off once more."""

    def clear(self) -> None:
        """Forget all."""
        self._claiming.clear()
        self._waiting_for.clear()

    def is_coming(self, token: str) -> bool:
        """Tell whether the session of a token is being fetched."""
        return token in self._waiting_for

    def claim(self, connection: Connection, wish: Wish, ack: str | int | None, node: str, hops: int = 0) -> None:
        """Ask a node for a session; the connection is welcomed once it has answered."""
        assert wish.token is not None
        if not hops and wish.token in self._waiting_for:
            self._claiming.add(connection)
            self._waiting_for[wish.token].append((connection, wish, ack))
            return
        self._waiting_for.setdefault(wish.token, [])
        question = {
            "token": wish.token,
            "received": wish.received,
            "identity": connection.identity,
            "node": self._hub.cluster.node_id,
        }
        then = partial(self._answered, connection, wish, ack, hops)
        self._claiming.add(connection)  # before: where the question is lost at once, so is the answer told
        try:
            timeout = CLAIM_TIMEOUT if self._hub.cluster.reaches(node) else CLAIM_PATIENCE
            self._hub.cluster.ask_node(node, "claim", question, timeout, then)
        except BadMessage:
            self._refuse(connection, wish, ack, Refusal.IDENTITY)
        except RealtimeError as error:
            log.debug("node %s cannot be asked for a session: %s", node, error)
            self._refuse(connection, wish, ack, Refusal.UNREACHABLE)

    def is_claiming(self, connection: Connection) -> bool:
        """Tell whether a connection waits for the answer of a node."""
        return connection in self._claiming

    def _refuse(self, connection: Connection, wish: Wish, ack: str | int | None, refusal: Refusal) -> None:
        self._claiming.discard(connection)
        if not connection.closed:
            self._sessions.begin(connection, ack, refusal)
        self._greet_others(wish)

    def _greet_others(self, wish: Wish) -> None:
        """What was fetched is here, or will not be: now for those who came with the same token meanwhile."""
        assert wish.token is not None
        for connection, its_wish, ack in self._waiting_for.pop(wish.token, ()):
            self._claiming.discard(connection)
            if not connection.closed:
                self._sessions.greet(connection, its_wish, ack)

    def _answered(
        self,
        connection: Connection,
        wish: Wish,
        ack: str | int | None,
        hops: int,
        result: Any,
        error: Exception | None,
    ) -> None:
        """A node has answered. What it forwards comes after this, so nothing here may wait."""
        self._claiming.discard(connection)
        if error is not None:
            log.info("a session could not be fetched from its node: %s", error)
            self._refuse(connection, wish, ack, Refusal.UNREACHABLE)
        elif "moved" in result:
            if hops >= MOST_HOPS:
                self._refuse(connection, wish, ack, Refusal.UNREACHABLE)
            elif connection.closed:
                self._greet_others(wish)
            else:
                self.claim(connection, wish, ack, result["moved"], hops + 1)
        elif "refused" in result:
            self._refuse(connection, wish, ack, Refusal[result["refused"]])
        else:
            self._install(connection, wish, ack, result)

    def _install(self, connection: Connection, wish: Wish, ack: str | int | None, state: dict[str, Any]) -> None:
        """Have the client here, as one that is away; and if its connection is still there, back at once."""
        hub = self._hub
        assert wish.token is not None
        wire = connection.wire
        try:
            frames = _frames(state, wire)
        except (BadMessage, KeyError) as error:  # before anything is done: nobody may have half of a client
            log.warning("what was kept for client %s cannot be sent as %s: %s", state["id"], wire.codec.name, error)
            self._refuse(connection, wish, ack, Refusal.CODEC)
            return
        client = _MovedClient(
            wire=wire,
            identity=connection.identity,
            remote_address=connection.remote_address,
            metadata=state["metadata"],
        )
        client.transport = connection.transport
        client.id = state["id"]
        client.connected_at = state["connected_at"]
        client.answers = state["answers"]
        self._sessions.calls.carry_on(client, state["node"], state["calls"])
        self._sessions.departures.is_coming_home(client.id)
        positions: dict[str, Position] = state["positions"]
        held = {room: hub.history.holds.hold(room, client.id, position) for room, position in positions.items()}
        for hold in held.values():
            hold.__enter__()
        hub.adopt(client, state["rooms"])
        session = self._sessions.restore(client, frames, state["first"], state["received"], wish.token)
        hub.counters["sessions_moved_in"] += 1
        has_left = connection.closed and connection.end_code not in UNCLEAN
        if not connection.closed:
            self._sessions.resume(session, connection, wish, ack)
        for room in state["watched"]:
            hub.live_presence.watch(room, client.id)
        for room, hold in held.items():
            hub.workers.submit(partial(self._carry_on, client, room, positions[room], hold))
        if has_left:
            hub.remove(client, "said goodbye on its way", code=connection.end_code)
        self._greet_others(wish)

    def _carry_on(self, client: Connection, room: str, position: Position, hold: AbstractContextManager[None]) -> None:
        """In a worker: send what came to a room that keeps its history since the old node let go of the client."""
        try:
            if not self._hub.rooms.contains_here(room, client.id):
                return  # gone, or it has left meanwhile
            recovery = Replay(self._hub).carry_on(client, room, position)
            if recovery is not None and not recovery.recovered:
                log.warning("client %s has missed messages of %r on its way: %s", client.id, room, recovery.reason)
                self._hub.counters["sessions_gaps"] += 1
                self._hub.close(client, CloseCode.REPLACED, "messages were missed on the way: join your rooms again")
        except RealtimeError as error:
            log.info("client %s was gone before it had what it missed of %r: %s", client.id, room, error)
        finally:
            hold.__exit__(None, None, None)
