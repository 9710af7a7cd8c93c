"""What nodes say to each other: the bodies of ``data`` and ``news`` frames, as typed MessagePack arrays.

Each is ``[number, field, ...]`` by the tag of its class; fields that a receiver does not know are ignored, missing
ones have their defaults. Decoding checks every type and bound and never takes more memory than a small multiple of
the bytes that came: a length past their end is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgpack
import msgspec
from msgspec import Meta, Struct

from realtime.config import KiB
from realtime.delivery import Delivery, left_of
from realtime.errors import BadMessage, MeshError, MessageTooBig
from realtime.message import MSGPACK

__all__ = [
    "METADATA_SIZE",
    "Answer",
    "Ask",
    "Body",
    "Call",
    "Came",
    "Chunk",
    "ClientState",
    "Delivered",
    "Delta",
    "Digest",
    "Event",
    "ExpiringBody",
    "Joined",
    "Left",
    "News",
    "NodeRecord",
    "Operation",
    "Probe",
    "Probed",
    "Replaced",
    "Table",
    "ToClient",
    "ToRoom",
    "Went",
    "decode_body",
    "decode_news",
    "encode",
    "pack_delivery",
    "pack_metadata",
    "unpack_metadata",
]

METADATA_SIZE = 256 * KiB  # bytes of one client's metadata, packed: it must fit into one piece of a snapshot
_NAME = 255  # characters of a node id and of an address

_Name = Annotated[str, Meta(min_length=1, max_length=_NAME)]
_Instance = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Bodies = Annotated[dict[str, bytes], Meta(min_length=1, max_length=8)]
_Metadata = Annotated[bytes, Meta(max_length=METADATA_SIZE)]
_Seconds = Annotated[float, Meta(ge=0)]
_Key = Annotated[str, Meta(max_length=_NAME)]

# One client's changes -----------------------------------------------------------------------------------


class Came(Struct, array_like=True, frozen=True, tag=0):
    """A client connected. ``metadata`` is packed: it is only read where somebody asks for it. ``key`` is that of its
    presence, and empty where that is its id."""

    client: str
    metadata: _Metadata
    connected_at: _Seconds
    codec: str
    key: _Key = ""


class Went(Struct, array_like=True, frozen=True, tag=1):
    """A client is gone, and out of all its rooms."""

    client: str


class Joined(Struct, array_like=True, frozen=True, tag=2):
    """A client joined a room."""

    room: str
    client: str


class Left(Struct, array_like=True, frozen=True, tag=3):
    """A client left a room."""

    room: str
    client: str


class Replaced(Struct, array_like=True, frozen=True, tag=4):
    """A client shows other metadata."""

    client: str
    metadata: _Metadata


Operation = Came | Went | Joined | Left | Replaced


class ClientState(Struct, array_like=True, frozen=True):
    """All of one client, in a snapshot."""

    client: str
    metadata: _Metadata
    connected_at: _Seconds
    codec: str
    rooms: list[str]
    key: _Key = ""


# Data: in sequence, acknowledged ---------------------------------------------------------------------------


class ToRoom(Struct, array_like=True, frozen=True, tag=0):
    """A message for the members of a room, or for everybody: encoded once for each codec in use there.

    ``mark`` is its place in a room that keeps its history: origin, sequence, and when it was published.
    """

    room: str | None
    bodies: _Bodies
    except_ids: list[str] = []
    delivery: Delivery | None = None
    confirm: int | None = None
    mark: tuple[_Name, Annotated[int, Meta(ge=1, lt=2**53)], _Seconds] | None = None


class ToClient(Struct, array_like=True, frozen=True, tag=1):
    """A message for one client."""

    client: str
    bodies: _Bodies
    delivery: Delivery | None = None


class Call(Struct, array_like=True, frozen=True, tag=2):
    """A question to the node of a client, or to a node itself, where ``client`` is empty."""

    token: _Count
    client: str
    body: bytes
    timeout: _Seconds


class Answer(Struct, array_like=True, frozen=True, tag=3):
    """What became of a call; ``more`` follows if it is only a part of it."""

    token: _Count
    ok: bool
    body: bytes
    more: bool = False


class Delivered(Struct, array_like=True, frozen=True, tag=4):
    """A message that was to be confirmed has been delivered to so many clients."""

    token: _Count
    count: _Count


class Event(Struct, array_like=True, frozen=True, tag=5):
    """An event between nodes."""

    body: bytes


class Delta(Struct, array_like=True, frozen=True, tag=6):
    """What changed with the sender's clients since ``version``; each operation adds one to it."""

    version: _Count
    operations: list[Operation]


class Chunk(Struct, array_like=True, frozen=True, tag=7):
    """One piece of a snapshot: the ``index``-th of the ``number``-th one, as of ``version``."""

    number: _Count
    index: _Count
    last: bool
    version: _Count
    clients: list[ClientState]


class Ask(Struct, array_like=True, frozen=True, tag=8):
    """Send a snapshot."""


class Digest(Struct, array_like=True, frozen=True, tag=9):
    """What the sender's clients come to."""

    version: _Count
    checksum: Annotated[bytes, Meta(min_length=8, max_length=8)]
    clients: _Count
    memberships: _Count


Body = ToRoom | ToClient | Call | Answer | Delivered | Event | Delta | Chunk | Ask | Digest

# News: of one link, outside of the sequence ------------------------------------------------------------------


class NodeRecord(Struct, array_like=True, frozen=True):
    """What is said of a node. ``state`` is 0 for alive, 1 for down, 2 for left."""

    node: _Name
    instance: _Instance
    incarnation: Annotated[int, Meta(ge=0, lt=2**48)]
    state: Annotated[int, Meta(ge=0, le=2)]
    address: _Name | None = None


class Table(Struct, array_like=True, frozen=True, tag=0):
    """News of nodes."""

    records: Annotated[list[NodeRecord], Meta(max_length=256)]


class Probe(Struct, array_like=True, frozen=True, tag=1):
    """Do you hear this node?"""

    node: _Name
    instance: _Instance


class Probed(Struct, array_like=True, frozen=True, tag=2):
    """It was silent for so many seconds; None: there is no link to it."""

    node: _Name
    instance: _Instance
    silence: _Seconds | None


News = Table | Probe | Probed


class ExpiringBody(bytes):
    """A packed ToRoom or ToClient with a ``ttl``, which gets shorter while it waits to be sent again."""

    expires: float
    """In seconds of the clock of ``now``."""

    def renewed(self, now: float) -> bytes:
        """Return it with what is left of its ``ttl``: as long as it was, because a float always takes 9 bytes."""
        message: Any = _decode_body(self)
        delivery = left_of(message.delivery, self.expires, now)
        return encode(msgspec.structs.replace(message, delivery=delivery))


def pack_delivery(message: ToRoom | ToClient, expires: float | None) -> bytes:
    """Return the body of a frame with a message to clients, which may expire."""
    body = encode(message)
    if expires is None:
        return body
    expiring = ExpiringBody(body)
    expiring.expires = expires
    return expiring


encode: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode

_decode_body: Callable[[bytes], Body] = msgspec.msgpack.Decoder(Body).decode
_decode_news: Callable[[bytes], News] = msgspec.msgpack.Decoder(News).decode


def decode_body(data: bytes) -> Body:
    """Return what a data frame says. Raises MeshError."""
    try:
        return _decode_body(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MeshError(f"a data frame that cannot be read: {_short(error)}") from None


def decode_news(data: bytes) -> News:
    """Return what a news frame says. Raises MeshError."""
    try:
        news = _decode_news(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MeshError(f"a news frame that cannot be read: {_short(error)}") from None
    for record in news.records if isinstance(news, Table) else ():
        if not record.node.isprintable() or not (record.address or "-").isprintable():
            raise MeshError("news of a node with a bad name")
    return news


def _short(error: Exception) -> str:
    return str(error)[:200]


def pack_metadata(metadata: Any) -> bytes:
    """Return metadata as it travels.

    :raises BadMessage: it has values that MessagePack cannot carry.
    :raises MessageTooBig: more than METADATA_SIZE bytes.
    """
    data = MSGPACK.encode(metadata)
    if len(data) > METADATA_SIZE:
        raise MessageTooBig(f"metadata of {len(data)} bytes; other nodes take {METADATA_SIZE}")
    return data


def unpack_metadata(data: bytes) -> dict[str, Any]:
    """Return metadata as it was packed. Raises BadMessage.

    msgpack's own reader refuses keys that are no strings before it makes a dict of them.
    """
    try:
        value = msgpack.unpackb(data, strict_map_key=True, max_ext_len=0, ext_hook=_refuse_extension)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(f"metadata that cannot be read: {str(error)[:200] or 'nested too deep'}") from None
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise BadMessage("metadata that is no map of strings")
    return value


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")
