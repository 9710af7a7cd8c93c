"""gevent-websocket under gevent's pywsgi, rooms kept by hand: what its own examples do, grown to rooms.

Started through ``python -m gevent.monkey``, which patches before anything is imported.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer
from geventwebsocket import WebSocketError  # type: ignore[import-untyped]
from geventwebsocket.handler import WebSocketHandler  # type: ignore[import-untyped]

from benchmarks.peers.announce import announce

rooms: defaultdict[str, set[Any]] = defaultdict(set)


def envelope(kind: str, payload: object, room: str | None = None) -> str:
    message = {"type": kind, "payload": payload, "timestamp": int(time.time() * 1000)}
    if room is not None:
        message["room"] = room
    return json.dumps(message)


def converse(ws: Any) -> None:
    while (raw := ws.receive()) is not None:
        message = json.loads(raw)
        if message["type"] == "echo":
            ws.send(envelope("echo", message["payload"]))
        elif message["type"] == "chat":
            text = envelope("chat", message["payload"], message["room"])
            for member in list(rooms[message["room"]]):
                try:
                    member.send(text)
                except WebSocketError:
                    rooms[message["room"]].discard(member)
        elif message["type"] == "join":
            rooms[message["room"]].add(ws)
            ws.send(envelope("joined", message["room"]))


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("426 Upgrade Required", [])
        return []
    try:
        converse(ws)
    except WebSocketError:
        pass  # the client left without a close frame
    finally:
        for members in rooms.values():
            members.discard(ws)
    return []


if __name__ == "__main__":
    server = WSGIServer(("127.0.0.1", 0), application, handler_class=WebSocketHandler, log=None)
    server.start()
    announce(int(server.address[1]))
    server.serve_forever()
