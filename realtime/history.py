"""The history of rooms that keep one: every message stamped with a cursor on its way, and kept to be asked for.

A node is current with a room while it has members of it: then every message of the room comes here. When the first
member comes, the node fetches from the others what it lacks; when a message comes too early, because some before it
were lost between nodes, it waits until those are fetched. So any node can tell what somebody has missed who was on
another before.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

import gevent
from gevent.event import Event

from realtime.cluster import Cluster
from realtime.config import Limits
from realtime.cursors import Position
from realtime.errors import BadMessage, RealtimeError
from realtime.history_holds import Holds
from realtime.history_wire import Told, is_position, pack_told, read_told
from realtime.message import JSON, MSGPACK, Mark, Outbound, Stamped
from realtime.room_log import LOG_COST, Entry, RoomLog, Share
from realtime.room_rules import RoomRule, RoomRules

__all__ = ["Addressed", "History", "kept_message"]

log = logging.getLogger("realtime.history")

SYNC_TIMEOUT = 2.0  # seconds that the other nodes have to tell what they keep
SWEEP = 1.0  # seconds between looks for what has expired
SHARED_BYTES = 512 * 1024  # bytes of entries in one answer to another node
MOST_TRIES = 10  # fetchings in a row, while messages go on coming early
MOST_PARTS = 1000  # answers that one fetching takes, of nodes that share in parts: against one that never ends
AFTER_OVERFLOW = 0.9  # of Limits.history that is kept where it was full: not to look at all rooms for each message

Addressed = tuple[Outbound, Collection[str]]
"""A message, and whom to leave out."""


class History:
    """The logs of this node.

    :param rules: say which rooms keep a history.
    :param cluster: returns the other nodes.
    :param deliver: delivers to this node's members of a room, all of it before anything else. May switch after that.
    :param lost: tells this node's members of a room, but for some, that messages are missing which nobody has.
    :param check: raises MessageTooBig, BadMessage for a message that cannot be sent to every client here.
    :param has_msgpack: tells whether a client here speaks MessagePack, which carries what JSON cannot.
    """

    def __init__(
        self,
        limits: Limits,
        rules: RoomRules,
        counters: Counter[str],
        *,
        cluster: Callable[[], Cluster],
        deliver: Callable[[str, Sequence[Addressed]], int],
        has_msgpack: Callable[[], bool],
        lost: Callable[[str, Collection[str]], None],
        check: Callable[[Outbound], None],
    ) -> None:
        self._limits = limits
        self._rules = rules
        self._counters = counters
        self._cluster = cluster
        self._deliver = deliver
        self._has_msgpack = has_msgpack
        self._lost = lost
        self._check = check
        self._logs: dict[str, RoomLog] = {}
        self._bytes = 0
        self._current: dict[str, Event | None] = {}
        """Rooms with members here; an Event while the others are being asked."""
        self.holds = Holds(limits)
        self._fetching: dict[str, gevent.Greenlet[..., None]] = {}
        self._running = False
        self._sweeper: gevent.Greenlet[..., None] | None = None

    # Lifecycle -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let go of what has expired from now on, whenever there is a log."""
        self._running = True

    def stop(self) -> None:
        """Forget everything. Switches."""
        self._running = False
        greenlets = [*self._fetching.values(), *filter(None, [self._sweeper])]
        self._sweeper = None
        self._fetching.clear()
        gevent.killall(greenlets, timeout=1.0)
        self._logs.clear()
        self._current.clear()
        self.holds.clear()
        self._bytes = 0

    def stats(self) -> dict[str, int]:
        """Return what is kept."""
        return {
            "rooms": len(self._logs),
            "messages": sum(len(one.entries) for one in self._logs.values()),
            "bytes": self._bytes,
        }

    def _sweep(self) -> None:
        while self._logs:
            gevent.sleep(SWEEP)
            self.sweep(time.time())
        self._sweeper = None

    def sweep(self, now: float) -> None:
        """Let go of what has expired at ``now``."""
        for room, one in list(self._logs.items()):
            before = one.bytes
            one.expire(now)
            self._bytes += one.bytes - before
            if not self._is_needed(room) and one.is_idle(now):
                self._forget(room)

    def _forget(self, room: str) -> None:
        self._bytes -= self._logs.pop(room).bytes + LOG_COST

    # Rooms ---------------------------------------------------------------------------------------------

    def rule(self, room: str) -> RoomRule | None:
        """Return the rule of a room that keeps its history; None for any other."""
        if not self._rules.keep_history:
            return None
        rule = self._rules.rule_for(room)
        return rule if rule is not None and rule.history else None

    def log_of(self, room: str) -> RoomLog | None:
        """Return the log of a room; None if it keeps none."""
        found = self._logs.get(room)
        if found is None:
            rule = self.rule(room)
            if rule is None:
                return None
            found = RoomLog(
                room,
                most=rule.history,
                most_bytes=self._limits.history_room,
                ttl=rule.ttl,
                recover=rule.recover,
                now=time.time(),
            )
            self._bytes += LOG_COST
            if self._bytes > self._limits.history:
                self._evict()  # none of which is the new one
            self._logs[room] = found
            if self._sweeper is None and self._running:
                self._sweeper = gevent.spawn(self._sweep)
        return found

    def entered(self, room: str, client_id: str) -> None:
        """A client of this node joined a room. Parks until this node is current with it, ``SYNC_TIMEOUT`` at most."""
        one = self.log_of(room)
        if one is None:
            return
        one.members[client_id] = one.count
        state = self._current.get(room, _UNKNOWN)
        if state is None:
            return
        with self.holds.hold(room, client_id):
            if isinstance(state, Event):
                state.wait(SYNC_TIMEOUT)
                one.begins_with(client_id)
                return
            done = self._current[room] = Event()
            one.since = time.time()
            try:
                self.sync(room)
            finally:
                if self._current.get(room) is done:
                    self._current[room] = None
                    one.begins_with(client_id)
                done.set()

    def left(self, room: str, client_id: str, *, is_empty: bool) -> None:
        """A client of this node left a room; after the last one the others send nothing of it here any more."""
        one = self._logs.get(room)
        if one is not None:
            one.members.pop(client_id, None)
        if is_empty:
            self._current.pop(room, None)
            if one is not None:
                one.settle(self._cluster().node_ids())

    def _is_needed(self, room: str) -> bool:
        return room in self._current or room in self._fetching

    def is_current(self, room: str) -> bool:
        """Tell whether everything that is sent to a room comes here."""
        return self._current.get(room, _UNKNOWN) is None

    # Messages ------------------------------------------------------------------------------------------

    def publish(self, room: str, message: Outbound, except_ids: Collection[str]) -> Addressed:
        """Keep a message for a room that keeps its history; return what goes to the members here.

        ``message`` gets the mark by which other nodes know it. One that is volatile is not kept.

        :raises BadMessage: it cannot be encoded.
        :raises MessageTooBig: it cannot be sent to everybody who is here, nor could it be later.
        """
        one = self.log_of(room)
        if one is None or message.volatile:
            return message, except_ids if one is None else self.holds.without(room, except_ids)
        self._check(message)
        codec = MSGPACK if self._has_msgpack() else JSON
        body = message.encoded(codec)
        now = time.time()
        entry = Entry(one.origin, one.next_sequence(one.origin), now, codec.name, body, tuple(except_ids))
        message.mark = Mark(entry.origin, entry.sequence, now)
        self._add(one, entry, now)
        return _stamped(one, message), self.holds.without(room, except_ids)

    def _add(self, one: RoomLog, entry: Entry, now: float) -> list[Entry]:
        before = one.bytes
        taken = one.add(entry, now)
        self._bytes += one.bytes - before
        if self._bytes > self._limits.history:
            self._evict()
        return taken

    def _evict(self) -> None:
        """Let go of the oldest messages of all rooms, and of logs without any, until there is some room again."""
        heap = [(one.oldest, room) for room, one in self._logs.items() if one.entries or not self._is_needed(room)]
        heapify(heap)
        while heap and self._bytes > self._limits.history * AFTER_OVERFLOW:
            room = heap[0][1]
            one = self._logs[room]
            if one.entries:
                before = one.bytes
                one.drop_oldest()
                self._bytes += one.bytes - before
                self._counters["history_evicted"] += 1
            else:
                self._forget(room)
            if one.entries:
                heapreplace(heap, (one.oldest, room))
            else:
                heappop(heap)

    def receive(self, room: str, message: Outbound, except_ids: Collection[str]) -> Sequence[Addressed]:
        """Take a message that another node published; return what is to be delivered to the members here, in order.

        Nothing, if messages before it are missing: then it is delivered after those were fetched.
        """
        mark = message.mark
        one = self.log_of(room) if mark is not None else None
        if mark is None or one is None:
            return [(message, except_ids)]
        codec = MSGPACK if MSGPACK in message.codecs() else JSON
        entry = Entry(mark.origin, mark.sequence, mark.at, codec.name, message.encoded(codec), tuple(except_ids))
        before = one.position
        taken = self._add(one, entry, time.time())
        if not taken:
            if one.is_incomplete:
                self._counters["history_gaps"] += 1
                self._fetch(room)
            return []
        if len(taken) == 1:
            return [(_stamped(one, message), self.holds.without(room, except_ids))]
        return self._deliveries(room, one, taken, before)

    def _deliveries(self, room: str, one: RoomLog, entries: Iterable[Entry], position: Position) -> list[Addressed]:
        """Return entries as what is to be delivered. ``position``: before the first of them."""
        deliveries: list[Addressed] = []
        for entry in entries:
            position[entry.origin] = entry.sequence
            outbound = kept_message(one, entry, position)
            deliveries.append((outbound, self.holds.without(room, entry.except_ids)))
        return deliveries

    # Other nodes ---------------------------------------------------------------------------------------

    def sync(self, room: str) -> None:
        """Fetch from the other nodes what this one lacks of a room, and deliver it. Parks."""
        one = self.log_of(room)
        if one is None:
            return
        was_current = self.is_current(room)
        unfinished: dict[str, Collection[str]] = {}  # nodes that have more, and the origins that they told of
        for _ in range(MOST_PARTS):
            question = {"room": room, "position": one.position}
            answers = self._cluster().gather("history", question, SYNC_TIMEOUT)
            if self._logs.get(room) is not one:
                return  # nobody is here any more, and it has expired meanwhile
            told = [answer for answer in map(read_told, answers) if answer is not None]
            self._merge(room, one, [answer.share for answer in told])
            for answer in told:
                unfinished.pop(answer.node, None)
                if answer.share.more:
                    unfinished[answer.node] = answer.share.position.keys()
            if not any(answer.share.more for answer in told):
                break
        owed = [origins for node, origins in unfinished.items() if node in self._cluster().node_ids()]
        if not owed:
            one.meeting.clear()
        elif not was_current:
            one.meeting.update(*owed)
        owners = {name: answer.node for answer in told for name in answer.names}
        one.answered(owners)
        if not was_current:  # else all that was sent has come here, whoever is still there
            complete = {
                origin
                for answer in told
                for origin in answer.share.position
                if answer.current and origin not in answer.doubts
            }
            complete.update(owners)
            one.judge(complete, {origin: since for answer in told for origin, since in answer.doubts.items()})

    def _merge(self, room: str, one: RoomLog, shares: Sequence[Share]) -> None:
        """Take what others share, and deliver what is new to the members here."""
        before, bytes_before, early = one.position, one.bytes, one.early
        gaps = one.gaps
        taken = one.merge(shares, time.time(), in_time=not self.is_current(room))
        self._bytes += one.bytes - bytes_before
        if self._bytes > self._limits.history:
            self._evict()
        late = self._before_members_came(room, one, taken, before, early)
        one.met(origin for origin, _ in late)
        if self.is_current(room) and any(share.more for share in shares):
            # so that the rest is late as well, also of those of whom the first part has told the names alone
            one.meeting.update(origin for origin in one.position if origin not in before)
        if one.gaps > gaps and one.recover and self.is_current(room):
            self._counters["history_lost"] += 1
            self._lost(room, self.holds.members(room))
        deliveries = zip(taken, self._deliveries(room, one, taken, before), strict=True)
        self._deliver(room, [new for entry, new in deliveries if (entry.origin, entry.sequence) not in late])

    def _before_members_came(
        self, room: str, one: RoomLog, taken: Collection[Entry], before: Position, early: Mapping[str, Collection[int]]
    ) -> set[tuple[str, int]]:
        """Return which of those are none of the members' business: of nodes that are met only now."""
        if not self.is_current(room):
            return set()
        return {
            (entry.origin, entry.sequence)
            for entry in taken
            if (entry.origin not in before or entry.origin in one.meeting)
            and entry.at < one.since
            and entry.sequence not in early.get(entry.origin, ())
        }

    def _fetch(self, room: str) -> None:
        """Fetch what is missing, in a greenlet of its own."""
        if room not in self._fetching:
            self._fetching[room] = gevent.spawn(self._fetch_missing, room)

    def _fetch_missing(self, room: str) -> None:
        try:
            one = self._logs.get(room)
            tries = 0
            while one is not None and one.is_incomplete and tries < MOST_TRIES:
                self.sync(room)
                tries += 1
        except RealtimeError as error:
            log.warning("what is missing of room %r cannot be fetched: %s", room, error)
        finally:
            self._fetching.pop(room, None)

    def share(self, arguments: Mapping[str, Any]) -> Any:
        """Answer another node's question for what it lacks. Raises BadMessage."""
        room, position = arguments.get("room"), arguments.get("position")
        if not isinstance(room, str) or not is_position(position):
            raise BadMessage("a question for history without room and position")
        one = self._logs.get(room)
        if one is None:
            return None
        assert position is not None
        share = one.share(position, SHARED_BYTES, time.time())
        return pack_told(
            Told(
                share,
                self._cluster().node_id,
                names=one.names,
                doubts=one.doubts,
                current=self.is_current(room),
            )
        )


def kept_message(one: RoomLog, entry: Entry, position: Position) -> Outbound:
    """Return a kept message as it goes out to somebody who is at ``position`` after it."""
    message = Outbound.relayed({entry.codec: entry.body})
    return Stamped(message, one.cursor_at(position)) if one.recover else message


def _stamped(one: RoomLog, message: Outbound) -> Outbound:
    return Stamped(message, one.cursor) if one.recover else message


_UNKNOWN = object()
