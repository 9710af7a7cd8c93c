"""Flask-SocketIO on gevent, speaking its own Engine.IO 4 / Socket.IO 5 over the websocket transport.

Started through ``python -m gevent.monkey``, which patches before anything is imported. With an argument, the
address of a Redis, it shares rooms with other processes through that message queue.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from flask import Flask
from flask_socketio import SocketIO, emit, join_room  # type: ignore[import-untyped]

from benchmarks.peers.announce import announce, free_port

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", message_queue=sys.argv[1] if len(sys.argv) > 1 else None)


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


if __name__ == "__main__":
    port = free_port()  # ``SocketIO.run`` cannot tell which one it got
    announce(port)
    socketio.run(app, host="127.0.0.1", port=port, log_output=False)
