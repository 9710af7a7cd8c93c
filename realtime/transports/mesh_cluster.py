"""The mesh as the kernel's cluster: what rooms, presence and delivery ask of other nodes, put to the core."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

from realtime.cluster import Cluster, Entry
from realtime.errors import BadMessage, ConnectionClosed, MessageTooBig, NotConfirmed, TimedOut, unknown_client
from realtime.hub import Hub
from realtime.message import CODECS, JSON, Outbound
from realtime.outbox import stall
from realtime.protocols.mesh_actions import CallAnswered, CallLost, Confirmed, ConfirmFailed
from realtime.protocols.mesh_calls import pack_question, unpack_failure, unpack_result
from realtime.protocols.mesh_outgoing import Published
from realtime.transports.mesh_engine import Engine

__all__ = ["MeshCluster"]

log = logging.getLogger("realtime.mesh")

GRACE = 1.0  # seconds beyond a question's own timeout for its answer to cross
_LOST = {
    "gone": "its node has left the cluster",
    "lost": "the question was lost on the way",
    "busy": "too many questions wait for an answer already",
}


class _Confirmation:
    """One message that nodes are to confirm."""

    def __init__(self) -> None:
        self.missing: dict[str, None] = {}
        self.heard: set[str] = set()
        self.failed: dict[str, str] = {}
        self.delivered = 0
        self.done = Event()

    def expect(self, nodes: list[str]) -> None:
        """It went to these, some of which may have answered already while the publisher stalled."""
        self.missing = dict.fromkeys(node for node in nodes if node not in self.heard)
        if not self.missing:
            self.done.set()

    def take(self, action: Confirmed | ConfirmFailed) -> None:
        """A node has confirmed, or will not."""
        self.heard.add(action.node)
        if isinstance(action, Confirmed):
            self.delivered += action.count
        else:
            self.failed[action.node] = action.reason
        if self.missing:
            self.missing.pop(action.node, None)
            if not self.missing:
                self.done.set()


class MeshCluster(Cluster):
    """Belongs to one start of one node.

    :param awaiting: for the length of a ``with`` block, go on reading what these nodes say although their events are
        handled too slowly: else answers would wait behind events whose handlers wait for answers.
    """

    def __init__(self, hub: Hub, awaiting: Callable[[Iterable[str]], AbstractContextManager[None]]) -> None:
        self.engine: Engine
        self._hub = hub
        self._awaiting = awaiting
        self._tokens = itertools.count(1)
        self._questions: dict[int, AsyncResult[Any]] = {}
        self._confirmations: dict[int, _Confirmation] = {}
        self._unsynced: dict[str, int] = {}  # bytes sent to a client since its node last said that it has room

    # Told ------------------------------------------------------------------------------------------------

    def client_came(
        self, client_id: str, metadata: Mapping[str, Any], connected_at: float, codec: str, key: str
    ) -> None:
        """A client connected to this node."""
        key = "" if key == client_id else key
        spoken = codec if codec in CODECS else JSON.name
        core = self.engine.core
        try:
            core.client_came(client_id, metadata, connected_at, spoken, key)
        except (BadMessage, MessageTooBig) as error:
            self._not_shown(client_id, error)
            core.client_came(client_id, {}, connected_at, spoken, key)
        self.engine.act_soon()

    def _not_shown(self, client_id: str, error: Exception) -> None:
        self.engine.core.counters["metadata_not_shown"] += 1
        log.warning("what client %s shows cannot be told to other nodes: %s", client_id, error)

    def client_went(self, client_id: str) -> None:
        """A client of this node is gone."""
        self.engine.core.client_went(client_id)
        self.engine.act_soon()

    def room_joined(self, room: str, client_id: str) -> None:
        """A client of this node is in a room now."""
        self.engine.core.room_joined(room, client_id)
        self.engine.act_soon()

    def room_left(self, room: str, client_id: str) -> None:
        """A client of this node left a room."""
        self.engine.core.room_left(room, client_id)
        self.engine.act_soon()

    def metadata_replaced(self, client_id: str, metadata: Mapping[str, Any]) -> None:
        """A client of this node shows other metadata now."""
        try:
            self.engine.core.metadata_replaced(client_id, metadata)
        except (BadMessage, MessageTooBig) as error:
            self._not_shown(client_id, error)
        self.engine.act_soon()

    def forget(self, client_id: str) -> None:
        """A client of another node is gone."""
        self._unsynced.pop(client_id, None)

    # Rooms -----------------------------------------------------------------------------------------------

    def publish(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Send to the members of a room on other nodes. Stalls 5 ms at most while their links are crowded."""
        return self._publish(room, message, except_ids).clients

    def _publish(
        self, room: str | None, message: Outbound, except_ids: Collection[str], **confirm: Any
    ) -> Published:
        core = self.engine.core
        codecs = core.codecs(room)
        if not codecs:
            return Published([], 0)
        bodies = {name: message.encoded(CODECS[name]) for name in codecs}
        published = core.publish(
            room, message.type, bodies, except_ids, overflow=message.overflow, key=message.key, **confirm
        )
        self.engine.act()
        self._stall(published.nodes)
        return published

    def _stall(self, nodes: Collection[str]) -> None:
        links = [link for node in nodes if (link := self.engine.links.get(node)) is not None]
        crowded = [link.outbox for link in links if link.outbox.size > link.outbox.park_at]
        if crowded:
            self.engine.core.counters["stalls"] += 1
            stall(crowded, self._hub.limits.stall)

    def publish_confirmed(
        self, room: str | None, message: Outbound, except_ids: Collection[str], timeout: float
    ) -> int:
        """As ``publish``; parks until every node has delivered it. Raises NotConfirmed."""
        token = next(self._tokens)
        confirmation = self._confirmations[token] = _Confirmation()
        try:
            published = self._publish(room, message, except_ids, confirm=token, deadline=monotonic() + timeout)
            confirmation.expect(published.nodes)
            with self._awaiting(published.nodes), self._hub.workers.parked():
                confirmation.done.wait(timeout + GRACE)
        finally:
            del self._confirmations[token]
        missing = [*confirmation.failed, *confirmation.missing]
        if missing:
            raise NotConfirmed(
                f"not confirmed within {timeout:g} s by {', '.join(missing)}",
                nodes=missing,
                delivered=confirmation.delivered,
            )
        return confirmation.delivered

    # One client ------------------------------------------------------------------------------------------

    def send(self, client_id: str, message: Outbound) -> bool:
        """Send to one client of another node; False if none has it. Parks while the client reads too slowly.

        What is sent without waiting may fill a quarter of the client's outbox; then its node is asked whether
        there is room, and answers once there is, ``Limits.park_timeout`` later at most.
        """
        core = self.engine.core
        node = core.home(client_id)
        if node is None:
            return False
        bodies = {name: message.encoded(CODECS[name]) for name in core.codecs_of(node)}
        if not core.send(client_id, bodies, overflow=message.overflow, key=message.key):
            return False
        waiting = self._unsynced[client_id] = self._unsynced.get(client_id, 0) + max(map(len, bodies.values()))
        self.engine.act()
        self._stall([node])
        if waiting > self._hub.limits.outbox // 4 and gevent.getcurrent() is not gevent.get_hub():
            self._unsynced.pop(client_id, None)
            self._wait_for_room(client_id)
        return True

    def _wait_for_room(self, client_id: str) -> None:
        try:
            self.ask(client_id, "drain", {}, self._hub.limits.park_timeout)
        except (ConnectionClosed, LookupError, TimedOut):
            log.debug("client %s is gone, or reads too slowly", client_id)

    def ask(self, client_id: str, operation: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Have the node of a client do something for it, and return the result: parks this greenlet."""
        token = next(self._tokens)
        answer: AsyncResult[Any] = AsyncResult()
        self._questions[token] = answer
        core = self.engine.core
        node = core.home(client_id)
        try:
            body = pack_question(operation, arguments)
            if node is None or not core.call(token, client_id, body, timeout=timeout + GRACE, now=monotonic()):
                raise unknown_client(client_id)
            self.engine.act()
            with self._awaiting([node]), self._hub.workers.parked():
                return answer.get()
        finally:
            del self._questions[token]
            self.engine.core.forget(token)

    # What became of it -----------------------------------------------------------------------------------

    def resolved(self, action: CallAnswered | CallLost | Confirmed | ConfirmFailed) -> None:
        """Wake whoever waits for this."""
        if isinstance(action, (Confirmed, ConfirmFailed)):
            confirmation = self._confirmations.get(action.token)
            if confirmation is not None:
                confirmation.take(action)
            return
        answer = self._questions.get(action.token)
        if answer is None:
            return
        if isinstance(action, CallLost):
            answer.set_exception(_lost(action.reason))
        elif not action.ok:
            answer.set_exception(unpack_failure(action.body))
        else:
            try:
                answer.set(unpack_result(action.body))
            except BadMessage as error:
                answer.set_exception(error)

    def give_up(self) -> None:
        """The node stops: nobody will answer any more."""
        for answer in self._questions.values():
            answer.set_exception(ConnectionClosed(1001, "this node stops"))
        for confirmation in self._confirmations.values():
            confirmation.done.set()

    # Who is there ------------------------------------------------------------------------------------------

    def members(self, room: str) -> Collection[str]:
        """Return the members of a room on other nodes."""
        return self.engine.core.members(room)

    def is_member(self, room: str, client_id: str) -> bool:
        """Tell whether a client of another node is in a room."""
        return self.engine.core.is_member(room, client_id)

    def rooms(self) -> Mapping[str, int]:
        """Return the rooms of other nodes with their number of members there."""
        return self.engine.core.rooms()

    def clients(self) -> Collection[str]:
        """Return the ids of all clients of other nodes."""
        return self.engine.core.clients()

    def has(self, client_id: str) -> bool:
        """Tell whether another node has this client."""
        return self.engine.core.home(client_id) is not None

    def entry(self, client_id: str) -> Entry | None:
        """Return a copy of the entry of a client of another node."""
        return self.engine.core.entry(client_id)

    def key(self, client_id: str) -> str:
        """Return the key of the presence of a client of another node."""
        return self.engine.core.key(client_id)


def _lost(reason: str) -> Exception:
    if reason == "timeout":
        return TimedOut("the client's node did not answer in time")
    return ConnectionClosed(1006, _LOST.get(reason, reason))
