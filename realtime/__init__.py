"""Real-time back ends in plain, blocking Python on gevent: rooms, presence, WebSockets, signaling, a mesh.

Importing this package monkey-patches nothing.
"""

from typing import TYPE_CHECKING, Any

from realtime.codes import CloseCode, ErrorCode
from realtime.config import Heartbeat, KiB, Limits, MeshOptions, MiB, PoolOptions
from realtime.connection import Connection, Context
from realtime.errors import (
    BadMessage,
    BadRoom,
    CallFailed,
    ConfigurationError,
    ConnectionClosed,
    MessageTooBig,
    NotConfirmed,
    NotRunning,
    PortInUse,
    QueueFull,
    RealtimeError,
    Reject,
    TimedOut,
    TooManyRooms,
    UnknownClient,
)
from realtime.events import event_name
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.protocols.mesh_filters import RouteFilter
from realtime.signaling import WebRTCSignalingBridge
from realtime.toolkit import Toolkit
from realtime.transports.base import Transport
from realtime.transports.mesh import PeerMeshTransport
from realtime.transports.mesh_tls import MeshTLS
from realtime.transports.websocket import WebSocketTransport
from realtime.worker_pool import Worker, WorkerPool

if TYPE_CHECKING:
    from realtime.client import Client

__all__ = [
    "BadMessage",
    "BadRoom",
    "CallFailed",
    "Client",
    "CloseCode",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "Context",
    "ErrorCode",
    "Heartbeat",
    "KiB",
    "Limits",
    "MeshOptions",
    "MeshTLS",
    "Message",
    "MessageTooBig",
    "MiB",
    "NotConfirmed",
    "NotRunning",
    "PeerMeshTransport",
    "PoolOptions",
    "PortInUse",
    "QueueFull",
    "RealtimeError",
    "RealtimeKernel",
    "Reject",
    "RouteFilter",
    "TimedOut",
    "TooManyRooms",
    "Toolkit",
    "Transport",
    "UnknownClient",
    "WebRTCSignalingBridge",
    "WebSocketTransport",
    "Worker",
    "WorkerPool",
    "event_name",
]


def __getattr__(name: str) -> Any:
    """Import the client when it is asked for (PEP 562): servers do without simple-websocket and what it brings."""
    if name == "Client":
        from realtime.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
