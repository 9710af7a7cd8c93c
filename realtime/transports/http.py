"""What carries every connection until it has become a WebSocket, or has ended.

One greenlet a connection: TLS, then the request head with its limits and its deadline, then the route: a file,
the WebSocket path, the WSGI application, or 404. Nothing is read leniently (:mod:`realtime.protocols.http`), so
no request means one thing here and another to a proxy in front.
"""

from __future__ import annotations

import logging
import socket as stdlib_socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

from realtime.config import Limits
from realtime.errors import ConfigurationError, HandshakeError
from realtime.protocols.http import HeadReader, Request, parse_request, render_response
from realtime.transports.listener import Address, Listener
from realtime.transports.wsgi import Exchange, InputBuffer, WSGIApplication, base_environ

__all__ = ["HttpServer", "TLSOptions", "Upgrade"]

Upgrade = Callable[[Request, gevent.socket.socket, bytes], None]
"""Takes a connection over: ``upgrade(request, socket, bytes already received after the head)``. It answers
the handshake, gives the socket its owner and returns; it does not stay for the life of the WebSocket, because
until it returns the connection counts as one in its HTTP phase. It raises HandshakeError, before writing
anything, to have that status answered; the socket is its own only once it has returned."""

_RECEIVE = 16384
_LINGER = 2.0  # seconds to wait after an answer for the client to read it and close
_LINGER_BYTES = 16 * 1024 * 1024  # and bytes of its that are thrown away meanwhile
_ARRIVAL = 1.0  # seconds after accept within which the first byte of a request is still expected
_EXAMPLE = 'new WebSocket("{scheme}://{host}{path}")'


@dataclass(frozen=True, kw_only=True)
class TLSOptions:
    """Serve TLS (1.2 or later) with this certificate. Both files are PEM.

    :raises ConfigurationError: a file does not exist or cannot be read; the text names it.
    """

    certfile: str
    """The certificate, followed by any intermediate ones."""

    keyfile: str
    """Its private key, without a passphrase."""

    def __post_init__(self) -> None:
        for option in ("certfile", "keyfile"):
            path = getattr(self, option)
            try:
                with open(path, "rb"):
                    pass
            except (OSError, TypeError, ValueError) as error:
                raise ConfigurationError(f"TLSOptions({option}={path!r}): cannot be read: {error}") from error

    def context(self) -> gevent.ssl.SSLContext:
        """A server-side context. :raises ConfigurationError: the files are not a certificate and its key."""
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An empty passphrase fails on an encrypted key; without one OpenSSL would ask on the terminal.
            context.load_cert_chain(self.certfile, self.keyfile, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"TLSOptions(certfile={self.certfile!r}, keyfile={self.keyfile!r}): "
                f"not a certificate and its unencrypted key in PEM format: {error}"
            ) from error
        return context


class _Connection:
    """One accepted socket in its HTTP phase. ``sock`` is None once it has been closed or handed over."""

    __slots__ = ("accepted_at", "address", "idle", "sock", "source")

    def __init__(self, sock: gevent.socket.socket, address: Address) -> None:
        self.sock: gevent.socket.socket | None = sock
        self.address = address
        self.accepted_at = time.monotonic()
        self.source = InputBuffer(sock)
        self.idle = True  # no part of a request has arrived: can be cut without anyone losing anything

    def close(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()


def _wants_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket. HTTP/1.0 cannot: RFC 9110 section 7.8."""
    asked = {protocol.strip().lower() for protocol in request.headers.get("upgrade", "").split(",")}
    return "websocket" in asked and request.version != "HTTP/1.0"


class HttpServer:
    """Listens, and gives every connection a greenlet until it is a WebSocket or has ended.

    :param path: where WebSockets connect, exactly; None for every path: then
        ``app`` gets the requests that ask for no WebSocket.
    :param upgrade: see :data:`Upgrade`; None if ``app`` gets every request, and upgrades by ``TAKE_OVER``.
    :param app: the WSGI application that answers every other path; 404 without one.
    :param files: paths that are answered before any of these, each by a WSGI application of its own.
    :param limits: ``before_authentication`` bounds a request head, ``handshake`` how long one may take,
        counted from accept (TLS included) or from the answer before it, and also how long a request body may
        be silent and a client may take nothing of an answer.
    :param reuse_port: share the port with other processes (``SO_REUSEPORT``).
    :param listening: a socket that listens already, to be used instead of opening one.
    :param max_handshakes: connections in their HTTP phase at once. Above it nothing is accepted until one
        ends; further clients wait in the system's backlog. Each costs about 10 KiB (measured) and a
        descriptor.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        path: str | None,
        upgrade: Upgrade | None,
        app: WSGIApplication | None = None,
        files: Mapping[str, WSGIApplication] | None = None,
        tls: TLSOptions | None = None,
        limits: Limits | None = None,
        reuse_port: bool = False,
        listening: stdlib_socket.socket | None = None,
        max_handshakes: int = 4096,
        logger: logging.Logger | None = None,
    ) -> None:
        if path is not None and not path.startswith("/"):
            raise ConfigurationError(f"path={path!r}: must start with /")
        if max_handshakes < 1:
            raise ConfigurationError(f"max_handshakes={max_handshakes!r}: must be at least 1")
        self._path = path
        self._upgrade = upgrade
        self._app = app
        self._files = dict(files or {})
        self._tls = None if tls is None else tls.context()
        self._limits = limits or Limits()
        self._max_handshakes = max_handshakes
        self._logger = logger or logging.getLogger("realtime.transports")
        self._listener = Listener(
            host,
            port,
            self._take,
            reuse_port=reuse_port,
            listening=listening,
            name="HTTP listener",
            logger=self._logger,
        )
        self._connections: dict[gevent.Greenlet[..., None], _Connection] = {}
        self._environ: dict[str, Any] = {}
        self._stopping = False
        self._counters = {
            "http_requests": 0,
            "http_refused": 0,
            "handshake_timeouts": 0,
            "tls_failures": 0,
            "upgrades": 0,
            "upgrades_refused": 0,
            "app_failures": 0,
        }

    @property
    def host(self) -> str:
        return self._listener.host

    @property
    def port(self) -> int:
        """The port; the one the system picked, after ``start()`` with ``port=0``."""
        return self._listener.port

    @property
    def active(self) -> int:
        """Connections in their HTTP phase now."""
        return len(self._connections)

    @property
    def unfinished(self) -> int:
        """Connections that lose something if they are cut now: in a request, or too new to have sent it."""
        new = time.monotonic() - _ARRIVAL
        return sum(1 for one in self._connections.values() if not one.idle or one.accepted_at > new)

    @property
    def counters(self) -> dict[str, int]:
        """What has happened since the server was made, by name; the listener's counters included."""
        return {**self._listener.counters, **self._counters}

    def start(self) -> None:
        """Listen and serve. :raises PortInUse, ConfigurationError: see :meth:`Listener.start`."""
        self._stopping = False
        self._listener.start()
        self._environ = base_environ(self.host, self.port, secure=self._tls is not None, logger=self._logger)

    def stop_accepting(self) -> None:
        """Close the port; connections that are being served go on to the end of their request."""
        self._stopping = True
        self._listener.stop_accepting()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop accepting, let requests that have begun finish for up to ``timeout`` seconds, end the rest.

        When it returns no greenlet and no socket of the server is left, but those handed to ``upgrade``.
        """
        self._stopping = True
        self._listener.close()
        gevent.killall([greenlet for greenlet in self._others() if self._connections[greenlet].idle])
        gevent.joinall(self._others(), timeout=timeout)
        # An application may catch GreenletExit, so again; one that catches it every time is abandoned.
        for _ in range(3):
            gevent.killall(self._others(), timeout=1.0)
        for greenlet in self._others():
            self._ended(greenlet)

    def _others(self) -> list[gevent.Greenlet[..., None]]:
        """The greenlets of all connections, but for one that is itself stopping the server."""
        return [greenlet for greenlet in self._connections if greenlet is not gevent.getcurrent()]

    def _take(self, sock: gevent.socket.socket, address: Address) -> None:
        """The listener's ``on_accept``."""
        connection = _Connection(sock, address)
        greenlet = gevent.Greenlet(self._serve, connection)
        self._connections[greenlet] = connection
        greenlet.rawlink(self._ended)
        greenlet.start()
        if len(self._connections) >= self._max_handshakes:
            self._listener.pause()

    def _ended(self, greenlet: gevent.Greenlet[..., None]) -> None:
        """Also the only thing that runs for a greenlet that was killed before its first turn."""
        connection = self._connections.pop(greenlet, None)
        if connection is not None:
            connection.close()
        if len(self._connections) < self._max_handshakes:
            self._listener.resume()

    def _serve(self, connection: _Connection) -> None:
        """The life of one connection; the greenlet's function. Closes the socket unless it was handed
        over."""
        try:
            first = True
            while self._serve_one(connection, first=first):
                first = False
                if self._stopping:
                    break
            self._linger(connection)
        except OSError:
            self._logger.debug("%s: connection lost", connection.address, exc_info=True)
        except Exception:
            self._logger.exception("%s: a connection failed", connection.address)
        finally:
            connection.close()

    def _serve_one(self, connection: _Connection, *, first: bool) -> bool:
        """Read one request and answer it; True if another one may follow."""
        connection.idle = True
        try:
            request = self._read_request(connection, first=first)
        except HandshakeError as error:
            connection.idle = False
            self._refuse(connection, error)
            return False
        if request is None:
            connection.close()
            return False
        connection.idle = False
        self._counters["http_requests"] += 1
        app = self._files.get(request.path)
        try:
            if app is None and self._is_endpoint(request):
                self._serve_websocket(connection, request)
                return False
            app = app or self._app
            if app is None:
                raise HandshakeError(404, "Nothing is served at this path.")
        except HandshakeError as error:
            self._refuse(connection, error, head_only=request.method == "HEAD")
            return False
        return self._serve_app(connection, request, app)

    def _read_request(self, connection: _Connection, *, first: bool) -> Request | None:
        """The next request of the connection, or None if there is none: the client left, or sent nothing.

        One timer spans TLS and the head, because a timeout of the socket would start anew with every byte.

        :raises HandshakeError: it is malformed, too long, or half of it arrived in time (408).
        """
        reader = HeadReader(self._limits.before_authentication)
        deadline = gevent.Timeout.start_new(self._limits.handshake)
        try:
            if first and self._tls is not None:
                self._start_tls(connection, self._tls)
            head = self._read_head(connection, reader)
        except gevent.Timeout as timeout:
            if timeout is not deadline:
                raise
            if first or reader.started:
                self._counters["handshake_timeouts"] += 1
            if not reader.started:
                return None
            raise HandshakeError(408, "The request did not arrive in time.") from None
        finally:
            deadline.close()
        if head is None:
            return None
        return parse_request(head, remote_address=str(connection.address[0]), secure=self._tls is not None)

    def _start_tls(self, connection: _Connection, context: gevent.ssl.SSLContext) -> None:
        assert connection.sock is not None
        plain = connection.sock
        try:
            # Takes the descriptor over from the plain socket object.
            wrapped = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            connection.sock = wrapped
            connection.source = InputBuffer(wrapped)
            wrapped.do_handshake()
        except OSError:
            self._counters["tls_failures"] += 1
            raise

    def _read_head(self, connection: _Connection, reader: HeadReader) -> bytes | None:
        """Read up to the end of a head; what arrived beyond it goes back. None at the end of the
        connection."""
        assert connection.sock is not None
        connection.sock.settimeout(None)  # the caller's timer is the deadline
        data = connection.source.take()
        while True:
            head = reader.feed(data) if data else None
            if head is not None:
                connection.source.push(reader.leftover)
                return head
            connection.idle = not reader.started
            data = connection.sock.recv(_RECEIVE)
            if not data:
                return None

    def _is_endpoint(self, request: Request) -> bool:
        if self._upgrade is None:
            return False
        if self._path is not None:
            return request.path == self._path
        return self._app is None or _wants_upgrade(request)

    def _serve_websocket(self, connection: _Connection, request: Request) -> None:
        """Hand the connection over. :raises HandshakeError: it is not a handshake, or ``upgrade`` refuses
        it."""
        if request.method != "GET":
            raise HandshakeError(405, "A WebSocket endpoint answers GET only.", {"Allow": "GET"})
        if not _wants_upgrade(request):
            raise self._upgrade_required(request)
        assert connection.sock is not None
        assert self._upgrade is not None
        try:
            self._upgrade(request, connection.sock, connection.source.take())
        except HandshakeError:
            self._counters["upgrades_refused"] += 1
            raise
        except Exception as error:
            self._counters["upgrades_refused"] += 1
            self._logger.exception("%s: the WebSocket handshake failed", request.target)
            raise HandshakeError(500, "The server failed to answer this handshake.") from error
        connection.sock = None  # it has another owner now
        self._counters["upgrades"] += 1

    def _upgrade_required(self, request: Request) -> HandshakeError:
        example = _EXAMPLE.format(
            scheme="wss" if request.secure else "ws",
            host=request.headers.get("host", f"{self.host}:{self.port}"),
            path=request.raw_path,
        )
        text = f"This is a WebSocket endpoint. From a browser: {example}"
        return HandshakeError(426, text, {"Upgrade": "websocket", "Connection": "Upgrade, close"})

    def _serve_app(self, connection: _Connection, request: Request, app: WSGIApplication) -> bool:
        assert connection.sock is not None
        connection.sock.settimeout(self._limits.handshake)
        exchange = Exchange(
            connection.sock,
            connection.address,
            request,
            connection.source,
            app=app,
            environ=self._environ,
            logger=self._logger,
            keep=not self._stopping,
        )
        keep = exchange.run()
        self._counters["app_failures"] += exchange.failed
        if exchange.taken:
            connection.sock = None  # it has another owner now
            self._counters["upgrades"] += 1
        return keep

    def _refuse(self, connection: _Connection, error: HandshakeError, *, head_only: bool = False) -> None:
        """Answer with the error's status and text, then the connection ends."""
        self._counters["http_refused"] += 1
        assert connection.sock is not None
        headers = {"Date": formatdate(usegmt=True), **error.headers}
        try:
            answer = render_response(error.status, headers, f"{error.message}\n", head_only=head_only)
        except ValueError:
            self._logger.exception("a refusal that is not valid HTTP: %r", error)
            answer = render_response(500, {}, "The server failed to answer this request.\n", head_only=head_only)
        connection.sock.settimeout(_LINGER)
        connection.sock.sendall(answer)

    def _linger(self, connection: _Connection) -> None:
        """Close so that the client can read our last answer (RFC 9112 section 9.6).

        Closing while bytes of the client's wait unread makes the system send a reset, which may overtake the
        answer. So: say that we are done, then throw away what still comes, for a bounded time and size.
        """
        sock = connection.sock
        if sock is None:
            return
        scratch = bytearray(65536)
        rest = _LINGER_BYTES
        with gevent.Timeout(_LINGER, False):  # type: ignore[arg-type]  # False: just leave the block
            sock.settimeout(None)
            if isinstance(sock, gevent.ssl.SSLSocket):
                try:
                    sock.unwrap()
                except (OSError, ValueError):  # the peer does not say goodbye, or says something else
                    pass
            sock.shutdown(gevent.socket.SHUT_WR)
            while rest > 0 and (received := sock.recv_into(scratch)):
                rest -= received
