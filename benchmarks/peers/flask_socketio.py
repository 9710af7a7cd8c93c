"""Flask-SocketIO on gevent, speaking its own Engine.IO 4 / Socket.IO 5 over the websocket transport.

Started through ``python -m gevent.monkey``, which patches before anything is imported.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from flask import Flask
from flask_socketio import SocketIO, emit, join_room  # type: ignore[import-untyped]

from benchmarks.peers.announce import announce

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")


@socketio.on("join")  # type: ignore[untyped-decorator]
def join(message: dict[str, Any]) -> None:
    join_room(message["room"])
    emit("joined", {"payload": message["room"]})


@socketio.on("chat")  # type: ignore[untyped-decorator]
def chat(message: dict[str, Any]) -> None:
    room = message["room"]
    answer = {"payload": message["payload"], "room": room, "timestamp": int(time.time() * 1000)}
    emit("chat", answer, to=room)


@socketio.on("echo")  # type: ignore[untyped-decorator]
def echo(message: dict[str, Any]) -> None:
    emit("echo", {"payload": message["payload"], "timestamp": int(time.time() * 1000)})


def free_port() -> int:
    """``SocketIO.run`` cannot tell which port it got, so one is chosen for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    port = free_port()
    announce(port)
    socketio.run(app, host="127.0.0.1", port=port, log_output=False)
