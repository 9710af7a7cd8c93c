"""What one room of recoverable messages keeps, on one node.

State only: no sockets, no greenlets; the clock comes as ``now``, in seconds since the epoch, as entries cross nodes.
Each origin (one node's log) numbers its own messages in the room from 1 on. A log takes every origin's in
sequence; one that comes too early waits until what is missing before it was fetched from others, or given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from realtime.cursors import MOST_ORIGINS, Position, new_origin, room_tag, write_cursor

__all__ = ["Entry", "Missed", "RoomLog", "Share"]

ENTRY_COST = 200  # bytes that an entry counts for beside its body: objects take memory as well
ID_COST = 90  # bytes of one client id that is left out
LOG_COST = 2000  # bytes that a log counts for, however little it holds
MOST_EARLY = 1000  # messages that wait for what is missing before them; and no more bytes than are kept
NOBODY_TELLS = "a node ended without a word: what it sent last may be lost"


class Entry(Struct, gc=False, frozen=True, array_like=True):
    """One message: encoded, without its cursor."""

    origin: str
    sequence: int
    at: float
    codec: str
    body: bytes
    except_ids: tuple[str, ...] = ()
    """Who did not get it, and gets it no more later."""

    @property
    def cost(self) -> int:
        """Bytes it counts for."""
        return len(self.body) + ENTRY_COST + ID_COST * len(self.except_ids)


class Missed(Struct, gc=False, frozen=True):
    """What somebody missed. With a ``reason`` it is not known, or not kept, in full."""

    entries: Sequence[Entry]
    reason: str | None = None


class Share(Struct, gc=False, frozen=True):
    """What a node tells another of its log."""

    entries: Sequence[Entry]
    position: Position
    """How far it is; where there is more, how far these entries go."""
    more: bool = False


class RoomLog:
    """One room's.

    :param room: its name.
    :param most: entries kept.
    :param most_bytes: of them.
    :param ttl: seconds that each is kept.
    :param recover: whether messages carry cursors.
    """

    __slots__ = (
        "_doubts",
        "_early",
        "_early_bytes",
        "_floors",
        "_former",
        "_heard",
        "_met",
        "_most",
        "_most_bytes",
        "_owners",
        "_parts",
        "_position",
        "_settled",
        "_ttl",
        "bytes",
        "count",
        "entries",
        "gaps",
        "meeting",
        "members",
        "origin",
        "recover",
        "room",
        "since",
        "tag",
        "used_at",
    )

    def __init__(self, room: str, *, most: int, most_bytes: int, ttl: float, recover: bool, now: float) -> None:
        self.room = room
        self.recover = recover
        self.origin = new_origin()
        """What this node calls itself here; anew with each log, as the numbers begin again."""
        self.entries: deque[Entry] = deque()
        """In the order they came here."""
        self.bytes = 0
        self.count = 0
        """Messages that ever came here."""
        self.members: dict[str, int] = {}
        """Of each client that was put into the room without a cursor: the count then."""
        self.used_at = now
        self.since = now
        """When the members who are here began to come: what was published before is none of their business."""
        self._most = most
        self._most_bytes = most_bytes
        self._ttl = ttl
        self.tag = room_tag(room)
        self._position: Position = {}
        self._parts: dict[str, str] = {}  # of the cursor, one for each origin
        self._floors: dict[str, int] = {}  # the first sequence from which all are kept
        self._early: dict[str, dict[int, Entry]] = {}
        self._early_bytes = 0
        self._heard: Position = {}  # the last that came early
        self.gaps = 0
        """Times that something was missing which nobody had any more."""
        self._former: set[str] = set()  # what this node called itself before
        self._owners: dict[str, str] = {}  # nodes, as far as they told
        self._settled: set[str] = set()  # origins that ended while all they sent came here
        self._doubts: dict[str, str] = {}  # origins that may have sent more, and what this node calls itself since
        self._met: set[str] = set()  # origins that were met when members were here, and had said something before
        self.meeting: set[str] = set()
        """Of those: origins of whose past only the first part has come."""
        self._skip_to(self.origin, 0)

    # What comes in -------------------------------------------------------------------------------------

    def next_sequence(self, origin: str) -> int:
        """Return the number that an origin's next message has."""
        return self._position.get(origin, 0) + 1

    def is_behind(self, position: Position) -> bool:
        """Tell whether somebody has seen more of an origin than there is here, or one that is not known here."""
        return any(sequence > self._position.get(origin, -1) for origin, sequence in position.items())

    def add(self, entry: Entry, now: float) -> list[Entry]:
        """Take a message; return what may be delivered now, in order: none if something is missing before it."""
        missing = entry.sequence - self.next_sequence(entry.origin)
        if missing < 0:
            return []  # it came before
        if missing > 0:
            self._keep_early(entry)
            return []
        fresh = [entry]
        self._append(entry, now)
        if self._early:
            fresh += self._take_early(entry.origin, now)
        return fresh

    def _keep_early(self, entry: Entry) -> None:
        """Keep what waits for what is missing before it; what is too much comes with that once more."""
        early = self._early.setdefault(entry.origin, {})
        self._heard[entry.origin] = max(entry.sequence, self._heard.get(entry.origin, 0))
        fits = len(early) < MOST_EARLY and self._early_bytes + entry.cost <= self._most_bytes
        if fits and entry.sequence not in early:
            early[entry.sequence] = entry
            self._early_bytes += entry.cost

    def _append(self, entry: Entry, now: float) -> None:
        origin = entry.origin
        position = self._position
        if origin not in position:
            self._floors.setdefault(origin, entry.sequence)
            if len(position) >= MOST_ORIGINS:
                self._forget_an_origin()
        position[origin] = entry.sequence
        self._parts[origin] = f"{origin}{entry.sequence}"
        self.entries.append(entry)
        self.count += 1
        self.bytes += entry.cost
        self.used_at = now
        while len(self.entries) > self._most or self.bytes > self._most_bytes:
            self.drop_oldest()

    def _take_early(self, origin: str, now: float) -> list[Entry]:
        """Take what has waited and is next now."""
        early = self._early.get(origin)
        taken: list[Entry] = []
        while early:
            entry = early.pop(self._position[origin] + 1, None)
            if entry is None:
                break
            self._early_bytes -= entry.cost
            self._append(entry, now)
            taken.append(entry)
        if early is not None:
            for sequence in [sequence for sequence in early if sequence <= self._position.get(origin, 0)]:
                self._early_bytes -= early.pop(sequence).cost
            if not early:
                del self._early[origin]
        return taken

    @property
    def early(self) -> dict[str, set[int]]:
        """By origin: the sequences that wait for what is missing before them."""
        return {origin: set(early) for origin, early in self._early.items()}

    @property
    def is_incomplete(self) -> bool:
        """Whether messages have been heard of that did not come."""
        for origin in [origin for origin, heard in self._heard.items() if heard < self.next_sequence(origin)]:
            del self._heard[origin]
        return bool(self._heard)

    def _skip_to(self, origin: str, sequence: int) -> None:
        """What an origin sent up to ``sequence`` is not kept here."""
        if sequence <= self._position.get(origin, -1):
            return
        if origin not in self._position and len(self._position) >= MOST_ORIGINS:
            self._forget_an_origin()
        self._position[origin] = sequence
        self._floors[origin] = sequence + 1
        self._parts[origin] = f"{origin}{sequence}"

    def _forget_an_origin(self) -> None:
        """Forget the one that was silent the longest, but never this node's own."""
        latest = {entry.origin: number for number, entry in enumerate(self.entries)}
        others = (origin for origin in self._position if origin != self.origin)
        origin = min(others, key=lambda origin: latest.get(origin, -1))
        self._early_bytes -= sum(entry.cost for entry in self._early.get(origin, {}).values())
        for kept in (self._position, self._floors, self._parts, self._early, self._heard, self._doubts, self._owners):
            kept.pop(origin, None)
        for named in (self._former, self._met, self._settled, self.meeting):
            named.discard(origin)
        self.entries = deque(entry for entry in self.entries if entry.origin != origin)
        self.bytes = sum(entry.cost for entry in self.entries)

    # What goes out -------------------------------------------------------------------------------------

    def drop_oldest(self) -> None:
        """Let go of the oldest entry."""
        entry = self.entries.popleft()
        self.bytes -= entry.cost
        self._floors[entry.origin] = max(entry.sequence + 1, self._floors[entry.origin])

    def expire(self, now: float) -> None:
        """Let go of what is older than it may be."""
        entries, oldest = self.entries, now - self._ttl
        while entries and entries[0].at <= oldest:
            self.drop_oldest()

    @property
    def oldest(self) -> float:
        """When the oldest entry was published; without one, when there was one last."""
        return self.entries[0].at if self.entries else self.used_at

    def is_idle(self, now: float) -> bool:
        """Tell whether nothing is kept, and nothing has been for as long as anything may be."""
        return not self.entries and not self._early and now - self.used_at > self._ttl

    # Positions -----------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """How far this log is: a copy."""
        return dict(self._position)

    @property
    def cursor(self) -> str:
        """How far this log is, for somebody who has everything in it."""
        return f"{self.tag}." + "-".join(self._parts.values())

    def cursor_at(self, position: Position) -> str:
        """Return the cursor of a position."""
        return write_cursor(self.tag, position)

    def missed(self, position: Position, now: float) -> Missed:
        """Return what somebody at a position has not seen, in the order it came."""
        self.expire(now)
        unknown = [origin for origin in position if origin not in self._position]
        if unknown:
            return Missed((), "the server was restarted since, or kept nothing of this room for too long")
        if any(since not in position for since in self._doubts.values()):
            return Missed((), NOBODY_TELLS)
        if self.meeting or not self._met <= position.keys():
            return Missed((), "nodes have met since, and what they said before goes to nobody")
        for origin, latest in self._position.items():
            seen = position.get(origin, 0)
            if seen > latest:
                return Missed((), NOBODY_TELLS)
            if seen + 1 < self._floors[origin]:
                return Missed((), "more was missed than the room keeps")
        entries = [entry for entry in self.entries if entry.sequence > position.get(entry.origin, 0)]
        return Missed(entries)

    def begins_with(self, client_id: str) -> None:
        """A member was sent nothing so far: what was fetched when it came went to nobody here."""
        if client_id in self.members:
            self.members[client_id] = self.count

    def was_sent(self, client_id: str, missed: Missed) -> bool:
        """Tell whether a member got all of what it says it missed since it came into the room."""
        since = self.members.get(client_id, 0)
        if missed.reason is not None or not missed.entries:
            return missed.reason is None
        first = self.count - len(self.entries) + self.entries.index(missed.entries[0])
        return first >= since

    def walk(self, now: float) -> Iterator[tuple[Entry, Position]]:
        """Iterate over all that is kept, each with the position right after it: not across a switch."""
        self.expire(now)
        position = {origin: floor - 1 for origin, floor in self._floors.items()}
        for entry in self.entries:
            position[entry.origin] = entry.sequence
            yield entry, position

    # Between nodes --------------------------------------------------------------------------------------

    def share(self, position: Position, most_bytes: int, now: float) -> Share:
        """Return what another node's log at ``position`` lacks: the first of it where not all fit in ``most_bytes``."""
        self.expire(now)
        left = most_bytes
        chosen: list[Entry] = []
        before = {origin: floor - 1 for origin, floor in self._floors.items()}
        for entry in self.entries:
            if entry.sequence > position.get(entry.origin, 0):
                left -= entry.cost
                if left < 0 and chosen:
                    return Share(chosen, before, more=True)
                chosen.append(entry)
            before[entry.origin] = entry.sequence
        return Share(chosen, self.position)

    def merge(self, shares: Sequence[Share], now: float, *, in_time: bool = False) -> list[Entry]:
        """Take what other nodes share; return what may be delivered now.

        :param in_time: put it between what is here, in the order of time: as long as nobody here was sent any of it.

        Each origin's are taken in sequence, and the origins in the order of time. A sequence that nobody has any
        more is skipped: who needs it is told that more was missed than the room keeps. Of a share that is not all,
        nothing is concluded from what it lacks.
        """
        ends = _ends(shares)
        found: dict[str, dict[int, Entry]] = {}
        latest: Position = {}
        for share in shares:
            for entry in share.entries:
                found.setdefault(entry.origin, {})[entry.sequence] = entry
            for origin, sequence in share.position.items():
                latest[origin] = max(latest.get(origin, 0), sequence)
        early, self._early, self._early_bytes = self._early, {}, 0
        for origin, entries in early.items():
            found.setdefault(origin, {}).update(entries)
        fresh = []
        for origin, entries in found.items():
            for sequence, entry in entries.items():
                if sequence > ends.get(origin, sequence):
                    self._keep_early(entry)
                elif sequence > self._position.get(origin, 0):
                    fresh.append(entry)
        fresh.sort(key=lambda entry: entry.at)
        fresh = _in_sequence(fresh)
        for entry in fresh:
            if entry.sequence > self.next_sequence(entry.origin):
                self._do_without(entry.origin, entry.sequence - 1)
            self._append(entry, now)
        for origin, sequence in latest.items():
            self._do_without(origin, min(sequence, ends.get(origin, sequence)))
        if in_time and fresh:
            self.entries = deque(_in_sequence(sorted(self.entries, key=lambda entry: entry.at)))
        return fresh

    def _do_without(self, origin: str, sequence: int) -> None:
        """Nobody has what is missing up to there."""
        if origin in self._position and sequence > self._position[origin]:
            self.gaps += 1
        self._skip_to(origin, sequence)

    # Origins that have ended ----------------------------------------------------------------------------

    @property
    def names(self) -> Collection[str]:
        """What this node calls itself here, and did before."""
        return (self.origin, *self._former)

    @property
    def doubts(self) -> dict[str, str]:
        """Origins that may have sent what nobody has, and an origin that whoever knows of it has in its cursor."""
        return dict(self._doubts)

    def answered(self, owners: Mapping[str, str]) -> None:
        """Nodes have just told what they have: by origin, who each of theirs is."""
        for origin, node in owners.items():
            if origin in self._position:
                self._owners[origin] = node
                self._doubts.pop(origin, None)
                self._settled.discard(origin)

    def settle(self, nodes: Collection[str]) -> None:
        """From now on messages do not come here. Of origins that are none of these nodes', all have come."""
        for origin in self._position:
            owner = self._owners.get(origin)
            if not nodes or (owner is not None and owner not in nodes):
                self._settled.add(origin)

    def judge(self, complete: Collection[str], doubts: Mapping[str, str]) -> None:
        """Doubt that all of an origin came here which no node that has been asked answers for.

        :param complete: origins of nodes that answer, and those of which one that answers has got everything.
        :param doubts: of the nodes that answer.
        """
        known = {*self.names, *complete, *self._settled, *self._doubts}
        lost = [origin for origin in self._position if origin not in known]
        told = {origin: doubts[origin] for origin in lost if doubts.get(origin) in self._position}
        self._doubts.update(told)
        if len(told) < len(lost):
            self._former.add(self.origin)
            self.origin = new_origin()
            self._skip_to(self.origin, 0)
            self._doubts.update((origin, self.origin) for origin in lost if origin not in told)

    def met(self, origins: Iterable[str]) -> None:
        """What these had said before members came here goes to none of those."""
        self._met.update(origins)


def _ends(shares: Iterable[Share]) -> Position:
    """Return, by origin, how far it goes that somebody shares only the first part of."""
    ends: Position = {}
    for share in shares:
        if share.more:
            for origin, sequence in share.position.items():
                ends[origin] = min(ends.get(origin, sequence), sequence)
    return ends


def _in_sequence(entries: list[Entry]) -> list[Entry]:
    """Put each origin's entries in sequence, in the places that this origin has: clocks may have been set back."""
    by_origin: dict[str, list[Entry]] = {}
    for entry in entries:
        by_origin.setdefault(entry.origin, []).append(entry)
    queues = {origin: iter(sorted(own, key=lambda entry: entry.sequence)) for origin, own in by_origin.items()}
    return [next(queues[entry.origin]) for entry in entries]
