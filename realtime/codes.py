"""The numbers and names that go over the wire when something ends or is refused.

Two tables, both part of the public contract and of every client:

* close codes: RFC 6455 section 7.4's own, then 4000-4499 "come back" and 4500-4999 "do not come back";
* error codes: the ``code`` of a ``system:error`` message, after which the connection lives on.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode", "ErrorCode", "may_reconnect"]


class CloseCode(IntEnum):
    """Why a WebSocket was closed."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never sent: the close frame carried no code
    ABNORMAL = 1006  # never sent: the connection ended without a close frame
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011

    # 4000-4499: the fault has passed or will pass; a client may come back.
    SLOW_CONSUMER = 4008
    HEARTBEAT_TIMEOUT = 4009
    REPLACED = 4010  # another connection resumed its session; or its rooms' messages were lost between nodes
    DRAINING = 4013

    # 4500-4999: coming back would end the same way; a client must not by itself.
    DISCONNECTED = 4500  # an application called disconnect() without a code of its own
    UNAUTHORIZED = 4501
    FORBIDDEN = 4503


def may_reconnect(code: int) -> bool:
    """Tell whether a client that was closed with ``code`` should come back by itself.

    True for every code but 1000 (both sides were done), 1002, 1003, 1007, 1009 and 1010 (the same
    bytes would fail again), 1008 (policy) and the range 4500-4999.
    """
    return code not in _FINAL and not 4500 <= code <= 4999


_FINAL = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010})


class ErrorCode:
    """The ``code`` of a ``system:error`` message: plain strings, so an application can add its own."""

    BAD_MESSAGE = "bad_message"  # not decodable, no object, no type, a field of the wrong kind
    UNKNOWN_TYPE = "unknown_type"  # no handler takes this event name
    RESERVED_TYPE = "reserved_type"  # a name under system:, client: or mesh:
    REJECTED = "rejected"  # a handler raised Reject without a code
    UNAUTHORIZED = "unauthorized"  # for applications: nobody is logged in
    FORBIDDEN = "forbidden"  # system:join and system:presence where no rule allows it
    UNKNOWN_CLIENT = "unknown_client"  # a target that is not connected
    TOO_MANY_ROOMS = "too_many_rooms"  # Limits.rooms_per_client
    BAD_ROOM = "bad_room"  # a room name that is empty, no string or longer than Limits.room_name
    MESSAGE_TOO_BIG = "message_too_big"  # larger than the receiver's whole outbox
    RATE_LIMITED = "rate_limited"  # for applications and middleware that count
    INBOX_FULL = "inbox_full"  # too much arrived while a handler waited for this client
    LANE_FULL = "lane_full"  # too many messages wait for the same lane: Limits.lane
    CANCELLED = "cancelled"  # the client wanted no more of a streamed answer (system:cancel)
    TIMEOUT = "timeout"  # a handler's call() or wait_for() was not answered in time
    INTERNAL = "internal_error"  # a handler failed; the details are in the server's log
