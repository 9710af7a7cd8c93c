"""How a link between two nodes begins and ends: what a node says of itself, and what becomes of the link."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from realtime.protocols.mesh_frames import SessionEvent

__all__ = [
    "LIVELY",
    "NAME_LENGTH",
    "WIRE_VERSION",
    "Authenticated",
    "ByeReceived",
    "Hello",
    "LinkEvent",
    "LinkStarted",
    "Reason",
    "Role",
]

WIRE_VERSION = 1
NAME_LENGTH = 255  # characters of a node id, a cluster and an address
LIVELY = 2.0  # pings within which a node that lives is heard: another one with its id is refused


class Role(str, Enum):
    """Which side of the TCP connection a node is on."""

    DIALLER = "dialler"
    LISTENER = "listener"


class Reason:
    """Why a link ends: said in ``bye``, counted. Plain strings: a later version may say more."""

    LEAVING = "leaving"  # the node stops
    DUPLICATE = "duplicate"  # the two nodes have a link already
    REPLACED = "replaced"  # a newer link to the same node takes over
    CLUSTER = "cluster"  # of another cluster
    VERSION = "version"  # speaks another version of this wire
    SECRET = "secret"  # does not know the secret
    SELF = "self"  # a node dialled its own address
    NODE_ID = "node_id"  # another node with our id
    TIMEOUT = "timeout"  # did not prove the secret in time
    BROKEN = "broken"  # broke the protocol
    SILENT = "silent"  # no sign of life
    SLOW = "slow"  # does not read what it is sent
    LOST = "lost"  # the connection broke; never sent


@dataclass(frozen=True)
class Hello:
    """What a node says of itself. Believed only once the proof has come.

    :param instance: made anew by each start of a node, so that a restarted one is told from one that is there.
    :param nonce: the challenge; never used twice.
    :param address: where others reach the node, ``host:port``, or None.
    """

    node: str
    cluster: str
    instance: bytes
    nonce: bytes
    address: str | None = None


@dataclass(frozen=True)
class Authenticated:
    """Both sides have proved the secret. If ``protocol.decides``: call ``start`` or ``bye``."""

    hello: Hello


@dataclass(frozen=True)
class LinkStarted:
    """The peer decided for this link: it is open."""


@dataclass(frozen=True)
class ByeReceived:
    """The peer ended the link; it sends no more. ``reason`` is one of Reason, or one of a later version."""

    reason: str
    text: str


LinkEvent = Authenticated | LinkStarted | ByeReceived | SessionEvent
