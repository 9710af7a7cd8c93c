"""Which server made a WSGI request, where its socket is, and how the server lets go of it.

The greenlet or thread of a request stays in the application for as long as the connection lives, as these servers
expect of a WebSocket, and so their limits (gunicorn's ``worker_connections``) count it. When it leaves, the server must
neither write an answer nor read another request: each has its own way of being told so.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import socket as stdlib_socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NoReturn
from urllib.parse import quote

import gevent.socket
import gevent.ssl
from gevent import pywsgi

from realtime.codes import CloseCode
from realtime.errors import HandshakeError
from realtime.protocols.frames import Opcode, encode_frame
from realtime.protocols.handshake import Accepted
from realtime.protocols.http import Headers, Request, reason_phrase
from realtime.transports.sockets import LentTLS, PlainSocket, take_over
from realtime.transports.wsgi import TAKE_OVER

__all__ = ["ConnectionTaken", "Environ", "Host", "StartResponse", "find_host", "request_from"]

log = logging.getLogger("realtime.wsgi")

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

ADVICE = "serve it by `gunicorn -k gevent -w 4 module:app`, by gevent.pywsgi, or by WebSocketTransport(app=...)"
_HOP_BY_HOP = frozenset({"connection", "upgrade"})  # a WSGI application must not set them (PEP 3333)
_CLOSE_CODES = {
    400: CloseCode.POLICY_VIOLATION,
    401: CloseCode.UNAUTHORIZED,
    403: CloseCode.FORBIDDEN,
    426: CloseCode.POLICY_VIOLATION,
    503: CloseCode.DRAINING,
}
"""What says the same as an HTTP status after the handshake; any other status is a fault of ours."""

_RECEIVE = 65536
_LINGER, _LINGER_BYTES = 2.0, 1024 * 1024  # seconds of silence, and bytes, until a client that was refused must be gone
_LONGEST_REASON = 123  # bytes of UTF-8 in a close frame (RFC 6455 section 5.5)


class ConnectionTaken(ConnectionResetError):
    """Raised through a server when a WebSocket has ended that it knows nothing of. Not a fault: a server takes it as
    what it is to it, a connection that is gone."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the connection was taken over, and has ended")


def request_from(environ: Environ) -> Request:
    """Return the request as the rest of the package knows it."""
    fields = [
        (name[5:].replace("_", "-").title(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_") and isinstance(value, str)
    ]
    fields += [
        (name.replace("_", "-").title(), environ[name])
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        if environ.get(name)
    ]
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    raw_path = quote(path.encode("latin-1"), safe="/:@!$&'()*+,;=~")
    query = environ.get("QUERY_STRING", "")
    return Request(
        method=environ["REQUEST_METHOD"],
        target=f"{raw_path}?{query}" if query else raw_path,
        raw_path=raw_path,
        query_string=query,
        version=environ.get("SERVER_PROTOCOL", "HTTP/1.1"),
        headers=Headers(fields),
        remote_address=environ.get("REMOTE_ADDR"),
        secure=environ.get("wsgi.url_scheme") == "https",
    )


def find_host(environ: Environ) -> Host:
    """Return what is known of the server of this request."""
    if TAKE_OVER in environ:
        return OwnServer(environ)
    if environ.get("wsgi.websocket") is not None and hasattr(environ["wsgi.websocket"], "stream"):
        return GeventWebSocket(environ)
    if "gunicorn.socket" in environ:
        return Gunicorn(environ)
    if "werkzeug.socket" in environ:
        return Werkzeug(environ)
    if _gevent_reader(environ) is not None:
        return Pywsgi(environ)
    return NoSocket(environ)


class Host(ABC):
    """The server of one request."""

    stays = True
    """Whether the request's greenlet or thread has to stay until the connection has ended."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ

    def agreed(self, accepted: Accepted) -> Accepted:
        """Return what the handshake agreed on, where the server has answered it before us."""
        return accepted

    def refuse(self, error: HandshakeError, start_response: StartResponse) -> Iterable[bytes]:
        """Answer that there will be no WebSocket."""
        body = f"{error.message}\n".encode()
        headers = [(name, value) for name, value in error.headers.items() if name.lower() not in _HOP_BY_HOP]
        headers += [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response(f"{error.status} {reason_phrase(error.status)}", headers)
        return [] if self._environ["REQUEST_METHOD"] == "HEAD" else [body]

    @abstractmethod
    def take(self) -> tuple[Any, bytes]:
        """Return the socket, ours from now on, and what was received after the request's head. Never waits.

        :raises HandshakeError: 500, if the server is one that no connection can be taken from.
        """

    @abstractmethod
    def leave(self, start_response: StartResponse) -> Iterable[bytes]:
        """Return or raise what makes the server forget the request, whose connection has ended."""


class OwnServer(Host):
    """Our own, below another path than its own."""

    stays = False

    def take(self) -> tuple[Any, bytes]:
        sock, leftover = self._environ[TAKE_OVER]()
        return _claim(sock, None)[0], leftover

    def leave(self, start_response: StartResponse) -> Iterable[bytes]:
        return ()


class Pywsgi(Host):
    """gevent's, and gunicorn's worker that uses it."""

    def take(self) -> tuple[Any, bytes]:
        if _is_wsgiref(self._environ):  # in a process that was monkey-patched
            raise _unable(
                "wsgiref's server serves one request at a time, so one WebSocket would be its last: " + ADVICE
            )
        rfile = _gevent_reader(self._environ)
        return _claim(rfile.raw._sock, rfile)

    def leave(self, start_response: StartResponse) -> NoReturn:
        start_response("101 Switching Protocols", [])  # for its log only
        raise ConnectionTaken


def _gevent_reader(environ: Environ) -> Any:
    """Return the reader on gevent's socket that pywsgi gives a request, as it is or wrapped; None for another's."""
    source = environ.get("wsgi.input")
    rfile = source.rfile if isinstance(source, pywsgi.Input) else source
    sock = getattr(getattr(rfile, "raw", None), "_sock", None)
    return rfile if isinstance(sock, (gevent.socket.socket, gevent.ssl.SSLSocket)) else None


class GeventWebSocket(Host):
    """gevent-websocket's handler, by itself or in its gunicorn worker: it has answered the handshake."""

    def __init__(self, environ: Environ) -> None:
        super().__init__(environ)
        self._websocket = environ["wsgi.websocket"]
        self._handler = self._websocket.stream.handler

    def agreed(self, accepted: Accepted) -> Accepted:
        answered = {name.lower(): value for name, value in self._handler.response_headers}
        subprotocol = answered.get(b"sec-websocket-protocol")
        return replace(
            accepted,
            response=b"",
            subprotocol=None if subprotocol is None else subprotocol.decode("latin-1"),
            deflate=None,
            extensions="",
        )

    def refuse(self, error: HandshakeError, start_response: StartResponse) -> Iterable[bytes]:
        """Too late for an HTTP status: close with the code that means the same. Switches greenlets."""
        self._websocket.closed = True  # it would send another frame, and no code (0.10.1)
        code = _CLOSE_CODES.get(error.status, CloseCode.INTERNAL_ERROR)
        reason = error.message.encode()[:_LONGEST_REASON].decode(errors="ignore").encode()
        sock = self._handler.socket
        sock.settimeout(_LINGER)
        try:
            sock.sendall(encode_frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason))
            sock.shutdown(stdlib_socket.SHUT_WR)
            rest = _LINGER_BYTES
            while rest > 0 and (data := sock.recv(_RECEIVE)):  # closing at once could reset what it has not read
                rest -= len(data)
        except OSError:
            pass  # it is gone, or does not go
        return ()

    def take(self) -> tuple[Any, bytes]:
        self._websocket.closed = True  # for its owner, who would close it when we leave
        return _claim(self._handler.socket, self._handler.rfile)

    def leave(self, start_response: StartResponse) -> Iterable[bytes]:
        return ()  # it ignores what a WebSocket's application returns, and closes the connection


class Gunicorn(Host):
    """gunicorn's gevent worker and its threads."""

    def take(self) -> tuple[Any, bytes]:
        if not self._environ.get("wsgi.multithread"):
            raise _unable(
                "gunicorn's sync worker serves one request at a time, so one WebSocket would be its last: " + ADVICE
            )
        unreader = self._environ["wsgi.input"].reader.unreader
        leftover = unreader.buf.getvalue()
        unreader.buf = io.BytesIO()
        self._sock = self._environ["gunicorn.socket"]
        lent = not isinstance(self._sock, (gevent.socket.socket, gevent.ssl.SSLSocket))
        return _claim(self._sock, None, lent=lent)[0], leftover

    def leave(self, start_response: StartResponse) -> NoReturn:
        _end(self._sock)
        raise ConnectionTaken


class Werkzeug(Host):
    """Flask's server for development."""

    def take(self) -> tuple[Any, bytes]:
        if not self._environ.get("wsgi.multithread"):
            raise _unable(
                "Werkzeug's server serves one request at a time here, so one WebSocket would be its last: "
                "run it with threaded=True (flask run --with-threads)"
            )
        self._sock = self._environ["werkzeug.socket"]
        return _claim(self._sock, self._environ["wsgi.input"], lent=True)

    def leave(self, start_response: StartResponse) -> NoReturn:
        _end(self._sock)
        if "werkzeug.debug.preserve_context" in self._environ:
            # Its debugger would show any Exception as the application's fault; this ends only the request's thread,
            # and without a word (threading.excepthook).
            raise SystemExit
        raise ConnectionTaken


class NoSocket(Host):
    """One that shows its applications no socket."""

    def take(self) -> NoReturn:
        server = "wsgiref's server" if _is_wsgiref(self._environ) else self._environ.get("SERVER_SOFTWARE")
        server = server or _name_of(self._environ)
        raise _unable(f"{server} does not let a WSGI application have its connections: " + ADVICE)

    def leave(self, start_response: StartResponse) -> NoReturn:
        raise ConnectionTaken


def _is_wsgiref(environ: Environ) -> bool:
    return bool(environ.get("SERVER_SOFTWARE", "").startswith("WSGIServer/"))


def _name_of(environ: Environ) -> str:
    """Return who serves, as far as the environ betrays it."""
    prefixes = {name.split(".")[0] for name in environ if "." in name} - {"wsgi"}
    known = {"uwsgi": "uWSGI", "mod_wsgi": "mod_wsgi", "waitress": "waitress", "eventlet": "eventlet", "asgi": "ASGI"}
    return next((known[name] for name in sorted(prefixes & known.keys())), "this server")


def _unable(text: str) -> HandshakeError:
    return HandshakeError(500, f"WebSockets cannot be served here: {text}.")


def _claim(sock: Any, rfile: Any, *, lent: bool = False) -> tuple[Any, bytes]:
    """Return a socket for our own use, and what ``rfile`` holds of its bytes.

    :param lent: the server looks at its socket once more when the request ends, and keeps a descriptor for that.
    """
    leftover = _buffered(sock, rfile) if rfile is not None else b""
    if hasattr(sock, "pending"):  # TLS: the state of the encryption is in the object
        return (LentTLS(sock) if lent else sock), leftover
    if lent:
        return PlainSocket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno())), leftover
    return take_over(sock), leftover


def _buffered(sock: Any, rfile: Any) -> bytes:
    """Return what a buffered reader on the socket holds, and what has arrived if that is nothing."""
    sock.settimeout(0)
    try:
        return bytes(rfile.peek())
    except (OSError, ValueError):  # TLS wants more before it has anything; or the connection is gone
        return b""


def _end(sock: Any) -> None:
    """Have the server find the end of the connection in a socket that it keeps."""
    try:
        sock.shutdown(stdlib_socket.SHUT_RDWR)
    except OSError:
        pass  # so it does already
