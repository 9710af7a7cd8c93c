"""The mesh as the kernel's cluster: what rooms, presence and delivery ask of other nodes, put to the core."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

from realtime.cluster import Cluster, Entry, RoomAnswers, Then
from realtime.codes import CloseCode
from realtime.errors import BadMessage, ConnectionClosed, MessageTooBig, NotConfirmed, TimedOut, unknown_client
from realtime.hub import Hub
from realtime.message import CODECS, JSON, MSGPACK, Outbound
from realtime.outbox import stall
from realtime.protocols.mesh_actions import CallAnswered, CallLost, Confirmed, ConfirmFailed
from realtime.protocols.mesh_calls import pack_question, unpack_failure, unpack_result
from realtime.protocols.mesh_outgoing import Published
from realtime.transports.mesh_engine import Engine
from realtime.transports.mesh_room_calls import NodeAnswers, ask_nodes

__all__ = ["MeshCluster"]

log = logging.getLogger("realtime.mesh")

GRACE = 1.0  # seconds beyond a question's own timeout for its answer to cross
_LOST = {
    "gone": "its node has left the cluster",
    "lost": "the question was lost on the way",
    "busy": "too many questions wait for an answer already",
}
_UNCONFIRMED = {
    "timeout": "no answer",
    "gone": "has left the cluster",
    "lost": "the message was lost on the way",
    "busy": "too much waits to be confirmed already",
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

    def __init__(
        self, hub: Hub, node_id: str, awaiting: Callable[[Iterable[str]], AbstractContextManager[None]]
    ) -> None:
        self.engine: Engine
        self.node_id = node_id
        self._hub = hub
        self._awaiting = awaiting
        self._tokens = itertools.count(1)
        self._questions: dict[int, AsyncResult[Any] | NodeAnswers] = {}
        self._asked: dict[int, Then] = {}
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

    def client_moved(self, client_id: str) -> None:
        """A client of this node is one of another now."""
        self.engine.core.client_moved(client_id)

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
            room, message.type, bodies, except_ids, busy=self._is_busy if message.volatile else None,
            delivery=message.delivery_left(monotonic()), expires=message.expires, mark=message.mark, **confirm,
        )  # fmt: skip
        self.engine.act()
        if not message.volatile:
            self._stall(published.nodes)
        return published

    def _is_busy(self, node: str) -> bool:
        """Tell whether a node could not have a message at once: its link is crowded, or gone for the moment."""
        link = self.engine.links.get(node)
        return link is None or not link.outbox.has_room()

    def _stall(self, nodes: Collection[str]) -> None:
        links = [link for node in nodes if (link := self.engine.links.get(node)) is not None]
        crowded = [link.outbox for link in links if link.outbox.size > link.outbox.park_at]
        if crowded:
            self.engine.core.counters["stalls"] += 1
            stall(crowded, self._hub.limits.stall)

    def publish_confirmed(
        self,
        room: str | None,
        message: Outbound,
        except_ids: Collection[str],
        timeout: float,
        sent: Callable[[], None],
    ) -> int:
        """As ``publish``; parks until every node has delivered it. Raises NotConfirmed."""
        token = next(self._tokens)
        confirmation = self._confirmations[token] = _Confirmation()
        try:
            published = self._publish(room, message, except_ids, confirm=token, deadline=monotonic() + timeout)
            confirmation.expect(published.nodes)
            sent()
            with self._awaiting(published.nodes), self._hub.workers.parked():
                confirmation.done.wait(timeout + GRACE)
        finally:
            del self._confirmations[token]
        missing = {**dict.fromkeys(confirmation.missing, "timeout"), **confirmation.failed}
        if missing:
            whom = ", ".join(f"{node} ({_UNCONFIRMED.get(reason, reason)})" for node, reason in missing.items())
            raise NotConfirmed(
                f"not confirmed within {timeout:g} s by {whom}",
                nodes=tuple(missing),
                delivered=confirmation.delivered,
            )
        return confirmation.delivered

    def call_room(
        self,
        room: str,
        message: Mapping[str, Any],
        except_ids: Collection[str],
        timeout: float,
        answers: RoomAnswers,
    ) -> Callable[[], None]:
        """Ask the members of a room on other nodes. Stalls 5 ms at most while their links are crowded."""
        core = self.engine.core
        asked = ask_nodes(
            core, room, message, except_ids, timeout, answers,
            token=lambda: next(self._tokens), deadline=timeout + GRACE, now=monotonic(),
        )  # fmt: skip
        nodes = [node_answers.node for node_answers in asked.values()]
        reading = ExitStack()

        def forget() -> None:
            reading.close()
            for token in asked:
                self._questions.pop(token, None)
                core.forget(token)

        self._questions.update(asked)
        try:
            reading.enter_context(self._awaiting(nodes))
            self.engine.act()
            self._stall(nodes)
        except BaseException:
            forget()
            raise
        return forget

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
        if message.volatile and self._is_busy(node):
            core.counters["dropped_volatile"] += 1
            return True
        bodies = {name: message.encoded(CODECS[name]) for name in core.codecs_of(node)}
        left = message.delivery_left(monotonic())
        if not core.send(client_id, bodies, delivery=left, expires=message.expires):
            return False
        if message.volatile:
            self.engine.act()
            return True
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

    # Nodes ---------------------------------------------------------------------------------------------

    def node_ids(self) -> Collection[str]:
        """Return the names of the other nodes."""
        return [status.node for status in self.engine.core.nodes()]

    def reaches(self, node: str) -> bool:
        """Tell whether there is a link to a node."""
        return self.engine.core.is_linked(node)

    def ask_node(
        self, node: str, operation: str, arguments: Mapping[str, Any], timeout: float, then: Then
    ) -> None:
        """Ask a node; ``then`` is told the answer, in order. Raises ConnectionClosed, BadMessage, MessageTooBig."""
        token = next(self._tokens)
        body = pack_question(operation, arguments)
        if not self.engine.core.call_node(token, node, body, timeout=timeout, now=monotonic()):
            raise ConnectionClosed(CloseCode.ABNORMAL, f"there is no node {node!r}")
        self._asked[token] = then
        self.engine.act()

    def forward(self, node: str, client_id: str, message: Outbound) -> None:
        """Send to a client that a node has, whether or not the node has announced it."""
        names = self.engine.core.codecs_of(node) or (MSGPACK.name,)
        bodies = {name: message.encoded(CODECS[name]) for name in names}
        delivery, expires = message.delivery_left(monotonic()), message.expires
        if not self.engine.core.send_by(node, client_id, bodies, delivery=delivery, expires=expires):
            self._hub.counters["relayed_to_gone"] += 1
        self.engine.act()

    def gather(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Sequence[Any]:
        """Have every other node do something, and return the results of those that did it: parks this greenlet."""
        core = self.engine.core
        body = pack_question(operation, arguments)
        answers: dict[int, AsyncResult[Any]] = {}
        try:
            for status in core.nodes():
                token = next(self._tokens)
                if core.call_node(token, status.node, body, timeout=timeout, now=monotonic()):
                    answers[token] = self._questions[token] = AsyncResult()
            self.engine.act()
            with self._hub.workers.parked():
                gevent.wait(list(answers.values()), timeout=timeout)
            return [answer.value for answer in answers.values() if answer.successful()]
        finally:
            for token in answers:
                del self._questions[token]
                core.forget(token)

    # What became of it -----------------------------------------------------------------------------------

    def resolved(self, action: CallAnswered | CallLost | Confirmed | ConfirmFailed) -> None:
        """Wake whoever waits for this."""
        if isinstance(action, (Confirmed, ConfirmFailed)):
            confirmation = self._confirmations.get(action.token)
            if confirmation is not None:
                confirmation.take(action)
            return
        then = self._asked.pop(action.token, None)
        if then is not None:
            told = partial(then, *_outcome(action))
            if isinstance(action, CallAnswered):
                self.engine.in_order(action.node, told)
            else:
                told()
            return
        answer = self._questions.get(action.token)
        if answer is None:
            return
        result, error = _outcome(action)
        if error is None and isinstance(action, CallAnswered) and action.more and isinstance(answer, NodeAnswers):
            answer.part(result)
        elif error is None:
            answer.set(result)
        else:
            answer.set_exception(error)

    def give_up(self) -> None:
        """The node stops: nobody will answer any more."""
        for answer in tuple(self._questions.values()):
            answer.set_exception(ConnectionClosed(1001, "this node stops"))
        for confirmation in self._confirmations.values():
            confirmation.done.set()
        self._asked.clear()

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

    def home(self, client_id: str) -> str | None:
        """Return the other node that has this client."""
        return self.engine.core.home(client_id)

    def entry(self, client_id: str) -> Entry | None:
        """Return a copy of the entry of a client of another node."""
        return self.engine.core.entry(client_id)

    def key(self, client_id: str) -> str:
        """Return the key of the presence of a client of another node."""
        return self.engine.core.key(client_id)


def _outcome(action: CallAnswered | CallLost) -> tuple[Any, Exception | None]:
    """Return what was answered, or what to raise."""
    if isinstance(action, CallLost):
        return None, _lost(action.reason)
    if not action.ok:
        return None, unpack_failure(action.body)
    try:
        return unpack_result(action.body), None
    except BadMessage as error:
        return None, error


def _lost(reason: str) -> Exception:
    if reason == "timeout":
        return TimedOut("the client's node did not answer in time")
    return ConnectionClosed(1006, _LOST.get(reason, reason))
