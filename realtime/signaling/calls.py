"""Calls: who joins, leaves, is lost and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from realtime.codes import CloseCode, may_reconnect
from realtime.connection import Context
from realtime.errors import MessageTooBig, Reject, UnknownClient
from realtime.expiry import Expiry
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.signaling.call_news import CallNews
from realtime.signaling.call_rooms import CallRooms
from realtime.signaling.elsewhere import Elsewhere, Shown
from realtime.signaling.negotiations import Negotiations
from realtime.signaling.participants import MOST_FORMER, Participant, Participants
from realtime.signaling.signals import CallRequest, Reason, SignalBounds, read_request, refusal
from realtime.signaling.turn import IceServers
from realtime.toolkit import Toolkit

__all__ = ["Calls", "reason_of_end"]

_CLOSED = (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS)


def reason_of_end(code: int) -> str:
    """Return how a connection that was closed with ``code`` ended, as ``webrtc:bye`` says it."""
    if code in _CLOSED:
        return "closed"
    if code == CloseCode.POLICY_VIOLATION or (code >= 3000 and code != CloseCode.HEARTBEAT_TIMEOUT):
        return "disconnected"
    return "lost"


class Calls:
    """Handles ``join``, ``peers`` and ``leave``, and the end of connections, for one bridge on one kernel.

    The room of a call in the kernel says who is in it, on whatever node; the records here are of this node's
    clients only.

    :param rooms: names and membership.
    :param news: tells the others.
    :param ask: raises Reject unless a client may go to a room; may wait.
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
        news: CallNews,
        ice_servers: IceServers,
        ask: Callable[[str, Context], None],
        auto_join_rooms: bool,
        max_participants: int,
        keep_place: float,
        hold: float,
        bounds: SignalBounds,
    ) -> None:
        self._kernel = kernel
        self._rooms = rooms
        self._participants = participants
        self._negotiations = negotiations
        self._expiry = expiry
        self._ice_servers = ice_servers
        self._ask = ask
        self._auto_join_rooms = auto_join_rooms
        self._max_participants = max_participants
        self._keep_place = keep_place
        self._hold = hold
        self._bounds = bounds
        self._replaced: dict[str, set[str]] = {}  # calls of clients, taken over before their end was handled
        self._returned: set[str] = set()  # clients closed because another connection came in their place
        self._away: dict[str, float] = {}  # clients whose session waits for them, and since when
        self._elsewhere = elsewhere
        self._news = news
        self.counters = rooms.counters

    def clear(self) -> None:
        """Forget everybody."""
        for container in (self._replaced, self._returned, self._away):
            container.clear()

    # Joining -------------------------------------------------------------------------------------------

    def join(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """Put a client into a call; return what ``webrtc:peers`` told it.

        Switches where ``authorize`` waits, and while other nodes are asked; then not until the joiner's list is in
        its outbox, unless that is crowded: until it has the list, nobody else hears of it.

        :raises Reject: it may not, or cannot.
        """
        request = read_request("join", message, self._bounds)
        call = self._rooms.call(request.room)
        self._ask(request.room, context)
        elsewhere = self._elsewhere.shown(call)
        if self._rooms.contains(call, context.id):
            self.counters["joined_again"] += 1
            participant = self._participants.get(context.id, call) or self._enter_record(request, call, context, False)
            return self._tell_peers(participant, request.room, toolkit, elsewhere, resumed=False)
        if self._auto_join_rooms and not self._rooms.contains(request.room, context.id):
            self._rooms.check_open(request.room, context)
        old = self._find_resumed(request, call, context)
        participant = self._enter(request, call, context, old)
        if old is not None:
            participant.replaces = old.id
            participant.formerly = (*old.formerly, old.id)[-MOST_FORMER:]
            self._take_over(old)
        try:
            told = self._list_until_settled(participant, request.room, toolkit, elsewhere, resumed=old is not None)
        except BaseException:
            self._undo_join(participant, old)
            raise
        payload: dict[str, Any] = {"room": request.room, "id": participant.id}
        if request.metadata is not None:
            payload["metadata"] = request.metadata
        if old is not None:
            payload["replaces"] = old.id
            payload["formerly"] = list(participant.formerly)
        home = self._kernel.hub.cluster.home
        participant.met = {peer["id"] for peer in told["peers"] if home(peer["id"]) is not None}
        self._news.announce(call, payload, participant)
        if old is not None:
            self._succeed(old, context.id)
        self.counters["joined" if old is None else "resumed"] += 1
        if self._kernel.hub.cluster.home(context.id) is not None:  # its session went on there meanwhile
            self.moved(context)
        return told

    def _find_resumed(self, request: CallRequest, call: str, context: Context) -> Participant | None:
        """Return whose place the request is entitled to, if it names one that can be taken."""
        if request.resume is None:
            return None
        old = self._participants.find(request.resume, call, context.identity)
        if old is None or old.id == context.id:
            self.counters["tokens_refused"] += 1
            return None
        if old.until is None and not self._rooms.contains(call, old.id) and self._kernel.presence.get(old.id):
            self.counters["tokens_refused"] += 1
            return None  # an application took it out of the call
        return old

    def _enter(self, request: CallRequest, call: str, context: Context, old: Participant | None) -> Participant:
        """Put the client into the rooms and record it. Raises Reject, and then has changed nothing."""
        rooms = self._kernel.rooms
        replaced = None if old is None else old.id
        ghosts = sum(one == replaced or one in self._away for one in rooms.each_member(call))
        others = rooms.count(call) - ghosts
        if others >= self._max_participants:
            raise refusal(Reason.ROOM_FULL, f"{self._max_participants} are in the call {request.room!r} already")
        rooms.join(call, context.id)
        entered = False
        if self._auto_join_rooms:
            try:
                entered = rooms.join(request.room, context.id)
            except Reject:
                rooms.leave(call, context.id)
                raise
        return self._enter_record(request, call, context, entered)

    def _enter_record(self, request: CallRequest, call: str, context: Context, entered: bool) -> Participant:
        entered_room = request.room if entered else None
        return self._participants.enter(context.id, call, request.metadata, context.identity, entered_room)

    def _undo_join(self, participant: Participant, old: Participant | None) -> None:
        """The joiner cannot be told who is there: nobody hears of it, and whose place it took is lost."""
        self._rooms.entering.discard((participant.call, participant.id))
        self._leave_rooms(participant.id, participant.call)
        if old is not None:
            self._negotiations.forget(old.id)
            self._close_replaced(old)
            self._news.say_bye(old.call, old.id, reason="lost")

    def _list_until_settled(
        self, participant: Participant, room: str, toolkit: Toolkit, elsewhere: dict[str, Shown], *, resumed: bool
    ) -> dict[str, Any]:
        """Tell the joiner who is there; again if that changed while its outbox was crowded."""
        entering = self._rooms.entering
        entering.add((participant.call, participant.id))
        while True:
            told = self._tell_peers(participant, room, toolkit, elsewhere, resumed=resumed)
            listed = [peer["id"] for peer in told["peers"]]
            if not self._rooms.contains(participant.call, participant.id):
                raise UnknownClient("you have left the call meanwhile")
            if listed == self._present(participant.call, participant.id):
                entering.discard((participant.call, participant.id))
                return told

    def _tell_peers(
        self, participant: Participant, room: str, toolkit: Toolkit, elsewhere: dict[str, Shown], *, resumed: bool
    ) -> dict[str, Any]:
        """Send ``webrtc:peers``; return its payload. Parks while the client's outbox is crowded."""
        own, call = participant.id, participant.call
        payload = {
            "room": room,
            "id": own,
            "peers": [self._news.peer(peer, own, call, elsewhere) for peer in self._present(call, own)],
            "ice_servers": self._ice_servers.for_client(own, time.time()),
            "resume": participant.token,
            "resumed": resumed,
        }
        try:
            toolkit.reply({"type": self._rooms.event("peers"), "payload": payload})
        except MessageTooBig as error:
            raise refusal(Reason.TOO_LARGE, f"the list of participants: {error.message}") from None
        return payload

    def _present(self, call: str, own: str) -> list[str]:
        """Return the other clients in a call but for those of this node that are away: they are told of once back."""
        others = self._rooms.others(call, own)
        return [one for one in others if one not in self._away] if self._away else others

    # Sessions: the same client by another connection -----------------------------------------------------

    def detached(self, context: Context, code: int) -> None:
        """A client lost its connection, and keeps its place in the kernel: the others are told that it may be back,
        under the same id. Never waits."""
        self._away[context.id] = monotonic()
        calls = self._rooms.calls_among(context.rooms)
        if calls:
            self._kernel.hub.workers.submit(partial(self._say_away, context.id, calls, code))

    def _say_away(self, client_id: str, calls: list[str], code: int) -> None:
        within = max(self._kernel.limits.session_grace, self._keep_place)
        for call in calls:
            self.counters["detached"] += 1
            self._news.say_bye(call, client_id, reason="lost", code=code, returns_within=within)

    def back(self, context: Context) -> None:
        """It is back: the others are told. Never waits."""
        self._away.pop(context.id, None)
        calls = self._rooms.calls_among(context.rooms)
        if calls:
            self._kernel.hub.workers.submit(partial(self._say_back, context.id, calls))

    def _say_back(self, client_id: str, calls: list[str]) -> None:
        for call in calls:
            if self._rooms.contains(call, client_id):
                self.counters["back"] += 1
                participant = self._participants.get(client_id, call)
                shown = {} if participant is None else participant.shown()  # None: it has just come from another node
                self._news.announce(call, {"room": self._rooms.name(call), "id": client_id, **shown})

    def moved(self, context: Context) -> None:
        """It is a client of another node now, which gets the records of it. Never waits."""
        self._elsewhere.give(context.id)
        self._away.pop(context.id, None)
        self._participants.drop_all(context.id)
        self._negotiations.forget(context.id)

    # Coming back ---------------------------------------------------------------------------------------

    def _take_over(self, old: Participant) -> None:
        """Take the old connection of a client that comes back out of the call, without a word to the others."""
        self._participants.take(old)
        if old.until is not None:
            return
        if self._kernel.rooms.leave(old.call, old.id):
            self._returned.add(old.id)
        else:
            self._replaced.setdefault(old.id, set()).add(old.call)
        if old.entered_room is not None:
            self._kernel.rooms.leave(old.entered_room, old.id)

    def _succeed(self, old: Participant, new: str) -> None:
        """What was for the old connection is for the new one; the old one is closed. May park."""
        ready = self._negotiations.succeed(old.id, new, monotonic())
        self._expiry.due(monotonic() + self._hold)
        self._close_replaced(old)
        self._rooms.send_held(ready)

    def _close_replaced(self, old: Participant) -> None:
        """Close the connection whose place another has taken, if it is still there."""
        if old.id in self._returned:
            try:
                self._kernel.disconnect(old.id, CloseCode.DISCONNECTED, reason="resumed by another connection")
            except UnknownClient:  # it has gone meanwhile; should its end not have been handled yet, it knows
                pass

    # Being there, and going ----------------------------------------------------------------------------

    def peers(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """Tell a participant again who is there, with fresh credentials for TURN servers. Raises Reject."""
        request = read_request("peers", message, self._bounds)
        call = self._rooms.call(request.room)
        elsewhere = self._elsewhere.shown(call) if self._rooms.contains(call, context.id) else {}
        if not self._rooms.contains(call, context.id):
            raise refusal(Reason.NOT_IN_ROOM, f"you are not in the call {request.room!r}: join it first")
        participant = self._participants.get(context.id, call) or self._enter_record(request, call, context, False)
        return self._tell_peers(participant, request.room, toolkit, elsewhere, resumed=False)

    def leave(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """Take a client out of a call and tell the others; return ``{"left": bool}``. Raises Reject."""
        request = read_request("leave", message, self._bounds)
        call = self._rooms.call(request.room)
        left = self._leave_rooms(context.id, call)
        if left:
            self.counters["left"] += 1
            self._news.say_bye(call, context.id, reason="left")
        return {"left": left}

    def _leave_rooms(self, client_id: str, call: str) -> bool:
        participant = self._participants.drop(client_id, call)
        if participant is not None and participant.entered_room is not None:
            self._kernel.rooms.leave(participant.entered_room, client_id)
        self._negotiations.left(client_id, call)
        return self._kernel.rooms.leave(call, client_id)

    def gone(self, context: Context, code: int) -> None:
        """A client has gone: keep its places if it may come back, and have the others told. Never waits."""
        now = monotonic()
        waited = now - self._away.pop(context.id, now)
        details: dict[str, Any] = {"reason": reason_of_end(code), "code": code}
        returns = details["reason"] != "closed" and may_reconnect(code) and waited < self._keep_place
        if context.id in self._returned:  # it is back already: in its other calls as well, it may be thought
            self._returned.discard(context.id)
            details["reason"], returns = "lost", True
        byes = []
        replaced = self._replaced.pop(context.id, ())
        for call in self._rooms.calls_among(context.rooms):
            if call in replaced:
                continue
            kept = returns and self._participants.get(context.id, call) is not None
            if kept:
                self._forget(self._participants.keep(context.id, call, now))
                self._expiry.due(now + self._keep_place)
            byes.append((call, {**details, "returns_within": self._keep_place} if kept else details))
        self._participants.drop_all(context.id)
        if self._negotiations.gone(context.id, now, returns=bool(self._participants.place(context.id))):
            self._expiry.due(now + self._hold)
        if byes:
            self._kernel.hub.workers.submit(partial(self._say_byes, context.id, byes))

    def _say_byes(self, client_id: str, byes: list[tuple[str, dict[str, Any]]]) -> None:
        """In a greenlet of its own, because it may stall."""
        for call, words in byes:
            self.counters[f"ended_{words['reason']}"] += 1
            self._news.say_bye(call, client_id, **words)

    def expire(self, now: float) -> None:
        """Give up the places whose time has come."""
        self._forget(self._participants.expire(now))

    def _forget(self, clients: list[str]) -> None:
        self.counters["places_given_up"] += len(clients)
        for client_id in clients:
            self._negotiations.forget(client_id)
