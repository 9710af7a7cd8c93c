"""Real-time back ends in plain, blocking Python on gevent: rooms, presence, WebSockets, signaling, a mesh.

Importing this package monkey-patches nothing, and loads each part when its name is first used: a program that is only
a client loads no server, and no gevent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realtime.client import Client
    from realtime.codes import CloseCode, ErrorCode
    from realtime.config import Heartbeat, KiB, Limits, MeshOptions, MiB, PoolOptions
    from realtime.connection import Admission, Connection, Context
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

__all__ = [
    "Admission",
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

_HOMES = {
    "realtime.client": "Client",
    "realtime.codes": "CloseCode ErrorCode",
    "realtime.config": "Heartbeat KiB Limits MeshOptions MiB PoolOptions",
    "realtime.connection": "Admission Connection Context",
    "realtime.errors": (
        "BadMessage BadRoom CallFailed ConfigurationError ConnectionClosed MessageTooBig NotConfirmed "
        "NotRunning PortInUse QueueFull RealtimeError Reject TimedOut TooManyRooms UnknownClient"
    ),
    "realtime.events": "event_name",
    "realtime.kernel": "RealtimeKernel",
    "realtime.message": "Message",
    "realtime.protocols.mesh_filters": "RouteFilter",
    "realtime.signaling": "WebRTCSignalingBridge",
    "realtime.toolkit": "Toolkit",
    "realtime.transports.base": "Transport",
    "realtime.transports.mesh": "PeerMeshTransport",
    "realtime.transports.mesh_tls": "MeshTLS",
    "realtime.transports.websocket": "WebSocketTransport",
    "realtime.worker_pool": "Worker WorkerPool",
}  # the same as above, for when it runs; a test compares them
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Load what is asked for the first time (PEP 562)."""
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
