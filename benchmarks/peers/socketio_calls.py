"""python-socketio's server in threads, with Werkzeug and simple-websocket, answering calls: the peer of
``benchmarks.client``. For one client it answers faster than on gevent with gevent-websocket (519 to 139 round trips
a second of 64 bytes on a busy machine).
"""

from __future__ import annotations

import logging
from typing import Any

import socketio  # type: ignore[import-untyped]
from werkzeug.serving import run_simple

from benchmarks.peers.announce import announce, free_port

server = socketio.Server(async_mode="threading", transports=["websocket"])


@server.on("echo")  # type: ignore[untyped-decorator]
def echo(sid: str, payload: Any) -> Any:
    return payload


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    port = free_port()
    announce(port)
    run_simple("127.0.0.1", port, socketio.WSGIApp(server), threaded=True)
