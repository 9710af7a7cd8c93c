"""HTTP/1.1 message heads, strictly: bytes in, a :class:`Request` or a documented error out.

Only what stands before a WebSocket is here: the request line, the header fields, and the short answers a
server gives when it refuses. Bodies belong to whoever carries the connection. Strict, because a lenient
reader behind or in front of another server is how requests are smuggled (RFC 9112 section 11.2): a byte
sequence either has exactly one meaning by RFC 9110 and 9112, or it is refused with the status those documents name.

No clock, no sockets, no gevent; nothing here switches greenlets.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from realtime.errors import HandshakeError

__all__ = [
    "MAX_HEADER_FIELDS",
    "HeadReader",
    "Headers",
    "Request",
    "Response",
    "parse_request",
    "parse_response",
    "reason_phrase",
    "render_response",
]

MAX_HEADER_FIELDS = 100
"""Header fields of one message. Go and Node stop at bytes alone, Apache and gunicorn at 100 fields; browsers
send about 20. More is answered 431."""

_HEAD_END = b"\r\n\r\n"
_CHUNKED = "chunked"
_LONGEST_CONTENT_LENGTH = 18  # digits: below 2**63 whatever they are, and far more than anything sends

# RFC 9112 section 2.2: CR and LF only as a pair. Other controls are allowed nowhere in a head; seeing one
# early answers a TLS hello on a plain port at once instead of at the deadline.
_FORBIDDEN_IN_HEAD = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_VERSION = re.compile(r"HTTP/[0-9]\.[0-9]")  # RFC 9112 section 2.3
_TARGET = re.compile(r"[!\"$-~]+")  # visible ASCII without "#": a fragment never goes over the wire
_ABSOLUTE = re.compile(r"https?://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)  # RFC 9112 section 3.2.2
_AUTHORITY = re.compile(  # RFC 3986 section 3.2: an IP literal or a registered name, and a port
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 section 5.5, obs-text included
_STATUS_LINE = re.compile(r"(HTTP/1\.[01]) ([1-9][0-9]{2}) ([\t -~\x80-\xff]*)")  # RFC 9112 section 4


class Headers(Mapping[str, str]):
    """Header fields in the order they were sent; names compare without regard to case.

    ``headers["accept"]`` joins repeated fields with ``", "`` (RFC 9110 section 5.2); :meth:`get_all` keeps
    them apart. Iterating gives each name once, in lower case. Immutable. Look-up is a linear search: heads
    are short, and no index has to be kept for every idle connection.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = tuple(fields)

    @property
    def raw(self) -> list[tuple[str, str]]:
        """Every field as it was sent: name and value without the blanks around it."""
        return list(self._fields)

    def get_all(self, name: str) -> list[str]:
        """The values of every field of that name, in order; an empty list if there is none."""
        wanted = name.lower()
        return [value for field, value in self._fields if field.lower() == wanted]

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get_all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self._fields))

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self._fields})

    def __repr__(self) -> str:
        return f"Headers({list(self._fields)!r})"


class Request:
    """The head of one HTTP request, checked.

    :param target: the request target exactly as sent.
    :param raw_path: its path, still percent-encoded; ``"*"`` for ``OPTIONS *``.
    :param query_string: what follows ``?``, still encoded; empty if there is none.
    :param version: ``"HTTP/1.0"`` or ``"HTTP/1.1"``.
    :param remote_address: the peer's IP address; None if the caller has none to tell.
    :param secure: True if the request came over TLS.
    """

    def __init__(
        self,
        *,
        method: str,
        target: str,
        raw_path: str,
        query_string: str,
        version: str,
        headers: Headers,
        remote_address: str | None = None,
        secure: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.raw_path = raw_path
        self.path = unquote(raw_path)  # invalid UTF-8 becomes U+FFFD: such a path matches no route
        self.query_string = query_string
        self.version = version
        self.headers = headers
        self.remote_address = remote_address
        self.secure = secure

    @cached_property
    def query_all(self) -> dict[str, list[str]]:
        """Every value of every query parameter, in order."""
        found: dict[str, list[str]] = {}
        for name, value in parse_qsl(self.query_string, keep_blank_values=True):
            found.setdefault(name, []).append(value)
        return found

    @property
    def query(self) -> dict[str, str]:
        """The query parameters; of a repeated one the first value."""
        return {name: values[0] for name, values in self.query_all.items()}

    @cached_property
    def cookies(self) -> dict[str, str]:
        """The cookies by name, unquoted; of a repeated one the first, which is the most specific path's
        (RFC 6265 section 5.4)."""
        found: dict[str, str] = {}
        for field in self.headers.get_all("cookie"):
            for pair in field.split(";"):
                name, equals, value = pair.partition("=")
                if not equals:
                    continue
                value = value.strip(" \t")
                if len(value) >= 2 and value[0] == value[-1] == '"':
                    value = value[1:-1]
                found.setdefault(name.strip(" \t"), value)
        return found

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target} {self.version}>"


@dataclass(frozen=True)
class Response:
    """The head of one HTTP response, as a client sees it."""

    status: int
    reason: str
    headers: Headers
    version: str = "HTTP/1.1"


class HeadReader:
    """Collects the bytes of one message head as they arrive; the next head needs a new reader.

    Holds at most ``limit`` bytes plus the last piece fed: a longer head is refused as soon as that is
    certain, however much of it would follow. Each byte is looked at once, so a head that trickles in costs no
    more than one that comes whole.

    :param limit: bytes of start line and header fields together, the blank line included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._skipped_blank = False
        self._leftover = b""

    @property
    def leftover(self) -> bytes:
        """What was fed after the end of the head; empty until the head is complete."""
        return self._leftover

    @property
    def started(self) -> bool:
        """True once a byte of the head itself, not only a blank line before it, has arrived."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> bytes | None:
        """Add ``data``; return the whole head, its blank line included, or None if more is needed.

        :raises HandshakeError: 431 past the limit; 400 for a lone CR or LF or a control character, at once.
        """
        buffer = self._buffer
        buffer += data
        if not self._skip_blank_line():
            return None
        found = buffer.find(_HEAD_END, max(0, self._scanned - 3))
        end = found + len(_HEAD_END) if found >= 0 else len(buffer)
        wrong = _FORBIDDEN_IN_HEAD.search(buffer, max(0, self._scanned - 1), min(end, self._limit))
        if wrong:
            raise HandshakeError(400, _describe_forbidden(wrong.group()))
        if end > self._limit:
            raise HandshakeError(431, f"The start line and the headers may have at most {self._limit} bytes.")
        if found < 0:
            self._scanned = end
            return None
        head, self._leftover = bytes(buffer[:end]), bytes(buffer[end:])
        self._buffer = bytearray()
        return head

    def _skip_blank_line(self) -> bool:
        """Drop one CRLF before the start line (RFC 9112 section 2.2); False while that is undecided."""
        if self._skipped_blank:
            return True
        if bytes(self._buffer[:2]) in (b"", b"\r"):
            return False
        if self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        self._skipped_blank = True
        return bool(self._buffer)


def parse_request(head: bytes, *, remote_address: str | None = None, secure: bool = False) -> Request:
    """Check a whole request head, its blank line included, and take it apart.

    :raises HandshakeError: with the status to answer: 400 malformed, 413 a length no server can mean, 431 too
        many fields, 501 an unknown transfer coding, 505 another version of HTTP.
    """
    line, fields = _split_head(head)
    method, target, version = _parse_request_line(line)
    headers = _parse_fields(fields)
    raw_path, query_string, authority = _parse_target(method, target)
    _check_host(headers, version, authority)
    _check_framing(headers, version)
    return Request(
        method=method,
        target=target,
        raw_path=raw_path,
        query_string=query_string,
        version=version,
        headers=headers,
        remote_address=remote_address,
        secure=secure,
    )


def parse_response(head: bytes) -> Response:
    """Check a whole response head, its blank line included, and take it apart: the client's side.

    :raises HandshakeError: 502 if it is no HTTP/1.x response.
    """
    try:
        line, fields = _split_head(head)
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise HandshakeError(502, "The answer does not start with an HTTP/1.1 status line.")
        headers = _parse_fields(fields)
    except HandshakeError as error:
        raise HandshakeError(502, f"The server's answer is not valid HTTP: {error.message}") from None
    return Response(status=int(match[2]), reason=match[3], headers=headers, version=match[1])


def render_response(
    status: int,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | str = b"",
    *,
    head_only: bool = False,
) -> bytes:
    """Write a whole response.

    Adds ``Content-Length`` and ``Connection: close``, and ``Content-Type: text/plain`` to a body without one;
    a header that is given is kept as it is. 1xx, 204 and 304 have no body and get none of these, so a 101 is
    exactly what the caller gives.

    :param body: text is encoded as UTF-8.
    :param head_only: leave the body out but keep its length: the answer to a HEAD request.
    :raises ValueError: a status outside 100-599, a name that is no token, a value with CR, LF or another
        control character or outside Latin-1, a body where none is allowed.
    """
    if not 100 <= status <= 599:
        raise ValueError(f"status {status!r} is not between 100 and 599")
    content = body.encode() if isinstance(body, str) else bytes(body)
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = {name.lower() for name, _ in fields}
    if status < 200 or status in (204, 304):
        if content:
            raise ValueError(f"a {status} response has no body")
    else:
        added = [("Content-Length", str(len(content))), ("Connection", "close")]
        if content:
            added.insert(0, ("Content-Type", "text/plain; charset=utf-8"))
        fields += [(name, value) for name, value in added if name.lower() not in given]
    lines = [f"HTTP/1.1 {status} {reason_phrase(status)}"]
    for name, value in fields:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} is not a value for header {name}")
        lines.append(f"{name}: {value}")
    head = "\r\n".join(lines).encode("latin-1") + _HEAD_END
    return head if head_only else head + content


def reason_phrase(status: int) -> str:
    """The standard words for ``status``, or those of its class for an unregistered one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        classes = ("Informational", "Success", "Redirection", "Client Error", "Server Error")
        return classes[status // 100 - 1]


def _describe_forbidden(found: bytes) -> str:
    if found in (b"\r", b"\n"):
        return "Lines must end with CR LF; a CR or LF stands alone."
    return f"The head contains the control character 0x{found[0]:02X}."


def _split_head(head: bytes) -> tuple[str, list[str]]:
    """The start line and the field lines, decoded as Latin-1 so that every byte keeps its value."""
    if head.find(_HEAD_END) != len(head) - len(_HEAD_END) or len(head) < len(_HEAD_END):
        raise HandshakeError(400, "The head must end with exactly one empty line.")
    wrong = _FORBIDDEN_IN_HEAD.search(head)
    if wrong:
        raise HandshakeError(400, _describe_forbidden(wrong.group()))
    line, *fields = head[: -len(_HEAD_END)].decode("latin-1").split("\r\n")
    return line, fields


def _parse_request_line(line: str) -> tuple[str, str, str]:
    """RFC 9112 section 3: method SP target SP version, one space each."""
    parts = line.split(" ")
    if len(parts) != 3:
        raise HandshakeError(400, "The request line must be method, target and version, one space apart.")
    method, target, version = parts
    if not _TOKEN.fullmatch(method):
        raise HandshakeError(400, "The request method contains a character that is not allowed.")
    if not _TARGET.fullmatch(target):
        raise HandshakeError(400, "The request target contains a character that is not allowed.")
    if not _VERSION.fullmatch(version):
        raise HandshakeError(400, "The request line must end with the version of HTTP.")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise HandshakeError(505, "This server speaks HTTP/1.1 and HTTP/1.0 only.")
    return method, target, version


def _parse_target(method: str, target: str) -> tuple[str, str, str | None]:
    """RFC 9112 section 3.2: raw path, query string, and the authority if the target is a whole URI."""
    authority = None
    if target == "*":
        if method != "OPTIONS":
            raise HandshakeError(400, "The request target * is for OPTIONS only.")
        return "*", "", None
    if not target.startswith("/"):
        match = _ABSOLUTE.fullmatch(target)
        if match is None or method == "CONNECT":
            raise HandshakeError(400, "The request target must start with / or be a whole http URI.")
        authority, target = match[1], (match[2] or "/") + (match[3] or "")  # an empty path means "/"
    raw_path, _, query_string = target.partition("?")
    return raw_path, query_string, authority


def _parse_fields(lines: list[str]) -> Headers:
    """RFC 9112 section 5: name ":" blanks value blanks. Folded lines are refused, as section 5.2 allows."""
    if len(lines) > MAX_HEADER_FIELDS:
        raise HandshakeError(431, f"At most {MAX_HEADER_FIELDS} header fields are allowed.")
    fields = []
    for line in lines:
        if line[:1] in (" ", "\t"):
            raise HandshakeError(400, "A header may not be continued on a second line.")
        name, colon, value = line.partition(":")
        if not colon:
            raise HandshakeError(400, "A header line has no colon.")
        if not _TOKEN.fullmatch(name):
            raise HandshakeError(400, "A header name is empty or contains a character that is not allowed.")
        # The same few names come with every connection: shared, they cost an idle connection nothing.
        fields.append((sys.intern(name), value.strip(" \t")))
    return Headers(fields)


def _check_host(headers: Headers, version: str, authority: str | None) -> None:
    """RFC 9112 section 3.2: one valid Host, which HTTP/1.0 may leave out, equal to a whole URI's authority.

    The RFC lets the URI win over a different Host; two names in one request are only of use to an attacker.
    """
    hosts = headers.get_all("host")
    if not hosts and version == "HTTP/1.1":
        raise HandshakeError(400, "The Host header is missing.")
    if len(hosts) > 1:
        raise HandshakeError(400, "There is more than one Host header.")
    for name in (*hosts, *([] if authority is None else [authority])):
        if not _is_authority(name):
            raise HandshakeError(400, "The host is not a valid name or address with an optional port.")
    if hosts and authority is not None and hosts[0].lower() != authority.lower():
        raise HandshakeError(400, "The Host header and the request target name different hosts.")


def _is_authority(name: str) -> bool:
    match = _AUTHORITY.fullmatch(name)
    if match is None or int(match["port"] or 0) > 65535:
        return False
    if match["literal"] is not None:
        try:
            ipaddress.IPv6Address(match["literal"])
        except ValueError:
            return False
    return True


def _check_framing(headers: Headers, version: str) -> None:
    """RFC 9112 section 6: a body has one length that nobody can read in two ways."""
    lengths = headers.get_all("content-length")
    codings = headers.get_all("transfer-encoding")
    if lengths and codings:
        raise HandshakeError(400, "Content-Length and Transfer-Encoding exclude each other.")
    if len(lengths) > 1:
        raise HandshakeError(400, "There is more than one Content-Length header.")
    for length in lengths:
        if not (length.isascii() and length.isdigit()):
            raise HandshakeError(400, "Content-Length must be a number of bytes.")
        if len(length) > _LONGEST_CONTENT_LENGTH:
            raise HandshakeError(413, "Content-Length is larger than any body this server takes.")
    if not codings:
        return
    if version == "HTTP/1.0":
        raise HandshakeError(400, "HTTP/1.0 has no Transfer-Encoding.")
    names = [coding.strip(" \t").lower() for coding in ",".join(codings).split(",")]
    if names == [_CHUNKED]:
        return
    if names[-1] != _CHUNKED or names.count(_CHUNKED) > 1 or not all(map(_TOKEN.fullmatch, names)):
        raise HandshakeError(400, "Transfer-Encoding must be chunked, once.")
    raise HandshakeError(501, "No transfer coding other than chunked is supported.")
