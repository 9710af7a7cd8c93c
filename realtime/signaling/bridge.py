"""The signaling bridge: what peers need to find each other and to connect, through the kernel."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gevent

from realtime.config import KiB
from realtime.connection import Context
from realtime.errors import ConfigurationError, ConnectionClosed, Reject, UnknownClient
from realtime.events import is_reserved
from realtime.expiry import Expiry
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.routing import check_function, decided
from realtime.signaling.call_news import CallNews
from realtime.signaling.call_rooms import CallRooms
from realtime.signaling.calls import Calls
from realtime.signaling.elsewhere import Elsewhere
from realtime.signaling.held import Held
from realtime.signaling.negotiations import Negotiations
from realtime.signaling.participants import Participants
from realtime.signaling.relay import ECHOED, Relay
from realtime.signaling.signals import (
    KINDS,
    NEGOTIATION_LENGTH,
    REASONS,
    Reason,
    SignalBounds,
    destination_of,
    refusal,
)
from realtime.signaling.turn import IceServers
from realtime.toolkit import Toolkit

__all__ = ["WebRTCSignalingBridge"]

log = logging.getLogger("realtime.signaling")

Authorize = Callable[[Context, str], bool]

NAMESPACE_LENGTH = 64
MOST_GONE = 10_000  # clients that have gone that a bridge remembers, and places that it keeps
HELD_BY_SENDER = 4  # times max_held: what may wait of one sender in all
EXPIRED_AT_ONCE = 256  # candidates told of as expired before others get their turn


class WebRTCSignalingBridge:
    """A signaling server: calls to enter and leave, and signals from one client in them to another.

    ::

        WebRTCSignalingBridge(ice_servers=[{"urls": "stun:stun.example.org"}]).attach(kernel)

    Below, ``webrtc`` stands for the bridge's ``namespace``, and ``key?`` for one that may be missing. Target and room
    of a message may also stand beside its payload. A message with an ``ack`` is answered by ``system:ack``, or by a
    ``system:error`` whose code is the reason in lower case.

    **Calls.** A page enters a call with ``webrtc:join`` and needs nothing else. It sends:

    * ``webrtc:join`` with ``{room, metadata?, resume?}``. The answer is ``webrtc:peers``, which is the ack's result
      as well. Joining again answers again.
    * ``webrtc:peers`` with ``{room}``. The same answer, with fresh TURN credentials: for an ICE restart.
    * ``webrtc:leave`` with ``{room}``. The ack's result is ``{"left": bool}``.

    The server sends:

    * ``webrtc:peers`` with ``{room, id, peers: [{id, polite, metadata?, replaces?, formerly?}], ice_servers, resume,
      resumed}``: the receiver's own id, the others in the call in the order they came, what ``RTCPeerConnection``
      takes as ``iceServers``, and a token to come back with. It comes before any other client hears of the joiner.
    * ``webrtc:peer-joined`` with ``{room, id, polite, metadata?, replaces?, formerly?}``: somebody else has come, or
      come back under a new id; ``formerly`` are the ids it had before.
    * ``webrtc:bye`` with ``{room, from, reason, code?, returns_within?}``: somebody has gone. The reason is
      ``"left"``; or ``"closed"`` by the client, ``"lost"``, or ``"disconnected"`` by the server, with the close code.
      With ``returns_within``, seconds, it may come back: see below.

    On a cluster everything works across nodes; what participants of other nodes gave when they joined, their nodes are
    asked for, and where one does not answer within a second ``metadata`` is what the kernel's presence has. Where a
    node of the cluster dies, or cannot be reached any more, its clients have gone from their calls: the others
    get a ``bye`` with the reason ``"lost"`` from their own node. They get ``peer-joined`` if it turns out that these
    clients are still there, once the nodes are one cluster again, and for those that came meanwhile.

    ``polite`` says what the receiver is towards that peer when both offer at once (the W3C's perfect negotiation): it
    is polite iff its own id is the smaller string. So one of each pair is, and both agree, on any node, at any time.

    The call in ``lobby`` is the kernel's room ``webrtc:lobby``: ``kernel.rooms.members("webrtc:lobby")`` tells who is
    in it. To be in a call is not to be in the application's room ``lobby``. Clients enter the rooms of calls by joining
    the call, and by nothing else, whatever ``kernel.rooms.configure`` says. An application may take somebody out with
    ``kernel.rooms.leave``; telling the others is then its own business.

    **Coming back.** When a connection ends in a way that a client may come back from
    (``realtime.codes.may_reconnect``), its place is kept for ``keep_place`` seconds. A ``join`` in that time, to the
    same node, by an equal ``context.identity``, with the token of the last ``webrtc:peers``, takes the place:
    ``resumed`` is true, the others get ``peer-joined`` with ``replaces``, and signals for the old id reach the new
    one. It works once, and also while the old connection still seems alive, which is then closed with 4500. With any
    other token it is a plain join. A place that is kept does not count for ``max_participants``, so that nobody is
    shut out by the ghost of its own lost page.

    A client with a session (``system:hello``) that loses its connection stays in its calls, under its id, for
    ``Limits.session_grace`` seconds. The others get ``bye`` with ``"lost"`` and ``returns_within`` at once, and
    ``peer-joined`` with the same id when it is back; signals wait for it. Who joins meanwhile is told of it when it is
    back, and it does not count for ``max_participants``. Should it not come back in time, its place is kept only if
    ``keep_place`` is the longer of the two.

    **Signals.** ``webrtc:offer``, ``webrtc:answer``, ``webrtc:candidate`` and ``webrtc:bye`` go to their ``target``,
    or else to the others in their ``room``::

        {"type": "webrtc:offer", "payload": {"target": id, "room": "lobby", "negotiation": "1",
                                             "description": {"type": "offer", "sdp": "v=0..."}}}

    ``room`` is the call if the sender is in it, else the kernel's room, if the sender is in that. With target and room
    the target must be in the room too. A signal arrives under the same type with the documented keys of its payload
    (``target, room, negotiation, description, candidate, metadata``; others are ignored) and ``from``, the sender's
    id, which no client can forge. ``offer`` and ``answer`` are synonyms of ``description``. The ack's result is
    ``{"delivered": n, "held"?: n}``, numbers of clients.

    **Negotiations.** ``negotiation`` is a text of 1 to 64 characters that the offerer makes up for each offer, and that
    the answer and both sides' candidates repeat. It keeps late messages of an earlier negotiation out:

    * An answer to an offer that is not the latest is ``EXPIRED``. Offers may cross; either may be answered. Where the
      offer went to a room, answers of other nodes pass.
    * A candidate passes if its sender has sent the target the description of its negotiation; without
      ``negotiation``, any description.
    * A candidate of a negotiation that another has replaced is ``EXPIRED``.
    * Any other is held until the description has passed, and then follows it. After ``hold`` seconds it is
      ``EXPIRED``, and the error repeats its ack. So are candidates for a client that has just gone, until it is back.

    A candidate to a room may be refused for some of it only: an error with their ``target`` says so for each.

    **Errors.** What is refused goes to nobody, and its sender gets ``webrtc:error`` with ``{reason, message, event,
    target?, room?, negotiation?, ack?}``. Reasons: see :class:`realtime.signaling.signals.Reason`; a ``Reject``
    raised by ``authorize`` comes with its own code in upper case. Any other exception of ``authorize`` is the
    server's fault: ``internal_error``.

    **Memory.** For each client there are its metadata in each of its calls (``Limits.rooms_per_client`` at most);
    records of the last ``max_pairs`` clients, and as many rooms, that it described something to, and of as many
    clients of other nodes that made it an offer, about 500 bytes each; and four times ``max_held`` candidates. Of
    clients that have gone 10,000 at most are remembered, for ``keep_place`` seconds at most. With the last client goes
    the last record. ``kernel.stats()["services"]`` counts all of it, and everything forwarded, held and refused.

    :param namespace: what stands before the colon; bridges of different namespaces do not meet.
    :param auto_join_rooms: put a client into the kernel's room that its signal names; without, it must be a member.
        Joining a call then joins the kernel's room of that name as well, and leaving it leaves that. Where
        ``kernel.rooms.configure`` has a rule for the room, that decides; rooms without one are open to everybody.
    :param authorize: ``authorize(context, target_or_room)`` returns whether this client may signal there, or join;
        asked for the room (before anyone is put into it) and for the target. May wait: only this client does.
    :param require_shared_room: a target must be in a room with the sender.
    :param ice_servers: STUN and TURN servers, as pages give them to ``RTCPeerConnection``; sent with the peers.
    :param turn_secret: shared with the TURN servers (coturn: ``use-auth-secret``): each client gets credentials of
        its own for the ``turn:`` and ``turns:`` entries that have none. Renewed by ``webrtc:peers``.
    :param turn_ttl: seconds such credentials are good for. Less limits what a stolen one is worth; a call that
        outlives them needs fresh ones only for its next ICE restart.
    :param max_participants: clients in one call; the next join is refused with ``ROOM_FULL``. A mesh of peers
        gets heavy long before.
    :param keep_place: seconds that the place of a client which lost its connection is kept.
    :param hold: seconds that a candidate waits for its description or its receiver.
    :param max_held: candidates that wait from one client for one other.
    :param max_pairs: clients that one client negotiates with at a time: past it the oldest is forgotten, and a
        candidate for it is held as if nothing had been described.
    :param max_sdp: bytes of a session description.
    :param max_candidate: bytes of a candidate.
    :param max_metadata: bytes of ``metadata`` as JSON.
    :raises ConfigurationError: an option that cannot work.
    """

    def __init__(
        self,
        *,
        namespace: str = "webrtc",
        auto_join_rooms: bool = False,
        authorize: Authorize | None = None,
        require_shared_room: bool = False,
        ice_servers: Sequence[Mapping[str, Any]] | None = None,
        turn_secret: str | None = None,
        turn_ttl: float = 3600.0,
        max_participants: int = 100,
        keep_place: float = 30.0,
        hold: float = 5.0,
        max_held: int = 64,
        max_pairs: int = 512,
        max_sdp: int = 64 * KiB,
        max_candidate: int = 4 * KiB,
        max_metadata: int = 4 * KiB,
    ) -> None:
        _check_namespace(namespace)
        if authorize is not None:
            check_function(authorize, 2, "authorize", "(context, target_or_room)")
        _check_switches(auto_join_rooms=auto_join_rooms, require_shared_room=require_shared_room)
        _check_numbers(int, max_participants=max_participants, max_held=max_held, max_pairs=max_pairs)
        _check_numbers(float, keep_place=keep_place, hold=hold)
        self.namespace = namespace
        self._auto_join_rooms = auto_join_rooms
        self._authorize = authorize
        self._require_shared_room = require_shared_room
        self._ice_servers = IceServers(ice_servers if ice_servers is not None else (), turn_secret, turn_ttl)
        self._max_participants = max_participants
        self._keep_place = keep_place
        self._hold = hold
        self._max_held = max_held
        self._max_pairs = max_pairs
        self._bounds = SignalBounds(sdp=max_sdp, candidate=max_candidate, metadata=max_metadata)
        self._counters: Counter[str] = Counter()
        self._kernel: RealtimeKernel | None = None

    def attach(self, kernel: RealtimeKernel) -> WebRTCSignalingBridge:
        """Serve this kernel's clients from now on; return the bridge.

        :raises ConfigurationError: not a kernel, a bridge that is attached already, a namespace that another bridge
            has on this kernel, or one in whose rooms clients are already.
        """
        if not isinstance(kernel, RealtimeKernel):
            raise ConfigurationError(f"attach({kernel!r}): must be a RealtimeKernel")
        if self._kernel is not None:
            raise ConfigurationError(f"the bridge for {self.namespace!r} is attached already: make another")
        rooms = CallRooms(kernel, self.namespace, self._counters)
        self._kernel = kernel
        self._build(kernel, rooms)
        for kind in KINDS:
            kernel.on(rooms.event(kind), self._signal)
        for kind, handler in self._requests.items():
            kernel.on(rooms.event(kind), handler)
        kernel.hub.on_gone.append(self._calls.gone)  # at once, whatever the client's handlers are doing
        kernel.hub.on_detached.append(self._calls.detached)
        kernel.hub.on_resumed.append(self._calls.back)
        kernel.hub.on_moved.append(self._calls.moved)
        kernel.hub.on_found.append(self._news.found)
        kernel.hub.on_lost.append(self._news.lost)
        kernel.add_service(self)
        return self

    def _build(self, kernel: RealtimeKernel, rooms: CallRooms) -> None:
        """Make the parts that serve this kernel."""
        self._rooms = rooms
        self._kinds = {rooms.event(kind): kind for kind in KINDS}
        self._expiry = Expiry(self._expire)
        self._participants = Participants(keep=self._keep_place, most=MOST_GONE)
        self._negotiations = Negotiations(
            is_member=rooms.contains,
            max_pairs=self._max_pairs,
            max_held=self._max_held,
            max_held_by_sender=HELD_BY_SENDER * self._max_held,
            hold=self._hold,
            most_gone=MOST_GONE,
        )
        elsewhere = Elsewhere(kernel, self._participants, self._negotiations, rooms.event(""), self._counters)
        shared = (kernel, rooms, self._participants, self._negotiations, self._expiry, elsewhere)
        self._relay = Relay(
            *shared,
            ask=self._ask if self._authorize is not None else None,
            auto_join_rooms=self._auto_join_rooms,
            require_shared_room=self._require_shared_room,
            bounds=self._bounds,
            tell=self._tell,
        )
        self._news = CallNews(kernel, rooms, self._participants, elsewhere)
        self._calls = Calls(
            *shared,
            news=self._news,
            ask=self._ask,
            ice_servers=self._ice_servers,
            auto_join_rooms=self._auto_join_rooms,
            max_participants=self._max_participants,
            keep_place=self._keep_place,
            hold=self._hold,
            bounds=self._bounds,
        )
        self._requests = {
            "join": self._answering(self._calls.join),
            "peers": self._answering(self._calls.peers),
            "leave": self._answering(self._calls.leave),
        }

    # The kernel's service ------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Begin to let things expire. Called by the kernel."""
        self._expiry.start()

    def on_stop(self) -> None:
        """Forget everybody. Called by the kernel. Switches."""
        self._expiry.stop()
        self._calls.clear()
        self._participants.clear()
        self._negotiations.clear()

    def stats(self) -> dict[str, Any]:
        """Return named numbers: what is remembered, and a counter for everything forwarded, held and refused."""
        return {
            "type": type(self).__name__,
            "namespace": self.namespace,
            "calls": len(self._participants.calls()),
            "participants": len(self._participants),
            "places": self._participants.places,
            **self._negotiations.counts(),
            "counters": {
                **self._counters,
                "dropped_held": self._counters["dropped_held"] + self._negotiations.dropped_held,
                "forgotten_pairs": self._negotiations.forgotten_pairs,
                "places_given_up_early": self._participants.given_up_early,
            },
        }

    def _expire(self, now: float) -> float | None:
        """Do away with what is due; return when the next thing is. In the bridge's greenlet; switches."""
        self._calls.expire(now)
        expired = self._negotiations.expire(now, EXPIRED_AT_ONCE)
        for held in expired:
            self._tell_expired(held)
        if len(expired) == EXPIRED_AT_ONCE:
            gevent.sleep(0)
        ends = (self._participants.next_end(), self._negotiations.next_end())
        return min((end for end in ends if end is not None), default=None)

    def _tell_expired(self, held: Held) -> None:
        self._counters["expired"] += 1
        reason = refusal(Reason.EXPIRED, f"the candidate waited {self._hold:g} s in vain")
        self._tell(reason, held.sender, held.message, held.ack)

    def _tell(self, refused: Reject, sender: str, message: dict[str, Any], ack: str | int | None) -> None:
        """Tell a sender what became of a signal that was on its way out. Never waits."""
        payload = message["payload"]
        echoed = {name: payload[name] for name in ("target", "room", "negotiation") if name in payload}
        told = self._error(refused, message["type"], echoed, ack)
        assert self._kernel is not None
        try:
            # droppable, so that this greenlet never parks for a client that does not read
            self._kernel.send(sender, told, overflow="drop_oldest")
        except (UnknownClient, ConnectionClosed):
            pass

    # Messages ------------------------------------------------------------------------------------------

    def _signal(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, int] | None:
        """Handle one signal. Switches as ``Relay.route``."""
        try:
            return self._relay.route(self._kinds[message.type], message, context)
        except Reject as refused:
            self._refuse(refused, message, context, toolkit)
            return None

    def _answering(
        self, request: Callable[[Message, Context, Toolkit], dict[str, Any]]
    ) -> Callable[[Message, Context, Toolkit], dict[str, Any] | None]:
        """Return a handler for what is asked of a call."""

        def handle(message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any] | None:
            try:
                return request(message, context, toolkit)
            except Reject as refused:
                self._refuse(refused, message, context, toolkit)
                return None

        return handle

    def _ask(self, target_or_room: str, context: Context) -> None:
        """Raise Reject unless the application lets this client go there. Switches where ``authorize`` waits."""
        if self._authorize is not None and not decided(self._authorize(context, target_or_room), "authorize"):
            raise refusal(Reason.FORBIDDEN, f"you may not signal to {target_or_room[:ECHOED]!r}")

    def _refuse(self, refused: Reject, message: Message, context: Context, toolkit: Toolkit) -> None:
        """Tell the sender, and raise again where an ack is to be answered.

        :raises ConnectionClosed: the sender has gone.
        """
        log.debug("%s from %s refused: %s", message.type, context.id, refused.message)
        known = refused.code.upper() in REASONS
        self._counters[f"refused_{refused.code}" if known else "refused_by_application"] += 1
        echoed = {
            name: value
            for name, value in zip(("target", "room"), destination_of(message), strict=True)
            if isinstance(value, str) and len(value) <= ECHOED
        }
        negotiation = message.payload.get("negotiation") if isinstance(message.payload, dict) else None
        if isinstance(negotiation, str) and len(negotiation) <= NEGOTIATION_LENGTH:
            echoed["negotiation"] = negotiation
        toolkit.reply(self._error(refused, message.type, echoed, message.ack))
        if message.ack is not None:
            raise refused

    def _error(self, refused: Reject, event: str, echoed: dict[str, str], ack: str | int | None) -> dict[str, Any]:
        """Return a ``webrtc:error`` message."""
        payload: dict[str, Any] = {
            "reason": refused.code.upper(),
            "message": refused.message,
            "event": event,
            **echoed,
        }
        if ack is not None:
            payload["ack"] = ack
        return {"type": self._rooms.event("error"), "payload": payload}


def _check_namespace(namespace: object) -> None:
    """Raise ConfigurationError unless ``namespace`` can stand before the colon of an event."""
    if not isinstance(namespace, str) or not 0 < len(namespace) <= NAMESPACE_LENGTH:
        raise ConfigurationError(f"namespace={namespace!r}: must have 1 to {NAMESPACE_LENGTH} characters")
    if any(character in ":[]" for character in namespace):
        raise ConfigurationError(f"namespace={namespace!r}: must not contain a colon or brackets")
    if is_reserved(f"{namespace}:"):
        raise ConfigurationError(f"namespace={namespace!r}: belongs to the server, choose another")


def _check_switches(**options: object) -> None:
    """Raise ConfigurationError unless every option is True or False: "no" is neither, and would be true."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: must be True or False")


def _check_numbers(kind: type, **options: Any) -> None:
    """Raise ConfigurationError unless every option is a number above 0, whole if ``kind`` is int."""
    for name, value in options.items():
        fits = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
        if not fits or value <= 0:
            what = "a whole number above 0" if kind is int else "seconds, above 0"
            raise ConfigurationError(f"{name}={value!r}: must be {what}")
