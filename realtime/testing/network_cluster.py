"""Kernels of one process as a cluster without sockets: nodes of a :class:`LiveNetwork`.

The second implementation of :class:`realtime.cluster.Cluster`, beside the mesh's own: it puts what a kernel asks
straight to the sans-I/O core, and has every fault of the network at hand::

    live = LiveNetwork()
    ann = RealtimeKernel([MemoryTransport(), NetworkTransport(live, "ann")])
    bob = RealtimeKernel([MemoryTransport(), NetworkTransport(live, "bob", seeds=["ann"])])
    live.network.partition(["ann"], ["bob"])
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult, Event
from greenlet import GreenletExit

from realtime.cluster import Cluster, ClusterNode, Entry, RoomAnswers, Then
from realtime.cluster_node import LocalNode
from realtime.delivery import expires_at
from realtime.errors import ConnectionClosed, NotConfirmed, TimedOut, unknown_client
from realtime.hub import Hub
from realtime.message import CODECS, Mark, Outbound
from realtime.protocols.mesh_actions import (
    Action,
    CallAnswered,
    CallLost,
    ClientFound,
    ClientLost,
    ClientMoved,
    ClientWent,
    Confirmed,
    ConfirmFailed,
    DeliverToClient,
    DeliverToRoom,
    MetadataReplaced,
    RoomJoined,
    RoomLeft,
    RunCall,
)
from realtime.protocols.mesh_calls import (
    pack_failure,
    pack_question,
    pack_result,
    unpack_failure,
    unpack_question,
    unpack_result,
)
from realtime.testing.live_network import LiveNetwork
from realtime.testing.mesh_network import NetworkNode
from realtime.transports.base import Transport
from realtime.transports.mesh_room_calls import NodeAnswers, ask_nodes, perform_here

__all__ = ["NetworkTransport"]

log = logging.getLogger("realtime.mesh")

CROSSING = 1.0  # seconds beyond a question's own timeout for its answer to come


class NetworkCluster(Cluster):
    """One kernel's cluster: what it asks is put to the core of its node."""

    def __init__(self, live: LiveNetwork, node: NetworkNode, local: ClusterNode, hub: Hub) -> None:
        self._live = live
        self.node_id = node.id
        self._core = node.core
        self._local = local
        self._hub = hub
        self._tokens = itertools.count(1)
        self._answers: dict[int, AsyncResult[Any] | NodeAnswers] = {}
        self._asked: dict[int, Then] = {}
        self._unconfirmed: dict[int, dict[str, Confirmed | ConfirmFailed]] = {}
        self._changed = Event()
        self._inbound: deque[Callable[[], None]] = deque()
        self._came = Event()
        self._delivering = gevent.spawn(self._deliver_all)

    def stop(self) -> None:
        """Answer whoever still waits, and end. Switches greenlets."""
        for answer in tuple(self._answers.values()):
            answer.set_exception(ConnectionClosed(1001, "this node stops"))
        self._asked.clear()
        self._delivering.kill()

    # What the core wants -----------------------------------------------------------------------------------

    def take(self, action: Action) -> None:
        """Carry out one action. Never waits."""
        if isinstance(action, (DeliverToRoom, DeliverToClient, RunCall)):
            self._in_order(partial(self._deliver, action))
        elif isinstance(action, (CallAnswered, CallLost)):
            then, answer = self._asked.pop(action.token, None), self._answers.get(action.token)
            if then is not None and isinstance(action, CallAnswered):
                self._in_order(partial(then, *_outcome(action)))
            elif then is not None:
                then(*_outcome(action))
            elif answer is not None:
                _resolve(answer, action)
        elif isinstance(action, (Confirmed, ConfirmFailed)):
            self._unconfirmed.get(action.token, {})[action.node] = action
            self._changed.set()
        elif isinstance(action, ClientMoved):
            self._local.client_appeared(action.client, action.node)
        elif isinstance(action, ClientWent):
            self._local.client_vanished(action.client)
        elif isinstance(action, ClientFound):
            self._local.client_found(action.client, action.rooms)
        elif isinstance(action, ClientLost):
            self._local.client_lost(action.client, action.rooms)
        elif isinstance(action, (RoomJoined, RoomLeft)):
            self._local.member_changed(action.room, action.client)
        elif isinstance(action, MetadataReplaced):
            self._local.client_changed(action.client)

    def _in_order(self, job: Callable[[], None]) -> None:
        self._inbound.append(job)
        self._came.set()

    def _deliver_all(self) -> None:
        with suppress(GreenletExit):
            while True:
                while self._inbound:
                    try:
                        self._inbound.popleft()()
                    except Exception:
                        log.exception("what came to node %s failed", self.node_id)
                self._came.wait()
                self._came.clear()

    def _deliver(self, action: DeliverToRoom | DeliverToClient | RunCall) -> None:
        if isinstance(action, RunCall):
            self._hub.workers.submit(partial(self._run_call, action))
            return
        delivery = action.delivery
        expires = expires_at(delivery, monotonic())
        if isinstance(action, DeliverToClient):
            message = Outbound.relayed(action.bodies, delivery=delivery, expires=expires)
            self._local.deliver_to_client(action.client, message)
            return
        mark = Mark(*action.mark) if action.mark is not None else None
        message = Outbound.relayed(action.bodies, delivery=delivery, expires=expires, mark=mark)
        count = self._local.deliver_to_room(action.room, message, action.except_ids)
        if action.confirm is not None:
            self._core.delivered(action.origin, action.confirm, count)
            self._live.act()

    def _run_call(self, action: RunCall) -> None:
        try:
            operation, arguments = unpack_question(action.body)
            if action.client:
                result = self._local.perform(action.client, operation, arguments)
            else:
                result = perform_here(self._core, self._local, action, operation, arguments, self._live.act)
            body, ok = pack_result(result), True
        except Exception as error:
            body, ok = pack_failure(error), False
        self._core.answer(action.origin, action.token, ok, body)
        self._live.act()

    # Told ----------------------------------------------------------------------------------------------------

    def client_came(
        self, client_id: str, metadata: Mapping[str, Any], connected_at: float, codec: str, key: str
    ) -> None:
        """A client connected to this node."""
        self._core.client_came(client_id, metadata, connected_at, codec, key)
        self._live.act_soon()

    def client_went(self, client_id: str) -> None:
        """A client of this node is gone."""
        self._core.client_went(client_id)
        self._live.act_soon()

    def client_moved(self, client_id: str) -> None:
        """A client of this node is one of another now."""
        self._core.client_moved(client_id)

    def room_joined(self, room: str, client_id: str) -> None:
        """A client of this node is in a room now."""
        self._core.room_joined(room, client_id)
        self._live.act_soon()

    def room_left(self, room: str, client_id: str) -> None:
        """A client of this node left a room."""
        self._core.room_left(room, client_id)
        self._live.act_soon()

    def metadata_replaced(self, client_id: str, metadata: Mapping[str, Any]) -> None:
        """A client of this node shows other metadata now."""
        self._core.metadata_replaced(client_id, metadata)
        self._live.act_soon()

    # Asked ---------------------------------------------------------------------------------------------------

    def publish(self, room: str | None, message: Outbound, except_ids: Collection[str]) -> int:
        """Send to the members of a room on other nodes."""
        bodies = {name: message.encoded(CODECS[name]) for name in self._core.codecs(room)}
        options = self._options(message)
        published = self._core.publish(room, message.type, bodies, except_ids, mark=message.mark, **options)
        self._live.act()
        return published.clients

    def _options(self, message: Outbound) -> dict[str, Any]:
        """Return what the core is told of a message's delivery: by its clock."""
        left = message.delivery_left(monotonic())
        return {"delivery": left, "expires": expires_at(left, self._live.network.now)}

    def call_room(
        self,
        room: str,
        message: Mapping[str, Any],
        except_ids: Collection[str],
        timeout: float,
        answers: RoomAnswers,
    ) -> Callable[[], None]:
        """Ask the members of a room on other nodes."""
        asked = ask_nodes(
            self._core, room, message, except_ids, timeout, answers,
            token=lambda: next(self._tokens), deadline=timeout + CROSSING, now=self._live.network.now,
        )  # fmt: skip
        self._answers.update(asked)

        def forget() -> None:
            for token in asked:
                self._answers.pop(token, None)
                self._core.forget(token)

        self._live.act()
        return forget

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
        heard = self._unconfirmed[token] = {}
        try:
            nodes = self._core.publish(
                room,
                message.type,
                {name: message.encoded(CODECS[name]) for name in self._core.codecs(room)},
                except_ids,
                mark=message.mark,
                confirm=token,
                deadline=self._live.network.now + timeout,
                **self._options(message),
            ).nodes
            self._live.act()
            sent()
            deadline = monotonic() + timeout + CROSSING
            while len(heard) < len(nodes) and monotonic() < deadline:
                self._changed.clear()
                self._changed.wait(deadline - monotonic())
        finally:
            del self._unconfirmed[token]
        confirmed = [action for action in heard.values() if isinstance(action, Confirmed)]
        delivered = sum(action.count for action in confirmed)
        missing = sorted(set(nodes) - {action.node for action in confirmed})
        if missing:
            raise NotConfirmed(f"not confirmed by {', '.join(missing)}", nodes=missing, delivered=delivered)
        return delivered

    def send(self, client_id: str, message: Outbound) -> bool:
        """Send to one client of another node; False if none has it."""
        node = self._core.home(client_id)
        if node is None:
            return False
        bodies = {name: message.encoded(CODECS[name]) for name in self._core.codecs_of(node)}
        sent = self._core.send(client_id, bodies, **self._options(message))
        self._live.act()
        return sent

    def ask(self, client_id: str, operation: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Have the node of a client do something for it, and return the result: parks this greenlet."""
        token = next(self._tokens)
        answer: AsyncResult[Any] = AsyncResult()
        self._answers[token] = answer
        try:
            body = pack_question(operation, arguments)
            now = self._live.network.now
            if not self._core.call(token, client_id, body, timeout=timeout + CROSSING, now=now):
                raise unknown_client(client_id)
            self._live.act()
            with self._hub.workers.parked():
                return answer.get()
        finally:
            del self._answers[token]
            self._core.forget(token)

    def gather(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Sequence[Any]:
        """Have every other node do something, and return the results of those that did it: parks this greenlet."""
        body = pack_question(operation, arguments)
        answers: dict[int, AsyncResult[Any]] = {}
        try:
            for status in self._core.nodes():
                token = next(self._tokens)
                if self._core.call_node(token, status.node, body, timeout=timeout, now=self._live.network.now):
                    answers[token] = self._answers[token] = AsyncResult()
            self._live.act()
            with self._hub.workers.parked():
                gevent.wait(list(answers.values()), timeout=timeout)
            return [answer.value for answer in answers.values() if answer.successful()]
        finally:
            for token in answers:
                del self._answers[token]
                self._core.forget(token)

    def node_ids(self) -> Collection[str]:
        """Return the names of the other nodes."""
        return [status.node for status in self._core.nodes()]

    def reaches(self, node: str) -> bool:
        """Tell whether there is a link to a node."""
        return self._core.is_linked(node)

    def ask_node(
        self, node: str, operation: str, arguments: Mapping[str, Any], timeout: float, then: Then
    ) -> None:
        """Ask a node; ``then`` is told the answer, in order. Raises ConnectionClosed, BadMessage, MessageTooBig."""
        token = next(self._tokens)
        body = pack_question(operation, arguments)
        if not self._core.call_node(token, node, body, timeout=timeout, now=self._live.network.now):
            raise ConnectionClosed(1006, f"there is no node {node!r}")
        self._asked[token] = then
        self._live.act()

    def forward(self, node: str, client_id: str, message: Outbound) -> None:
        """Send to a client that a node has, whether or not the node has announced it."""
        bodies = {name: message.encoded(CODECS[name]) for name in self._core.codecs_of(node) or ("msgpack",)}
        self._core.send_by(node, client_id, bodies, **self._options(message))
        self._live.act()

    # Who is there --------------------------------------------------------------------------------------------

    def members(self, room: str) -> Collection[str]:
        """Return the members of a room on other nodes."""
        return self._core.members(room)

    def is_member(self, room: str, client_id: str) -> bool:
        """Tell whether a client of another node is in a room."""
        return self._core.is_member(room, client_id)

    def rooms(self) -> Mapping[str, int]:
        """Return the rooms of other nodes with their number of members there."""
        return self._core.rooms()

    def clients(self) -> Collection[str]:
        """Return the ids of all clients of other nodes."""
        return self._core.clients()

    def has(self, client_id: str) -> bool:
        """Tell whether another node has this client."""
        return self._core.home(client_id) is not None

    def home(self, client_id: str) -> str | None:
        """Return the other node that has this client."""
        return self._core.home(client_id)

    def entry(self, client_id: str) -> Entry | None:
        """Return a copy of the entry of a client of another node."""
        return self._core.entry(client_id)

    def key(self, client_id: str) -> str:
        """Return the key of the presence of a client of another node."""
        return self._core.key(client_id)


class NetworkTransport(Transport):
    """Makes a kernel a node of a network.

    :param seeds: nodes that it knows from the start.
    """

    name = "network"
    joins_nodes = True

    def __init__(self, live: LiveNetwork, node_id: str, *, seeds: Iterable[str] = ()) -> None:
        self.node_id = node_id
        self._live = live
        self._seeds = tuple(seeds)
        self._cluster: NetworkCluster | None = None

    def on_start(self) -> None:
        """Join the kernel's clients with those of other nodes."""
        hub, live = self.hub, self._live
        local = LocalNode(hub)
        node = live.network.add(self.node_id, seeds=self._seeds)
        cluster = self._cluster = NetworkCluster(live, node, local, hub)
        node.user = cluster.take
        hub.join_cluster(cluster)
        for entry, codec, key in local.own_clients():
            cluster.client_came(entry["id"], entry["metadata"], entry["connected_at"], codec, key)
            for room in entry["rooms"]:
                cluster.room_joined(room, entry["id"])
        live.start()

    def on_stop(self) -> None:
        """Leave the network. Switches greenlets."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            self._live.network.leave(self.node_id)
            self.hub.leave_cluster()
            cluster.stop()
            self._live.stop()


def _resolve(answer: AsyncResult[Any] | NodeAnswers, action: CallAnswered | CallLost) -> None:
    """Hand the outcome of a question to who asked it."""
    result, error = _outcome(action)
    if error is None and isinstance(action, CallAnswered) and action.more and isinstance(answer, NodeAnswers):
        answer.part(result)
    elif error is None:
        answer.set(result)
    else:
        answer.set_exception(error)


def _outcome(action: CallAnswered | CallLost) -> tuple[Any, Exception | None]:
    """Return what was answered, or what to raise."""
    if isinstance(action, CallLost):
        lost = TimedOut("no answer in time") if action.reason == "timeout" else ConnectionClosed(1006, action.reason)
        return None, lost
    return (unpack_result(action.body), None) if action.ok else (None, unpack_failure(action.body))
