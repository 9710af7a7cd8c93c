"""Runs a node's core: feeds it what links and clients do, carries out its actions, and keeps its clock."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection
from functools import partial
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event

from realtime.cluster import ClusterNode
from realtime.delivery import expires_at
from realtime.errors import BadMessage, MessageTooBig, Reject
from realtime.message import Mark, Outbound
from realtime.outbox import Outbox
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
    Dial,
    EndLink,
    MetadataReplaced,
    RoomJoined,
    RoomLeft,
    RunCall,
    SendFrame,
)
from realtime.protocols.mesh_calls import pack_failure, pack_result, unpack_question
from realtime.protocols.mesh_core import MeshCore
from realtime.protocols.mesh_frames import SessionEvent
from realtime.protocols.mesh_handshake import Hello
from realtime.protocols.mesh_pending import MOST_PENDING
from realtime.transports.mesh_links import Links, LinkUser
from realtime.transports.mesh_room_calls import perform_here

__all__ = ["Engine", "News"]

log = logging.getLogger("realtime.mesh")

STOPPING = 1.0  # seconds for the clock's greenlet to end
_SIGN_OF_LIFE = 0.05  # seconds, fewer than any node may be silent
_MEETING = 0.005  # seconds between two looks whether the others are known: once at each start


class News(Protocol):
    """Who hears what the core has to tell. Neither may wait."""

    def resolved(self, action: CallAnswered | CallLost | Confirmed | ConfirmFailed) -> None:
        """Something that was asked has an end."""

    def happened(self, action: Action) -> None:
        """A node or a client of one came, changed or went, or a node sent an event."""


class Engine(LinkUser):
    """One core at work. ``act`` after every input; nothing but ``settle`` switches greenlets.

    :param run: runs a job in a greenlet of its own.
    """

    def __init__(
        self, core: MeshCore, node: ClusterNode, news: News, run: Callable[[Callable[[], None]], None]
    ) -> None:
        self.core = core
        self.links: Links
        self._node = node
        self._news = news
        self._run_job = run
        self._acting = False
        self._inbound: dict[str, deque[Callable[[], None]]] = {}  # what is to be done in the order of each node
        self._settling: dict[str, Event] = {}  # nodes whose messages are being delivered
        self._calls: Counter[str] = Counter()  # under way here, by the node that asked
        self._scheduled = False
        self._written: dict[Outbox, None] = {}  # outboxes that got frames in this act
        self._bursts = 0  # acts with frames in this turn of the loop
        self._calm = True  # the last such turn had one
        self._wake = Event()
        self._wakes_at = 0.0
        self._clock: gevent.Greenlet[[], None] | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            SendFrame: self._send_frame,
            Dial: lambda action: self.links.dial(action.address),
            EndLink: self._end_link,
            DeliverToRoom: self._queue,
            DeliverToClient: self._queue,
            RunCall: self._queue,
            ClientWent: self._client_went,
            ClientMoved: lambda action: node.client_appeared(action.client, action.node),
            RoomJoined: lambda action: node.member_changed(action.room, action.client),
            RoomLeft: lambda action: node.member_changed(action.room, action.client),
            MetadataReplaced: lambda action: node.client_changed(action.client),
            CallAnswered: news.resolved,
            CallLost: news.resolved,
            ClientFound: lambda action: node.client_found(action.client, action.rooms),
            ClientLost: lambda action: node.client_lost(action.client, action.rooms),
            Confirmed: news.resolved,
            ConfirmFailed: news.resolved,
        }

    # Lifecycle -----------------------------------------------------------------------------------------

    def start(self, links: Links) -> None:
        """Begin."""
        self.links = links
        self._clock = gevent.spawn(self._keep_time)

    def leave(self) -> None:
        """Tell the others that this node stops."""
        self.core.leave(monotonic())
        self.act()

    def stop(self) -> None:
        """End the clock. Switches greenlets."""
        clock, self._clock = self._clock, None
        if clock is not None:
            clock.kill(timeout=STOPPING)

    def _keep_time(self) -> None:
        """Call the core when something is due."""
        while True:
            self._wake.clear()
            self.core.tick(monotonic())
            self.act()
            self._wakes_at = self.core.due
            wait = self._wakes_at - monotonic()
            if wait > 0:
                self._wake.wait(wait)
            else:
                gevent.sleep(0)  # whatever is due, others run in between

    def meet(self, addresses: Collection[str], timeout: float) -> None:
        """Wait until the clients of the nodes at these seeds are known, as far as there are any. Switches."""
        deadline = monotonic() + timeout
        while not all(map(self.core.is_settled, addresses)) and monotonic() < deadline:
            gevent.sleep(_MEETING)

    # Actions -------------------------------------------------------------------------------------------

    def act_soon(self) -> None:
        """Carry out, once before the loop next waits, what several small changes lead to."""
        if not self._scheduled:
            self._scheduled = True
            gevent.get_hub().loop.run_callback(self._act_once)

    def _act_once(self) -> None:
        self._scheduled = False
        self.act()

    def act(self) -> None:
        """Carry out the core's actions in order; what these lead to comes after them. Never switches."""
        if self._acting:
            return  # further up the stack it goes on
        self._acting = True
        try:
            while actions := self.core.take_actions():
                for action in actions:
                    try:
                        self._handlers.get(type(action), self._news.happened)(action)
                    except Exception:
                        log.exception("%s failed", type(action).__name__)
        finally:
            self._acting = False
        if self._written:
            self._write()
        if self.core.due < self._wakes_at:
            self._wakes_at = self.core.due
            self._wake.set()

    def _send_frame(self, action: SendFrame) -> None:
        link = self.links.get(action.node)
        if link is not None:
            link.outbox.put(action.data)
            self._written[link.outbox] = None

    def _write(self) -> None:
        """Write frames at once where turns bring one lot of them, so that other nodes deliver while we do.

        Else they wait for the end of the turn, behind what our own clients get. Where a turn brings several lots
        that is right: one write takes them all, and the other side reads them together.
        """
        outboxes, self._written = self._written, {}
        self._bursts += 1
        if self._bursts == 1:
            gevent.get_hub().loop.run_callback(self._turn_over)
            if self._calm:
                for outbox in outboxes:
                    outbox.flush()

    def _turn_over(self) -> None:
        self._calm = self._bursts == 1
        self._bursts = 0

    def _end_link(self, action: EndLink) -> None:
        link = self.links.get(action.node)
        if link is not None:
            link.part(action.reason, action.details)

    def _client_went(self, action: ClientWent) -> None:
        self._node.client_vanished(action.client)
        self._news.happened(action)

    def _queue(self, action: DeliverToRoom | DeliverToClient | RunCall) -> None:
        self.in_order(action.origin, partial(self._deliver, action, monotonic()))

    def in_order(self, node: str, job: Callable[[], None]) -> None:
        """Do something once all that came from a node before is delivered, and before what comes after it."""
        self._inbound.setdefault(node, deque()).append(job)

    # Links ---------------------------------------------------------------------------------------------

    def silence(self, node: str) -> float | None:
        """Return the seconds since a linked node was heard; None if there is no link to it."""
        return self.core.silence(node, monotonic())

    def link_started(self, hello: Hello, dialled: str | None) -> None:
        """There is a link to a node."""
        self.core.link_started(hello, monotonic(), dialled=dialled)
        self.act()

    def link_ended(self, node: str, reason: str) -> None:
        """There is none any more."""
        self.core.link_ended(node, reason, monotonic())
        self.act()

    def dial_ended(self, address: str, reason: str, node: str | None) -> None:
        """A dial led to no link."""
        self.core.dial_ended(address, reason, monotonic(), node=node)
        self.act()

    def received(self, node: str, event: SessionEvent) -> None:
        """A frame came; what follows is carried out once all that was read has been told. Raises MeshError."""
        self.core.received(node, event, monotonic())

    def alive(self, node: str) -> None:
        """There was a sign of life."""
        self.core.alive(node, monotonic())

    def settle(self, node: str) -> None:
        """Carry out what came from a node, its messages for our clients in order. Switches greenlets."""
        self.act()
        while (earlier := self._settling.get(node)) is not None:
            earlier.wait()  # the greenlet of a link before: to read on meanwhile would be to push back no more
        inbound = self._inbound.get(node)
        if not inbound:
            return
        settled = self._settling[node] = Event()
        try:
            self._deliver_all(node, inbound)
        finally:
            del self._settling[node]
            settled.set()
            if not inbound:
                self._inbound.pop(node, None)
        self.act()

    def _deliver_all(self, node: str, inbound: deque[Callable[[], None]]) -> None:
        said_at = monotonic()
        while inbound:
            try:
                inbound.popleft()()
            except Exception:
                log.exception("what came from node %s failed", node)
            now = monotonic()
            if now - said_at > _SIGN_OF_LIFE:
                said_at = now
                self.core.alive(node, now)  # slow clients hold us up: that we do not read is not its silence

    def _deliver(self, action: DeliverToRoom | DeliverToClient | RunCall, came_at: float) -> None:
        try:
            if isinstance(action, DeliverToRoom):
                message = _relayed(action, came_at)
                count = self._node.deliver_to_room(action.room, message, action.except_ids)
                if action.confirm is not None:
                    self.core.delivered(action.origin, action.confirm, count)
            elif isinstance(action, DeliverToClient):
                message = _relayed(action, came_at)
                self._node.deliver_to_client(action.client, message)
            else:
                self._begin_call(action)
        except BadMessage as error:
            self.core.counters["refused_bad_message"] += 1
            log.warning("a node sent what cannot be delivered: %s", error)

    def _begin_call(self, action: RunCall) -> None:
        """Have a greenlet do what a node asks. An honest one has never asked more than it waits for itself."""
        if self._calls[action.origin] >= MOST_PENDING:
            self.core.counters["calls_refused"] += 1
            refusal = Reject(f"{MOST_PENDING} questions of this node are under way already", code="busy")
            self.core.answer(action.origin, action.token, False, pack_failure(refusal))
            return
        self._calls[action.origin] += 1
        self._run_job(partial(self._run_call, action))

    def _call_ended(self, node: str) -> None:
        self._calls[node] -= 1
        if not self._calls[node]:
            del self._calls[node]

    def _run_call(self, action: RunCall) -> None:
        """In a greenlet of its own: do what a node asks for a client of ours, and answer. Switches greenlets."""
        try:
            operation, arguments = unpack_question(action.body)
            if action.client:
                result = self._node.perform(action.client, operation, arguments)
            else:
                result = perform_here(self.core, self._node, action, operation, arguments, self.act)
            body, ok = pack_result(result), True
        except Exception as error:
            body, ok = pack_failure(error), False
        finally:
            self._call_ended(action.origin)
        try:
            self.core.answer(action.origin, action.token, ok, body)
        except MessageTooBig as error:
            self.core.answer(action.origin, action.token, False, pack_failure(error))
        self.act()


def _relayed(action: DeliverToRoom | DeliverToClient, came_at: float) -> Outbound:
    delivery = action.delivery
    expires = expires_at(delivery, came_at)
    mark = Mark(*action.mark) if isinstance(action, DeliverToRoom) and action.mark is not None else None
    return Outbound.relayed(action.bodies, delivery=delivery, expires=expires, mark=mark)
