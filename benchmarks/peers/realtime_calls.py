"""realtime answering calls: what ``benchmarks.client`` calls."""

from __future__ import annotations

from typing import Any

import gevent

from benchmarks.peers.announce import announce
from realtime import RealtimeKernel, WebSocketTransport
from realtime.message import Message

if __name__ == "__main__":
    transport = WebSocketTransport(port=0, path="/realtime")
    kernel = RealtimeKernel(transports=[transport], log_level="warning")

    @kernel.on("echo")
    def echo(message: Message, context: object, toolkit: object) -> Any:
        return message.payload

    kernel.start()
    announce(transport.port)
    gevent.wait()
