"""Which handlers an event goes to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from realtime.errors import ConfigurationError
from realtime.events import ANY, LIFECYCLE, EventTemplate
from realtime.message import Message

__all__ = ["Handler", "HandlerFunction", "LaneKey", "Route", "Router", "check_function", "decided"]

HandlerFunction = Callable[..., Any]
LaneKey = Callable[..., Hashable]
"""``(message, context)``: what names the lane of a message, None for none. Must not wait."""


@dataclass(frozen=True)
class Handler:
    """A handler function and how it wants to be run."""

    event: str
    function: HandlerFunction
    concurrent: bool = False
    threadpool: bool = False
    template: EventTemplate | None = field(default=None, compare=False)
    serial: LaneKey | None = None

    @property
    def name(self) -> str:
        """How logs call it."""
        return f"{self.function.__module__}.{getattr(self.function, '__qualname__', repr(self.function))}"


class Route:
    """The handlers of one event name, in the order they run, each with the params of its template.

    ``own`` are those for the name itself, ``any`` the ``"*"`` handlers after them.
    """

    __slots__ = ("all", "any", "beside", "concurrent", "own", "serial")

    def __init__(self, own: list[tuple[Handler, dict[str, str]]], any_: list[tuple[Handler, dict[str, str]]]) -> None:
        self.own = own
        self.any = any_
        every = own + any_
        self.concurrent = all(handler.concurrent for handler, _ in every)
        """All of them opted out of the client's order, so its messages need not wait."""
        alone = [] if self.concurrent else [entry for entry in every if entry[0].concurrent and not entry[0].serial]
        self.beside = alone
        """Those that opted out although others did not: they run beside, and the answer does not wait for them.
        One with a lane does not, as it is the message that goes through it."""
        self.all = [entry for entry in every if entry not in self.beside]
        self.serial = next(((handler.serial, params) for handler, params in every if handler.serial), None)
        """What names the lane of its messages, with the params of its handler."""


def check_function(function: object, expected: int, what: str, parameters: str) -> None:
    """Raise ConfigurationError unless ``function`` is plain and takes ``expected`` positional arguments."""
    if not callable(function):
        raise ConfigurationError(f"{what}: {function!r} is not callable")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{what}: {function!r} is async; handlers are plain functions that may simply wait")
    try:
        inspect.signature(function).bind(*range(expected))
    except ValueError:
        return  # a builtin without a signature: take it at its word
    except TypeError:
        raise ConfigurationError(f"{what}: {function!r} must take {parameters}") from None


def decided(answer: object, what: str) -> Any:
    """Return the answer of a function of the application that lets clients in, such as ``rooms.configure(join=...)``.

    :raises TypeError: a coroutine or a generator is no answer: it would be true, whatever it would come to.
    """
    if inspect.isawaitable(answer) or inspect.isgenerator(answer):
        raise TypeError(f"{what} gave {answer!r}, no answer: it must be a plain function that returns one")
    return answer


class Router:
    """Handlers by exact name, by template, and ``"*"``; each kind in the order of registration."""

    def __init__(self) -> None:
        self._exact: dict[str, list[Handler]] = {}
        self._templates: list[Handler] = []
        self._any: list[Handler] = []
        self.has_concurrent = False
        """Whether any handler has opted out of its clients' order."""
        self._routes: dict[str, Route] = {}  # of exact names only, so that clients cannot fill it

    def on(
        self,
        event: str,
        function: HandlerFunction,
        *,
        concurrent: bool,
        threadpool: bool,
        serial: str | LaneKey | None = None,
    ) -> None:
        """Add a handler.

        :raises ConfigurationError: a reserved or malformed event, a function that cannot be a handler, or a lane
            that cannot be, or that is another one than that of a handler of the same messages.
        """
        check_event(event)
        key_of = _lane_key(serial, event) if serial is not None else None
        self.add(event, function, concurrent=concurrent, threadpool=threadpool, serial=key_of)

    def add(
        self,
        event: str,
        function: HandlerFunction,
        *,
        concurrent: bool = False,
        threadpool: bool = False,
        serial: LaneKey | None = None,
    ) -> None:
        """Add a handler of ours, under any name; see ``on``."""
        check_function(function, 3, f"handler for {event!r}", "(message, context, toolkit)")
        template = EventTemplate(event) if event != ANY else None
        handler = Handler(event, function, concurrent, threadpool, template, serial)
        if serial is not None:
            self._refuse_second_lane(handler)
        if template is None:
            self._any.append(handler)
        elif template.parameters:
            self._templates.append(handler)
        else:
            self._exact.setdefault(event, []).append(handler)
        self._routes.clear()
        self.has_concurrent |= concurrent

    def _every(self) -> list[Handler]:
        return [*self._any, *self._templates, *(h for handlers in self._exact.values() for h in handlers)]

    def _refuse_second_lane(self, handler: Handler) -> None:
        """A message goes through one lane. Of two templates that match the same name the earlier one's counts."""
        for other in self._every():
            if other.serial not in (None, handler.serial) and _meet(other, handler):
                raise ConfigurationError(
                    f"handler for {handler.event!r}: {other.name} has its messages of {other.event!r} one at a time "
                    "by another key; give both the same serial"
                )

    def off(self, event: str, function: HandlerFunction | None = None) -> int:
        """Remove the handlers of ``event``, or just ``function``; return how many were removed."""

        def kept(handler: Handler) -> bool:
            # != and not `is not`: a bound method is a new object each time it is named
            return handler.event != event or (function is not None and handler.function != function)

        every = self._every()
        self._any = list(filter(kept, self._any))
        self._templates = list(filter(kept, self._templates))
        remaining = {name: list(filter(kept, handlers)) for name, handlers in self._exact.items()}
        self._exact = {name: handlers for name, handlers in remaining.items() if handlers}
        self._routes.clear()
        return sum(not kept(handler) for handler in every)

    def resolve(self, name: str) -> Route | None:
        """Return where a message of this name goes; None if nowhere."""
        route = self._routes.get(name)
        if route is None:
            route = self._build(name)
            if name in self._exact:
                self._routes[name] = route
        return route if route.own or route.any else None

    def _build(self, name: str) -> Route:
        own: list[tuple[Handler, dict[str, str]]] = [(handler, {}) for handler in self._exact.get(name, ())]
        for handler in self._templates:
            assert handler.template is not None
            params = handler.template.match(name)
            if params is not None:
                own.append((handler, params))
        return Route(own, [(handler, {}) for handler in self._any])

    def has(self, name: str) -> bool:
        """Tell whether the name itself (not just ``"*"``) has a handler."""
        route = self.resolve(name)
        return route is not None and bool(route.own)


_NO_ROOM = object()


def _room_of(message: Message, context: object) -> Hashable:
    """A message that names no room has a lane of its own kind: handlers may take it for one to some default room."""
    return message.room if message.room is not None else _NO_ROOM


def _lane_key(serial: str | LaneKey, event: str) -> LaneKey:
    """Return the function that ``serial`` stands for. Raises ConfigurationError."""
    if event in LIFECYCLE or event.startswith("mesh:"):
        raise ConfigurationError(f"handler for {event!r}: serial is for messages of clients")
    if serial == "room":
        return _room_of
    if isinstance(serial, str):
        raise ConfigurationError(f"handler for {event!r}: serial={serial!r}: must be 'room' or a function")
    check_function(serial, 2, f"handler for {event!r}: serial", "(message, context)")
    return serial


def _meet(one: Handler, other: Handler) -> bool:
    """Tell whether two handlers take the same messages: the same name, ``"*"``, or a template and a name it matches."""
    if one.template is None or other.template is None or one.event == other.event:
        return True
    return one.template.match(other.event) is not None or other.template.match(one.event) is not None


def check_event(event: object) -> None:
    """Raise ConfigurationError for a name no handler can be registered for."""
    if not isinstance(event, str) or not event:
        raise ConfigurationError(f"event {event!r}: must be a non-empty string")
    if event.startswith("system:"):
        raise ConfigurationError(f"event {event!r}: names under 'system:' are the protocol's own")
    if event.startswith("client:") and event not in LIFECYCLE:
        raise ConfigurationError(f"event {event!r}: under 'client:' there are {' and '.join(LIFECYCLE)}")
