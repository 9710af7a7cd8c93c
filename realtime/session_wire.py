"""What clients and servers say of sessions, and frames of one wire as those of another."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, TypeGuard

import msgpack
import msgspec

from realtime.codes import CloseCode
from realtime.delivery import Perishable
from realtime.errors import BadMessage
from realtime.message import JSON, Codec, Wire

__all__ = ["UNCLEAN", "UNCOUNTED", "Refusal", "Wish", "carries_over", "changed", "read_count", "read_wish"]

UNCOUNTED = frozenset(("system:hello", "system:welcome", "system:received"))
"""Types of messages that belong to a connection, and not to the session that it carries."""
UNCLEAN = frozenset((CloseCode.ABNORMAL, CloseCode.HEARTBEAT_TIMEOUT))
"""Close codes after which a client may come back."""
TOKEN_LENGTH = 1024  # characters; ours have the length of a node's id and 33
MOST = 2**53  # messages anybody counts: what a JavaScript number holds exactly

_EXPECTED = '"session": true to begin one, or {"token": ..., "received": count} to resume one'


class Refusal(Enum):
    """Why a session cannot be resumed, as the client is told."""

    UNKNOWN = "unknown"  # forged, used, expired, of another identity or of a server that has gone: all look alike
    MISSED = "too much was missed"
    MISCOUNTED = "miscounted"  # the client claims to have more than it was sent
    CODEC = "cannot be continued in this codec"
    UNREACHABLE = "its node cannot be reached"
    IDENTITY = "its identity cannot be carried to another node"


class Wish(NamedTuple):
    """What a client's hello asks for."""

    token: str | None
    """Of the session it wants back; None to begin a new one."""
    received: int
    """How many messages of it the client has."""


def read_wish(payload: Any) -> Wish | None:
    """Return what a hello asks for; None if it is no session. Raises BadMessage."""
    wanted = payload.get("session") if isinstance(payload, dict) else None
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        return Wish(None, 0)
    if not isinstance(wanted, dict):
        raise BadMessage(f"a hello has {_EXPECTED}")
    token, received = wanted.get("token"), wanted.get("received")
    if isinstance(token, str) and len(token) <= TOKEN_LENGTH and _is_count(received):
        return Wish(token, received)
    raise BadMessage(f"a hello has {_EXPECTED}")


def read_count(payload: Any) -> int:
    """Return how many messages a client says it has. Raises BadMessage."""
    count = payload.get("count") if isinstance(payload, dict) else None
    if _is_count(count):
        return count
    raise BadMessage('a confirmation is {"count": messages of the session received so far}')


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MOST


def carries_over(source: Wire, target: Wire) -> bool:
    """Tell whether frames of one wire can be made those of another."""
    return source is target or source.unfinish is not None


def changed(frame: bytes, source: Wire, target: Wire) -> bytes:
    """Return a finished frame as the other wire has it.

    :raises BadMessage: the other codec cannot carry what is in it.
    """
    if source is target:
        return frame
    assert source.unfinish is not None
    body = source.unfinish(frame)
    if source.codec is not target.codec:
        body = target.codec.encode(_content(body, source.codec))
    finished = target.finish(body)
    if isinstance(frame, Perishable):
        perishable = Perishable(finished)
        perishable.delivery, perishable.expires = frame.delivery, frame.expires
        return perishable
    return finished


def _content(body: bytes, codec: Codec) -> Any:
    """Decode what we encoded ourselves, whatever its keys."""
    try:
        return msgspec.json.decode(body) if codec is JSON else msgpack.unpackb(body)
    except (ValueError, msgspec.MsgspecError, msgpack.UnpackException) as error:
        raise BadMessage(f"a kept message cannot be read: {error}") from None
