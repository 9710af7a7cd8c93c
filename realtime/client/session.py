"""A Client from ``connect()`` until it is closed for good: its connections one after the other, and its two threads.

What the server keeps of it from one connection to the next is its :class:`~realtime.client.continuity.Continuity`.

One thread connects, receives, writes what the kernel did not take at once, and connects again. It never waits for
anything but the network and the clock, so that answers always arrive. The other runs handlers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from realtime.client.continuity import Continuity
from realtime.client.handlers import Handlers
from realtime.client.handling import Handling
from realtime.client.inbox import Inbox
from realtime.client.link import Link
from realtime.client.options import Headers, check_headers
from realtime.client.outgoing import Outgoing
from realtime.client.settings import Settings
from realtime.client.states import NOT_YET, ClientState, Ended
from realtime.client.stream import Stream
from realtime.client.watchdog import Due, SilenceWatch
from realtime.client.welcome import Welcome, read_welcome
from realtime.client.wire import ClientMessage
from realtime.codes import CloseCode
from realtime.config import Heartbeat
from realtime.errors import BadMessage, ConfigurationError, ConnectionClosed, HandshakeError

__all__ = ["CLOSE_HANDSHAKE", "Session"]

log = logging.getLogger("realtime.client")

CLOSE_HANDSHAKE = 5.0  # seconds the server has to answer our close frame
_STEADY_AFTER = 10.0  # a connection that was open for so many seconds starts the back-off anew
_UNCLEAN = frozenset((CloseCode.ABNORMAL, CloseCode.HEARTBEAT_TIMEOUT))  # after which the server waits for us
_EARLY = 1000  # messages before the welcome that says whom they are for


class Session(Outgoing):
    """See the module.

    :param on_open: called by the thread that reads, after every welcome that resumes nothing, before anything else is
        sent.
    :param on_message: called by the thread that reads, for each message that is not an answer.
    :param on_wait: called by that thread before each wait with the time, and when the connection was welcomed; returns
        the seconds that it may wait, None for any time.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Handlers,
        stats: Counter[str],
        *,
        on_open: Callable[[], None],
        on_message: Callable[[ClientMessage], None],
        on_wait: Callable[[float, float], float | None],
    ) -> None:
        super().__init__(settings, stats)
        self.id: str | None = None
        self.heartbeat: Heartbeat | None = None
        self.opens = 0
        """How often the server has welcomed us."""
        self.inbox = Inbox(settings.limits, handled=handlers.has, on_room=self._wake, stats=stats)
        self.inbox.end(NOT_YET.error)
        self._handlers = handlers
        self._on_open = on_open
        self._on_message = on_message
        self._on_wait = on_wait
        self._changed = threading.Condition(self._lock)
        self._lost = NOT_YET  # how the last connection of the session ended
        self._early: deque[tuple[ClientMessage, int]] = deque()
        self._given_up: ConnectionClosed | None = None
        self._watch = SilenceWatch(None)
        self._deadline = 0.0  # of the attempt, or of the close handshake
        self._opened_at = 0.0
        self._patient = True
        handling = Handling(self.inbox, handlers, settings.wire, stats, self._answer)
        self._reader = threading.Thread(target=self._run, name="realtime-client", daemon=True)
        self._handling = threading.Thread(target=handling.run, name="realtime-client-handlers", daemon=True)

    # Coming and going, from any thread ----------------------------------------------------------------------

    def start(self, *, patient: bool) -> None:
        """Begin. Not ``patient``: a first attempt that fails is the last."""
        self._patient = patient
        self.inbox.begin()
        self.state = ClientState.CONNECTING
        self._handling.start()
        self._reader.start()

    def wait_open(self, since: int) -> None:
        """Wait until it is open, or was meanwhile: more often than ``since`` times. Raises what ended it before."""
        with self._changed:
            self._changed.wait_for(lambda: self.opens > since or self.state in (ClientState.OPEN, ClientState.CLOSED))
            if self.opens <= since and self.state is ClientState.CLOSED:
                raise self._ended.error()

    def close(self, code: int, reason: str) -> None:
        """End it for good; wait for the threads, but for the one that calls."""
        with self._lock:
            self._stats["discarded"] += self.inbox.discard()
            if not self._stopping.is_set() and self.state is not ClientState.CLOSED:
                self._ended = Ended(code, reason)
                self._deadline = time.monotonic() + CLOSE_HANDSHAKE
                self._stopping.set()
                self._end_for_good()
                if self._link is not None:
                    self._link.close(code, reason)
                self._wake()
        me = threading.current_thread()
        for thread in (self._reader, self._handling):
            if thread is not me and thread.is_alive() and me is not self._reader:
                thread.join(CLOSE_HANDSHAKE + 1)
                if thread.is_alive():
                    log.warning("%s: still busy after close(): a handler, or a look-up of a name", thread.name)

    def _wake(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.wake()

    # The thread that reads ------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        ended = NOT_YET
        while not self._stopping.is_set():
            try:
                ended = self._connection()
            except Exception as error:  # a fault of ours must not leave callers waiting
                log.exception("the client failed")
                ended = Ended(CloseCode.INTERNAL_ERROR, str(error))
            was_open = self.state is ClientState.OPEN
            if was_open and time.monotonic() - self._opened_at >= _STEADY_AFTER:
                failures = 0
            self._patient = self._patient or was_open
            self._unlink(ended)
            if not (self._settings.reconnect and self._patient and ended.may_pass) or self._stopping.is_set():
                break
            delay = ended.retry_after
            if delay is None:
                delay = self._settings.backoff.delay(failures)
                failures += 1
            self._enter(ClientState.WAITING, code=int(ended.code), reason=ended.reason, retry_in=delay)
            self._stopping.wait(delay)
        with self._lock:
            if not self._stopping.is_set():
                self._ended = ended
                self._end_for_good()

    def _connection(self) -> Ended:
        """One connection from its beginning to its end."""
        self._deadline = time.monotonic() + self._settings.timeout
        self._early.clear()
        self._given_up = None
        self._enter(ClientState.CONNECTING)
        try:
            link = self._open()
        except HandshakeError as error:
            return Ended(CloseCode.ABNORMAL, error.message, error)
        except ConfigurationError as error:
            return Ended(CloseCode.ABNORMAL, str(error), error)
        except ConnectionClosed as error:
            return Ended(error.code, error.reason, error.__cause__ if isinstance(error.__cause__, Exception) else None)
        except OSError as error:
            address = self._settings.address
            return Ended(CloseCode.ABNORMAL, f"cannot connect to {address.host}:{address.port}: {error}", error)
        with self._lock:
            self._link = link
            if self._stopping.is_set():
                link.close(self._ended.code, self._ended.reason)
        self._greet(first=True)
        link.run()
        assert self._stream is not None
        failure = self._stream.error
        reason = link.close_message or (str(failure) if failure and link.close_reason == CloseCode.ABNORMAL else "")
        return Ended(int(link.close_reason), reason)

    def _open(self) -> Link:
        settings = self._settings
        headers = check_headers(settings.address, self._headers())
        stream = Stream(tls=settings.tls, outbox=settings.limits.outbox, tick=self._tick, paused=self._is_paused)
        with self._lock:
            self._stream = stream
        try:
            stream.open(settings.address.host, settings.address.port)
            link = Link(
                stream,
                settings.address,
                headers=headers,
                subprotocols=settings.wire.subprotocols,
                message_size=settings.limits.message_size,
                response_head=settings.limits.response_head,
                deliver=self._received,
            )
            if settings.wire.subprotocols and link.subprotocol is None:
                raise HandshakeError(502, f"the server does not speak {settings.wire.subprotocols[0]}")
        except BaseException:
            stream.close()
            raise
        return link

    def _headers(self) -> Headers | None:
        """Ask the application. What it raises ends the attempt, not the client: a service may be away for a moment."""
        try:
            return self._settings.headers()
        except Exception as error:
            reason = f"the function for the headers failed: {type(error).__name__}: {error}"
            log.warning("%s", reason, exc_info=True)
            raise ConnectionClosed(reason=reason) from error

    def _greet(self, *, first: bool) -> None:
        """Say hello: on a new connection also which session we want."""
        hello = self._settings.hello
        if first and self._settings.session:
            hello = {**(hello or {}), "session": self._continuity.wish()}
        self._put(self._settings.wire.request("system:hello", hello))

    def _tick(self) -> float | None:
        """Before each wait: see whether it is in vain, and how long it may take."""
        now = time.monotonic()
        link = self._link
        if self._stopping.is_set():
            if link is None or now >= self._deadline:
                raise ConnectionClosed(self._ended.code, self._ended.reason)
            return self._deadline - now
        if self._given_up is not None:
            raise self._given_up
        if self.state is not ClientState.OPEN:
            if now >= self._deadline:
                raise self._give_up(f"the server did not welcome us within {self._settings.timeout:g} s")
            return self._deadline - now
        assert self._stream is not None
        due, wait = self._watch.look(now, self._stream.heard_at)
        if due is Due.GIVE_UP:
            raise self._give_up("nothing was heard from the server")
        if due is Due.PROBE:
            self._greet(first=False)
        waits = (wait, self._on_wait(now, self._opened_at))
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _give_up(self, reason: str) -> ConnectionClosed:
        if self._link is None:
            return ConnectionClosed(CloseCode.HEARTBEAT_TIMEOUT, reason)
        return self._link.fail(CloseCode.HEARTBEAT_TIMEOUT, reason)

    def _is_paused(self) -> bool:
        if not self.inbox.is_full():
            return False
        assert self._stream is not None
        self._stream.heard_at = time.monotonic()  # it is we who do not listen
        return True

    def _received(self, data: str | bytes) -> None:
        if self._stopping.is_set():
            self._stats["discarded"] += 1
            return
        try:
            message = self._settings.wire.message(data)
        except BadMessage as error:
            self._stats["bad_messages"] += 1
            if self._stats["bad_messages"] == 1:
                log.warning("the server sends what is no message: %s: %.200r", error, data)
            self._count(len(data))
            return
        self._stats["received"] += 1
        if message.type == "system:received":
            with self._lock:
                self._continuity.confirm(message.payload.get("count") if isinstance(message.payload, dict) else None)
        elif message.type == "system:welcome":
            self._greeted(message, len(data))
        elif self.state is ClientState.CONNECTING and self._continuity.lasts:
            self._early.append((message, len(data)))
            if len(self._early) > _EARLY:
                self._early.clear()
                self._given_up = self._give_up(f"more than {_EARLY} messages came before the welcome")
        else:
            self._count(len(data))
            self._take_in(message, len(data))

    def _count(self, size: int) -> None:
        if self.state is ClientState.OPEN:
            with self._lock:
                if self._continuity.received(size):
                    self._confirm()

    def _confirm(self) -> None:
        self._put(self._settings.wire.request("system:received", self._continuity.confirmation()))

    def _take_in(self, message: ClientMessage, size: int) -> None:
        name = message.type
        if self.calls.take(message) or _is_answer(message):
            self.inbox.hear(message, size, self._continuity)
        elif not name.startswith("client:"):  # those are told by this client
            if name == "system:error" and not self._handlers.has(name):
                log.warning("the server says no: %s", message.payload)
            self._on_message(message)
            self.inbox.put(message, size, self._continuity)

    def _greeted(self, message: ClientMessage, size: int) -> None:
        with self._lock:  # as connect() returns by this: who listens to all from then on has not been here for it
            if self.state is ClientState.CONNECTING:
                self._welcomed(read_welcome(message))
            listened = self._handlers.has(message.type)  # else it is not kept for wait_for: one comes for every probe
            (self.inbox.put if listened else self.inbox.hear)(message, size, self._continuity)
        if self.state is ClientState.OPEN:
            while self._early:
                self._take_in(*self._early.popleft())

    def _welcomed(self, welcome: Welcome) -> None:
        """With the lock."""
        news = welcome.session if self._settings.session else None
        resumed = news is not None and news.resumed
        if self._stopping.is_set():
            return
        if news is not None and resumed and not self._continuity.resume(news):
            self._begin_anew()
            return
        self.id = welcome.id
        self.limits = welcome.limits
        self.heartbeat = welcome.heartbeat
        self._watch = SilenceWatch(self.heartbeat)
        self._opened_at = time.monotonic()
        self.opens += 1
        self._stats["connects"] += 1
        if resumed:
            self._go_on()
        else:
            self._lose_session()
            self._continuity = Continuity(news)
            self._on_open()
        self._flush()
        self._enter(ClientState.OPEN, resumed=resumed)

    def _go_on(self) -> None:
        """The server resumes the session: send what it does not have."""
        self._stats["resumes"] += 1
        self._early.clear()  # they were for whom the server took us for; what is for us comes now
        self._confirm()
        for data in self._continuity.unconfirmed():
            self._put(data)

    def _begin_anew(self) -> None:
        """The server resumes a session that we cannot go on with: end both it and the connection."""
        self._lose_session()
        if self._link is not None:
            self._given_up = self._link.fail(CloseCode.REPLACED, "too much was sent to go on with the session")

    def _lose_session(self) -> None:
        """Nobody goes on where we were: what was asked is not answered any more."""
        self._continuity.end()
        lost = f"the connection was lost before the answer came: {self._lost.code} {self._lost.reason}".rstrip()
        code = self._lost.code
        self.calls.fail_all(lambda: ConnectionClosed(code, lost), unsent_too=False)

    def _unlink(self, ended: Ended) -> None:
        """Let go of the connection, and of the session unless that may be resumed."""
        now = time.monotonic()
        with self._lock:
            self._link = None
            continuity = self._continuity
            if self.state is ClientState.OPEN:
                self.state = ClientState.WAITING  # until it is said what comes next: nothing can be sent
                self._lost = ended
                if ended.code in _UNCLEAN:
                    continuity.detach(now)
                else:
                    continuity.end()
            if not continuity.lasts or (continuity.deadline is not None and now >= continuity.deadline):
                self._lose_session()

    def _end_for_good(self) -> None:
        self._continuity.end()
        self._stats["unsent"] += self._queue.clear()
        self.calls.fail_all(self._ended.error, unsent_too=True)
        self._become(ClientState.CLOSED, code=int(self._ended.code), reason=self._ended.reason)
        self.inbox.end(self._ended.error)

    def _enter(self, state: ClientState, **details: object) -> None:
        with self._lock:
            if not self._stopping.is_set():
                self._become(state, **details)

    def _become(self, state: ClientState, **details: object) -> None:
        self.state = state
        self.inbox.tell(ClientMessage("client:state", {"name": state.value, **details}))
        self._changed.notify_all()


def _is_answer(message: ClientMessage) -> bool:
    """Tell whether this answers a call, if only one that was given up meanwhile."""
    if message.type in ("system:ack", "system:stream"):
        return True
    return message.type == "system:error" and isinstance(message.payload, dict) and "ack" in message.payload

