"""Every exception realtime raises.

::

    RealtimeError
    ├── ConfigurationError (ValueError)     an option that cannot work, found at start-up
    │   └── PortInUse                       another process listens on the port
    ├── NotRunning (RuntimeError)           the kernel was not started, or has stopped
    ├── Reject                              raised by handlers and authenticate(): "no", with a code
    │   ├── BadRoom                         a room name that is empty, no string or too long
    │   ├── TooManyRooms                    Limits.rooms_per_client
    │   ├── UnknownClient (LookupError)     no such client is connected
    │   └── MessageTooBig                   does not fit into the receiver's outbox at all
    ├── BadMessage (ValueError)             cannot be decoded (a client's), or cannot be encoded (ours)
    ├── TimedOut (TimeoutError)             call(), wait_for() or receive() ran out of time
    │   └── NotConfirmed                    a broadcast that not every node has confirmed; has .nodes
    ├── CallFailed                          the other side answered a call() with an error
    ├── QueueFull                           a Client has no room for more that waits
    ├── ConnectionClosed (ConnectionError)  the peer is gone; has .code and .reason
    └── ProtocolError                       bytes that break a protocol; has .code for the close frame
        ├── FrameError                      RFC 6455 framing: closes with 1002
        ├── PayloadNotUtf8                  closes with 1007
        ├── PayloadTooBig                   closes with 1009
        ├── HandshakeError                  an upgrade that is refused; has .status for HTTP
        └── MeshError                       a broken or refused mesh link
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from realtime.codes import CloseCode, ErrorCode

__all__ = [
    "BadMessage",
    "BadRoom",
    "CallFailed",
    "ConfigurationError",
    "ConnectionClosed",
    "FrameError",
    "HandshakeError",
    "MeshError",
    "MessageTooBig",
    "NotConfirmed",
    "NotRunning",
    "PayloadNotUtf8",
    "PayloadTooBig",
    "PortInUse",
    "ProtocolError",
    "QueueFull",
    "RealtimeError",
    "Reject",
    "TimedOut",
    "TooManyRooms",
    "UnknownClient",
    "unknown_client",
]


class RealtimeError(Exception):
    """The root: ``except RealtimeError`` catches everything of ours and nothing else."""


class ConfigurationError(RealtimeError, ValueError):
    """An option has a value that cannot work. The text names the option, the value and what is allowed."""


class PortInUse(ConfigurationError):
    """``start()`` could not listen because something else already does."""


class NotRunning(RealtimeError, RuntimeError):
    """The kernel has not been started, or has been stopped."""


class Reject(RealtimeError):
    """Raise this in a handler, a middleware or ``authenticate`` to say no.

    A client that sent a message gets ``system:error`` with ``message`` and ``code``. In ``authenticate``,
    which runs before the upgrade, ``status`` and ``message`` become the HTTP answer.

    :param message: what the client is told.
    :param code: a short machine-readable name, see :class:`realtime.codes.ErrorCode`.
    :param status: the HTTP status in ``authenticate``, 400 to 599; 403 if not given.
    """

    default_code = ErrorCode.REJECTED

    def __init__(self, message: str = "rejected", *, code: str | None = None, status: int = 403) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"Reject(status={status!r}): must be an HTTP error, 400 to 599")
        super().__init__(message)
        self.message = str(message)
        self.code = str(code or self.default_code)
        self.status = status


class BadRoom(Reject):
    """A room name must be a string of 1 to ``Limits.room_name`` characters."""

    default_code = ErrorCode.BAD_ROOM


class TooManyRooms(Reject):
    """The client is already in ``Limits.rooms_per_client`` rooms."""

    default_code = ErrorCode.TOO_MANY_ROOMS


class UnknownClient(Reject, LookupError):
    """No client with this id is connected."""

    default_code = ErrorCode.UNKNOWN_CLIENT


def unknown_client(client_id: str) -> UnknownClient:
    """Return what to raise where nobody has this id."""
    return UnknownClient(f"no client {client_id!r} is connected")


class MessageTooBig(Reject):
    """A message alone is larger than ``Limits.outbox``: it could never be delivered."""

    default_code = ErrorCode.MESSAGE_TOO_BIG


class BadMessage(RealtimeError, ValueError):
    """A message that cannot be decoded (a client's) or encoded (ours).

    ``.message`` says why; ``.ack`` is the id of a client's message where even that could be read.
    """

    def __init__(self, message: str, *, ack: str | int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.ack = ack


class TimedOut(RealtimeError, TimeoutError):
    """What ``call()``, ``wait_for()`` or ``receive()`` waits for did not come in time."""


class NotConfirmed(TimedOut):
    """Not every node confirmed a broadcast in time: ``.nodes`` did not, ``.delivered`` clients have it elsewhere."""

    def __init__(self, message: str, *, nodes: Sequence[str] = (), delivered: int = 0) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)
        self.delivered = delivered


class CallFailed(RealtimeError):
    """The other side answered ``call()`` with an error: ``.code`` and ``.message`` are its words.

    ``.details`` is what a server in debug mode adds, None otherwise.
    """

    def __init__(self, message: str, *, code: str = ErrorCode.REJECTED, details: str | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.message = message
        self.code = code
        self.details = details


class QueueFull(RealtimeError):
    """A Client holds as much as it may: messages that wait for a connection, or, while a handler waits for an answer,
    messages that wait for that handler. See ``ClientLimits``."""


class ConnectionClosed(RealtimeError, ConnectionError):
    """The connection is closed: ``.code`` (RFC 6455 section 7.4) and ``.reason`` say how."""

    def __init__(self, code: int = CloseCode.ABNORMAL, reason: str = "") -> None:
        super().__init__(f"{int(code)} {reason}".rstrip())
        self.code = int(code)
        self.reason = reason


class ProtocolError(RealtimeError):
    """Bytes that break a protocol. ``.code`` is what the close frame says."""

    code: int = CloseCode.PROTOCOL_ERROR


class FrameError(ProtocolError):
    """A frame that RFC 6455 section 5 forbids."""


class PayloadNotUtf8(ProtocolError):
    """Text that is not UTF-8 (RFC 6455 section 8.1)."""

    code = CloseCode.INVALID_DATA


class PayloadTooBig(ProtocolError):
    """A message over ``Limits.message_size``, before or after inflating, or in too many fragments."""

    code = CloseCode.MESSAGE_TOO_BIG


class HandshakeError(ProtocolError):
    """An HTTP request or response that does not lead to a WebSocket.

    :param status: the HTTP status to answer with.
    :param message: one plain sentence: what was wrong and what is allowed.
    :param headers: further response headers.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class MeshError(ProtocolError):
    """A mesh link that is broken, or was refused; the text says why.

    :param reason: the one word for it that the other side is told and counters are named after.
    """

    def __init__(self, message: str, *, reason: str = "broken") -> None:
        super().__init__(message)
        self.reason = reason
