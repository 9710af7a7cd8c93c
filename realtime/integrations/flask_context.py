"""Flask's contexts around handlers: one for each message, kept for as long as its answer is streamed."""

from __future__ import annotations

import contextvars
import copy
import functools
import io
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import flask
from werkzeug.exceptions import HTTPException

from realtime.connection import Context
from realtime.errors import Reject
from realtime.message import Message
from realtime.routing import HandlerFunction
from realtime.toolkit import Toolkit

__all__ = ["AppScope", "Handshake", "call_or_reject", "in_app"]

log = logging.getLogger("realtime.flask")

# what a server puts into the environ that ends with the request, or would keep the socket alive
_OF_THE_REQUEST = {
    "gunicorn.socket",
    "werkzeug.debug.preserve_context",
    "werkzeug.request",
    "werkzeug.socket",
    "wsgi.errors",
    "wsgi.input",
    "wsgi.websocket",
}


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is kept of the request that a client came with, as its ``context.handshake``.

    :param app: the app it came to.
    :param environ: its WSGI environ, without what belongs to the connection.
    :param session: what it held then. A cookie expires and a session on the server changes while the client stays.
    """

    app: flask.Flask
    environ: Mapping[str, Any]
    session: Any

    @classmethod
    def of(cls, app: flask.Flask, environ: Mapping[str, Any]) -> Handshake:
        """Keep what outlives the request. May wait, where sessions are on another server."""
        kept = {
            name: value
            for name, value in environ.items()
            if name not in _OF_THE_REQUEST and not name.startswith("realtime.")
        }
        sessions = app.session_interface
        with app.app_context():
            session = sessions.open_session(app, app.request_class(_with_body(kept)))
            return cls(app, kept, session if session is not None else sessions.make_null_session(app))

    def request_context(self) -> Any:
        """Return a new request context, as if the handshake were being handled now."""
        context = self.app.request_context(_with_body(self.environ))
        session = copy.deepcopy(self.session)
        session.modified = self.session.modified  # copying the items has set it
        # so it is not opened again, which is what pushing does where there is none
        setattr(context, "_session" if hasattr(context, "_session") else "session", session)  # the former from 3.2 on
        return context


def _with_body(environ: Mapping[str, Any]) -> dict[str, Any]:
    return {**environ, "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr, "CONTENT_LENGTH": "0"}


class AppScope:
    """Flask's contexts, pushed in a ``contextvars.Context`` of their own.

    So they can be entered from whatever greenlet or native thread goes on with a stream, and harm nobody else's.

    :param app: whose app context is pushed where there is no handshake.
    :param message: what is handled in them, if it is a message.
    :param handler: the name of what handles it.
    """

    __slots__ = ("_handler", "_open", "_session", "_stack", "_variables")

    def __init__(
        self, app: flask.Flask, handshake: Handshake | None, message: Message | None = None, handler: str = ""
    ) -> None:
        self._handler = handler
        self._stack = ExitStack()
        self._variables = contextvars.copy_context()
        self._open = True
        self._variables.run(self._enter, app, handshake, message)

    def _enter(self, app: flask.Flask, handshake: Handshake | None, message: Message | None) -> None:
        _handled.set(message)
        if handshake is None or flask.has_app_context():
            # around another message's, if this one is handled while that one's handler waits for it
            self._stack.enter_context(app.app_context())
        if handshake is not None:
            try:
                self._stack.enter_context(handshake.request_context())
            except BaseException as error:
                self._stack.__exit__(type(error), error, error.__traceback__)
                raise
        self._session = dict(flask.session) if handshake is not None else None

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in these contexts."""
        return self._variables.run(function, *args)

    def leave(self, error: BaseException | None = None) -> None:
        """Pop the contexts, which runs Flask's teardown functions: once, however often it is called.

        :param error: what the teardown functions are told.
        """
        if self._open:
            self._open = False
            self._variables.run(self._leave, error)

    def _leave(self, error: BaseException | None) -> None:
        if self._handler and self._session is not None and flask.session.modified:
            for key in _changed(self._session, flask.session):
                _say_once_that_it_is_lost(self._handler, key)
        self._stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


_handled: contextvars.ContextVar[Message | None] = contextvars.ContextVar("realtime_flask_message", default=None)
"""The message whose contexts these are."""


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[str]:
    """Return what an application changed in its session: other names with an underscore are Flask-Login's."""
    names = {*before, *after}
    kept = [name for name in names if not name.startswith("_") or name == "_flashes"]
    return [name for name in kept if (name in before, before.get(name)) != (name in after, after.get(name))]


@functools.lru_cache(maxsize=256)
def _say_once_that_it_is_lost(handler: str, key: str) -> None:
    """Log it once per handler, not once per message."""
    log.warning(
        "handler %s changed flask.session[%r]: that is not saved, as there is no response to carry it; "
        "change it in a view",
        handler,
        key,
    )


class _StreamInScope(Generator[Any, Any, Any]):
    """A handler's generator: each step runs in the scope it began in, which ends with it.

    A class, because a generator function's ``finally`` would not run if it is closed before its first step.
    """

    def __init__(self, scope: AppScope, items: Generator[Any, Any, Any]) -> None:
        self._scope = scope
        self._items = items

    def send(self, value: Any) -> Any:
        return self._step(self._items.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._items.throw, *error)

    def close(self) -> None:
        try:
            self._scope.run(self._items.close)
        except BaseException as error:
            self._scope.leave(error)
            raise
        self._scope.leave()

    def _step(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._scope.run(call_or_reject, function, *args)
        except StopIteration:
            self._scope.leave()
            raise
        except BaseException as error:
            self._scope.leave(error)
            raise

    def __del__(self) -> None:
        self.close()  # a middleware may have dropped it


def call_or_reject(function: Callable[..., Any], *args: Any) -> Any:
    """Call it; let ``flask.abort(404)``, and what raises like it, be answered as ``Reject`` is."""
    try:
        return function(*args)
    except HTTPException as error:
        if error.code is None or error.code < 400:
            raise
        code = error.name.lower().replace(" ", "_").replace("'", "")
        raise Reject(error.description or error.name, code=code, status=error.code) from error


def in_app(function: HandlerFunction, default_app: Callable[[], flask.Flask]) -> HandlerFunction:
    """Wrap a handler or middleware so that it runs in the contexts of the app its client came to.

    A handler inside middleware shares the middleware's contexts, so that ``flask.g`` carries between them.

    :param default_app: asked for a client that came by no handshake with an app, such as a mesh node's events.
    """
    name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"

    @functools.wraps(function)
    def handle(message: Message, context: Context, toolkit: Toolkit, *call_next: Callable[[], Any]) -> Any:
        if _handled.get() is message:  # in a middleware's
            return call_or_reject(function, message, context, toolkit, *call_next)
        handshake = context.handshake if isinstance(context.handshake, Handshake) else None
        scope = AppScope(handshake.app if handshake is not None else default_app(), handshake, message, name)
        try:
            result = scope.run(call_or_reject, function, message, context, toolkit, *call_next)
        except BaseException as error:
            scope.leave(error)
            raise
        if isinstance(result, Generator):
            return _StreamInScope(scope, result)
        scope.leave()
        return result

    return handle
