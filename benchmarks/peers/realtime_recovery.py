"""Rooms that keep their messages beside plain ones, and clients with sessions."""

from __future__ import annotations

import gevent

from benchmarks.peers.announce import announce
from realtime import RealtimeKernel, WebSocketTransport
from realtime.message import Message
from realtime.toolkit import Toolkit

transport = WebSocketTransport(port=0, path="/realtime")
kernel = RealtimeKernel(transports=[transport], log_level="error")
kernel.rooms.configure("kept:*", join=True, history=1000, ttl=600.0, recover=True)
kernel.rooms.configure("plain:*", join=True)


@kernel.on("chat")
def chat(message: Message, context: object, toolkit: Toolkit) -> None:
    toolkit.rooms.broadcast({"type": "chat", "payload": message.payload}, message.room)


if __name__ == "__main__":
    kernel.start()
    announce(transport.port)
    gevent.wait()
