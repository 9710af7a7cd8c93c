"""Dispatch: a message through middleware and handlers, and the answer to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Hashable, Sequence
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import gevent
import greenlet
from gevent.threadpool import ThreadPool
from greenlet import GreenletExit

from realtime import conversation, threads
from realtime.codes import ErrorCode
from realtime.config import Limits
from realtime.connection import Connection, Context
from realtime.errors import BadMessage, ConnectionClosed, NotRunning, Reject, TimedOut
from realtime.events import LIFECYCLE
from realtime.hub import Hub
from realtime.message import Message
from realtime.recovery import Replay
from realtime.requests import ClientRequests
from realtime.routing import Handler, Route, Router
from realtime.toolkit import Toolkit

if TYPE_CHECKING:
    from realtime.kernel import RealtimeKernel

__all__ = ["Dispatcher", "Middleware"]

log = logging.getLogger("realtime")

LONGEST_TURN = 0.010  # seconds a stream may go on without letting others run

class Cancelled(Reject):
    """Raised inside a generator whose asker wants no more of it; answered as its code says."""

    default_code = ErrorCode.CANCELLED


class Stream:
    """A streamed answer that is under way."""

    __slots__ = ("_greenlet", "_interruptible", "cancelled", "computing")

    def __init__(self, items: Generator[Any, Any, Any]) -> None:
        self._greenlet = greenlet.getcurrent()
        self._interruptible = not threads.runs_in_pool(items)
        self.cancelled = False
        self.computing = False
        """Its next item is being made: it may wait for something that never comes."""

    def cancel(self) -> None:
        """End it, also where it waits; it raises Cancelled."""
        if not self.cancelled:
            self.cancelled = True
            gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        if self.computing and self._interruptible:
            self._greenlet.throw(Cancelled("cancelled"))

    def next(self, items: Generator[Any, Any, Any]) -> Any:
        """Return the next item. Raises StopIteration, or Cancelled."""
        if self.cancelled:
            raise Cancelled("cancelled")
        self.computing = True
        try:
            return next(items)
        finally:
            self.computing = False


Middleware = Callable[[Message, Context, Toolkit, Callable[[], Any]], Any]


class Dispatcher:
    """Runs handlers for the hub, in its workers.

    :param kernel: whose toolkit handlers get.
    :param debug: tell clients what a failing handler raised.
    """

    def __init__(self, kernel: RealtimeKernel, limits: Limits, *, debug: bool) -> None:
        self.router = Router()
        self.pipeline: list[Middleware] = []
        self._kernel = kernel
        self._debug = debug
        self._hub = Hub(limits, self)
        self.replay = Replay(self._hub)
        hub = self._hub
        requests = ClientRequests(hub.rooms, hub.presence, hub.live_presence, self.replay, limits)
        for event, handler in requests.handlers.items():
            self.router.add(event, handler)
        self._pool: ThreadPool | None = None

    @property
    def hub(self) -> Hub:
        """The hub whose messages are handled here."""
        return self._hub

    def stop(self, timeout: float) -> None:
        """End the workers and the native threads. Switches greenlets."""
        self._hub.stop(timeout)
        if self._pool is not None:
            self._pool.kill()
            self._pool = None

    def wants(self, event: str) -> bool:
        """Tell whether a lifecycle event has handlers."""
        return self.router.has(event)

    def is_concurrent(self, message: Message) -> bool:
        """Tell whether a handler of this message opted out of the client's order."""
        if not self.router.has_concurrent or message.type in LIFECYCLE:
            return False
        route = self.router.resolve(message.type)
        return route is not None and route.concurrent

    def lane_key(self, connection: Connection, message: Message) -> Hashable:
        """Return the key of the lane that a message goes through, None for none. Raises what the key function does."""
        if message.type in LIFECYCLE or message.type.startswith("mesh:"):
            return None
        route = self.router.resolve(message.type)
        if route is None or route.serial is None:
            return None
        key_of, message.params = route.serial
        return key_of(message, connection.context)

    def handle(self, connection: Connection, message: Message) -> None:
        """Run a message through middleware and handlers, and answer it.

        Raises nothing but KeyboardInterrupt, and GreenletExit where the kernel is ending its workers.
        """
        toolkit = Toolkit(self._kernel, connection, message)
        route = self.router.resolve(message.type)
        try:
            if message.type in LIFECYCLE or message.type.startswith("mesh:"):
                if route is not None:
                    self._run_event(route, message, connection.context, toolkit)
                return
            if route is not None and route.own:
                message.params = route.own[0][1]  # for middleware; each handler then gets its own
            result = self._through(
                0, message, connection.context, toolkit, lambda: self._run_route(route, message, connection, toolkit)
            )
            if result is not None and isinstance(result, Generator):
                result = self._stream(connection, message, result)
            if message.ack is not None and not connection.closed:
                self._acknowledge(connection, message, result)
        except BaseException as error:
            self._raise_if_ending(error)
            self.answer_failure(connection, message, error)

    def _acknowledge(self, connection: Connection, message: Message, result: Any) -> None:
        """Answer a message that asked for it. Parks and raises as ``Hub.deliver`` does."""
        payload = {"ack": message.ack} if result is None else {"ack": message.ack, "result": result}
        self._hub.deliver(connection, self._hub.outbound({"type": "system:ack", "payload": payload}))

    def _raise_if_ending(self, error: BaseException) -> None:
        """Raise again what is not the handler's: Ctrl-C, and the end of all workers."""
        if isinstance(error, KeyboardInterrupt) or (
            isinstance(error, GreenletExit) and self._hub.workers.stopping
        ):
            raise error

    def _through(
        self, index: int, message: Message, context: Context, toolkit: Toolkit, final: Callable[[], Any]
    ) -> Any:
        """Call the middleware at ``index`` around the rest, or ``final`` after the last."""
        if index == len(self.pipeline):
            return final()
        return self.pipeline[index](
            message, context, toolkit, lambda: self._through(index + 1, message, context, toolkit, final)
        )

    def _run_route(self, route: Route | None, message: Message, connection: Connection, toolkit: Toolkit) -> Any:
        """Run every handler of a message, also after one failed; return the last result that is not None.

        Raises what the first failing handler raised, once all have run.
        """
        if route is None:
            raise Reject(f"no handler takes {message.type!r}", code=ErrorCode.UNKNOWN_TYPE)
        in_line = route.all
        if route.beside:
            in_line = in_line + [entry for entry in route.beside if not self._start_beside(entry, message, connection)]
        return self._run_all(in_line, message, connection.context, toolkit)

    def _start_beside(self, entry: tuple[Handler, dict[str, str]], message: Message, connection: Connection) -> bool:
        """Run one ``concurrent=True`` handler beside the others of its message; False if there is no room."""
        copy = Message(message.type, message.payload, message.room, message.target, message.ack)

        def run() -> None:
            try:
                self._run_event_handlers([entry], copy, connection.context, Toolkit(self._kernel, connection, copy))
            except BaseException as error:
                self._raise_if_ending(error)
                copy.ack = None  # its message is answered by the handlers in line
                self.answer_failure(connection, copy, error)

        return self._hub.run_beside(connection, run)

    def _run_event(self, route: Route, message: Message, context: Context, toolkit: Toolkit) -> None:
        """Run the handlers of an event of the server's own."""
        self._run_event_handlers(route.own, message, context, toolkit)

    def _run_event_handlers(
        self, handlers: Sequence[tuple[Handler, dict[str, str]]], message: Message, context: Context, toolkit: Toolkit
    ) -> None:
        """Run handlers whose results nobody asked for."""
        result = self._run_all(handlers, message, context, toolkit)
        if isinstance(result, Generator):
            result.close()
            log.warning("a handler of %r is a generator: nobody asked, so nothing is streamed", message.type)

    def _run_all(
        self, handlers: Sequence[tuple[Handler, dict[str, str]]], message: Message, context: Context, toolkit: Toolkit
    ) -> Any:
        result = None
        failure: BaseException | None = None
        for handler, params in handlers:
            message.params = params
            try:
                value = self._run_one(handler, message, context, toolkit)
            except BaseException as error:
                self._raise_if_ending(error)
                if failure is None:
                    failure = error
                else:
                    log.error("handler %s failed on %r", handler.name, message.type, exc_info=error)
                continue
            if value is None:
                continue
            if isinstance(result, Generator):
                if isinstance(value, Generator):
                    value.close()
                    log.warning("%r is streamed by two handlers; %s is left out", message.type, handler.name)
            else:
                result = value
        if failure is not None:
            if isinstance(result, Generator):
                result.close()
            raise failure
        return result

    def _run_one(self, handler: Handler, message: Message, context: Context, toolkit: Toolkit) -> Any:
        if not handler.threadpool:
            return handler.function(message, context, toolkit)
        if self._pool is None:
            self._pool = ThreadPool(self._hub.limits.threads)
        return threads.run_in_pool(self._pool, handler.function, message, context, toolkit)

    def _stream(self, connection: Connection, message: Message, items: Generator[Any, Any, Any]) -> Any:
        """Send each item to the asker, waiting while its outbox is crowded; return the generator's result."""
        hub = self._hub
        stream = Stream(items)
        try:
            if message.ack is None:
                raise Reject(f"{message.type!r} answers with a stream: send it with an ack", code=ErrorCode.BAD_MESSAGE)
            if connection.streams is None:
                connection.streams = {}
            connection.streams[message.ack] = stream
            turn_ends = perf_counter() + LONGEST_TURN
            while True:
                try:
                    item = stream.next(items)
                except StopIteration as stop:
                    return stop.value
                if perf_counter() > turn_ends:  # a fast reader must not keep the loop from everybody else
                    gevent.sleep(0)
                    turn_ends = perf_counter() + LONGEST_TURN
                payload = {"ack": message.ack, "item": item}
                outbound = hub.outbound({"type": "system:stream", "payload": payload})
                hub.deliver(connection, outbound, patience=self._hub.limits.backpressure_timeout)
        finally:
            if connection.streams and message.ack is not None and connection.streams.get(message.ack) is stream:
                del connection.streams[message.ack]
            items.close()

    def cancel(self, connection: Connection, ack: str | int) -> bool:
        """End a streamed answer whose asker wants no more; False if none is under way."""
        stream = connection.streams.get(ack) if connection.streams else None
        if stream is not None:
            stream.cancel()
        return stream is not None

    def answer_failure(self, connection: Connection, message: Message, error: BaseException) -> None:
        """Tell the client what went wrong with its message: as much of it as is its business."""
        details = f"{type(error).__name__}: {error}" if self._debug else None
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
        except (NotRunning, BadMessage):
            log.debug("no answer to %r: the kernel has stopped", message.type)

    def wait_for(self, connection: Connection, event: str, timeout: float | None) -> Message:
        """Take a message that a handler waits for, past middleware and "*" handlers, and ack it.

        One that middleware stops is answered as usual, and the wait goes on.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            remaining = None if deadline is None else max(0.0, deadline - monotonic())
            message = conversation.wait_for(self._hub, connection, event, remaining)
            if self._passes(connection, message):
                return message

    def _passes(self, connection: Connection, message: Message) -> bool:
        """Run a message that ``wait_for`` takes through middleware and ``"*"`` handlers; ack it."""
        toolkit = Toolkit(self._kernel, connection, message)
        params = message.params
        route = self.router.resolve(message.type)
        passed = False

        def run_any() -> None:
            nonlocal passed
            passed = True
            if route is not None:
                self._run_all(route.any, message, connection.context, toolkit)

        try:
            result = self._through(0, message, connection.context, toolkit, run_any)
            message.params = params
            if message.ack is not None:
                self._acknowledge(connection, message, None if passed else result)
        except BaseException as error:
            self._raise_if_ending(error)
            if isinstance(error, (ConnectionClosed, gevent.Timeout)):
                raise
            self.answer_failure(connection, message, error)
            return False
        return passed
