"""One node of the mesh, without sockets, clock or randomness of its own: inputs in, actions out.

Use, by whoever owns sockets and clients::

    core = MeshCore("ann", instance, "10.0.0.1:9090", MeshOptions(), random=Random(), now=now, seeds=["10.0.0.2:9090"])
    core.link_started(hello, now, dialled="10.0.0.2:9090")   # a MeshProtocol is open: hello is what the peer proved
    core.received("bob", event, now)        # each event of that protocol from mesh_frames; MeshError: end the link
    core.client_came("c1", {"name": "Ann"}, 1700000000.0, "json")
    core.room_joined("lobby", "c1")
    core.publish("lobby", "chat:message", {"json": b"...", "msgpack": b"..."}, except_ids=["c1"])
    for action in core.take_actions():      # after every turn of inputs: SendFrame, Dial, DeliverToRoom, ...
        ...
    core.tick(now)                          # at ``core.due``, which any input may bring forward

What the owner promises: ``received`` and ``link_ended`` are about the present link to a node, never an older one;
every ``Dial`` ends in ``link_started(..., dialled=address)`` or ``dial_ended``; actions are carried out in order.
``now`` are seconds of a clock that never goes back. Nothing here switches greenlets, and nothing is thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import NamedTuple

from realtime.config import MeshOptions
from realtime.protocols.mesh_actions import (
    Action,
    Dial,
    EndLink,
    Gap,
    NodeLeft,
)
from realtime.protocols.mesh_bodies import (
    NodeRecord,
    Probe,
    Table,
    decode_news,
    encode,
)
from realtime.protocols.mesh_dialling import DialPlan
from realtime.protocols.mesh_filters import Routes
from realtime.protocols.mesh_frames import (
    AckReceived,
    DataReceived,
    GapReceived,
    NewsReceived,
    ResumeReceived,
    SessionEvent,
    news_frame,
)
from realtime.protocols.mesh_handshake import Hello, Reason
from realtime.protocols.mesh_incoming import Incoming
from realtime.protocols.mesh_membership import LEFT, Member, Membership
from realtime.protocols.mesh_peers import Peer

__all__ = ["MeshCore", "NodeStatus"]

_LATE = 0.1  # seconds that a tick may be late before it is taken for a process that was held up
_RECORDS = 16  # nodes in one frame of news: it fits whatever their names are


class NodeStatus(NamedTuple):
    """Another node that has joined, as seen from here. Times are by the clock of ``now``."""

    node: str
    address: str | None
    suspect: bool
    linked: bool
    since: float
    """When it joined."""
    heard: float
    """When it gave its last sign of life."""
    clients: int
    kept: int
    """Bytes that it has not acknowledged."""


class MeshCore(Incoming):
    """One node.

    :param node_id: unique in the cluster.
    :param instance: 16 bytes made anew by each start.
    :param address: where others reach this node; None if that is not known.
    :param seeds: addresses to connect to, whoever is there.
    :param routes: filters for what is published; everything passes if not given.
    """

    def __init__(
        self,
        node_id: str,
        instance: bytes,
        address: str | None,
        options: MeshOptions,
        *,
        random: Random,
        now: float,
        seeds: Iterable[str] = (),
        routes: Routes | None = None,
    ) -> None:
        super().__init__(options, routes, random, now)
        self.id = node_id
        self._random = random
        self._node_events: list[Action] = []
        self._membership = Membership(node_id, instance, address, options, random, self._node_events, self.counters)
        self._dialling = DialPlan(seeds, address, self._peers.is_linked, options, random)
        self._next_ping = now + options.ping
        self._next_digest = now + options.digest * random.uniform(0.5, 1.0)

    def take_actions(self) -> list[Action]:
        """Return what is to be done and told, in order, once."""
        if self._operations:
            self._flush_changes()
        if self._membership.news:
            self._flush_rumours()
        if not self._actions:  # asked for after each lot of them
            return []
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    # Links ----------------------------------------------------------------------------------------------

    def link_started(self, hello: Hello, now: float, *, dialled: str | None = None) -> None:
        """There is a link to a node that proved itself; an older one to it is void.

        :param dialled: the address that led there, if we opened it.
        """
        node = hello.node
        current = self._peers.known.get(node)
        if current is not None and current.linked:
            self._peers.detach(current)
        self._flush_changes()
        table = self._membership.table()  # before the node counts as alive: it is to hear what was said of it
        self._membership.link_started(node, hello.instance, hello.address, now)
        self._settle(now)
        self._dialling.linked(node, dialled)
        peer = self._peers.attach(node, hello.instance, self._replicas.wanted(node))
        self.counters["links_started"] += 1
        self._tell(peer, table)
        self._sooner(now)

    def link_ended(self, node: str, reason: str, now: float) -> None:
        """The link to a node is over; ``reason`` is a Reason."""
        peer = self._peers.known.get(node)
        if peer is None or not peer.linked:
            return
        if reason == Reason.LEAVING:
            self._membership.said_goodbye(node)
        self._unlink(peer, now, refused=reason == Reason.NODE_ID)
        self._membership.link_ended(node, now)
        self._settle(now)
        self._sooner(now)

    def _unlink(self, peer: Peer, now: float, *, refused: bool = False) -> None:
        self._peers.detach(peer)
        member = self._membership.members[peer.id]
        if member.address is not None and not member.leaving:
            self._dialling.want(peer.id, member.address, now)
        self._dialling.unlinked(peer.id, now, refused=refused)

    def dial_ended(self, address: str, reason: str, now: float, *, node: str | None = None) -> None:
        """An attempt to connect led to no link.

        :param reason: a Reason. After ``SELF`` the address is never tried again.
        :param node: who answered, if somebody did: not tried again while there is a link to it.
        """
        if reason == Reason.SELF:
            self._dialling.is_own(address)
        else:
            self._dialling.ended(address, node, now, failed=reason != Reason.DUPLICATE)
        self._sooner(now)

    def add_seed(self, address: str, now: float) -> None:
        """Somebody listens at an address: connect to it, whoever it is, until ``drop_seed``."""
        self._dialling.add_seed(address, now)
        self._sooner(now)

    def is_linked(self, node: str) -> bool:
        """Tell whether there is a link to a node."""
        return self._peers.is_linked(node)

    def is_settled(self, address: str) -> bool:
        """Tell whether the clients of the node at a seed are known, or it was tried in vain."""
        node, failed = self._dialling.found(address)
        return failed or (node is not None and self._replicas.state_of(node) is not None)

    def drop_seed(self, address: str) -> None:
        """Nobody listens there any more."""
        self._dialling.drop_seed(address)

    def alive(self, node: str, now: float) -> None:
        """Bytes of a node came that are no whole frame yet, or it is us who do not read."""
        member = self._membership.members.get(node)
        if member is not None and member.linked:
            self._membership.heard(member, now)
            self._settle(now)

    def leave(self, now: float) -> None:
        """Leave the cluster: the others are told, and all links end."""
        self._membership.leave()
        self._flush_changes()
        self._flush_rumours()
        for peer in [peer for peer in self._peers.known.values() if peer.linked]:
            self._peers.detach(peer)
            self._actions.append(EndLink(peer.id, Reason.LEAVING, "stopping"))
        self._membership.part_from_all()
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Carry out what follows from what happened to nodes, and tell it."""
        if not self._node_events:
            return
        events = self._node_events.copy()
        self._node_events.clear()
        for event in events:
            if isinstance(event, NodeLeft):
                self._replicas.forget(event.node, lost=not self._membership.leaving)
                peer = self._peers.known.get(event.node)
                if peer is not None:
                    self._peers.abandon(peer)
            elif isinstance(event, EndLink):
                self._unlink(self._peers.known[event.node], now)
            self._actions.append(event)

    # What nodes say -------------------------------------------------------------------------------------

    def received(self, node: str, event: SessionEvent, now: float) -> None:
        """A frame came on the link to a node.

        :raises MeshError: it breaks the protocol: end the link, and say so with ``link_ended``.
        """
        peer = self._peers.known.get(node)
        if peer is None or not peer.linked:
            self.counters["frames_of_nobody"] += 1
            return
        self._catch_up(now)
        member = self._membership.members[node]
        if member.suspect:
            self._membership.heard(member, now)
            self._settle(now)
        else:
            member.heard = member.witnessed = now
        if isinstance(event, DataReceived):
            if self._peers.take(peer, event, now):
                self._take_body(peer, event.body)
            ack_due = peer.session.ack_due
            if ack_due is not None and ack_due < self.due:
                self.due = ack_due
        elif isinstance(event, AckReceived):
            peer.session.on_ack(event.acknowledged)
        elif isinstance(event, NewsReceived):
            self._on_news(peer, event.body, now)
            return
        elif isinstance(event, ResumeReceived):
            self._on_resume(peer, event, now)
        elif isinstance(event, GapReceived):
            self._on_gap(peer, event)
        if peer.feed is not None or peer.stale or peer.session.behind:
            self._flush_changes()
            self._peers.proceed(peer, now)

    def _on_resume(self, peer: Peer, event: ResumeReceived, now: float) -> None:
        self._flush_changes()
        if self._peers.resume(peer, event, now):
            self._actions.append(Gap(peer.id, "in", None))
            self._replicas.on_gap(peer.id)

    def _on_gap(self, peer: Peer, event: GapReceived) -> None:
        peer.session.on_gap(event.first, event.count)
        self.counters["gaps_in"] += 1
        self.counters["frames_missed"] += event.count
        self._actions.append(Gap(peer.id, "in", event.count))
        self._replicas.on_gap(peer.id)

    # News of nodes ----------------------------------------------------------------------------------------

    def _on_news(self, peer: Peer, data: bytes, now: float) -> None:
        news = decode_news(data)
        if isinstance(news, Table):
            for record in news.records:
                self._membership.merge(record, peer.id, now)
                self._dial_if_needed(record.node, now)
            self._settle(now)
            self._sooner(now)
        elif isinstance(news, Probe):
            self._peers.emit(peer, news_frame(encode(self._membership.answer(news, now))))
        else:
            self._membership.on_probed(news, now)

    def _dial_if_needed(self, node: str, now: float) -> None:
        """Of two nodes that hear of each other the one with the smaller id dials at once, as it also decides."""
        member = self._membership.members.get(node)
        if member is not None and member.address is not None and member.state != LEFT and not member.linked:
            due = now if self.id < node else now + self._options.backoff
            self._dialling.want(node, member.address, due)

    def _tell(self, peer: Peer, records: list[NodeRecord]) -> None:
        for start in range(0, len(records), _RECORDS):
            self._peers.emit(peer, news_frame(encode(Table(records[start : start + _RECORDS]))))

    def _flush_rumours(self) -> None:
        """Tell news on, to all but those who told us."""
        rumours = self._membership.rumours()
        if not rumours:
            return
        for peer in self._peers.known.values():
            records = [record for record, source in rumours if source != peer.id]
            if peer.linked and records:
                self.counters["rumours_sent"] += len(records)
                self._tell(peer, records)

    # Time ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Do what is due; return the seconds until something is due again."""
        if self._membership.leaving:
            self.due = now + self._options.ping
            return self._options.ping
        self._catch_up(now)
        if now >= self._next_ping:
            self._next_ping = now + self._options.ping
            self._peers.ping()
            self._dialling.keep_only(self._is_dialled)
        if now >= self._next_digest:
            self._next_digest = now + self._options.digest
            self._send_digest()
        watched = self._membership.tick(now)
        for node, question in self._membership.questions:
            self._peers.emit(self._peers.known[node], news_frame(encode(question)))
        self._membership.questions.clear()
        self._settle(now)
        self._drop_forgotten()
        lost, deadline = self._pending.due(now)
        self._actions += lost
        addresses, redial = self._dialling.due(now)
        for address in addresses:
            self.counters["dials"] += 1
            self._actions.append(Dial(address))
        others = (self._peers.tick(now), deadline, redial)
        self.due = min(self._next_ping, self._next_digest, watched, *(due for due in others if due is not None))
        return max(0.0, self.due - now)

    def _catch_up(self, now: float) -> None:
        """Before anybody's silence is judged: the time in which this process was held up counts not.

        Whatever wakes it first, a frame that waited as well as the clock.
        """
        late = now - self.due
        if late > _LATE:
            self._membership.late(late, now)
            self.due = now

    def _is_dialled(self, node: str, address: str) -> bool:
        member = self._membership.members.get(node)
        return member is not None and member.address == address and member.state != LEFT

    def _send_digest(self) -> None:
        self._flush_changes()
        self.counters["digests_sent"] += 1
        self._peers.send_to(_takes_digest, self._own.digest())

    def _drop_forgotten(self) -> None:
        """Sessions end with what is remembered of their nodes."""
        if len(self._peers.known) > len(self._membership.members):
            for node in [node for node in self._peers.known if node not in self._membership.members]:
                self._peers.drop(self._peers.known[node])

    # Who is there ---------------------------------------------------------------------------------------------

    def nodes(self) -> list[NodeStatus]:
        """Return the nodes that have joined, by id."""
        return [self._status(member) for _, member in sorted(self._membership.members.items()) if member.joined]

    def _status(self, member: Member) -> NodeStatus:
        return NodeStatus(
            member.id,
            member.address,
            member.suspect,
            member.linked,
            member.since,
            member.heard,
            self._index.populated().get(member.id, 0),
            self._peers.known[member.id].session.kept,
        )

    def silence(self, node: str, now: float) -> float | None:
        """Return the seconds since a linked node was heard; None if there is no link to it."""
        self._catch_up(now)
        member = self._membership.members.get(node)
        return now - member.heard if member is not None and member.linked else None


def _takes_digest(peer: Peer) -> bool:
    """Whether a node has all we know to compare: no snapshot is under way to it."""
    return peer.session.open and not peer.session.behind and not peer.stale and peer.feed is None
