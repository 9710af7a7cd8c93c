"""The kernel in any WSGI application, by any server that lets go of its sockets.

::

    app.wsgi_app = RealtimeMiddleware(app.wsgi_app, kernel)       # Flask
    application = RealtimeMiddleware(get_wsgi_application(), kernel)   # Django
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from realtime.codes import CloseCode
from realtime.config import Heartbeat
from realtime.drain import come_back
from realtime.errors import ConfigurationError, HandshakeError, NotRunning
from realtime.integrations.wsgi_gunicorn import adapt, leave_once
from realtime.integrations.wsgi_home import Launcher
from realtime.integrations.wsgi_hosts import Environ, Host, StartResponse, find_host, request_from
from realtime.kernel import RealtimeKernel
from realtime.message import MSGPACK_SUBPROTOCOL
from realtime.protocols.deflate import DeflateOptions
from realtime.protocols.handshake import Accepted
from realtime.protocols.http import Request
from realtime.threads import Signal, has_event_loop
from realtime.transports.channel import Channel
from realtime.transports.files import javascript_client
from realtime.transports.hosted import HostedTransport
from realtime.transports.upgrades import Authenticate, check_path

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["RealtimeMiddleware"]

log = logging.getLogger("realtime.wsgi")


class RealtimeMiddleware:
    """A WSGI application: WebSockets at ``path``, the JavaScript client below it, everything else is ``app``'s.

    It gives the kernel a transport, and starts it with the first request in the process that serves, unless it runs
    already: servers load applications in one process and serve them in others. When the process ends, clients are told
    to come back.

    :param path: where WebSockets connect; ``<path>/client.js`` is the JavaScript client.
    :param authenticate: ``authenticate(request)`` returns the identity or raises ``Reject("why", status=401)``. Called
        in the greenlet or thread of the request.
    :param allowed_origins: None: pages of the same host; ``"*"``; or a list such as ``["https://app.example"]``.
    :param compression: True or a DeflateOptions: permessage-deflate, compressed once per broadcast.
    :param heartbeat: ping interval and pong deadline; None for no pings.
    :raises ConfigurationError: an option that cannot work.

    Where requests come in greenlets the kernel runs in their event loop. Where they come in native threads it runs in a
    thread of its own, and so do all handlers: what blocks them blocks every client, ``threadpool=True`` is for that.
    """

    def __init__(
        self,
        app: WSGIApplication,
        kernel: RealtimeKernel,
        *,
        path: str = "/realtime",
        authenticate: Authenticate | None = None,
        allowed_origins: Sequence[str] | str | None = None,
        compression: DeflateOptions | bool = False,
        heartbeat: Heartbeat | None = Heartbeat(),  # noqa: B008  # frozen
    ) -> None:
        if not callable(app):
            raise ConfigurationError(f"app={app!r}: must be a WSGI application")
        if not isinstance(kernel, RealtimeKernel):
            raise ConfigurationError(f"kernel={kernel!r}: must be a RealtimeKernel")
        check_path(path)
        self.app = app
        self.kernel = kernel
        self.path = path
        self.transport = HostedTransport(
            authenticate=authenticate,
            allowed_origins=allowed_origins,
            compression=compression,
            heartbeat=heartbeat,
        )
        self._client_path = f"{path.rstrip('/')}/client.js"
        self._client = javascript_client()
        self._launcher = Launcher(kernel, adapt)
        self._told: set[str] = set()
        kernel.home.run(kernel.use_transport, self.transport)
        leave_once()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request; one that becomes a WebSocket returns when that has ended. Switches, or blocks a thread."""
        self._launcher.ensure()
        path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        if path == self.path:
            return self._upgrade(environ, start_response)
        if path == self._client_path:
            return self._client(environ, start_response)
        return self.app(environ, start_response)

    def app_protocol(self, path: str) -> str | None:
        """What gevent-websocket's handler asks the application for: the subprotocol to agree on, if it is offered."""
        return MSGPACK_SUBPROTOCOL if path == self.path else None

    def _upgrade(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        host = find_host(environ)
        request = request_from(environ)
        with self.transport.request():
            try:
                accepted, identity = self._handshake(request, host)
                sock, leftover = host.take()
            except HandshakeError as error:
                self.transport.refused()
                self._log(error)
                return host.refuse(error, start_response)
            channel, ended = self._open(request, accepted, identity, sock, leftover)
        if channel is not None and host.stays:
            self._stay(channel, ended)
        return host.leave(start_response)

    def _handshake(self, request: Request, host: Host) -> tuple[Accepted, Any]:
        """Return what is agreed on, and who it is. Raises HandshakeError."""
        if self._launcher.failure is not None:
            raise HandshakeError(500, f"The kernel does not run: {self._launcher.failure}")
        accepted = host.agreed(self.transport.accept(request))
        return accepted, self.transport.authenticate(request, interruptible=has_event_loop())

    def _open(
        self, request: Request, accepted: Accepted, identity: Any, sock: Any, leftover: bytes
    ) -> tuple[Channel | None, Signal]:
        """Make the connection in the kernel's thread; None if the kernel has stopped meanwhile."""
        ended = Signal()
        open_, run = self.transport.open, self.kernel.home.run
        try:
            return run(open_, request, accepted, identity, sock, leftover, ended.set), ended
        except (HandshakeError, NotRunning) as error:
            log.warning("a client was lost: %s", error)
            self.transport.refused()
            sock.close()
            return None, ended

    def _stay(self, channel: Channel, ended: Signal) -> None:
        """Wait until the connection has ended. If the server wants its greenlet back, the client goes elsewhere."""
        try:
            ended.wait()
        except BaseException:
            self.kernel.home.run(channel.close, CloseCode.DRAINING, come_back())
            raise

    def _log(self, error: HandshakeError) -> None:
        """Log the server's own faults, each once: every client would meet them again."""
        if error.status == 500 and error.message not in self._told:
            self._told.add(error.message)
            log.error("%s", error.message)
