"""The kernel: registration, dispatch, and the lifecycle of everything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, overload

import gevent
from gevent.event import Event

from realtime import conversation, drain, startup, threads
from realtime.codes import CloseCode, ErrorCode
from realtime.config import Limits
from realtime.connection import Connection, Context
from realtime.errors import (
    ConfigurationError,
    ConnectionClosed,
    NotRunning,
    Reject,
    TimedOut,
)
from realtime.events import LIFECYCLE
from realtime.hub import Hub
from realtime.message import Message
from realtime.presence import PresenceStore
from realtime.rooms import RoomManager
from realtime.routing import Handler, HandlerFunction, Router, check_function
from realtime.threads import HomeThread, on_home_thread
from realtime.toolkit import Sendable, Toolkit
from realtime.watchdog import Watchdog

__all__ = ["RealtimeKernel", "TransportLike"]

log = logging.getLogger("realtime")

F = TypeVar("F", bound=HandlerFunction)
Middleware = Callable[[Message, Context, Toolkit, Callable[[], Any]], Any]
Final = Callable[[Message, Context, Toolkit], Any]


class TransportLike(Protocol):
    """What the kernel asks of a transport; ``realtime.transports.base.Transport`` is the class to extend."""

    def attach(self, hub: Hub) -> None:
        """Belong to this kernel's hub from now on; raise ConfigurationError if it has one."""

    def on_start(self) -> None:
        """Listen; return when clients can come."""

    def on_drain(self) -> None:
        """Accept no more clients."""

    def closing(self) -> int:
        """How many clients were told to go and are not gone yet."""

    def on_stop(self) -> None:
        """Release everything: sockets, greenlets."""

    def stats(self) -> dict[str, Any]:
        """Named numbers."""


class RealtimeKernel:
    """Central dispatcher of events, rooms and presence.

    :param transports: what clients come by; more with ``use_transport``.
    :param log_level: of the ``realtime`` logger: debug, info, warning, error, critical.
    :param debug: put a failing handler's exception into the ``details`` of ``system:error``.
    :param limits: what one client may cost.
    :raises ConfigurationError: an option that cannot work.

    Methods work from any greenlet, inside a handler or not. From another native thread they are handed to
    the kernel's own and the result handed back.
    """

    def __init__(
        self,
        transports: Iterable[TransportLike] = (),
        *,
        log_level: str = "info",
        debug: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.debug = debug
        self.limits = limits if limits is not None else Limits()
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(f"limits={limits!r}: must be a realtime.Limits")
        startup.configure_logging(log_level)
        self._home = HomeThread()
        self._hub = Hub(self.limits, self)
        self._home.guard(self._hub.rooms, ("join", "leave", "leave_all", "members", "rooms_for", "list"))
        self._home.guard(self._hub.presence, ("list", "get", "update"))
        self._router = Router()
        self._pipeline: list[Middleware] = []
        self._transports: list[TransportLike] = []
        self._watchdog = Watchdog(self.limits.blocked_loop)
        self._running = False
        self._stop_requested: Event | None = None
        for transport in transports:
            self.use_transport(transport)

    # Registration ----------------------------------------------------------------------------------

    @property
    def transports(self) -> Sequence[TransportLike]:
        """The transports, in the order they were added."""
        return tuple(self._transports)

    @property
    def rooms(self) -> RoomManager:
        """Who is in which room."""
        return self._hub.rooms

    @property
    def presence(self) -> PresenceStore:
        """Who is connected."""
        return self._hub.presence

    @property
    def hub(self) -> Hub:
        """What transports hand their clients to."""
        return self._hub

    def use_transport(self, transport: TransportLike) -> RealtimeKernel:
        """Add a transport; start it if the kernel is running. Returns the kernel.

        :raises ConfigurationError: not a transport, or one that belongs to a kernel already.
        """
        if not all(callable(getattr(transport, name, None)) for name in ("attach", "on_start", "on_stop")):
            raise ConfigurationError(f"{transport!r} is not a transport: extend realtime.Transport")
        transport.attach(self._hub)
        if self._running:
            transport.on_start()
        self._transports.append(transport)
        return self

    @overload
    def on(self, event: str, handler: F, *, concurrent: bool = ..., threadpool: bool = ...) -> F: ...

    @overload
    def on(
        self, event: str, handler: None = ..., *, concurrent: bool = ..., threadpool: bool = ...
    ) -> Callable[[F], F]: ...

    def on(
        self, event: str, handler: F | None = None, *, concurrent: bool = False, threadpool: bool = False
    ) -> F | Callable[[F], F]:
        """Register a handler, as a call or as a decorator.

        :param event: an exact name, a template such as ``"chat:message:[room_id]"``, ``"*"`` for every
            client message, ``"client:connected"``, ``"client:disconnected"`` or a name under ``mesh:``.
        :param handler: a plain function ``(message, context, toolkit)``; it may block its own greenlet.
        :param concurrent: messages it handles do not wait for the client's earlier ones.
        :param threadpool: run it in a native thread, for code that blocks without gevent's knowledge.
        :raises ConfigurationError: a name or function that cannot be registered.
        """

        def register(function: F) -> F:
            self._router.on(event, function, concurrent=concurrent, threadpool=threadpool)
            return function

        return register if handler is None else register(handler)

    def off(self, event: str, handler: HandlerFunction | None = None) -> int:
        """Remove ``handler`` from an event, or all its handlers; return how many were removed."""
        return self._router.off(event, handler)

    def middleware(self, function: F) -> F:
        """Wrap the handling of every client message: ``function(message, context, toolkit, call_next)``.

        It returns what ``call_next()`` returned, or something else, or raises ``Reject``. The first that
        was registered is outermost. Usable as a decorator.
        """
        check_function(function, 4, "middleware", "(message, context, toolkit, call_next)")
        self._pipeline.append(function)
        return function

    # Lifecycle -------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether ``start`` was called and ``stop`` was not."""
        return self._running

    def start(self) -> None:
        """Start every transport; return when all of them listen. Switches greenlets.

        :raises PortInUse, ConfigurationError: a transport cannot start; those that did are stopped again.
        """
        if self._running:
            raise ConfigurationError("the kernel is running already")
        startup.warn_of_unpatched_modules()
        self._home.settle()
        self._hub.start()
        self._watchdog.start()
        self._running = True
        started: list[TransportLike] = []
        try:
            for transport in self._transports:
                started.append(transport)
                transport.on_start()
        except BaseException:
            for transport in reversed(started):
                transport.on_stop()
            self._shut_down()
            raise

    def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM or a call of ``stop``, drain and stop. Blocks; switches."""
        self._stop_requested = Event()
        self.start()
        watchers = [gevent.signal_handler(number, self._stop_requested.set) for number in drain.SIGNALS]
        try:
            self._stop_requested.wait()
            log.info("stopping: clients are told to come back")
        finally:
            for watcher in watchers:
                watcher.cancel()
            self._stop_requested = None
            self.stop()

    @on_home_thread
    def stop(self, timeout: float = 10.0) -> None:
        """Drain and stop: accept nobody, let handlers finish, close clients with 4013, release everything.

        :param timeout: seconds for all of it; what is left then is cut off. Switches greenlets.
        """
        if self._stop_requested is not None:
            self._stop_requested.set()  # run() goes on from there, with a stop() of its own
            return
        if not self._running:
            return
        self._running = False
        try:
            drain.drain(self._hub, self._transports, timeout)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        self._running = False
        self._watchdog.stop()
        self._hub.stop(1.0)
        self._home.leave()

    # Reaching clients ------------------------------------------------------------------------------

    @on_home_thread
    def send(self, client_id: str, message: Sendable, *, overflow: str = "close", key: str | None = None) -> None:
        """Send to one client; parks this greenlet up to 1 s while the client's outbox is crowded.

        :param overflow: if it does not fit into the outbox: ``"close"`` the connection with 4008,
            ``"drop_oldest"`` of the droppable messages that wait, or ``"conflate"``: only the newest
            message of ``key`` waits at any time.
        :raises UnknownClient: no such client is connected.
        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        self._send_to(self._hub.find(client_id), message, overflow, key)

    @on_home_thread
    def _send_to(self, connection: Connection, message: Sendable, overflow: str, key: str | None) -> None:
        self._hub.deliver(connection, self._hub.outbound(message, overflow=overflow, key=key))

    @on_home_thread
    def _send_to_each(self, client_ids: Sequence[str], message: Sendable, overflow: str, key: str | None) -> None:
        outbound = self._hub.outbound(message, overflow=overflow, key=key)
        for connection in [self._hub.find(client_id) for client_id in client_ids]:
            self._hub.deliver(connection, outbound)

    @on_home_thread
    def broadcast(
        self,
        message: Sendable,
        room: str | None = None,
        *,
        except_ids: Collection[str] = (),
        overflow: str = "close",
        key: str | None = None,
    ) -> int:
        """Send to every member of a room, or to every client; return to how many.

        Where members' outboxes are crowded the caller stalls, 5 ms at most: only then does this switch.

        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        hub = self._hub
        if room is None:
            outbound = hub.outbound(message, overflow=overflow, key=key)
            return hub.deliver_to(hub.connections, outbound, except_ids)
        outbound = hub.outbound(message, room=room, overflow=overflow, key=key)
        return hub.deliver_to(hub.rooms.each_member(room), outbound, except_ids)

    @on_home_thread
    def _broadcast_where(
        self,
        message: Sendable,
        wanted: Callable[[Context], bool] | None,
        skip: Collection[str],
        overflow: str,
        key: str | None,
    ) -> int:
        if wanted is None:
            return self.broadcast(message, except_ids=skip, overflow=overflow, key=key)
        chosen = [id_ for id_, connection in tuple(self._hub.connections.items()) if wanted(connection.context)]
        return self._hub.deliver_to(chosen, self._hub.outbound(message, overflow=overflow, key=key), skip)

    @on_home_thread
    def call(self, client_id: str, message: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """Ask a client and return its answer. Parks this greenlet until it comes.

        :param timeout: seconds, ``Limits.ack_timeout`` (10) if not given.
        :raises TimedOut, CallFailed, UnknownClient, ConnectionClosed: see ``Toolkit.call``.
        """
        seconds = self.limits.ack_timeout if timeout is None else timeout
        return conversation.call(self._hub, self._hub.find(client_id), message, seconds)

    @on_home_thread
    def disconnect(self, client_id: str, code: int = CloseCode.DISCONNECTED, reason: str = "") -> None:
        """Close a client's connection after what waits for it was sent.

        :param code: 1000, 1001, 1008, 1011 or 3000 to 4999; below 4500 clients come back by themselves.
        :param reason: at most 123 bytes of UTF-8.
        :raises UnknownClient: no such client is connected.
        :raises ValueError: a code or reason that no close frame can carry.
        """
        drain.check_close(code, reason)
        self._hub.find(client_id).end(code, reason)

    @on_home_thread
    def stats(self) -> dict[str, Any]:
        """Return named numbers: clients, rooms, greenlets, and a counter for everything dropped or refused."""
        hub = self._hub
        return {
            "running": self._running,
            "clients": len(hub.connections),
            "rooms": len(hub.rooms.list()),
            "workers": hub.workers.count if self._running else 0,
            "busy_workers": hub.workers.busy if self._running else 0,
            "blocked_loops": self._watchdog.count,
            "counters": dict(hub.counters),
            "transports": [transport.stats() for transport in self._transports],
        }

    # Dispatch: called by the hub, in a worker ----------------------------------------------------------

    def wants(self, event: str) -> bool:
        """Tell whether a lifecycle event has handlers."""
        return self._router.has(event)

    def is_concurrent(self, message: Message) -> bool:
        """Tell whether a handler of this message opted out of the client's order."""
        if not self._router.has_concurrent:
            return False
        route = self._router.resolve(message.type)
        return route is not None and route.concurrent

    def handle(self, connection: Connection, message: Message) -> None:
        """Run a message through middleware and handlers, and answer it. Never raises."""
        toolkit = Toolkit(self, connection, message)
        try:
            if message.type in LIFECYCLE or message.type.startswith("mesh:"):
                self._run_event(message, connection.context, toolkit)
                return
            result = self._through(0, message, connection.context, toolkit, self._run_handlers)
            if isinstance(result, Generator):
                result = self._stream(connection, message, result)
            if message.ack is not None and not connection.closed:
                payload = {"ack": message.ack} if result is None else {"ack": message.ack, "result": result}
                self._hub.deliver(connection, self._hub.outbound({"type": "system:ack", "payload": payload}))
        except Exception as error:
            self._answer_failure(connection, message, error)

    def _through(self, index: int, message: Message, context: Context, toolkit: Toolkit, final: Final) -> Any:
        """Call the middleware at ``index`` around the rest, or ``final`` after the last."""
        if index == len(self._pipeline):
            return final(message, context, toolkit)
        return self._pipeline[index](
            message, context, toolkit, lambda: self._through(index + 1, message, context, toolkit, final)
        )

    def _run_handlers(self, message: Message, context: Context, toolkit: Toolkit) -> Any:
        """Run every handler of a message, also after one failed; return the last result that is not None.

        Raises what the first failing handler raised, once all have run.
        """
        route = self._router.resolve(message.type)
        if route is None:
            raise Reject(f"no handler takes {message.type!r}", code=ErrorCode.UNKNOWN_TYPE)
        return self._run_all([*route.own, *route.any] if route.any else route.own, message, context, toolkit)

    def _run_any_handlers(self, message: Message, context: Context, toolkit: Toolkit) -> None:
        """Run the ``"*"`` handlers of a message that ``wait_for`` takes."""
        route = self._router.resolve(message.type)
        if route is not None:
            params = message.params
            self._run_all(route.any, message, context, toolkit)
            message.params = params

    def _run_event(self, message: Message, context: Context, toolkit: Toolkit) -> None:
        """Run the handlers of an event of the server's own."""
        route = self._router.resolve(message.type)
        if route is not None:
            self._run_all(route.own, message, context, toolkit)

    def _run_all(
        self, handlers: Sequence[tuple[Handler, dict[str, str]]], message: Message, context: Context, toolkit: Toolkit
    ) -> Any:
        result = None
        failure: Exception | None = None
        for handler, params in handlers:
            message.params = params
            try:
                if handler.threadpool:
                    value = threads.run_in_pool(handler.function, message, context, toolkit)
                else:
                    value = handler.function(message, context, toolkit)
            except Exception as error:
                if failure is None:
                    failure = error
                else:
                    log.exception("handler %s failed on %r", handler.name, message.type)
                continue
            if value is not None:
                result = value
        if failure is not None:
            raise failure
        return result

    def _stream(self, connection: Connection, message: Message, items: Generator[Any, Any, Any]) -> Any:
        """Send each item to the asker, waiting while its outbox is crowded; return the generator's result."""
        hub = self._hub
        try:
            if message.ack is None:
                raise Reject(f"{message.type!r} answers with a stream: send it with an ack", code=ErrorCode.BAD_MESSAGE)
            while True:
                try:
                    item = next(items)
                except StopIteration as stop:
                    return stop.value
                payload = {"ack": message.ack, "item": item}
                outbound = hub.outbound({"type": "system:stream", "payload": payload})
                hub.deliver(connection, outbound, patience=self.limits.backpressure_timeout)
        finally:
            items.close()

    def _answer_failure(self, connection: Connection, message: Message, error: Exception) -> None:
        """Tell the client what went wrong with its message: as much of it as is its business."""
        details = f"{type(error).__name__}: {error}" if self.debug else None
        if isinstance(error, Reject):
            log.debug("%r from %s rejected: %s", message.type, connection.id, error.message)
            text, code = error.message, error.code
            details = None
        elif isinstance(error, ConnectionClosed):
            log.debug("handler of %r ended: a client went away: %s", message.type, error)
            text, code = "a client went away", ErrorCode.UNKNOWN_CLIENT
        elif isinstance(error, TimedOut):
            log.info("handler of %r ended: %s", message.type, error)
            text, code = "a client did not answer in time", ErrorCode.TIMEOUT
        else:
            log.error("a handler of %r failed", message.type, exc_info=error)
            self._hub.counters["handler_errors"] += 1
            text, code = "internal error", ErrorCode.INTERNAL
        try:
            self._hub.send_error(connection, text, code, ack=message.ack, details=details)
        except NotRunning:
            log.debug("no answer to %r: the kernel has stopped", message.type)

    @on_home_thread
    def _wait_for(self, connection: Connection, event: str, timeout: float | None) -> Message:
        """Take a message that a handler waits for, past middleware and "*" handlers, and ack it."""
        while True:
            message = conversation.wait_for(self._hub, connection, event, timeout)
            toolkit = Toolkit(self, connection, message)
            try:
                self._through(0, message, connection.context, toolkit, self._run_any_handlers)
            except Exception as error:
                self._answer_failure(connection, message, error)
                continue
            if message.ack is not None:
                self._hub.deliver(
                    connection, self._hub.outbound({"type": "system:ack", "payload": {"ack": message.ack}})
                )
            return message
