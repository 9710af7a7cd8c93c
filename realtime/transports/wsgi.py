"""One WSGI exchange on a connection whose request head has been read and checked already.

gevent's pywsgi writes the answer: headers, chunks, streaming. It is kept away from what it is lenient about:
the head is parsed in :mod:`realtime.protocols.http`, and the request body is read here, strictly and with a
deadline against silence. pywsgi also loses some errors (an application's own ``BrokenPipeError`` counts as
the client's, and a kill during a response is answered 500), so the error handling is here as well.
"""

from __future__ import annotations

import errno
import io
import logging
import re
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

import gevent.socket
from gevent.pywsgi import LoggingLogAdapter, WSGIHandler
from greenlet import GreenletExit

from realtime.protocols.http import Request, render_response

__all__ = ["TAKE_OVER", "BodyFault", "Exchange", "InputBuffer", "WSGIApplication", "base_environ"]

TAKE_OVER = "realtime.take_over"
"""In the environ: a function by which the application takes the connection over, for a protocol of its own. It returns
the socket and what was received after the request's head. The application then answers nothing and returns ``()``."""

WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""Any WSGI application (PEP 3333): ``app(environ, start_response)`` returns the pieces of the body."""

_RECEIVE = 65536
_LONGEST_LINE = 1024  # bytes of a chunk's size line, extensions included; nothing real uses extensions
_LONGEST_TRAILERS = 8192  # bytes of trailer lines; checked and dropped, as WSGI has no place for them
_MOST_DRAINED = 256 * 1024
"""Bytes of an unread body that are read to keep the connection; past it closing is cheaper."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?")  # RFC 9112 section 7.1
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*")


class BodyFault(OSError):
    """A request body that breaks off, breaks RFC 9112, or goes silent. The application's ``read`` raises it;
    ``status`` and ``message`` are what the client is told if the application lets it through."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(errno.EIO, message)
        self.status = status
        self.message = message


class InputBuffer:
    """What a client has sent and nobody has consumed yet. Holds at most one ``recv`` of 64 KiB plus a line.

    Every read may switch greenlets, for as long as the socket's timeout.
    """

    def __init__(self, sock: gevent.socket.socket) -> None:
        self._sock = sock
        self._pending = b""

    def push(self, data: bytes) -> None:
        """Put ``data`` in front of what will be read next."""
        self._pending = data + self._pending

    def take(self) -> bytes:
        """Everything that has arrived and was not consumed; never waits."""
        data, self._pending = self._pending, b""
        return data

    def read(self, most: int) -> bytes:
        """Between 1 and ``most`` bytes. :raises BodyFault: the client is silent (408) or gone (400)."""
        if not self._pending:
            self._fill()
        data, self._pending = self._pending[:most], self._pending[most:]
        return data

    def read_line(self) -> bytes:
        """One line without its CR LF. :raises BodyFault: as :meth:`read`, or it is too long or ends
        wrongly."""
        while True:
            end = self._pending.find(b"\n")
            if end >= 0:
                line, self._pending = self._pending[: end + 1], self._pending[end + 1 :]
                if line[-2:] != b"\r\n" or len(line) > _LONGEST_LINE:
                    raise BodyFault(400, "The request body is not correctly chunked.")
                return line[:-2]
            if len(self._pending) > _LONGEST_LINE:
                raise BodyFault(400, "A line of the chunked request body is too long.")
            self._fill()

    def _fill(self) -> None:
        try:
            data = self._sock.recv(_RECEIVE)
        except TimeoutError:
            raise BodyFault(408, "The request body did not arrive in time.") from None
        except OSError:
            data = b""
        if not data:
            raise BodyFault(400, "The connection ended before the request body did.")
        self._pending += data


class _RawBody(io.RawIOBase):
    """The body of one request, exactly: ends where the head says, and raises where it is broken off."""

    def __init__(self, sock: gevent.socket.socket, source: InputBuffer, request: Request) -> None:
        self._source = source
        self._sock = sock
        self._chunked = "transfer-encoding" in request.headers
        self._left = int(request.headers.get("content-length", "0"))
        self.finished = not self._chunked and self._left == 0
        self.fault: BodyFault | None = None
        self.continue_due = (
            not self.finished
            and request.version == "HTTP/1.1"
            and request.headers.get("expect", "").lower() == "100-continue"
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of ``buffer``; 0 at the end. May switch. :raises BodyFault: again on every further
        read."""
        if self.fault is not None:
            raise self.fault
        if self.finished or not len(buffer):
            return 0
        try:
            return self._read_into(buffer)
        except BodyFault as fault:
            self.fault = fault
            raise

    def drain(self) -> bool:
        """Read what the application left, within bounds; True if the next request can be read after it."""
        drained = 0
        scratch = bytearray(16384)
        try:
            while not self.finished and drained <= _MOST_DRAINED:
                drained += self.readinto(scratch)
        except BodyFault:
            return False
        return self.finished

    def _read_into(self, buffer: Any) -> int:
        if self.continue_due:
            self.continue_due = False
            self._say_continue()
        if self._chunked and self._left == 0 and not self._next_chunk():
            return 0
        data = self._source.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left == 0:
            if not self._chunked:
                self.finished = True
            elif self._source.read_line():
                raise BodyFault(400, "A chunk of the request body is longer than its size says.")
        return len(data)

    def _next_chunk(self) -> bool:
        """Read a chunk's size line, and after the last one the trailers. False at the end of the body."""
        match = _CHUNK_SIZE.fullmatch(self._source.read_line())
        if match is None:
            raise BodyFault(400, "A chunk of the request body does not start with its size.")
        self._left = int(match[1], 16)
        if self._left:
            return True
        room = _LONGEST_TRAILERS
        while line := self._source.read_line():
            room -= len(line)
            if room < 0 or not _TRAILER.fullmatch(line):
                raise BodyFault(400, "The trailers of the request body are malformed or too long.")
        self.finished = True
        return False

    def _say_continue(self) -> None:
        try:
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        except OSError:
            raise BodyFault(400, "The connection ended before the request body did.") from None


def base_environ(host: str, port: int, *, secure: bool, logger: logging.Logger) -> dict[str, Any]:
    """What is the same in the WSGI environ of every request to one server (PEP 3333)."""
    return {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "realtime",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if secure else "http",
        "wsgi.errors": LoggingLogAdapter(logger, logging.ERROR),
        "wsgi.multithread": False,  # as pywsgi says: greenlets, of which only one runs at a time
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }


class Exchange(WSGIHandler):
    """Runs the application for one request and sends its answer. The socket needs a timeout: the longest
    silence.

    :param environ: from :func:`base_environ`; copied.
    :param address: the peer's, as ``accept`` gave it.
    :param keep: False if the connection shall end after this answer, whatever the client asks for.
    """

    def __init__(
        self,
        sock: gevent.socket.socket,
        address: tuple[Any, ...],
        request: Request,
        source: InputBuffer,
        *,
        app: WSGIApplication,
        environ: dict[str, Any],
        logger: logging.Logger,
        keep: bool = True,
    ) -> None:
        # pywsgi's constructor would open a file on the socket and wants its server: neither is needed here.
        self.socket = sock
        self.application = app
        self.command = request.method
        self.requestline = f"{request.method} {request.target} {request.version}"
        self.request_version = request.version
        # An HTTP/1.0 client that is kept alive needs every answer's length in advance; few are left to
        # benefit.
        asked = [option.strip().lower() for option in request.headers.get("connection", "").split(",")]
        self.close_connection = not keep or request.version == "HTTP/1.0" or "close" in asked
        self._logger = logger
        self._source = source
        self._body = _RawBody(sock, source, request)
        self._sent = 0
        self._held: bytearray | None = None
        self._client_gone = False
        self.failed = False  # True once the application has raised
        self.taken = False  # True once the application has the socket
        self.environ = self._make_environ(environ, request, address)

    def run(self) -> bool:
        """Call the application and send what it returns; True if the connection can carry another request.

        Switches greenlets wherever the application, the client or the network makes it wait. Lets nothing out
        but :class:`GreenletExit` and :class:`KeyboardInterrupt`.
        """
        try:
            self.run_application()
            self._check_length()
        except (GreenletExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._answer_failure(error)
        if self.taken:
            return False
        self._logger.debug('"%s" %s', self.requestline, self.code)
        return not self.close_connection and self._body.drain()

    def _take_over(self) -> tuple[Any, bytes]:
        """Give the connection away: see ``TAKE_OVER``."""
        self.taken = True
        return self.socket, self._source.take()

    def _make_environ(self, base: dict[str, Any], request: Request, address: tuple[Any, ...]) -> dict[str, Any]:
        environ = dict(base)
        environ["REQUEST_METHOD"] = request.method
        environ["PATH_INFO"] = unquote(request.raw_path, "latin-1")  # PEP 3333: bytes as Latin-1 text
        environ["QUERY_STRING"] = request.query_string
        environ["SERVER_PROTOCOL"] = request.version
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = str(address[0]), str(address[1])
        environ[TAKE_OVER] = self._take_over
        environ["wsgi.input"] = io.BufferedReader(self._body, 16384)
        for name, value in request.headers.raw:
            if "_" in name:  # would be indistinguishable from "-", which a proxy in front may have set or removed
                continue
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = "HTTP_" + key
            if key in environ:
                value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
            environ[key] = value
        return environ

    def finalize_headers(self) -> None:
        """Add what only the server knows; called by pywsgi right before the headers go out."""
        super().finalize_headers()
        fields: Any = self.response_headers
        if self._body.fault or self._body.continue_due:
            # A client that still waits for "100 Continue" must not get one inside the answer; whether it then
            # sends the body is its choice (RFC 9110 section 10.1.1), so nothing can be read after this
            # answer.
            self._body.continue_due = False
            self.close_connection = True
        if self.close_connection and not any(name.lower() == b"connection" for name, _ in fields):
            fields.append((b"Connection", b"close"))
        if self.command == "HEAD":
            self.response_use_chunked = False  # or an empty chunk would follow the headers

    def _write_with_headers(self, data: bytes) -> None:
        """Send the headers and a small first piece at once: one system call, one packet."""
        self._held = bytearray() if len(data) <= _RECEIVE else None
        super()._write_with_headers(data)  # type: ignore[misc]
        held, self._held = self._held, None
        if held is not None:
            self._sendall(held)

    def _write(self, data: bytes) -> None:
        self._sent += len(data)
        if self.command != "HEAD":  # RFC 9110 section 9.3.2
            super()._write(data)  # type: ignore[misc]

    def _sendall(self, data: bytes | bytearray) -> None:
        """Send all, however long it takes, as long as the client takes some before each timeout."""
        if self._held is not None:
            self._held += data
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self.socket.send(rest) :]
        except OSError:
            self._client_gone = True
            raise
        self.response_length += len(data)

    def _check_length(self) -> None:
        """Close after an answer whose Content-Length was wrong: the client could not tell where it ends."""
        if self.taken:
            return
        if not self.headers_sent:
            raise AssertionError("the application did not call start_response")
        promised = self.provided_content_length
        if promised is not None and self.command != "HEAD" and promised != str(self._sent):
            if self.code not in (204, 304):
                self._logger.error("%s: Content-Length %s, but %d bytes", self.requestline, promised, self._sent)
            self.close_connection = True

    def _answer_failure(self, error: BaseException) -> None:
        """500 and a log line for the application's fault, a status for the client's, nothing if it is
        gone."""
        self.close_connection = True
        if self._client_gone:
            return
        if self.taken:
            self.failed = True
            self._logger.error("%s: the application failed", self.requestline, exc_info=error)
            return
        fault = self._body.fault
        if fault is not None:
            status, text = fault.status, fault.message
        else:
            self.failed = True
            self._logger.error("%s: the application failed", self.requestline, exc_info=error)
            status, text = 500, "The server failed to answer this request."
        if self.headers_sent:
            return
        self.code = status
        dated = {"Date": formatdate(usegmt=True)}
        try:
            self._sendall(render_response(status, dated, f"{text}\n", head_only=self.command == "HEAD"))
        except OSError:
            self._logger.debug("%s: client gone before the answer", self.requestline, exc_info=True)
