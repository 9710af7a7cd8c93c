"""Sessions: a client that asked for one outlives its connection, and comes back by another as if nothing had been.

A client that lost its connection without a word keeps its id, rooms, metadata and handlers for
``Limits.session_grace`` seconds. What is sent to it meanwhile waits, and what was on its way is sent again: both
sides count the messages of the session, so each is delivered once and in order, or the client is told that it
cannot be.

The :class:`~realtime.connection.Connection` it first came by stays what handlers, rooms and the hub know of it.
What carries it at present is a :class:`~realtime.session_line.Line`, and each line's outbox hands what goes through
it to the session's ring.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from realtime.codes import CloseCode, ErrorCode
from realtime.config import KiB
from realtime.connection import Connection
from realtime.errors import BadMessage
from realtime.expiry import Expiry
from realtime.message import Wire
from realtime.outbox import Outbox
from realtime.session_arrivals import Arrivals
from realtime.session_calls import CallsLeft
from realtime.session_departures import Departures
from realtime.session_line import Line, Nowhere, Session, State
from realtime.session_ring import Ring
from realtime.session_wire import UNCLEAN, UNCOUNTED, Refusal, Wish, carries_over, changed, read_count

if TYPE_CHECKING:
    from realtime.hub import Hub

__all__ = ["Sessions"]

log = logging.getLogger("realtime")

TOKEN_BYTES = 24  # of randomness
TELL_MESSAGES = 64  # received from a client before it is told so
TELL_BYTES = 64 * KiB
AT_ONCE = 100  # sessions that expire before others get a turn


class Sessions:
    """The sessions of one hub's clients. Everything here runs in its event loop; nothing switches greenlets."""

    def __init__(self, hub: Hub) -> None:
        self.hub = self._hub = hub
        self.arrivals = Arrivals(self)
        self.departures = Departures(self)
        self.calls = CallsLeft(hub)
        self._by_token: dict[str, Session] = {}
        self._away: dict[Session, None] = {}  # the first is the first to expire
        self._expiry = Expiry(self._expire)

    def start(self) -> None:
        """Let sessions expire from now on."""
        self._expiry.start()

    def stop(self) -> None:
        """End that, and forget all. Switches greenlets."""
        self._expiry.stop()
        self._by_token.clear()
        self._away.clear()
        self.arrivals.clear()
        self.departures.clear()
        self.calls.clear()

    def stats(self) -> dict[str, int]:
        """Return named numbers."""
        sessions = set(self._by_token.values())
        return {
            "open": len(sessions),
            "away": len(self._away),
            "kept_bytes": sum(session.ring.size for session in sessions),
        }

    # Hello ---------------------------------------------------------------------------------------------

    def greet(self, connection: Connection, wish: Wish, ack: str | int | None) -> None:
        """A client asks for a session: give it the one it names, or a new one and the reason."""
        if self.arrivals.is_claiming(connection):
            self._hub.send_error(connection, "a session was asked for already", ErrorCode.BAD_MESSAGE, ack=ack)
            return
        if wish.token is None:
            self.begin(connection, ack, None)
            return
        session = self._by_token.get(wish.token)
        if session is None:
            node = self.departures.where(wish.token)
            if node is None:
                self.begin(connection, ack, Refusal.UNKNOWN)
            else:
                self.arrivals.claim(connection, wish, ack, node)
            return
        if _same_identity(session.client.identity, connection.identity):
            refusal = self.objection(session, connection.wire, wish.received)
        else:
            self._hub.counters["sessions_foreign"] += 1
            refusal = Refusal.UNKNOWN
        if refusal is None:
            self.resume(session, connection, wish, ack)
        else:
            self.begin(connection, ack, refusal)

    def begin(self, connection: Connection, ack: str | int | None, refusal: Refusal | None) -> None:
        """Welcome a client with a session that begins now."""
        hub = self._hub
        token = self._new_token()
        about: dict[str, Any] = {"token": token, "resumed": False, "received": 0}
        if refusal is not None:
            about["reason"] = refusal.value
            hub.counters[f"sessions_refused_{refusal.name.lower()}"] += 1
        self._welcome(connection, connection, about)
        if connection.closed:
            return  # its outbox was full
        session = Session(connection, Ring(hub.limits.session_buffer))
        session.line = connection.line = Line(session, connection, connection.outbox, connection.wire)
        connection.outbox.keeper = session.line
        self._accept(session, token)
        hub.counters["sessions_begun"] += 1
        hub.acknowledge(connection, ack)

    def _welcome(self, client: Connection, carrier: Connection, about: dict[str, Any]) -> None:
        about["grace"] = self._hub.limits.session_grace
        payload = {**self._hub.welcome(client, carrier), "session": about}
        self._put_apart(carrier, {"type": "system:welcome", "payload": payload})

    def _put_apart(self, carrier: Connection, message: dict[str, Any]) -> None:
        """Send what does not count among the session's messages."""
        self._hub.counters["sent"] += 1
        carrier.outbox.put_apart(self._hub.outbound(message).finished(carrier.wire))

    def _new_token(self) -> str:
        return f"{self._hub.cluster.node_id}.{secrets.token_urlsafe(TOKEN_BYTES)}"

    def _accept(self, session: Session, *tokens: str) -> None:
        """Have a session be resumed with these tokens, and no others."""
        for token in session.tokens:
            self._by_token.pop(token, None)
        session.tokens = tokens
        for token in tokens:
            self._by_token[token] = session

    # Coming back -----------------------------------------------------------------------------------------

    def find(self, token: str) -> Session | None:
        """Return the session of a token; None if there is none here."""
        return self._by_token.get(token)

    def objection(self, session: Session, wire: Wire, count: int) -> Refusal | None:
        """Return why a session cannot go on by a wire, for a client that has so many messages; None if it can."""
        if session.closing:
            return Refusal.UNKNOWN
        ring = session.ring
        refusal = None
        if count > ring.count:
            refusal = Refusal.MISCOUNTED
        elif count < ring.first:
            refusal = Refusal.MISSED
        elif self._kept_for(session, wire) is None:
            refusal = Refusal.CODEC
        if refusal is not None:  # its client is here and cannot have it: nobody else will come for it
            self.close(session, CloseCode.REPLACED, "could not be resumed")
        return refusal

    def _kept_for(self, session: Session, wire: Wire) -> Collection[bytes] | None:
        """Return what is kept for a client as frames of a wire; None if that cannot be."""
        client, frames = session.client, session.ring.frames
        if client.wire is wire:
            return frames
        if not carries_over(client.wire, wire):
            return None
        try:
            return [changed(frame, client.wire, wire) for frame in frames]
        except BadMessage as error:
            log.warning("what waits for client %s cannot be sent as %s: %s", client.id, wire.codec.name, error)
            return None

    def resume(self, session: Session, connection: Connection, wish: Wish, ack: str | int | None) -> None:
        """Put a new connection in the place of a client's old one, and send again what the client does not have.

        Nothing is sent to the client between the welcome and the first message after it but what it missed.
        """
        assert wish.token is not None
        hub, client, old = self._hub, session.client, session.line
        hub.remove(connection, "resumed the session of another connection", code=CloseCode.REPLACED)
        if session.state is State.OVER:
            return  # who was told of that has closed it
        kept = self._kept_for(session, connection.wire)
        assert kept is not None, "the objection would have been made"
        session.ring.replace(kept)
        hub.rewire(client, connection.wire)
        outbox = connection.outbox
        line = session.line = connection.line = Line(session, connection, outbox, connection.wire)
        client.outbox = outbox
        client.remote_address = connection.remote_address
        client.leaving = False
        self._away.pop(session, None)
        session.state = State.CARRIED
        session.unwritten = 0
        self.send_again_from(session, wish.received)
        token = self._new_token()
        self._accept(session, wish.token, token)
        self._welcome(client, connection, {"token": token, "resumed": True, "received": session.received})
        session.told, session.unheard = session.received, 0
        hub.counters["sent"] += len(session.ring.frames)
        outbox.replay(session.ring.frames)
        outbox.keeper = line
        _retire(old)
        hub.counters["sessions_resumed"] += 1
        self._read_on(client, connection)
        hub.acknowledge(client, ack)
        for tell in hub.on_resumed:
            tell(client.context)

    def send_again_from(self, session: Session, received: int) -> None:
        """Of what is kept for a client, keep what it lacks, and of that what is still of use to it."""
        session.ring.confirm(received)
        expired = session.ring.drop_expired(monotonic())
        if expired:
            self._hub.counters["expired"] += expired

    def _read_on(self, client: Connection, connection: Connection) -> None:
        """Read from the new connection if the client's inbox has room."""
        if connection.paused:
            client.paused = True
            self._hub.resume_if_room(client)
        elif client.paused:
            client.pause()

    def confirm(self, client: Connection, payload: Any) -> None:
        """A client has so many messages, and the newest token.

        :raises BadMessage: it has no session, or was not sent so many.
        """
        count = read_count(payload)
        if client.line is None:
            raise BadMessage("this connection has no session: ask for one in system:hello")
        session = client.line.session
        if not session.ring.confirm(count):
            raise BadMessage(f"the session has {session.ring.count} messages so far, not {count}")
        self._accept(session, session.tokens[-1])

    def count(self, session: Session, type: str, size: int) -> None:
        """A client has sent a message of so many bytes: tell it now and then."""
        if type in UNCOUNTED:
            return
        session.received += 1
        session.unheard += size
        if session.received - session.told >= TELL_MESSAGES or session.unheard >= TELL_BYTES:
            session.told, session.unheard = session.received, 0
            if session.line.connection is not None:
                payload = {"count": session.received}
                self._put_apart(session.line.connection, {"type": "system:received", "payload": payload})

    # Going away ------------------------------------------------------------------------------------------

    def ended(self, line: Line, reason: str, code: int) -> bool:
        """A connection has ended; return whether its client is gone with it."""
        session = line.session
        if not line.current or session.state is not State.CARRIED:
            return False
        if session.closing or code not in UNCLEAN or self._hub.draining:
            return True
        if not session.client.outbox.closed:
            session.client.outbox.close()
        self._detach(session, reason, code)
        return False

    def _detach(self, session: Session, reason: str, code: int) -> None:
        """Keep everything for a client that may come back."""
        hub, client = self._hub, session.client
        session.end = (reason, code)
        self._keep(session)
        hub.counters["sessions_detached"] += 1
        for tell in hub.on_detached:
            tell(client.context, code)
        if len(self._away) > hub.limits.sessions_away:
            hub.counters["sessions_given_up_early"] += 1
            self._give_up(next(iter(self._away)))

    def _keep(self, session: Session) -> None:
        """Let what is sent to a client that is away wait."""
        hub, client = self._hub, session.client
        outbox = client.outbox = Outbox(Nowhere(hub, session), hub.flusher, hub.limits)
        outbox.away = True
        outbox.park_at = outbox.limit  # nobody stalls for who cannot be hurried
        outbox.keeper = session.line = Line(session, None, outbox, client.wire)
        session.state = State.AWAY
        self._begin_grace(session)

    def _begin_grace(self, session: Session) -> None:
        """From now on its client has ``Limits.session_grace`` seconds to be back."""
        self._away.pop(session, None)  # the last to begin is the last to expire
        session.deadline = monotonic() + self._hub.limits.session_grace
        self._away[session] = None
        self._expiry.due(session.deadline)

    def _give_up(self, session: Session) -> None:
        reason, code = session.end
        self._hub.remove(session.client, reason, code=code)

    def _expire(self, now: float) -> float | None:
        """End the sessions of those who did not come back in time; return when the next one ends. Switches.

        So is forgotten where those went who did not stay.
        """
        for number, session in enumerate(list(self._away), 1):
            if session not in self._away:
                continue  # it is back, while others had their turn
            if session.deadline > now:
                break
            self._hub.counters["sessions_expired"] += 1
            self._give_up(session)
            if number % AT_ONCE == 0:
                gevent.sleep(0)
        first = next(iter(self._away), None)
        due = [self.departures.forget_old(now), self.calls.forget_old(now), None if first is None else first.deadline]
        return min((moment for moment in due if moment is not None), default=None)

    def close(self, session: Session, code: int, reason: str) -> None:
        """End a session, and the connection that carries it."""
        if session.state is State.AWAY:
            self._hub.remove(session.client, reason, code=code)
        elif session.line.connection is not None:
            session.closing = True
            session.line.connection.end(code, reason)

    # Between nodes ---------------------------------------------------------------------------------------

    def restore(self, client: Connection, frames: list[bytes], first: int, received: int, token: str) -> Session:
        """Take a session over from another node: its client is away for now."""
        ring = Ring(self._hub.limits.session_buffer)
        ring.replace(frames)
        ring.first = first
        session = Session(client, ring)
        session.received = session.told = received
        session.end = ("its connection was lost while it moved", int(CloseCode.ABNORMAL))
        self._keep(session)
        client.line = session.line
        self._accept(session, token)
        return session

    def cut_off(self, session: Session, reason: str) -> None:
        """Have the client of a session be away."""
        if session.state is State.CARRIED:
            old = session.line
            self._detach(session, reason, int(CloseCode.ABNORMAL))
            _retire(old)

    def let_go(self, session: Session, outbox: Outbox) -> None:
        """Another node has the session now; until the client is seen there, what is for it goes into ``outbox``.

        It is back: of its grace, which may have been about to end, only as much counts as it takes to be seen.
        """
        self._begin_grace(session)
        waiting, client = session.line.outbox, session.client
        session.line = Line(session, None, outbox, client.wire)
        client.outbox = outbox
        waiting.close()
        session.unwritten = 0
        session.ring.clear()
        self._accept(session)

    def abandon(self, session: Session) -> None:
        """The client is seen at its new node."""
        self._away.pop(session, None)
        session.state = State.OVER

    def forget(self, session: Session) -> None:
        """The client of a session is gone."""
        self.departures.removed(session.client.id)
        self._away.pop(session, None)
        self._accept(session)
        session.state = State.OVER
        session.ring.clear()
        outbox = session.line.outbox
        outbox.keeper = None  # what it still holds is lost if it is not written, and counted then
        self._hub.counters["dropped_undelivered"] += session.unwritten
        if session.line.connection is None:
            outbox.close()


def _retire(line: Line) -> None:
    """Have nothing more go through a line that another has taken over from."""
    outbox, connection = line.outbox, line.connection
    if connection is not None:
        outbox.discard()  # so that the close frame comes soon, if anybody still reads
        connection.end(CloseCode.REPLACED, "another connection has resumed its session")
    if not outbox.closed:
        outbox.close()


def _same_identity(one: Any, other: Any) -> bool:
    """Compare what ``authenticate`` returned for two connections; an identity whose ``==`` fails is like no other."""
    try:
        return bool(one == other)
    except Exception:
        log.exception("identities of %s cannot be compared", type(one).__name__)
        return False
