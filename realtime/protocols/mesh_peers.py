"""The other nodes as one node speaks to them: sessions, what is sent through them, and what is lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from itertools import takewhile
from random import Random

from realtime.config import KiB, MeshOptions
from realtime.protocols.mesh_actions import Action, Gap, SendFrame
from realtime.protocols.mesh_bodies import encode
from realtime.protocols.mesh_frames import PING, DataReceived, ResumeReceived
from realtime.protocols.mesh_pending import Pending
from realtime.protocols.mesh_session import Lost, Session
from realtime.protocols.mesh_snapshot import SnapshotFeed
from realtime.protocols.mesh_state import NodeState

__all__ = ["Peer", "Peers"]

_SHARED = 16 * KiB  # a longer body is sent as it is, so that all links share it; a shorter one is copied
_JOINED = 64 * KiB  # bytes of frames that are sent again at once


class Peer:
    """One other node instance, over all its links."""

    __slots__ = ("feed", "id", "instance", "joined", "linked", "quiet", "session", "stale", "unaware")

    def __init__(self, node: str, instance: bytes, session: Session) -> None:
        self.id = node
        self.instance = instance
        self.session = session
        self.linked = False
        self.joined = False
        """It is one of the cluster, linked at the moment or not."""
        self.quiet = True
        """Nothing was sent since the last ping."""
        self.stale = True
        """It needs a snapshot of our clients, and gets no deltas until one has begun."""
        self.feed: SnapshotFeed | None = None
        """The snapshot under way to it."""
        self.unaware: dict[str, float] = {}
        """Clients that have come here from other nodes, by the number of the frame that tells it: what the peer made
        before it heard that was sent to a client's old node as well. In the order of these numbers."""

    def is_unaware_of(self) -> Collection[str]:
        """Return the clients that have come here of which the peer did not know when it sent what has just come.

        Exact, as every reliable frame acknowledges what had arrived when it was made, also where it is sent again.
        """
        heard, unaware = self.session.heard, self.unaware
        # up to the first that it has not heard of: many may come at once, and a peer be silent for long
        for client in list(takewhile(lambda client: unaware[client] <= heard, unaware)):
            del unaware[client]
        return unaware

    def begin_anew(self) -> None:
        """It is to have a snapshot."""
        self.stale = True
        self.unaware.clear()


class Peers:
    """All of them, by node id.

    :param own: the state that snapshots are made of.
    :param pending: told what got lost.
    """

    def __init__(
        self,
        options: MeshOptions,
        random: Random,
        own: NodeState,
        pending: Pending,
        actions: list[Action],
        counters: Counter[str],
    ) -> None:
        self.known: dict[str, Peer] = {}
        self._options = options
        self._random = random
        self._own = own
        self._pending = pending
        self._actions = actions
        self._counters = counters
        self._snapshots = 0

    def is_linked(self, node: str) -> bool:
        """Tell whether there is a link to a node."""
        peer = self.known.get(node)
        return peer is not None and peer.linked

    # Links ----------------------------------------------------------------------------------------------

    def attach(self, node: str, instance: bytes, wanted: bool) -> Peer:
        """A link started: say where we are. A new instance has a new session."""
        peer = self.known.get(node)
        if peer is None or peer.instance != instance:
            if peer is not None:
                self.drop(peer)
            options = self._options
            session = Session(
                self._random.getrandbits(53) + 1, resend=options.resend, resend_frames=options.resend_frames
            )
            peer = self.known[node] = Peer(node, instance, session)
        peer.linked = peer.joined = True
        self.emit(peer, peer.session.resume(wanted))
        return peer

    def detach(self, peer: Peer) -> None:
        """The link ended."""
        peer.linked = False
        peer.session.detach()

    def abandon(self, peer: Peer) -> None:
        """A node is gone, but may be back: keep the numbers alone."""
        peer.session.abandon()
        peer.joined = False
        peer.begin_anew()
        peer.feed = None
        self._actions += self._pending.lost(peer.id, "gone")

    def drop(self, peer: Peer) -> None:
        """A node instance is gone for good: what it has not acknowledged is lost."""
        del self.known[peer.id]
        self._lost(peer, Lost(peer.session.acknowledged + 1, peer.session.sent, peer.session.lost), "gone")

    def resume(self, peer: Peer, event: ResumeReceived, now: float) -> bool:
        """The peer says where it is: send what it misses. Return whether it has forgotten us.

        :raises MeshError: it claims what cannot be.
        """
        lost = peer.session.on_resume(event)
        if lost is not None:
            self._lost(peer, lost, "lost")
        if lost is not None or (event.wanted and peer.feed is None):
            peer.begin_anew()
        self._counters["resumed"] += 1
        self.proceed(peer, now)
        return lost is not None

    def proceed(self, peer: Peer, now: float) -> None:
        """Send what has waited and may go now: frames first, then pieces of a snapshot."""
        session = peer.session
        if session.behind:
            pieces, lost = session.catch_up(now)
            self._counters["frames_resent"] += len(pieces) // 2
            if lost is not None:
                self._lost(peer, lost, "lost")
                peer.begin_anew()
            self._emit_all(peer, pieces)
        if not session.open or session.behind:
            return
        if peer.stale:
            self._snapshots += 1
            peer.feed = SnapshotFeed(self._snapshots, self._own)
            peer.stale = False
        self._feed(peer)

    def _feed(self, peer: Peer) -> None:
        feed = peer.feed
        while feed is not None and feed.has_room(peer.session.acknowledged):
            feed.sent(self.send(peer, feed.next_piece()))
            self._counters["snapshot_pieces"] += 1
            if feed.finished:
                feed = peer.feed = None
                self._counters["snapshots_sent"] += 1

    def _lost(self, peer: Peer, lost: Lost, reason: str) -> None:
        """Say what will not arrive."""
        if lost.fresh:
            self._counters["gaps"] += 1
            self._counters["frames_lost"] += lost.fresh
            self._actions.append(Gap(peer.id, "out", lost.fresh))
        self._actions += self._pending.lost(peer.id, reason, lost.first, lost.last)

    # Frames ---------------------------------------------------------------------------------------------

    def send(self, peer: Peer, body: bytes) -> int:
        """Send a reliable frame, now or once there is a link; return its sequence number."""
        session = peer.session
        header = session.send(body)
        if header is not None:
            counters, actions = self._counters, self._actions
            if len(body) > _SHARED:
                actions.append(SendFrame(peer.id, header))
                actions.append(SendFrame(peer.id, body))
            else:
                actions.append(SendFrame(peer.id, header + body))
            counters["frames_sent"] += 1
            counters["bytes_sent"] += len(header) + len(body)
            peer.quiet = False
        return session.sent

    def emit(self, peer: Peer, data: bytes) -> None:
        """Send a finished frame outside of the sequence. Only where there is a link."""
        peer.quiet = False
        self._counters["bytes_sent"] += len(data)
        self._actions.append(SendFrame(peer.id, data))

    def _emit_all(self, peer: Peer, pieces: list[bytes]) -> None:
        """Send frames again: small ones together, long ones as they are."""
        waiting: list[bytes] = []
        size = 0
        for piece in pieces:
            if waiting and (len(piece) > _SHARED or size > _JOINED):
                self.emit(peer, b"".join(waiting))
                waiting, size = [], 0
            waiting.append(piece)
            size += len(piece)
        if waiting:
            self.emit(peer, b"".join(waiting))

    def take(self, peer: Peer, event: DataReceived, now: float) -> bool:
        """A reliable frame came: acknowledge it when it is time, and tell whether it is new.

        :raises MeshError: it does not fit the sequence.
        """
        session = peer.session
        counters = self._counters
        counters["bytes_received"] += len(event.body)
        if not session.on_data(event, now):
            counters["duplicates"] += 1
            return False
        counters["frames_received"] += 1
        self.acknowledge(peer, now)
        return True

    def acknowledge(self, peer: Peer, now: float) -> None:
        """Send an ack if it is time for one."""
        ack = peer.session.ack(now)
        if ack is not None:
            self._counters["acks_sent"] += 1
            self.emit(peer, ack)

    def send_to(self, wanted: Callable[[Peer], bool], message: object) -> None:
        """Send one body to all that are wanted, packed once."""
        chosen = [peer for peer in self.known.values() if wanted(peer)]
        if chosen:
            body = encode(message)
            for peer in chosen:
                self.send(peer, body)

    # Time -----------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float | None:
        """Acknowledge what is due; return when the next is."""
        due = None
        for peer in self.known.values():
            if peer.session.ack_due is not None:
                self.acknowledge(peer, now)
                ack_due = peer.session.ack_due
                if ack_due is not None and (due is None or ack_due < due):
                    due = ack_due
        return due

    def ping(self) -> None:
        """Give a sign of life on every link that had none since the last time."""
        for peer in self.known.values():
            if peer.linked and peer.quiet:
                self._counters["pings"] += 1
                self.emit(peer, PING)
            peer.quiet = True
