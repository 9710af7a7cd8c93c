"""What travels on a link once it is open: frames between the sessions of two nodes, as bytes and as events.

A frame is a short MessagePack array ``[kind, field, ...]``; ``data`` and ``news`` announce a number of bytes that
follow it as they are, so that the body of a message for many nodes is one object, whatever stands before it.

=======  ====================================================  ==================================================
kind     fields                                                meaning
=======  ====================================================  ==================================================
resume   epoch, known, received, wanted                        first of all: which session this is, which of the
                                                               peer's we know (0: none) and how much of it we
                                                               have; whether we want a snapshot
data     sequence, acknowledged, number of bytes, the bytes    one reliable frame, and what we had of theirs when
                                                               it was made, also where it is sent again
ack      acknowledged                                          what we have of theirs
gap      first, number                                         these will never come: we no longer have them
news     number of bytes, the bytes                            of this link alone: who is there, and probes
=======  ====================================================  ==================================================

What is in the bytes of ``data`` and ``news`` is in ``mesh_bodies``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import msgspec
from msgspec import Struct

from realtime.config import KiB, MiB

__all__ = [
    "NEWS_SIZE",
    "PING",
    "AckReceived",
    "DataReceived",
    "GapReceived",
    "Kind",
    "NewsReceived",
    "PingReceived",
    "ResumeReceived",
    "SessionEvent",
    "ack_frame",
    "data_header",
    "data_size",
    "gap_frame",
    "news_frame",
    "resume_frame",
]

NEWS_SIZE = 64 * KiB  # bytes of one news frame's body


class Kind(IntEnum):
    """The first element of a frame."""

    HELLO = 0
    PROOF = 1
    START = 2
    PING = 3
    BYE = 4
    RESUME = 5
    DATA = 6
    ACK = 7
    GAP = 8
    NEWS = 9


class PingReceived(Struct, frozen=True):
    """The peer lives."""


class ResumeReceived(Struct, frozen=True):
    """How the peer remembers what was said before.

    :param epoch: of its session with us.
    :param known: the epoch of our session with it that it knows; 0 if none.
    :param received: the highest sequence it has of that one.
    :param wanted: it needs a snapshot of our clients.
    """

    epoch: int
    known: int
    received: int
    wanted: bool


class DataReceived(Struct, frozen=True):
    """A reliable frame."""

    sequence: int
    acknowledged: int
    body: bytes


class AckReceived(Struct, frozen=True):
    """The peer has everything up to this sequence."""

    acknowledged: int


class GapReceived(Struct, frozen=True):
    """``count`` frames from ``first`` on are lost."""

    first: int
    count: int


class NewsReceived(Struct, frozen=True):
    """Membership: outside of the sequence."""

    body: bytes


SessionEvent = PingReceived | ResumeReceived | DataReceived | AckReceived | GapReceived | NewsReceived

_pack: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
_DATA = Kind.DATA.value

PING = _pack((Kind.PING.value,))
"""A ping, finished."""


def data_size(message_size: int) -> int:
    """Return the most bytes of a data frame's body: a message in two codecs, or a piece of a snapshot."""
    return 2 * message_size + MiB


def resume_frame(epoch: int, known: int, received: int, wanted: bool) -> bytes:
    """Return a finished resume."""
    return _pack((Kind.RESUME.value, epoch, known, received, wanted))


def data_header(sequence: int, acknowledged: int, length: int) -> bytes:
    """Return what stands before the body of a data frame."""
    return _pack((_DATA, sequence, acknowledged, length))


def ack_frame(acknowledged: int) -> bytes:
    """Return a finished ack."""
    return _pack((Kind.ACK.value, acknowledged))


def gap_frame(first: int, count: int) -> bytes:
    """Return a finished gap."""
    return _pack((Kind.GAP.value, first, count))


def news_frame(body: bytes) -> bytes:
    """Return a finished frame of news."""
    return _pack((Kind.NEWS.value, len(body))) + body
