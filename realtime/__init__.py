"""Real-time back ends in plain, blocking Python on gevent: rooms, presence, WebSockets, signaling, a mesh.

Importing this package monkey-patches nothing.
"""

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

__all__ = [
    "BadMessage",
    "BadRoom",
    "CallFailed",
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
