"""Who is in the cluster: a table of nodes, news of them, and who has fallen silent.

The rules are SWIM's as memberlist has them, for a full mesh. News of a node carries an incarnation that only the
node itself raises; newer news wins, and of the same incarnation the worse. A node that hears that it is down, or
that another instance has its id, raises its incarnation and says that it is alive. What was new to us is told on
to all others, so that knowing one node is enough.

As every node has a link to every other, each watches all by itself, and nobody takes another's word for a node that
it hears. Silence makes a node suspect; then a few others are asked whether they hear it. Only when none of them has
heard it for long enough either is it down. Nodes that are down or have left are remembered for a while, so that old
news does not bring them back; only newer news, a link, or a new instance does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random

from realtime.config import MeshOptions
from realtime.protocols.mesh_actions import Action, EndLink, IdTaken, NodeJoined, NodeLeft, NodeRefuted, NodeSuspect
from realtime.protocols.mesh_bodies import NodeRecord, Probe, Probed

__all__ = ["ALIVE", "DOWN", "LEFT", "Member", "Membership"]

ALIVE, DOWN, LEFT = 0, 1, 2  # as in NodeRecord.state: of one incarnation, the higher one wins
WITNESSES = 3  # nodes asked about a suspect at once (SWIM's k; memberlist's IndirectChecks)
_NEVER = -1  # an incarnation before any news
_MOST = 2**48 - 1  # incarnations
_TOLD = frozenset(4**power for power in range(1, 20))  # claims to our id that are told: the first may be old news


class Member:
    """One other node: what is said of it, and what we see of it."""

    __slots__ = (
        "address",
        "asked",
        "changed",
        "heard",
        "id",
        "incarnation",
        "instance",
        "joined",
        "leaving",
        "linked",
        "rumoured",
        "since",
        "state",
        "suspect",
        "witnessed",
    )

    def __init__(self, node: str, instance: bytes, now: float) -> None:
        self.id = node
        self.instance = instance
        """The newest known; that of the link, if there is one, is ``joined``."""
        self.incarnation = _NEVER
        self.state = ALIVE
        self.address: str | None = None
        self.changed = now
        """When its state was last changed."""
        self.joined: bytes | None = None
        """The instance that was told as joined and not yet as left."""
        self.since = now
        """When it joined."""
        self.linked = False
        self.leaving = False
        """It said goodbye: the end of its link is its end."""
        self.heard = now
        """When we heard it last ourselves."""
        self.witnessed = now
        """When anybody heard it last."""
        self.suspect = False
        self.asked = now
        """When others were last asked about it."""
        self.rumoured: str | None = None
        """Who told the news that is to be told on."""

    def record(self) -> NodeRecord:
        """Return what is told to others."""
        return NodeRecord(self.id, self.instance, max(0, self.incarnation), self.state, self.address)


class Membership:
    """The table of nodes, as one of them keeps it.

    :param events: what happens to nodes is appended here.
    :param counters: what was believed, refused or found out is counted here.
    """

    def __init__(
        self,
        node: str,
        instance: bytes,
        address: str | None,
        options: MeshOptions,
        random: Random,
        events: list[Action],
        counters: Counter[str],
    ) -> None:
        self.id = node
        self.members: dict[str, Member] = {}
        self.leaving = False
        self.questions: list[tuple[str, Probe]] = []
        """Probes to be sent: to whom, and about whom."""
        self._instance = instance
        self._address = address
        self._incarnation = 0
        self._options = options
        self._random = random
        self._events = events
        self._counters = counters
        self._claimed = -options.ping  # when we last said that our id is ours
        self._claim: NodeRecord | None = None  # somebody else says so, which is to be answered
        self.news: dict[str, Member | None] = {}
        """The ids of nodes of which there is something to tell on; ours for None."""

    def own_record(self) -> NodeRecord:
        """Return what we say of ourselves."""
        state = LEFT if self.leaving else ALIVE
        return NodeRecord(self.id, self._instance, self._incarnation, state, self._address)

    def table(self) -> list[NodeRecord]:
        """Return all that is known, this node first: told where a link starts."""
        return [self.own_record(), *(member.record() for member in self.members.values() if member.incarnation >= 0)]

    # Links ----------------------------------------------------------------------------------------------

    def link_started(self, node: str, instance: bytes, address: str | None, now: float) -> Member:
        """There is a link to a node: it is alive, whatever was said."""
        member = self.members.get(node)
        if member is None:
            self._make_room()
            member = self.members[node] = Member(node, instance, now)
        if member.joined is not None and member.joined != instance:
            self._gone(member, "restarted")
        if member.instance != instance or address is not None:
            member.instance, member.address = instance, address
        member.linked = True
        member.leaving = False
        if member.state != ALIVE:
            member.state, member.changed = ALIVE, now
        self.heard(member, now)
        if member.joined is None:
            member.joined, member.since = instance, now
            self._events.append(NodeJoined(node, address))
        return member

    def link_ended(self, node: str, now: float) -> None:
        """There is no link to a node any more. It is silent from now on."""
        member = self.members[node]
        member.linked = False
        if member.leaving:
            self._bury(member, LEFT, "leaving", now)
        elif member.joined is not None and member.joined != member.instance:
            self._gone(member, "restarted")

    def heard(self, member: Member, now: float) -> None:
        """A node gave a sign of life."""
        member.heard = member.witnessed = now
        if member.suspect:
            member.suspect = False
            self._counters["refuted"] += 1
            self._events.append(NodeRefuted(member.id))

    def said_goodbye(self, node: str) -> None:
        """A node ends its link because it leaves the cluster."""
        self.members[node].leaving = True

    # News -----------------------------------------------------------------------------------------------

    def merge(self, record: NodeRecord, source: str, now: float) -> None:
        """Take in what ``source`` says of a node."""
        if record.node == self.id:
            self._merge_own(record, now)
            return
        member = self.members.get(record.node)
        if member is None:
            if not self._has_room(record):
                self._counters["nodes_refused"] += 1
                return
            member = self.members[record.node] = Member(record.node, record.instance, now)
        elif (record.incarnation, record.state) <= (member.incarnation, member.state):
            return
        elif record.state != ALIVE and not self._believes(member, record, now):
            self._counters["rumours_disbelieved"] += 1
            return
        self._counters["rumours_taken"] += 1
        self._take(member, record, now)
        member.rumoured = source
        self.news[member.id] = member

    def _merge_own(self, record: NodeRecord, now: float) -> None:
        """What is said of us is wrong, or that we are alive."""
        if self.leaving or record.incarnation < self._incarnation:
            return
        if record.state == ALIVE:
            if record.instance == self._instance:
                return
            if now < self._claimed + self._options.ping:
                # our id was given twice, and the other one answers each word of ours
                self._claim = record
                return
            self._claimed, self._claim = now, None
            self._counters["claims"] += 1
            if self._counters["claims"] in _TOLD:
                self._events.append(IdTaken())
        self._refute(record)

    def _refute(self, record: NodeRecord) -> None:
        """Say that we are alive, and louder."""
        self._incarnation = min(record.incarnation + 1, _MOST)
        self._counters["refutations"] += 1
        self.news[self.id] = None

    def _believes(self, member: Member, record: NodeRecord, now: float) -> bool:
        """Whether to take another's word that a node is gone: not of one that we hear."""
        if record.state == LEFT:
            if member.linked and member.joined == record.instance:
                member.leaving = True  # its own goodbye is on the way, after all that it still says
                member.incarnation = record.incarnation
                return False
            return not member.linked
        return now - member.heard >= self._options.suspect or (member.joined is None and not member.linked)

    def _take(self, member: Member, record: NodeRecord, now: float) -> None:
        member.incarnation = record.incarnation
        if record.state == ALIVE:
            member.address = record.address
            if member.instance != record.instance:
                member.instance = record.instance
                if member.joined is not None and not member.linked:
                    self._gone(member, "restarted")
            else:
                member.leaving = False  # it has heard that it leaves, and says that it does not
            if member.state != ALIVE:
                member.state, member.changed = ALIVE, now
        else:
            if member.joined is None:
                member.instance, member.address = record.instance, record.address
            reason = "leaving" if record.state == LEFT else "down"
            self._bury(member, record.state, reason, now)

    def rumours(self) -> list[tuple[NodeRecord, str | None]]:
        """Return what is to be told on to all links, each with who told it and need not hear it; once."""
        if not self.news:
            return []
        news, self.news = self.news, {}
        return [
            (member.record(), member.rumoured) if member is not None else (self.own_record(), None)
            for member in news.values()
        ]

    def leave(self) -> None:
        """We leave; told on like other news."""
        self.leaving = True
        self.news[self.id] = None

    def part_from_all(self) -> None:
        """We have left: so have all others, as seen from here."""
        for member in self.members.values():
            member.linked = False
            if member.joined is not None:
                self._gone(member, "leaving")

    # Ends -------------------------------------------------------------------------------------------------

    def _gone(self, member: Member, reason: str) -> None:
        """A node that had joined is gone."""
        member.joined = None
        member.suspect = False
        self._events.append(NodeLeft(member.id, reason))

    def _bury(self, member: Member, state: int, reason: str, now: float) -> None:
        """A node is down, or left: remember that."""
        if member.linked:
            self._cut(member, now)
        member.state, member.changed = state, now
        member.incarnation = max(0, member.incarnation)
        member.leaving = False
        member.rumoured = None
        self.news[member.id] = member
        if member.joined is not None:
            self._gone(member, reason)

    # Time --------------------------------------------------------------------------------------------------

    def late(self, seconds: float, now: float) -> None:
        """This process was held up: what we did not hear meanwhile, or hear of, is nobody's silence."""
        for member in self.members.values():
            member.heard = min(member.heard + seconds, now)
            member.witnessed = min(member.witnessed + seconds, now)

    def tick(self, now: float) -> float:
        """Look who is silent, and forget who is long gone; return when to look again."""
        options = self._options
        due = now + options.tombstones
        if self._claim is not None:
            self.merge(self._claim, self.id, now)
            due = self._claimed + options.ping
        forgotten = []
        for member in self.members.values():
            if member.joined is not None:
                due = min(due, self._watch(member, now))
            elif not member.linked:
                if now >= member.changed + options.tombstones:
                    forgotten.append(member.id)
                else:
                    due = min(due, member.changed + options.tombstones)
        for node in forgotten:
            self._counters["nodes_forgotten"] += 1
            del self.members[node]
        return due

    def _watch(self, member: Member, now: float) -> float:
        """Suspect a silent node, ask about it, or give it up; return when to look again."""
        options = self._options
        if now < member.heard + options.suspect:
            return member.heard + options.suspect
        if not member.suspect:
            member.suspect = True
            member.asked = now - options.ping
            self._counters["suspected"] += 1
            self._events.append(NodeSuspect(member.id))
        if now >= member.witnessed + options.down:
            self._counters["downed"] += 1
            self._bury(member, DOWN, "down", now)
            return now + options.tombstones
        if member.linked and now >= member.heard + options.down:
            # others hear it, so it lives, but this link is of no use any more
            self._cut(member, now)
        if now >= member.asked + options.ping:
            member.asked = now
            self._ask_about(member)
        due = min(member.asked + options.ping, member.witnessed + options.down)
        return min(due, member.heard + options.down) if member.linked else due

    def _cut(self, member: Member, now: float) -> None:
        """End the link to a silent node."""
        member.linked = False
        self._events.append(EndLink(member.id, "silent", f"no sign of life for {now - member.heard:.1f} s"))

    def _ask_about(self, member: Member) -> None:
        assert member.joined is not None
        others = [
            other.id
            for other in self.members.values()
            if other.linked and other is not member and not other.suspect
        ]
        probe = Probe(member.id, member.joined)
        for other in self._random.sample(others, min(WITNESSES, len(others))):
            self._counters["probes"] += 1
            self.questions.append((other, probe))

    def answer(self, probe: Probe, now: float) -> Probed:
        """Say whether we hear a node: by our own link alone."""
        member = self.members.get(probe.node)
        hears = member is not None and member.linked and member.joined == probe.instance
        return Probed(probe.node, probe.instance, max(0.0, now - member.heard) if member and hears else None)

    def on_probed(self, probed: Probed, now: float) -> None:
        """Another node said whether it hears one that we suspect."""
        member = self.members.get(probed.node)
        if member is not None and member.suspect and member.joined == probed.instance and probed.silence is not None:
            member.witnessed = max(member.witnessed, now - probed.silence)

    # Bounds -------------------------------------------------------------------------------------------------

    def _has_room(self, record: NodeRecord) -> bool:
        """Whether one more node may be remembered; the oldest of the dead makes room for another of them."""
        dead = [member for member in self.members.values() if member.state != ALIVE and not member.linked]
        if record.state == ALIVE:
            return len(self.members) - len(dead) < self._options.known_nodes
        if len(dead) >= self._options.known_nodes:
            self._forget_oldest(dead)
        return True

    def _make_room(self) -> None:
        """A node that proved itself is always let in."""
        if len(self.members) >= 2 * self._options.known_nodes:
            self._forget_oldest(self.members.values())

    def _forget_oldest(self, members: Iterable[Member]) -> None:
        """Forget who has been known for longest without being one of the cluster."""
        outside = [member for member in members if member.joined is None and not member.linked]
        if outside:
            oldest = min(outside, key=lambda member: member.changed)
            self._counters["nodes_forgotten"] += 1
            self.news.pop(oldest.id, None)
            del self.members[oldest.id]
