"""Negotiations: what clients have described to each other, and which candidates must wait for it.

State only: no sockets, no greenlets; the clock comes as ``now``, in seconds of any origin. A candidate that
reaches a browser before the description it belongs to makes ``addIceCandidate`` fail (W3C WebRTC 4.4.2), and one
of an earlier negotiation is worse than none: here it is found which may pass, which waits, and which is too late.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from realtime.signaling.descriptions import Told
from realtime.signaling.held import Held, HeldCandidates

__all__ = ["Negotiations", "Verdict"]


class Verdict(Enum):
    """What becomes of a candidate."""

    PASS = "pass"  # its receiver has the description
    WAIT = "wait"  # the description may still come
    LATE = "late"  # another negotiation has taken its place


class _Client:
    """What is known of one client as a sender."""

    __slots__ = ("heard_by", "rooms")

    def __init__(self) -> None:
        self.heard_by: dict[str, Told] = {}  # by target, the one described to last at the end
        self.rooms: dict[str, Told] = {}


class Negotiations:
    """The records of this node's clients. Everything is bounded for each sender, so that none can cost others.

    :param is_member: tells whether a client is in a room of the kernel.
    :param max_pairs: receivers of one sender, and rooms it described to, that are remembered (each takes about
        500 bytes); past it the one described to longest ago is forgotten, and counted.
    :param max_held: candidates that wait for one receiver.
    :param max_held_by_sender: candidates of one sender that wait.
    :param hold: seconds that a candidate waits, and that one who has gone is remembered.
    :param most_gone: clients that have gone that are remembered; past it the oldest is forgotten.
    """

    def __init__(
        self,
        *,
        is_member: Callable[[str, str], bool],
        max_pairs: int,
        max_held: int,
        max_held_by_sender: int,
        hold: float,
        most_gone: int,
    ) -> None:
        self._is_member = is_member
        self._max_pairs = max_pairs
        self._hold = hold
        self._most_gone = most_gone
        self._clients: dict[str, _Client] = {}
        self._hears: dict[str, dict[str, None]] = {}  # by target: whose records name it
        self._held = HeldCandidates(most=max_held, most_by_sender=max_held_by_sender, hold=hold)
        self._foreign: dict[str, dict[str, None]] = {}  # by target: clients of other nodes that made it an offer
        self._gone: OrderedDict[str, float] = OrderedDict()  # forgotten then, the first first
        self._successors: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.forgotten_pairs = 0

    # Descriptions --------------------------------------------------------------------------------------

    def described(
        self,
        kind: str,
        sender: str,
        target: str | None,
        where: str | None,
        negotiation: str | None,
        now: float,
        receivers: Iterable[str] = (),
    ) -> None:
        """An offer or answer went to ``target``, or to the ``receivers`` in the room ``where``."""
        client = self._clients.get(sender)
        if client is None:
            client = self._clients[sender] = _Client()
        told_by_name: dict[str, Told] = client.heard_by
        name = target
        if name is None:
            assert where is not None
            told_by_name, name = client.rooms, where
        told = told_by_name.pop(name, None)
        if told is None:
            told = Told()
            if len(told_by_name) >= self._max_pairs:
                self._forget_oldest(sender, client, told_by_name)
            if target is not None:
                self._hears.setdefault(target, {})[sender] = None
        told_by_name[name] = told
        told.add(kind, where, negotiation)
        told.at = now
        if target is None:
            told.receivers = frozenset(receivers)

    def offered_elsewhere(
        self, sender: str, target: str, where: str | None, negotiation: str | None, now: float
    ) -> None:
        """A client of another node made an offer to one of this node, so that it is known here which is its latest.

        The last ``max_pairs`` who did so are remembered for each target, for as long as that is.
        """
        self.described("offer", sender, target, where, negotiation, now)
        foreign = self._foreign.setdefault(target, {})
        foreign.pop(sender, None)
        foreign[sender] = None
        while len(foreign) > self._max_pairs:
            self.forgotten_pairs += 1
            oldest = next(iter(foreign))
            del foreign[oldest]
            client = self._clients.get(oldest)
            if client is not None and client.heard_by.pop(target, None) is not None:
                self._unlink(oldest, client, target)

    def _forget_oldest(self, sender: str, client: _Client, told_by_name: dict[str, Told]) -> None:
        self.forgotten_pairs += 1
        oldest = next(iter(told_by_name))
        del told_by_name[oldest]
        if told_by_name is client.heard_by:
            self._unlink(sender, client, oldest)

    def is_late_answer(self, sender: str, target: str, negotiation: str | None) -> bool:
        """Tell whether ``target`` has made an offer to ``sender``, as far as is known here, but not this one."""
        if negotiation is None:
            return False
        other = self._clients.get(target)
        told = None if other is None else other.heard_by.get(sender)
        if told is not None and negotiation in told.past:
            return True
        offers = self._open_offers(target, sender)
        return bool(offers) and negotiation not in offers and None not in offers

    def _open_offers(self, sender: str, target: str) -> set[str | None]:
        """Return the negotiations of the latest offers that ``target`` got of ``sender``."""
        client = self._clients.get(sender)
        if client is None:
            return set()
        told = client.heard_by.get(target)
        offers = set() if told is None else set(told.offers.values())
        for room, told in client.rooms.items():
            if self._got(told, room, target):
                offers.update(told.offers.values())
        return offers

    # Candidates ----------------------------------------------------------------------------------------

    def judge(self, sender: str, target: str, negotiation: str | None, now: float) -> Verdict:
        """Tell what becomes of a candidate from ``sender`` to ``target``."""
        client = self._clients.get(sender)
        if client is None:
            return self._judge_undescribed(sender, target, negotiation)
        told = client.heard_by.get(target)
        if told is not None:
            told.at = now
            if negotiation in told.offers.values() or (negotiation is None and (told.offers or told.answers)):
                return Verdict.PASS
            if negotiation in told.answers.values():
                return Verdict.LATE if self.is_late_answer(sender, target, negotiation) else Verdict.PASS
            if negotiation in told.past:
                return Verdict.LATE
        for room, told in client.rooms.items():
            if (negotiation is None or told.is_current(negotiation)) and self._got(told, room, target):
                return Verdict.PASS
            if negotiation in told.past and self._got(told, room, target):
                return Verdict.LATE
        return self._judge_undescribed(sender, target, negotiation)

    def _got(self, told: Told, room: str, client_id: str) -> bool:
        """Tell whether a client has what was described to a room: it was in it then, and still is."""
        return client_id in told.receivers and self._is_member(room, client_id)

    def _judge_undescribed(self, sender: str, target: str, negotiation: str | None) -> Verdict:
        """It waits, unless it is of an earlier offer from the other side."""
        other = self._clients.get(target)
        told = None if other is None else other.heard_by.get(sender)
        return Verdict.LATE if told is not None and negotiation in told.past else Verdict.WAIT

    def is_told_to_room(self, sender: str, room: str, negotiation: str | None, others: Iterable[str]) -> bool:
        """Tell whether the others in a room have the latest description of ``sender``, of this negotiation."""
        client = self._clients.get(sender)
        told = None if client is None else client.rooms.get(room)
        if told is None or not (negotiation is None or told.is_current(negotiation)):
            return False
        return told.receivers.issuperset(others)

    def is_recent(self, sender: str, target: str, now: float) -> bool:
        """Tell whether ``sender`` had to do with ``target``, who has gone, within the time a candidate is held."""
        for one, other in ((sender, target), (target, sender)):
            client = self._clients.get(one)
            told = None if client is None else client.heard_by.get(other)
            if told is not None and now - told.at <= self._hold:
                return True
        return False

    def can_hold(self, sender: str, target: str) -> bool:
        """Tell whether one more candidate may wait."""
        return self._held.can_hold(sender, target)

    def hold(
        self,
        sender: str,
        target: str,
        negotiation: str | None,
        message: dict[str, Any],
        ack: str | int | None,
        now: float,
    ) -> Held:
        """Let a candidate wait; ask ``can_hold`` first."""
        return self._held.hold(sender, target, negotiation, message, ack, now)

    def release(self, sender: str, target: str, now: float) -> list[Held]:
        """Take out what may pass from ``sender`` to ``target`` now, in the order it came."""
        ready = [
            held
            for held in self._held.line(sender, target)
            if self.judge(sender, target, held.negotiation, now) is Verdict.PASS
        ]
        self._held.take(ready)
        return ready

    def release_to_room(self, sender: str, room: str, now: float) -> list[Held]:
        """Take out what may pass from ``sender`` to members of ``room`` now."""
        targets = [target for target in self._held.targets(sender) if self._is_member(room, target)]
        return [held for target in targets for held in self.release(sender, target, now)]

    def left(self, client_id: str, room: str) -> None:
        """A client has left a room: what was described to it and by it there is over."""
        for sender in self._hears.get(client_id, ()):
            told = self._clients[sender].heard_by.get(client_id)
            if told is not None:
                told.end(room)
        client = self._clients.get(client_id)
        if client is not None:
            client.rooms.pop(room, None)
            for told in client.heard_by.values():
                told.end(room)
            self._discard_if_empty(client_id)

    # Who comes and goes --------------------------------------------------------------------------------

    def gone(self, client_id: str, now: float, *, returns: bool) -> bool:
        """A client's connection ended: what waits of it is dropped, and counted.

        Returns whether there is something for ``expire`` to forget.

        :param returns: its place is kept: ``forget`` or ``succeed`` will be called instead.
        """
        self._held.drop(client_id)  # ICE starts anew when it comes back
        if returns:
            return False
        is_known = client_id in self._clients or client_id in self._hears or self._held.senders_to(client_id)
        if not is_known:
            self._foreign.pop(client_id, None)
            return False
        self._gone[client_id] = now + self._hold
        if len(self._gone) > self._most_gone:
            self.forget(next(iter(self._gone)))
        return True

    def forget(self, client_id: str) -> None:
        """Remove every trace of a client that has gone, but for what waits for it: that expires by itself."""
        self._gone.pop(client_id, None)
        client = self._clients.get(client_id)
        if client is not None:
            for target in list(client.heard_by):
                del client.heard_by[target]
                self._unlink(client_id, client, target)
            client.rooms.clear()
            self._discard_if_empty(client_id)
        for sender in list(self._hears.get(client_id, ())):
            other = self._clients[sender]
            other.heard_by.pop(client_id, None)
            self._unlink(sender, other, client_id)
        self._foreign.pop(client_id, None)

    def succeed(self, old: str, new: str, now: float) -> list[Held]:
        """``new`` is ``old`` come back: records and what waits for it move over. Returns what may pass now.

        Signals that still go to ``old`` find ``new`` for as long as candidates are held.
        """
        self._gone.pop(old, None)
        if old in self._foreign:
            self._foreign[new] = {**self._foreign.pop(old), **self._foreign.get(new, {})}
        self._move_own(old, new)
        senders = list(dict.fromkeys((*self._hears.get(old, ()), *self._held.senders_to(old))))
        for sender in self._hears.pop(old, ()):
            self._move_heard(sender, old, new)
        self._held.redirect(old, new)
        for client in self._clients.values():
            for told in client.rooms.values():
                if old in told.receivers:
                    told.receivers |= {new}
        self._successors.pop(new, None)  # it is here itself: no way leads in a circle
        self._successors[old] = (new, now + self._hold)
        if len(self._successors) > self._most_gone:
            self._successors.popitem(last=False)
        return [held for sender in senders for held in self.release(sender, new, now)]

    def _move_own(self, old: str, new: str) -> None:
        """What ``old`` described, ``new`` has described."""
        self._held.drop(old)
        client = self._clients.pop(old, None)
        if client is None:
            return
        heir = self._clients.setdefault(new, _Client())
        for target, told in client.heard_by.items():
            heir.heard_by.setdefault(target, told)
            hears = self._hears[target]
            hears.pop(old, None)
            hears[new] = None
        for room, told in client.rooms.items():
            heir.rooms.setdefault(room, told)
        self._discard_if_empty(new)

    def _move_heard(self, sender: str, old: str, new: str) -> None:
        """What ``sender`` described to ``old``, it has described to ``new``."""
        heard_by = self._clients[sender].heard_by
        heard_by.setdefault(new, heard_by.pop(old))
        self._hears.setdefault(new, {})[sender] = None

    def successor(self, client_id: str) -> str | None:
        """Return who took a client's place just now; None if nobody did."""
        found = None
        while (entry := self._successors.get(client_id)) is not None:
            found = client_id = entry[0]
        return found

    def _unlink(self, sender: str, client: _Client, target: str) -> None:
        """``sender`` has described nothing to ``target``, as far as is known now."""
        hears = self._hears.get(target)
        if hears is not None:
            hears.pop(sender, None)
            if not hears:
                del self._hears[target]
        self._discard_if_empty(sender)

    def _discard_if_empty(self, client_id: str) -> None:
        client = self._clients.get(client_id)
        if client is not None and not client.heard_by and not client.rooms:
            del self._clients[client_id]

    # Time ----------------------------------------------------------------------------------------------

    def next_end(self) -> float | None:
        """Return when the next thing expires; None if nothing can."""
        held = self._held.next_end()
        ends = [] if held is None else [held]
        if self._gone:
            ends.append(next(iter(self._gone.values())))
        if self._successors:
            ends.append(next(iter(self._successors.values()))[1])
        return min(ends, default=None)

    def expire(self, now: float, most: int) -> list[Held]:
        """Forget what has expired; return the candidates that waited in vain, ``most`` at a time."""
        while self._gone and next(iter(self._gone.values())) <= now:
            self.forget(next(iter(self._gone)))
        while self._successors and next(iter(self._successors.values()))[1] <= now:
            self._successors.popitem(last=False)
        return self._held.expire(now, most)

    @property
    def waiting(self) -> int:
        """How many candidates wait."""
        return len(self._held)

    @property
    def dropped_held(self) -> int:
        """How many waited of clients that have gone."""
        return self._held.dropped

    def counts(self) -> dict[str, int]:
        """Return how many records there are of each kind."""
        return {
            "pairs": sum(len(client.heard_by) for client in self._clients.values()),
            "senders": len(self._clients.keys() | self._held.senders()),
            "held": len(self._held),
            "gone": len(self._gone),
            "successors": len(self._successors),
        }

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        for container in (self._clients, self._hears, self._foreign, self._gone, self._successors):
            container.clear()
