"""A signaling bridge, and beside it the plain handler that it is compared with."""

from __future__ import annotations

import gevent

from benchmarks.peers.announce import announce
from realtime import RealtimeKernel, WebRTCSignalingBridge, WebSocketTransport
from realtime.message import Message
from realtime.toolkit import Toolkit

transport = WebSocketTransport(port=0, path="/realtime")
kernel = RealtimeKernel(transports=[transport], log_level="warning")
WebRTCSignalingBridge().attach(kernel)


@kernel.on("plain:offer")
def relay(message: Message, context: object, toolkit: Toolkit) -> None:
    toolkit.send(message.payload["target"], {"type": "plain:offer", "payload": message.payload})


if __name__ == "__main__":
    kernel.start()
    announce(transport.port)
    gevent.wait()
