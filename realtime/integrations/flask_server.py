"""Our own server for an app whose middleware takes the WebSockets."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from realtime.transports.base import Transport
from realtime.transports.http import HttpServer
from realtime.transports.server import ServerOptions

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["AppServer"]

log = logging.getLogger("realtime.flask")


class AppServer(Transport):
    """Serves HTTP. Its clients come by the transport of the middleware.

    :param tls: ``(certfile, keyfile)``.
    :raises ConfigurationError: an option that cannot work.
    """

    name = "http"

    def __init__(self, app: WSGIApplication, host: str, port: int, tls: tuple[str, str] | None) -> None:
        self._options = ServerOptions(app=app, host=host, port=port, tls=tls)
        self._server: HttpServer | None = None

    def on_start(self) -> None:
        """Listen. Raises PortInUse or ConfigurationError."""
        options = self._options
        server = HttpServer(
            host=options.host,
            port=options.port,
            path=None,
            upgrade=None,
            app=options.app,
            tls=options.tls_options(),
            limits=self.hub.limits,
            logger=log,
        )
        server.start()
        self._server = server
        host = f"[{server.host}]" if ":" in server.host else server.host
        log.info("the app is at http%s://%s:%d/", "s" if options.tls else "", host, server.port)

    def on_drain(self) -> None:
        """Accept nobody any more."""
        if self._server is not None:
            self._server.stop_accepting()

    def closing(self) -> int:
        """Requests in progress."""
        return self._server.unfinished if self._server is not None else 0

    def on_stop(self) -> None:
        """End what is left."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        server = self._server
        return {"name": self.name, **({"in_http": server.active, "counters": server.counters} if server else {})}
