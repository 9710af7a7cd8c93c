"""realtime: the kernel with its own WebSocket server."""

from __future__ import annotations

import gevent

from benchmarks.peers.announce import announce
from realtime import RealtimeKernel, WebSocketTransport
from realtime.message import Message
from realtime.toolkit import Toolkit
from realtime.transports.base import Transport

__all__ = ["make_kernel"]


def make_kernel(*transports: Transport) -> RealtimeKernel:
    """The kernel that does the benchmark's job."""
    kernel = RealtimeKernel(transports=transports, log_level="warning")

    @kernel.on("join")
    def join(message: Message, context: object, toolkit: Toolkit) -> None:
        assert message.room is not None
        toolkit.rooms.join(message.room)
        toolkit.reply({"type": "joined", "payload": message.room})

    @kernel.on("chat")
    def chat(message: Message, context: object, toolkit: Toolkit) -> None:
        toolkit.rooms.broadcast({"type": "chat", "payload": message.payload}, message.room)

    @kernel.on("echo")
    def echo(message: Message, context: object, toolkit: Toolkit) -> None:
        toolkit.reply({"type": "echo", "payload": message.payload})

    return kernel


if __name__ == "__main__":
    transport = WebSocketTransport(port=0, path="/realtime")
    make_kernel(transport).start()
    announce(transport.port)
    gevent.wait()
