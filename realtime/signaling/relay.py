"""The relay: offers, answers, candidates and bye from one client to another, or to the others in a room."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from realtime.connection import Context
from realtime.errors import ConnectionClosed, MessageTooBig, Reject, UnknownClient
from realtime.expiry import Expiry
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.signaling.call_rooms import CallRooms
from realtime.signaling.elsewhere import Elsewhere
from realtime.signaling.negotiations import Negotiations, Verdict
from realtime.signaling.participants import Participants
from realtime.signaling.signals import Reason, Signal, SignalBounds, read_signal, refusal

__all__ = ["ECHOED", "Relay"]

ECHOED = 255  # characters of a target or room that an error repeats
_SUPERSEDED = "it belongs to a negotiation that is over: another has taken its place"


class Relay:
    """Handles signals for one bridge on one kernel.

    :param ask: raises Reject unless a client may signal to a target or room; None if all may. May wait.
    :param tell: given why, a sender, its message and its ack: tells the sender, without waiting, what became of a
        signal to one of several receivers.
    """

    def __init__(
        self,
        kernel: RealtimeKernel,
        rooms: CallRooms,
        participants: Participants,
        negotiations: Negotiations,
        expiry: Expiry,
        elsewhere: Elsewhere,
        *,
        ask: Callable[[str, Context], None] | None,
        auto_join_rooms: bool,
        require_shared_room: bool,
        bounds: SignalBounds,
        tell: Callable[[Reject, str, dict[str, Any], str | int | None], None],
    ) -> None:
        self._kernel = kernel
        self._tell = tell
        self._rooms = rooms
        self._participants = participants
        self._negotiations = negotiations
        self._expiry = expiry
        self._elsewhere = elsewhere
        self._ask = ask
        self._auto_join_rooms = auto_join_rooms
        self._require_shared_room = require_shared_room
        self._checks_targets = ask is not None or require_shared_room
        self._bounds = bounds
        self._counters = rooms.counters

    def route(self, kind: str, message: Message, context: Context) -> dict[str, int]:
        """Send a signal on, or hold it; return ``{"delivered": n, "held"?: n}``.

        Switches where ``authorize`` waits, and while a receiver's outbox is crowded.

        :raises Reject: it goes to nobody.
        """
        signal = read_signal(kind, message, self._bounds, context.id)
        where = None if signal.room is None else self._enter_room(signal.room, context)
        outgoing: dict[str, Any] = {"type": message.type, "payload": signal.payload(context.id), "room": where}
        try:
            if signal.target is not None:
                return self._to_target(kind, signal, where, outgoing, message, context)
            assert where is not None
            if kind == "candidate":
                return self._candidate_to_room(signal, where, outgoing, message, context)
            return self._to_room(kind, signal, where, outgoing, context)
        except MessageTooBig as error:
            raise refusal(Reason.TOO_LARGE, error.message) from None

    # Rooms -----------------------------------------------------------------------------------------------

    def _enter_room(self, room: str, context: Context) -> str:
        """Return the kernel's room that ``room`` stands for: the call, if the sender is in it.

        With ``auto_join_rooms`` who is in neither joins the kernel's room of that name. Raises Reject.
        """
        call = self._rooms.event(room)
        self._rooms.check_free(room)
        where = self._place_of(call, room, context)
        if where is None and not self._auto_join_rooms:
            raise _outside(room)
        if self._ask is not None:
            self._ask(room, context)
        if where is None:
            self._rooms.check_open(room, context)
            self._kernel.rooms.join(room, context.id)
        elif self._place_of(call, room, context) is None:  # left, or was put out, while authorize() waited
            raise _outside(room)
        return where or room

    def _place_of(self, call: str, room: str, context: Context) -> str | None:
        """Return which of the two the sender is in; ``context.rooms`` knows where one that has closed was."""
        contains = self._rooms.contains
        if contains(call, context.id):
            return call
        if contains(room, context.id):
            return room
        rooms = context.rooms
        return call if call in rooms else room if room in rooms else None

    def _to_room(
        self, kind: str, signal: Signal, where: str, outgoing: dict[str, Any], context: Context
    ) -> dict[str, int]:
        sender = context.id
        if signal.describes:
            # before it goes out: a broadcast may stall, and the answer come meanwhile
            self._require_here(sender)
            others = self._rooms.others(where, sender)
            self._negotiations.described(kind, sender, None, where, signal.negotiation, monotonic(), others)
        delivered = self._rooms.tell_others(where, outgoing, sender)
        if signal.describes:
            self._rooms.send_held(self._negotiations.release_to_room(sender, where, monotonic()))
        self._counters[_FORWARDED[kind]] += 1
        return {"delivered": delivered}

    def _candidate_to_room(
        self, signal: Signal, where: str, outgoing: dict[str, Any], message: Message, context: Context
    ) -> dict[str, int]:
        """Forward to those that have the description, and hold it for the rest."""
        sender, negotiations = context.id, self._negotiations
        others = self._rooms.others(where, sender)
        if negotiations.is_told_to_room(sender, where, signal.negotiation, others):
            self._counters["forwarded_candidate"] += 1
            return {"delivered": self._rooms.tell_others(where, outgoing, sender)}
        now = monotonic()
        verdicts = {
            other: negotiations.judge(sender, other, signal.negotiation, now)
            for other in others
        }
        ready = [other for other, verdict in verdicts.items() if verdict is Verdict.PASS]
        refused = {
            other: refusal(Reason.EXPIRED, _SUPERSEDED)
            for other, verdict in verdicts.items()
            if verdict is Verdict.LATE
        }
        held = 0
        for other, verdict in verdicts.items():
            if verdict is Verdict.WAIT:
                try:
                    held += self._hold(other, signal, outgoing, message, context)["held"]
                except Reject as error:
                    refused[other] = error
        if refused and not ready and not held:
            raise next(iter(refused.values()))
        for other, reason in refused.items():
            self._counters[f"refused_{reason.code}"] += 1
            payload = {**outgoing["payload"], "target": other}
            self._tell(reason, sender, {**outgoing, "payload": payload}, message.ack)
        delivered = 0
        if ready:
            self._counters["forwarded_candidate"] += 1
            delivered = self._rooms.tell_others(where, outgoing, sender, skip=verdicts.keys() - set(ready))
        return {"delivered": delivered, "held": held} if held else {"delivered": delivered}

    # Targets ---------------------------------------------------------------------------------------------

    def _to_target(
        self,
        kind: str,
        signal: Signal,
        where: str | None,
        outgoing: dict[str, Any],
        message: Message,
        context: Context,
    ) -> dict[str, int]:
        target = signal.target
        assert target is not None
        sender, negotiations = context.id, self._negotiations
        if (where is not None or self._checks_targets) and not self._check_target(target, where, context):
            return self._to_gone(kind, signal, where, outgoing, message, context)
        if kind == "candidate":
            verdict = negotiations.judge(sender, target, signal.negotiation, monotonic())
            if verdict is Verdict.LATE:
                raise refusal(Reason.EXPIRED, _SUPERSEDED)
            if verdict is Verdict.WAIT:
                if not self._kernel.presence.has(target):
                    return self._to_gone(kind, signal, where, outgoing, message, context)
                return self._hold(target, signal, outgoing, message, context)
        elif kind == "answer" and negotiations.is_late_answer(sender, target, signal.negotiation):
            raise refusal(Reason.EXPIRED, "the offer it answers is not the latest: another has taken its place")
        try:
            self._kernel.send(target, outgoing)
        except (UnknownClient, ConnectionClosed):
            return self._to_gone(kind, signal, where, outgoing, message, context)
        self._counters[_FORWARDED[kind]] += 1
        if signal.describes and self._kernel.presence.has(sender):
            # no switch since it was put into the outbox: no answer has come
            now = monotonic()
            negotiations.described(kind, sender, target, where, signal.negotiation, now)
            if kind == "offer":
                self._elsewhere.offered(sender, target, where, signal.negotiation)
            if negotiations.waiting:
                self._rooms.send_held(negotiations.release(sender, target, now))
        return {"delivered": 1}

    def _check_target(self, target: str, where: str | None, context: Context) -> bool:
        """Tell whether ``target`` is there; raise Reject if the sender may not signal to it."""
        if where is not None:
            if not self._rooms.contains(where, target):
                if not self._kernel.presence.has(target):
                    return False
                raise refusal(Reason.UNKNOWN_TARGET, f"client {target!r} is not in the room you name beside it")
        elif self._require_shared_room:
            if not any(self._rooms.contains(room, target) for room in context.rooms):
                if not self._kernel.presence.has(target):
                    return False
                raise refusal(Reason.FORBIDDEN, f"you share no room with client {target!r}")
        elif not self._kernel.presence.has(target):
            return False
        if self._ask is not None:
            self._ask(target, context)
        return True

    def _to_gone(
        self,
        kind: str,
        signal: Signal,
        where: str | None,
        outgoing: dict[str, Any],
        message: Message,
        context: Context,
    ) -> dict[str, int]:
        """The target is not connected: find who came in its place, or hold a candidate until somebody does."""
        target = signal.target
        assert target is not None
        successor = self._negotiations.successor(target)
        if successor is not None:
            signal.target = outgoing["payload"]["target"] = successor
            return self._to_target(kind, signal, where, outgoing, message, context)
        if kind != "candidate" or not self._may_return(target, context):
            raise _unknown(target)
        if self._ask is not None:
            self._ask(target, context)
        return self._hold(target, signal, outgoing, message, context)

    def _may_return(self, target: str, context: Context) -> bool:
        """Tell whether a client that has gone is awaited by the sender."""
        if any(self._rooms.contains(call, context.id) for call in self._participants.place(target)):
            return True
        return self._negotiations.is_recent(context.id, target, monotonic())

    def _require_here(self, sender: str) -> None:
        """Raise Reject for a sender that has gone with signals in its line: nobody would clean up after it."""
        if not self._kernel.presence.has(sender):
            raise _unknown(sender)

    def _hold(
        self, target: str, signal: Signal, outgoing: dict[str, Any], message: Message, context: Context
    ) -> dict[str, int]:
        """Let a candidate wait. Raises Reject if too many do."""
        negotiations = self._negotiations
        self._require_here(context.id)
        if not negotiations.can_hold(context.id, target):
            raise refusal(Reason.EXPIRED, "too many candidates wait already for an offer or answer of yours")
        held = negotiations.hold(context.id, target, signal.negotiation, outgoing, message.ack, monotonic())
        self._expiry.due(held.until)
        self._counters["held"] += 1
        return {"delivered": 0, "held": 1}


def _outside(room: str) -> Reject:
    return refusal(Reason.NOT_IN_ROOM, f"you are not in the room {room[:ECHOED]!r}: join it first")


def _unknown(target: str) -> Reject:
    return refusal(Reason.UNKNOWN_TARGET, f"no client {target!r} is connected")


_FORWARDED = {kind: f"forwarded_{kind}" for kind in ("offer", "answer", "candidate", "bye")}
