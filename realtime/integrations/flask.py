"""Flask: a kernel beside the views of an app, on the same port.

    app = Flask(__name__)
    realtime = Realtime(app)

    @realtime.on("chat:message")
    def chat(message, context, toolkit):
        toolkit.broadcast({"type": "chat:message", "payload": {"from": session["name"], "body": message.payload}})

    @app.post("/announce")
    def announce():
        realtime.broadcast({"type": "news", "payload": request.form["text"]})
        return "", 204

Browsers import the client from ``/realtime/client.js``.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

try:
    import flask
except ImportError as error:
    raise ImportError("realtime.integrations.flask needs Flask: pip install 'realtime-toolkit[flask]'") from error

from realtime.codes import CloseCode, ErrorCode
from realtime.connection import Admission
from realtime.errors import ConfigurationError, Reject
from realtime.integrations.flask_context import AppScope, Handshake, call_or_reject, in_app
from realtime.integrations.flask_server import AppServer
from realtime.integrations.flask_tasks import Tasks
from realtime.integrations.wsgi import RealtimeMiddleware
from realtime.kernel import RealtimeKernel
from realtime.presence import PresenceStore
from realtime.protocols.http import Request
from realtime.room_calls import RoomCall
from realtime.rooms import RoomManager
from realtime.routing import HandlerFunction, LaneKey, check_function
from realtime.toolkit import Sendable

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

    from realtime.delivery import DeliveryOptions

__all__ = ["Realtime", "login_required"]

F = TypeVar("F", bound=HandlerFunction)
Authenticate = Callable[[flask.Request], Any]

_environ: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("realtime_flask_environ")


class Realtime:
    """Adds a kernel's clients to a Flask app: ``Realtime(app)``, or ``Realtime()`` and later ``init_app(app)``.

    :param app: any Flask app.
    :param kernel: one of your own, with limits, a mesh, transports beside the app; a new one if not given.
    :param path: where WebSockets connect; the JavaScript client is served below it, at ``client.js``.
    :param authenticate: ``authenticate(request)`` gets Flask's request, in a request context: it may read
        ``flask.session`` and ``current_user``. It returns what becomes ``context.identity``, or raises ``Reject`` or
        aborts. Without it everybody may connect and ``context.identity`` is None: see ``login_required``.
    :param options: of :class:`realtime.integrations.wsgi.RealtimeMiddleware`, such as ``allowed_origins``.
    :raises ConfigurationError: an option that cannot work.

    Handlers run in a request context made from the client's handshake: ``flask.request`` and ``flask.session`` are what
    they were when the client connected, also after the cookie has expired, and Flask-Login loads anew with each message
    whoever was ``current_user`` then. ``flask.g`` is new with each message, and a user who logs out in a view stays
    connected until you ``disconnect`` them. Changes to ``flask.session`` are
    not saved, as no response follows that could carry the cookie. Teardown functions run after each handler, and
    after the last item of a stream; ``before_request`` and ``after_request`` functions and error handlers do not run.
    Handlers of what came by no handshake with an app, such as ``mesh:`` events, get an app context alone. The contexts
    cost about 0.15 ms a message: handlers that need none may be registered with ``kernel.on``.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        kernel: RealtimeKernel | None = None,
        path: str = "/realtime",
        *,
        authenticate: Authenticate | None = None,
        **options: Any,
    ) -> None:
        if kernel is not None and not isinstance(kernel, RealtimeKernel):
            raise ConfigurationError(f"kernel={kernel!r}: must be a realtime.RealtimeKernel")
        if authenticate is not None:
            check_function(authenticate, 1, f"authenticate={authenticate!r}", "(request)")
        self.kernel = kernel if kernel is not None else RealtimeKernel()
        """The kernel: everything else it can do is there."""
        self._path = path
        self._authenticate = authenticate
        self._options = options
        self._apps: list[flask.Flask] = []
        self._wrapped: list[tuple[str, HandlerFunction, HandlerFunction]] = []
        self._tasks = Tasks()
        self.kernel.add_service(self._tasks)
        self.kernel.home.guard(self._tasks, ("spawn",))
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Take clients through this app from now on; ``app.extensions["realtime"]`` is this object.

        Several apps, such as those that a factory makes for tests, share the kernel with its rooms and handlers; each
        handler runs in the context of the app that its client came to.

        :raises ConfigurationError: no Flask app, or one that has a Realtime already.
        """
        if not isinstance(app, flask.Flask):
            raise ConfigurationError(f"init_app({app!r}): must be a Flask app")
        there = app.extensions.get("realtime")
        if there is not None:
            whose = "this" if there is self else "another"
            raise ConfigurationError(f"{app!r} has {whose} Realtime already: call init_app once for each app")
        middleware = RealtimeMiddleware(
            app.wsgi_app,
            self.kernel,
            path=self._path,
            authenticate=lambda request: self._admit(app, request),
            **self._options,
        )

        def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            token = _environ.set(environ)
            try:
                return middleware(environ, start_response)
            finally:
                _environ.reset(token)

        app.wsgi_app = wsgi_app  # type: ignore[method-assign]
        app.app_protocol = middleware.app_protocol  # type: ignore[attr-defined]  # gevent-websocket asks what it serves
        app.extensions["realtime"] = self
        self._apps.append(app)

    @property
    def app(self) -> flask.Flask:
        """The app, of several the one that was set up last. Raises ConfigurationError without any."""
        if not self._apps:
            raise ConfigurationError("this Realtime has no app: pass it one, or call init_app(app)")
        return self._apps[-1]

    def _admit(self, app: flask.Flask, request: Request) -> Admission:
        """Find out who somebody is, and keep the handshake for the handlers. Raises Reject."""
        handshake = Handshake.of(app, _environ.get())
        if self._authenticate is None:
            return Admission(None, handshake)
        scope = AppScope(app, handshake)
        try:
            identity = scope.run(self._identify)
        except BaseException as error:
            scope.leave(error)
            raise
        scope.leave()
        return Admission(identity, handshake)

    def _identify(self) -> Any:
        assert self._authenticate is not None
        return call_or_reject(self._authenticate, flask.request._get_current_object())  # type: ignore[attr-defined]

    def run(
        self,
        app: flask.Flask | None = None,
        host: str = "127.0.0.1",
        port: int = 5000,
        *,
        debug: bool | None = None,
        use_reloader: bool | None = None,
        tls: tuple[str, str] | None = None,
    ) -> None:
        """Serve the app until SIGINT or SIGTERM, then drain and stop. Blocks; switches.

        By our own server, good for production. In debug mode by Flask's, with its debugger and reloader, as
        ``flask run --debug`` does.

        :param app: of several the one to serve.
        :param port: 0 picks a free one, which is logged.
        :param debug: what ``app.debug`` is if not given, which ``FLASK_DEBUG`` sets.
        :param use_reloader: start anew when a file has changed; only in debug mode, and there by default.
        :param tls: ``(certfile, keyfile)``, PEM.
        :raises PortInUse, ConfigurationError: it cannot start.
        """
        app = app if app is not None else self.app
        if app not in self._apps:
            raise ConfigurationError(f"run({app!r}): call init_app with it first")
        if debug if debug is not None else app.debug:
            app.run(host, port, debug=True, use_reloader=use_reloader, threaded=True, ssl_context=tls)
            return
        if use_reloader:
            raise ConfigurationError("use_reloader=True: the reloader comes with debug=True")
        self.kernel.use_transport(AppServer(app, host, port, tls))
        self.kernel.run()

    # Handlers ----------------------------------------------------------------------------------------

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
        """Register a handler ``(message, context, toolkit)`` that runs in the app's context.

        As ``RealtimeKernel.on``, also before there is an app and in the module of a blueprint.
        """

        def register(function: F) -> F:
            check_function(function, 3, f"handler for {event!r}", "(message, context, toolkit)")
            wrapped = in_app(function, lambda: self.app)
            self.kernel.on(event, wrapped, concurrent=concurrent, threadpool=threadpool, serial=serial)
            self._wrapped.append((event, function, wrapped))
            return function

        return register if handler is None else register(handler)

    def off(self, event: str, handler: HandlerFunction | None = None) -> int:
        """Remove ``handler`` from an event, or all its handlers; return how many were removed."""
        ours = [entry for entry in self._wrapped if entry[0] == event and handler in (None, entry[1])]
        self._wrapped = [entry for entry in self._wrapped if entry not in ours]
        if handler is None:
            return self.kernel.off(event)
        return sum(self.kernel.off(event, wrapped) for _, _, wrapped in ours)

    def middleware(self, function: F) -> F:
        """Wrap the handling of every client message, in the app's context: see ``RealtimeKernel.middleware``.

        What it puts into ``flask.g`` is there in the handlers.
        """
        check_function(function, 4, "middleware", "(message, context, toolkit, call_next)")
        self.kernel.middleware(in_app(function, lambda: self.app))
        return function

    def spawn(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run a function beside everything else, in an app context: now, or when the kernel has started.

        It has a greenlet in the kernel's thread, wherever this is called, and ends with the kernel: then it gets a
        GreenletExit where it waits. What it raises is logged. Under a server without monkey-patching, as ``flask run``
        is by itself, it waits with ``gevent.sleep``: ``time.sleep`` would hold up every client.
        """
        if not callable(function):
            raise ConfigurationError(f"spawn({function!r}): is not callable")
        self._tasks.spawn(self._run_task, function, args, kwargs)

    def _run_task(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        with self.app.app_context():
            function(*args, **kwargs)

    # Reaching clients: from views, tasks, anything -----------------------------------------------------

    @property
    def rooms(self) -> RoomManager:
        """Who is in which room."""
        return self.kernel.rooms

    @property
    def presence(self) -> PresenceStore:
        """Who is connected."""
        return self.kernel.presence

    def send(self, client_id: str, message: Sendable, **delivery: Unpack[DeliveryOptions]) -> None:
        """Send to one client: see ``RealtimeKernel.send``."""
        self.kernel.send(client_id, message, **delivery)

    def broadcast(
        self,
        message: Sendable,
        room: str | None = None,
        *,
        except_ids: Collection[str] = (),
        confirm: bool = False,
        timeout: float | None = None,
        **delivery: Unpack[DeliveryOptions],
    ) -> int:
        """Send to a room, or to everybody; return to how many: see ``RealtimeKernel.broadcast``."""
        return self.kernel.broadcast(
            message, room, except_ids=except_ids, confirm=confirm, timeout=timeout, **delivery
        )

    def call(self, client_id: str, message: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """Ask a client and return its answer: see ``RealtimeKernel.call``."""
        return self.kernel.call(client_id, message, timeout=timeout)

    def call_room(
        self, room: str, message: Sendable, *, timeout: float | None = None, except_ids: Collection[str] = ()
    ) -> RoomCall:
        """Ask every member of a room and iterate over their answers: see ``RealtimeKernel.call_room``."""
        return self.kernel.call_room(room, message, timeout=timeout, except_ids=except_ids)

    def disconnect(self, client_id: str, code: int = CloseCode.DISCONNECTED, *, reason: str = "") -> None:
        """Close a client's connection: see ``RealtimeKernel.disconnect``."""
        self.kernel.disconnect(client_id, code, reason=reason)


def login_required(request: flask.Request) -> str:
    """Let in who is logged in with Flask-Login, as ``Realtime(app, authenticate=login_required)``.

    ``context.identity`` is the user's id, as ``current_user.get_id()`` gives it; ``current_user`` works in handlers.

    :raises Reject: 401, nobody is logged in.
    """
    try:
        from flask_login import current_user
    except ImportError as error:
        raise ImportError("login_required needs Flask-Login: pip install flask-login") from error
    if not current_user.is_authenticated:
        raise Reject("log in first", code=ErrorCode.UNAUTHORIZED, status=401)
    return str(current_user.get_id())
