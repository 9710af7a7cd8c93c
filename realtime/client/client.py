"""The synchronous client: what ``realtime.Client`` is."""

from __future__ import annotations

import os
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, TypeVar, overload

from realtime.client.asking import ask, ask_for_items
from realtime.client.calls import Pending, Question
from realtime.client.event_loop import warn_of_stopped_loop
from realtime.client.handlers import Handler, Handlers
from realtime.client.options import Backoff, ClientLimits, HeaderSource, check_seconds
from realtime.client.presence import ClientPresence
from realtime.client.rooms import ClientRooms
from realtime.client.session import Session
from realtime.client.settings import checked_settings
from realtime.client.states import ClientState
from realtime.client.wire import ClientMessage
from realtime.codes import CloseCode
from realtime.config import Heartbeat
from realtime.errors import BadMessage, ConfigurationError, RealtimeError

__all__ = ["Client"]

H = TypeVar("H", bound=Handler)


class Client:
    """A synchronous client of a realtime server, for plain threads and, in a monkey-patched process, for greenlets.

    ::

        with Client("ws://localhost:8080/realtime") as client:
            client.send("chat:message", "hello", room="lobby")
            print(client.call("add", [1, 2]))  # what the handler returned
            for line in client.stream("log:tail"):  # what it yielded
                print(line)

    The connection comes back by itself, and the server then goes on as if nothing had been: what was sent either way
    is not lost and comes once, calls under way get their answers, and id, rooms and presence are the same. What is sent
    meanwhile waits, in order, within bounds. Where that cannot be, as the client was away for longer than the server
    waits (``Limits.session_grace``), or the server is another, ``"client:state"`` says ``resumed: False``: rooms are
    joined and presence is told again, and calls that were under way raise ConnectionClosed, as nobody knows whether
    they were handled. No call is sent twice.

    Any thread may use it. Handlers run one at a time, in order, in a thread of the client's own, and may themselves
    send, call and wait.

    It waits with ``threading`` and ``selectors``: in a process with a gevent event loop, have everything patched, or
    use it in a native thread; otherwise a wait stops that loop, and the log says so.

    :param url: ``ws://``, ``wss://``, ``http://`` or ``https://``.
    :param headers: of the opening handshake, as a mapping, or pairs, or a function that returns them for every attempt.
    :param msgpack: speak MessagePack rather than JSON; a server that does not is refused.
    :param tls: for wss://: a context, or a file of certificates to trust in place of the system's.
    :param timeout: seconds for an attempt from the TCP connection to the server's welcome, and for an answer.
    :param reconnect: come back by itself.
    :param backoff: seconds between attempts.
    :param limits: what may wait, and how large a message may be.
    :param hello: payload of the ``system:hello`` that greets the server: a dictionary, where there is a session.
    :param session: ask the server to go on where it was after a reconnect.
    :raises ConfigurationError: one of these cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: HeaderSource = None,
        msgpack: bool = False,
        tls: ssl.SSLContext | str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
        reconnect: bool = True,
        backoff: Backoff | None = None,
        limits: ClientLimits | None = None,
        hello: Any = None,
        session: bool = True,
    ) -> None:
        self._settings = checked_settings(
            url,
            headers=headers,
            msgpack=msgpack,
            tls=tls,
            timeout=timeout,
            reconnect=reconnect,
            backoff=backoff,
            limits=limits,
            hello=hello,
            session=session,
        )
        self._wire = self._settings.wire
        self._handlers = Handlers()
        self._stats: Counter[str] = Counter()
        self._starting = threading.Lock()
        self.presence = ClientPresence(self)
        """Who is here, and what this client says of itself."""
        self._rooms = ClientRooms(self, self.presence.forget)
        self._session = self._new_session()

    # Coming and going ---------------------------------------------------------------------------------------

    def connect(self, *, retry: bool = False) -> None:
        """Connect, and wait until the server has welcomed this client. Does nothing more if it is open already.

        :param retry: keep trying, as after a lost connection, for as long as the server may still come up. By
            itself a first attempt that fails is the last.
        :raises HandshakeError: the server refuses: ``.status`` is its HTTP status.
        :raises ConnectionClosed: there is no server, or it closed the connection: ``.code`` and ``.reason``.
        """
        warn_of_stopped_loop()
        with self._starting:
            if self._session.state is ClientState.CLOSED:
                self._session.close(CloseCode.NORMAL, "")  # waits for the last one's threads
                self._session = self._new_session()
            session = self._session
            since = session.opens
            if session.state is ClientState.CLOSED:
                session.start(patient=retry)
        try:
            session.wait_open(since)
        except RealtimeError:
            session.close(CloseCode.NORMAL, "")  # has ended already: waits for its threads
            raise

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """End the connection for good, and wait until its threads are gone. Does nothing if it is closed.

        Calls and waits under way raise ConnectionClosed; messages that wait for handlers are discarded, and counted.
        The server has 5 s to answer. A handler may close its client, and goes on then.

        :param code: 1000, or one of the application's from 3000 to 4999.
        :param reason: at most 123 bytes.
        """
        if code != CloseCode.NORMAL and not (isinstance(code, int) and 3000 <= code <= 4999):
            raise ConfigurationError(f"close(code={code!r}): must be 1000 or from 3000 to 4999")
        if not isinstance(reason, str) or len(reason.encode()) > 123:
            raise ConfigurationError(f"close(reason={reason!r}): must be a string of at most 123 bytes")
        self._session.close(int(code), reason)

    def __enter__(self) -> Client:
        try:
            self.connect()
        except BaseException:  # a KeyboardInterrupt, too, must not leave it trying
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address it connects to."""
        return self._settings.address.url

    @property
    def id(self) -> str | None:
        """What the server calls this client; None before the first welcome. Another one after a reconnect that did not
        resume the session."""
        return self._session.id

    @property
    def state(self) -> ClientState:
        """``"connecting"``, ``"open"``, ``"waiting"`` until the next attempt, or ``"closed"``."""
        return self._session.state

    @property
    def heartbeat(self) -> Heartbeat | None:
        """How often the server pings; None if it does not."""
        return self._session.heartbeat

    @property
    def server_limits(self) -> dict[str, int] | None:
        """What the server bounds, such as ``message_size``; None before it has said so."""
        return self._session.limits

    def stats(self) -> dict[str, int]:
        """Return counters since this client was made.

        ``sent``, ``received``, ``connects``, and ``resumes`` among those; ``bad_messages`` that could not be read;
        ``unclaimed`` messages without a handler that were dropped as too many waited for ``wait_for``; ``discarded`` by
        ``close``; ``unsent``: waited for a connection that never came, were too large for it, or were answers that the
        server did not take.
        """
        names = ("sent", "received", "connects", "resumes", "bad_messages", "discarded", "unsent", "unclaimed")
        return {name: self._stats[name] for name in names}

    # Messages -----------------------------------------------------------------------------------------------

    @overload
    def on(self, type: str) -> Callable[[H], H]: ...

    @overload
    def on(self, type: str, handler: H) -> H: ...

    def on(self, type: str, handler: H | None = None) -> H | Callable[[H], H]:
        """Call ``handler(message)`` for every message of a type; as a decorator without ``handler``.

        ``"*"`` hears every message of the server, answers to calls included. The client itself tells
        ``"client:state"``, payload ``{"name", "code"?, "reason"?, "retry_in"?, "resumed"?}``; ``"client:left"``,
        payload ``{"room", "code", "message"}``: a room that let this client in no more after a reconnect; and
        ``"client:recovered"``, payload ``{"room", "recovered", "replayed", "reason"?}``: a recoverable room was joined
        again after a reconnect that resumed no session. Unless ``recovered``, something is missing between what came
        before and what comes now, and has to be loaded from elsewhere. ``"client:presence"`` is told of each change of
        ``presence.state(room)``.

        What a handler raises is logged, and harms no other.
        """
        if handler is None:

            def register(function: H) -> H:
                self._handlers.add(type, function)
                return function

            return register
        self._handlers.add(type, handler)
        return handler

    def off(self, type: str, handler: Handler) -> None:
        """Call a handler no more."""
        self._handlers.remove(type, handler)

    def send(
        self,
        type: str,
        payload: Any = None,
        *,
        room: str | None = None,
        target: str | Sequence[str] | None = None,
    ) -> None:
        """Send a message. Without a connection it waits for the next one.

        What was on its way when one was lost is sent again, once, if the session is resumed; else it may be lost.

        Waits, at most ``timeout`` seconds, while more waits to be sent than ``ClientLimits.outbox``.

        :param room: where it goes; the server's handler decides what that means. ``target``: ids of clients, likewise.
        :raises BadMessage, MessageTooBig: it cannot be sent.
        :raises QueueFull: not connected, and too much waits already.
        :raises TimedOut: the server takes nothing.
        :raises ConnectionClosed: this client is closed.
        """
        data = self._wire.request(type, payload, room=room, target=target)
        self._session.transmit(data, None, self._settings.timeout)

    def call(
        self,
        type: str,
        payload: Any = None,
        *,
        room: str | None = None,
        target: str | Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send a message and return what its handler returns.

        :param timeout: seconds without an answer, or without an item of one that is streamed; the client's if not
            given.
        :raises CallFailed: the server said no; ``.code`` and ``.message`` are its words.
        :raises TimedOut: no answer in time.
        :raises ConnectionClosed: the session was lost before the answer came, or this client is closed.
        :raises BadMessage, MessageTooBig, QueueFull: as ``send``; QueueFull also within a handler when so many
            messages wait for it that no answer can come in.
        """
        return self._ask(type, payload, room=room, target=target, timeout=timeout)

    def _ask(
        self,
        type: str,
        payload: Any,
        *,
        room: str | None,
        target: str | Sequence[str] | None = None,
        timeout: float | None,
        question: Question | None = None,
    ) -> Any:
        make = self._request(type, payload, room, target)
        return ask(self._session, make, self._seconds(timeout), question or Question())

    def _request(
        self, type: str, payload: Any, room: str | None, target: str | Sequence[str] | None = None
    ) -> Callable[[str | None], bytes]:
        return lambda ack: self._wire.request(type, payload, room=room, target=target, ack=ack)

    def stream(
        self,
        type: str,
        payload: Any = None,
        *,
        room: str | None = None,
        target: str | Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Generator[Any, None, Any]:
        """Send a message and yield what its handler yields; it is sent when the loop begins.

        Leaving the loop early ends the stream at the server, too. What the handler returns in the end is the
        generator's own result, as with ``yield from``.

        :param timeout: seconds without an item.
        :raises CallFailed: as ``call``; ``overflow`` if more than ``ClientLimits.stream`` items wait to be read.
        """
        seconds, make = self._seconds(timeout), self._request(type, payload, room, target)
        make(None)  # complains here, not in the loop
        return self._items(make, seconds)

    def _items(self, make: Callable[[str], bytes], seconds: float) -> Generator[Any, None, Any]:
        return (yield from ask_for_items(self._session, make, seconds, self._settings))  # as it is when the loop begins

    def wait_for(self, type: str, *, timeout: float | None = None) -> ClientMessage:
        """Wait for a message of a type, ``"*"`` for any, and return it; its own handlers do not get it then.

        What came before and no handler has taken counts, so that nothing is missed between ``send`` and this.

        :param timeout: seconds, the client's if not given; ``math.inf`` waits until the client is closed.
        :raises TimedOut: it did not come in time.
        :raises ConnectionClosed: this client is closed.
        :raises QueueFull: within a handler, as ``call``.
        """
        if not isinstance(type, str) or not type:
            raise BadMessage(f"wait_for({type!r}): must be the type of a message, or '*'")
        return self._session.inbox.wait_for(type, self._seconds(timeout))

    @overload
    def answer(self, type: str) -> Callable[[H], H]: ...

    @overload
    def answer(self, type: str, answerer: H) -> H: ...

    def answer(self, type: str, answerer: H | None = None) -> H | Callable[[H], H]:
        """Answer what the server's handlers ask with ``call``: ``answerer(message)`` returns the result.

        ``"*"`` answers what nothing else does. A Reject it raises is told with its code.
        """
        if answerer is None:

            def register(function: H) -> H:
                self._handlers.answer(type, function)
                return function

            return register
        self._handlers.answer(type, answerer)
        return answerer

    # Rooms --------------------------------------------------------------------------------------------------

    def join(
        self, room: str, *, since: str | None = None, presence: bool | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Join a room that the server opens to clients. After a reconnect it is as if we had been there all the time.

        Returns who is in it: ``{"room", "id", "members": [{"id", "metadata"}], "total"}``; of a recoverable room also
        ``"cursor"``, and with ``since`` ``"recovered", "replayed"`` and ``"reason"``. Of such a room what was missed
        while there was no connection is told first; if it cannot be, ``"client:recovered"`` says so. In a room that we
        have joined before, this waits for that.

        :param since: a message's ``cursor``, or what ``cursor(room)`` gave: what came after it is told first.
        :param presence: be told who is there, and of each change: see ``presence.state``. None: as the server likes.
        :raises CallFailed: ``forbidden``; and as ``call``.
        """
        if since is not None and not (isinstance(since, str) and since):
            raise BadMessage(f"join(since={since!r}): must be the cursor of a message")
        if presence is not None and not isinstance(presence, bool):
            raise BadMessage(f"join(presence={presence!r}): must be True or False")
        result: dict[str, Any] = self._rooms.join(room, since, presence, timeout)
        return result

    def cursor(self, room: str) -> str | None:
        """Return how far this client is in a recoverable room: the cursor of the newest message that has come.

        That may still wait for its handler: who stores how far it is takes ``message.cursor`` there. None if nothing
        came from that room, or it was left.
        """
        return self._rooms.cursor(room)

    def history(
        self, room: str, *, limit: int | None = None, since: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return what a room keeps: the newest ``limit`` messages (50), or the first after a cursor.

        ``{"messages", "cursor", "more"}``, the oldest first; with ``since`` also ``"recovered"``: nothing is missing
        between it and the first of them; else ``"reason"``.

        :param limit: at most 300.
        :raises CallFailed: ``forbidden`` if this client is outside of the room; and as ``call``.
        """
        wish = {"limit": limit, "since": since}
        payload = {name: value for name, value in wish.items() if value is not None}
        result: dict[str, Any] = self.call("system:history", payload, room=room, timeout=timeout)
        return result

    def leave(self, room: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Leave a room; returns ``{"room", "left"}``. Nobody comes back to a room that was left.

        :raises CallFailed: ``forbidden``; and as ``call``.
        """
        result: dict[str, Any] = self._rooms.leave(room, timeout)
        return result

    # Inside -------------------------------------------------------------------------------------------------

    def _new_session(self) -> Session:
        return Session(
            self._settings,
            self._handlers,
            self._stats,
            on_open=self._opened,
            on_message=self._hear,
            on_wait=self._rooms.ask_in_time,
        )

    def _hear(self, message: ClientMessage) -> None:
        self._rooms.note(message)
        news = self.presence.take(message)
        if news is not None and self._handlers.has("client:presence"):
            self._tell("client:presence", news)

    def _opened(self) -> None:
        self.presence.forget_all_but(self._rooms.names())
        self._rooms.rejoin()
        self.presence.repeat()

    def _ask_again(self, call: Pending, type: str, payload: Any = None, *, room: str | None = None) -> str:
        return self._session.ask_again(call, self._request(type, payload, room))

    def _forget(self, ack: str) -> None:
        self._session.calls.forget(ack)

    def _tell(self, type: str, payload: dict[str, Any]) -> None:
        self._session.inbox.tell(ClientMessage(type, payload))

    def _seconds(self, timeout: float | None) -> float:
        return self._settings.timeout if timeout is None else check_seconds("timeout", timeout)
