"""The listening half of one node of the mesh: what others send to our clients, and say of theirs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from realtime.protocols.mesh_actions import Action, DeliverToClient, DeliverToRoom, MeshEvent, RunCall
from realtime.protocols.mesh_bodies import (
    Answer,
    Ask,
    Call,
    Chunk,
    Delivered,
    Delta,
    Digest,
    Event,
    ToClient,
    ToRoom,
    decode_body,
    encode,
)
from realtime.protocols.mesh_outgoing import Outgoing
from realtime.protocols.mesh_peers import Peer

__all__ = ["Incoming"]


class Incoming(Outgoing):
    """Takes what nodes say in reliable frames, and tells what is known from it of the clients of others."""

    def _take_body(self, peer: Peer, body: bytes) -> None:
        """Take the body of a reliable frame. Raises MeshError."""
        message = decode_body(body)
        _HANDLERS[type(message)](self, peer, message)

    # For our clients ---------------------------------------------------------------------------------------

    def _on_to_room(self, peer: Peer, message: ToRoom) -> None:
        except_ids = message.except_ids
        if peer.unaware and message.mark is None:
            except_ids = [*except_ids, *self._passed_on(peer, message.room)]
        self._actions.append(
            DeliverToRoom(
                peer.id,
                message.room,
                message.bodies,
                except_ids,
                message.delivery,
                message.confirm,
                message.mark,
            )
        )

    def _passed_on(self, peer: Peer, room: str | None) -> list[str]:
        """Return the clients here that get what a peer has sent to a room from their old node, which has got it too."""
        return [
            client
            for client in peer.is_unaware_of()
            if (self.home(client) is not None if room is None else self.is_member(room, client))
        ]

    def _on_to_client(self, peer: Peer, message: ToClient) -> None:
        self._actions.append(
            DeliverToClient(peer.id, message.client, message.bodies, message.delivery)
        )

    def _on_call(self, peer: Peer, message: Call) -> None:
        self._actions.append(RunCall(peer.id, message.token, message.client, message.body, message.timeout))

    def _on_answer(self, peer: Peer, message: Answer) -> None:
        self._resolved(self._pending.answered(message.token, peer.id, message.ok, message.body, message.more))

    def _on_delivered(self, peer: Peer, message: Delivered) -> None:
        self._resolved(self._pending.delivered(message.token, peer.id, message.count))

    def _resolved(self, action: Action | None) -> None:
        if action is None:
            self.counters["answers_too_late"] += 1
        else:
            self._actions.append(action)

    def _on_event(self, peer: Peer, message: Event) -> None:
        self._actions.append(MeshEvent(peer.id, message.body))

    # Of their clients --------------------------------------------------------------------------------------

    def _on_delta(self, peer: Peer, message: Delta) -> None:
        self._ask_if(self._replicas.on_delta(peer.id, message), peer)

    def _on_chunk(self, peer: Peer, message: Chunk) -> None:
        self._ask_if(self._replicas.on_chunk(peer.id, message), peer)

    def _on_digest(self, peer: Peer, message: Digest) -> None:
        self._ask_if(self._replicas.on_digest(peer.id, message), peer)

    def _ask_if(self, needed: bool, peer: Peer) -> None:
        if needed:
            self.counters["snapshots_asked"] += 1
            self._peers.send(peer, encode(Ask()))

    def _on_ask(self, peer: Peer, message: Ask) -> None:
        if peer.feed is None:
            peer.begin_anew()

    # Who is there ------------------------------------------------------------------------------------------

    def members(self, room: str) -> list[str]:
        """Return the members of a room on other nodes."""
        members = self._index.members(room)
        here = self._replicas.moved_here
        if here or self._index.shared:
            return [client for client in dict.fromkeys(members) if client not in here]
        return list(members)

    def is_member(self, room: str, client: str) -> bool:
        """Tell whether a client of another node is in a room."""
        return any(client in members for members in self._index.nodes_in(room).values())

    def rooms(self) -> dict[str, int]:
        """Return the rooms of other nodes, with their number of members there."""
        return self._index.rooms()

    def clients(self) -> Collection[str]:
        """Return the ids of all clients of other nodes: a view."""
        here = self._replicas.moved_here
        return set(self._index.clients()) - here if here else self._index.clients()

    def home(self, client: str) -> str | None:
        """Return the node that has a client; None if no other node has it."""
        return self._index.home(client)

    def entry(self, client: str) -> dict[str, Any] | None:
        """Return a client of another node as presence shows it; None if there is none."""
        return self._replicas.entry(client)

    def key(self, client: str) -> str:
        """Return the key of the presence of a client of another node; its id if there is none."""
        return self._replicas.key(client)


_HANDLERS: Mapping[type, Callable[[Incoming, Peer, Any], None]] = {
    ToRoom: Incoming._on_to_room,
    ToClient: Incoming._on_to_client,
    Call: Incoming._on_call,
    Answer: Incoming._on_answer,
    Delivered: Incoming._on_delivered,
    Event: Incoming._on_event,
    Delta: Incoming._on_delta,
    Chunk: Incoming._on_chunk,
    Ask: Incoming._on_ask,
    Digest: Incoming._on_digest,
}
