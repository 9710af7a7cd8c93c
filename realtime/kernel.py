"""The kernel: registration, dispatch, and the lifecycle of everything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeVar, overload

import gevent
from gevent.event import Event

from realtime import drain, startup
from realtime.config import Limits
from realtime.connection import Connection
from realtime.dispatch import Dispatcher
from realtime.errors import ConfigurationError, NotRunning
from realtime.hub import Hub
from realtime.message import Message
from realtime.presence import PresenceStore
from realtime.reach import Reach
from realtime.recovery import HistoryPage, Recovery
from realtime.rooms import RoomManager
from realtime.routing import HandlerFunction, LaneKey, check_event, check_function
from realtime.threads import HomeThread, on_home_thread
from realtime.watchdog import Watchdog

__all__ = ["RealtimeKernel", "Service", "TransportLike"]

log = logging.getLogger("realtime")

DRAIN = 10.0  # seconds that stopping may take unless told otherwise
SHUT_DOWN = 1.0  # seconds for handlers to end once they were told to, after the drain

F = TypeVar("F", bound=HandlerFunction)


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


class Service(Protocol):
    """Something that lives as long as the kernel runs, such as a greenlet that sweeps: see ``add_service``."""

    def on_start(self) -> None:
        """The kernel starts; clients come after this has returned. Raise to keep it from starting."""

    def on_stop(self) -> None:
        """Release everything, once no client is left or after ``on_start`` failed. A second call does nothing."""

    def stats(self) -> dict[str, Any]:
        """Return named numbers for ``kernel.stats()["services"]``."""


class State(Enum):
    """How far a kernel is."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"


_TRANSITIONS = {
    State.STOPPED: {State.RUNNING},
    State.RUNNING: {State.STOPPING},
    State.STOPPING: {State.STOPPED},
}


class RealtimeKernel(Reach):
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
        self.limits = limits if limits is not None else Limits()
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(f"limits={limits!r}: must be a realtime.Limits")
        startup.configure_logging(log_level)
        self._home = HomeThread()
        self._dispatcher = Dispatcher(self, self.limits, debug=debug)
        self._hub = self._dispatcher.hub
        self._home.guard(self._hub.rooms, ("join", "leave", "leave_all", "members", "rooms_for", "list"))
        self._home.guard(self._hub.presence, ("list", "get", "update"))
        self._router = self._dispatcher.router
        self._transports: list[TransportLike] = []
        self._own: tuple[Service, ...] = (self._hub.live_presence,)  # start before all others, and stop after them
        self._services: list[Service] = []
        self._watchdog = Watchdog(self.limits.blocked_loop)
        self._state = State.STOPPED
        self._stopped = Event()
        self._stopper: gevent.Greenlet[..., None] | None = None  # stops the kernel for a handler that asked
        self._stop_requested: Event | None = None  # while run() serves
        self._stop_timeout = DRAIN
        if not isinstance(transports, Iterable):
            raise ConfigurationError(f"transports={transports!r}: must be a list of transports")
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

    @property
    def home(self) -> HomeThread:
        """The thread whose event loop runs the kernel, for what brings work from other threads."""
        return self._home

    def use_transport(self, transport: TransportLike) -> RealtimeKernel:
        """Add a transport; start it if the kernel is running. Returns the kernel.

        :raises ConfigurationError: not a transport, or one that belongs to a kernel already.
        """
        needed = ("attach", "on_start", "on_stop")
        if isinstance(transport, type) or not all(callable(getattr(transport, name, None)) for name in needed):
            raise ConfigurationError(f"{transport!r} is not a transport: extend realtime.Transport")
        if transport in self._transports:
            raise ConfigurationError(f"{type(transport).__name__} belongs to this kernel already")
        transport.attach(self._hub)
        if self.running:
            transport.on_start()
        self._transports.append(transport)
        return self

    def add_service(self, service: Service) -> None:
        """Have a service start before the transports and stop after them; now, if the kernel is running.

        One that cannot start at once is not added: what ``on_start`` raised is raised again.

        :raises ConfigurationError: not a service, or one that belongs to this kernel already.
        """
        if isinstance(service, type) or not all(
            callable(getattr(service, name, None)) for name in ("on_start", "on_stop", "stats")
        ):
            raise ConfigurationError(f"{service!r} is not a service: it needs on_start, on_stop and stats")
        if service in self._services:
            raise ConfigurationError(f"{type(service).__name__} belongs to this kernel already")
        if self.running:
            try:
                service.on_start()
            except BaseException:
                service.on_stop()
                raise
        self._services.append(service)

    @overload
    def on(
        self,
        event: str,
        handler: F,
        *,
        concurrent: bool = ...,
        threadpool: bool = ...,
        serial: str | LaneKey | None = ...,
    ) -> F: ...

    @overload
    def on(
        self,
        event: str,
        handler: None = ...,
        *,
        concurrent: bool = ...,
        threadpool: bool = ...,
        serial: str | LaneKey | None = ...,
    ) -> Callable[[F], F]: ...

    def on(
        self,
        event: str,
        handler: F | None = None,
        *,
        concurrent: bool = False,
        threadpool: bool = False,
        serial: str | LaneKey | None = None,
    ) -> F | Callable[[F], F]:
        """Register a handler, as a call or as a decorator.

        :param event: an exact name, a template such as ``"chat:message:[room_id]"``, ``"*"`` for every
            client message, ``"client:connected"``, ``"client:disconnected"`` or a name under ``mesh:``.
        :param handler: a plain function ``(message, context, toolkit)``; it may block its own greenlet.
        :param concurrent: messages it handles do not wait for the client's earlier ones.
        :param threadpool: run it in a native thread, for code that blocks without gevent's knowledge.
        :param serial: ``"room"``: its messages are handled one at a time per room, whichever client of this node
            sends them; or a function ``(message, context)`` that returns any key instead of the room, or None, and
            must not wait. Handlers with equal keys share a lane: see :mod:`realtime.lanes`.
        :raises ConfigurationError: a name or function that cannot be registered.
        """

        check_event(event)

        def register(function: F) -> F:
            self._router.on(event, function, concurrent=concurrent, threadpool=threadpool, serial=serial)
            if serial is not None:
                self._hub.open_lanes()
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
        self._dispatcher.pipeline.append(function)
        return function

    # Lifecycle -------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether ``start`` was called and ``stop`` was not."""
        return self._state is State.RUNNING

    def _move(self, state: State) -> None:
        assert state in _TRANSITIONS[self._state], (self._state, state)
        self._state = state

    def start(self) -> None:
        """Start every service and transport; return when all transports listen. Switches greenlets.

        In the order they were added, but for those that join other nodes: these come before the others.

        :raises PortInUse, ConfigurationError: one cannot start; those that did are stopped again. Or the
            kernel is running already.
        """
        if self._state is not State.STOPPED:
            raise ConfigurationError(f"the kernel is {self._state.value} already")
        startup.warn_of_unpatched_modules()
        self._home.settle()
        self._hub.start()
        self._watchdog.start()
        self._stopped.clear()
        self._move(State.RUNNING)
        started: list[TransportLike | Service] = []
        try:
            nodes_first = sorted(self._transports, key=lambda one: not getattr(one, "joins_nodes", False))
            for part in (*self._own, *self._services, *nodes_first):
                started.append(part)
                part.on_start()
                if not self.running:
                    raise NotRunning("the kernel was stopped while it started")
        except BaseException:
            for part in reversed(started):
                part.on_stop()
            if self.running:
                self._move(State.STOPPING)
                self._shut_down()
            raise

    def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM or a call of ``stop``, drain and stop. Blocks; switches."""
        stop_requested = Event()
        watchers = [gevent.signal_handler(number, stop_requested.set) for number in drain.SIGNALS]
        try:
            self.start()
        except BaseException:
            for watcher in watchers:
                watcher.cancel()
            raise
        self._stop_requested = stop_requested
        try:
            stop_requested.wait()
            log.info("stopping: clients are told to come back")
        finally:
            for watcher in watchers:
                watcher.cancel()
            self._stop_requested = None
            self._stop(self._stop_timeout)

    @on_home_thread
    def stop(self, timeout: float = 10.0) -> None:
        """Drain and stop: accept nobody, let handlers finish, close clients with 4013, release everything.

        Returns when that is done; but at once when a handler calls it, which it then waits for.

        :param timeout: seconds for all of it; what is left then is cut off. Switches greenlets.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ConfigurationError(f"stop(timeout={timeout!r}): must be seconds, 0 or more")
        if self._state is State.STOPPED:
            return
        from_handler = self._hub.workers.runs_current()
        if self._stop_requested is not None:
            self._stop_timeout = timeout
            self._stop_requested.set()  # run() goes on from there
        elif from_handler:
            self._stopper = gevent.spawn(self._stop, timeout)
        else:
            self._stop(timeout)
        if not from_handler:
            self._stopped.wait(timeout + 2 * SHUT_DOWN)

    @on_home_thread
    def wait(self) -> None:
        """Return once the kernel has stopped, at once if it does not run. Switches greenlets."""
        if self._state is not State.STOPPED:
            self._stopped.wait()

    def _stop(self, timeout: float) -> None:
        """Do it, unless somebody does already."""
        if self._state is not State.RUNNING:
            self._stopped.wait(timeout + 2 * SHUT_DOWN)
            return
        self._move(State.STOPPING)
        try:
            drain.drain(self._hub, self._transports, timeout)
        finally:
            self._stop_services()
            self._shut_down()

    def _stop_services(self) -> None:
        for service in reversed((*self._own, *self._services)):
            try:
                service.on_stop()
            except Exception:  # the others and the kernel must stop all the same
                log.exception("%s failed to stop", type(service).__name__)

    def _shut_down(self) -> None:
        self._watchdog.stop()
        self._dispatcher.stop(SHUT_DOWN)
        self._home.leave()
        self._move(State.STOPPED)
        self._stopped.set()

    # What it says of itself, and what its toolkits ask ------------------------------------------------

    @on_home_thread
    def stats(self) -> dict[str, Any]:
        """Return named numbers: clients, rooms, greenlets, and a counter for everything dropped or refused."""
        hub = self._hub
        return {
            "running": self.running,
            "clients": len(hub.connections),
            "rooms": len(hub.rooms.list()),
            "sessions": hub.sessions.stats(),
            "workers": hub.workers.count if self.running else 0,
            "busy_workers": hub.workers.busy if self.running else 0,
            "lanes": hub.lane_stats(),
            "blocked_loops": self._watchdog.count,
            "counters": dict(hub.counters),
            "transports": [transport.stats() for transport in self._transports],
            "history": hub.history.stats(),
            "presence": hub.live_presence.stats(),
            "services": [service.stats() for service in self._services],
        }

    @on_home_thread
    def _recover(self, connection: Connection, room: str, since: object, presence: bool | None) -> Recovery:
        return self._dispatcher.replay.join(connection, room, since, presence)

    @on_home_thread
    def _history(self, room: str, limit: int, since: str | None) -> HistoryPage:
        return self._dispatcher.replay.page(room, limit, since)

    @on_home_thread
    def _wait_for(self, connection: Connection, event: str, timeout: float | None) -> Message:
        return self._dispatcher.wait_for(connection, event, timeout)
