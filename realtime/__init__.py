"""Real-time back ends in plain, blocking Python on gevent: rooms, presence, WebSockets, signaling, a mesh.

Importing this package monkey-patches nothing.
"""

from realtime.codes import CloseCode, ErrorCode
from realtime.config import Heartbeat, KiB, Limits, MeshOptions, MiB
from realtime.connection import Connection, Context
from realtime.errors import (
    BadMessage,
    BadRoom,
    CallFailed,
    ConfigurationError,
    ConnectionClosed,
    MessageTooBig,
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
from realtime.signaling import WebRTCSignalingBridge
from realtime.toolkit import Toolkit
from realtime.transports.base import Transport
from realtime.transports.mesh import PeerMeshTransport
from realtime.transports.websocket import WebSocketTransport

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
    "Message",
    "MessageTooBig",
    "MiB",
    "NotRunning",
    "PeerMeshTransport",
    "PortInUse",
    "RealtimeError",
    "RealtimeKernel",
    "Reject",
    "TimedOut",
    "TooManyRooms",
    "Toolkit",
    "Transport",
    "UnknownClient",
    "WebRTCSignalingBridge",
    "WebSocketTransport",
    "event_name",
]
