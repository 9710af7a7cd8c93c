"""What one room of recoverable messages keeps, on one node.

State only: no sockets, no greenlets; the clock comes as ``now``, in seconds since the epoch, as entries cross nodes.
Each origin (one node's log) numbers its own messages in the room from 1 on. A log takes every origin's in
sequence; one that comes too early waits until what is missing before it was fetched from others, or given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from realtime.cursors import MOST_ORIGINS, Position, new_origin, room_tag, write_cursor

__all__ = ["Entry", "Missed", "RoomLog"]

ENTRY_COST = 200  # bytes that an entry counts for beside its body: objects take memory as well
ID_COST = 90  # bytes of one client id that is left out
LOG_COST = 2000  # bytes that a log counts for, however little it holds
MOST_EARLY = 1000  # messages that wait for what is missing before them


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


class RoomLog:
    """One room's.

    :param room: its name.
    :param most: entries kept.
    :param most_bytes: of them.
    :param ttl: seconds that each is kept.
    :param recover: whether messages carry cursors.
    """

    __slots__ = (
        "_early",
        "_floors",
        "_most",
        "_most_bytes",
        "_parts",
        "_position",
        "_ttl",
        "bytes",
        "count",
        "entries",
        "members",
        "origin",
        "recover",
        "room",
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
        self._most = most
        self._most_bytes = most_bytes
        self._ttl = ttl
        self.tag = room_tag(room)
        self._position: Position = {}
        self._parts: dict[str, str] = {}  # of the cursor, one for each origin
        self._floors: dict[str, int] = {}  # the first sequence from which all are kept
        self._early: dict[str, dict[int, Entry]] = {}
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
            early = self._early.setdefault(entry.origin, {})
            early[entry.sequence] = entry
            if len(early) <= MOST_EARLY:
                return []
            return self.give_up(entry.origin, now)
        fresh = [entry]
        self._append(entry, now)
        if self._early:
            fresh += self._take_early(entry.origin, now)
        return fresh

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
            self._append(entry, now)
            taken.append(entry)
        if early is not None:
            for sequence in [sequence for sequence in early if sequence <= self._position.get(origin, 0)]:
                del early[sequence]
            if not early:
                del self._early[origin]
        return taken

    @property
    def waits_for(self) -> Position:
        """By origin: up to which sequence messages are missing."""
        return {origin: min(early) - 1 for origin, early in self._early.items() if early}

    def give_up(self, origin: str, now: float) -> list[Entry]:
        """Do without what is missing of an origin; return what may be delivered now."""
        early = self._early.get(origin)
        if not early:
            return []
        self._skip_to(origin, min(early) - 1)
        return self._take_early(origin, now)

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
        for kept in (self._position, self._floors, self._parts, self._early):
            kept.pop(origin, None)
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
        for origin, latest in self._position.items():
            seen = position.get(origin, 0)
            if seen > latest:
                return Missed((), "a node ended without a word: what it sent last may be lost")
            if seen + 1 < self._floors[origin]:
                return Missed((), "more was missed than the room keeps")
        entries = [entry for entry in self.entries if entry.sequence > position.get(entry.origin, 0)]
        return Missed(entries)

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

    def share(self, position: Position, most_bytes: int, now: float) -> tuple[list[Entry], Position]:
        """Return what another node's log at ``position`` lacks, and how far this one is.

        The newest are preferred where not all fit into ``most_bytes``: what is left out counts as not kept.
        """
        self.expire(now)
        chosen: list[Entry] = []
        left = most_bytes
        for entry in reversed(self.entries):
            if entry.sequence <= position.get(entry.origin, 0):
                continue
            left -= entry.cost
            if left < 0:
                break
            chosen.append(entry)
        chosen.reverse()
        return chosen, self.position

    def merge(self, shared: Iterable[tuple[Sequence[Entry], Position]], now: float) -> list[Entry]:
        """Take what other nodes share; return what may be delivered now.

        Each origin's are taken in sequence, and the origins in the order of time. A sequence that nobody has any
        more is skipped: who needs it is told that more was missed than the room keeps.
        """
        answers = list(shared)
        found: dict[str, dict[int, Entry]] = {}
        latest: Position = {}
        for entries, position in answers:
            for entry in entries:
                found.setdefault(entry.origin, {})[entry.sequence] = entry
            for origin, sequence in position.items():
                latest[origin] = max(latest.get(origin, 0), sequence)
        for origin, early in self._early.items():
            found.setdefault(origin, {}).update(early)
        self._early.clear()
        fresh = [
            entry
            for origin, entries in found.items()
            for sequence, entry in entries.items()
            if sequence > self._position.get(origin, 0)
        ]
        fresh.sort(key=lambda entry: entry.at)
        fresh = _in_sequence(fresh)
        taken = []
        for entry in fresh:
            if entry.sequence > self.next_sequence(entry.origin):
                self._skip_to(entry.origin, entry.sequence - 1)
            self._append(entry, now)
            taken.append(entry)
        for origin, sequence in latest.items():
            self._skip_to(origin, sequence)
        return taken


def _in_sequence(entries: list[Entry]) -> list[Entry]:
    """Put each origin's entries in sequence, in the places that this origin has: clocks may have been set back."""
    by_origin: dict[str, list[Entry]] = {}
    for entry in entries:
        by_origin.setdefault(entry.origin, []).append(entry)
    queues = {origin: iter(sorted(own, key=lambda entry: entry.sequence)) for origin, own in by_origin.items()}
    return [next(queues[entry.origin]) for entry in entries]
