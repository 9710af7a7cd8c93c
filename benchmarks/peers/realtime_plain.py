"""realtime's plain layer: ``serve`` without the kernel, rooms kept by hand as in ``gevent_websocket``."""

from __future__ import annotations

import json
import time
from collections import defaultdict

import gevent

from benchmarks.peers.announce import announce
from realtime import ConnectionClosed
from realtime.transports.websocket import WebSocket, serve

rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)


def envelope(kind: str, payload: object, room: str | None = None) -> str:
    message = {"type": kind, "payload": payload, "timestamp": int(time.time() * 1000)}
    if room is not None:
        message["room"] = room
    return json.dumps(message)


def converse(ws: WebSocket) -> None:
    try:
        for raw in ws:
            message = json.loads(raw)
            if message["type"] == "echo":
                ws.send(envelope("echo", message["payload"]))
            elif message["type"] == "chat":
                text = envelope("chat", message["payload"], message["room"])
                for member in list(rooms[message["room"]]):
                    try:
                        member.send(text)
                    except ConnectionClosed:
                        rooms[message["room"]].discard(member)
            elif message["type"] == "join":
                rooms[message["room"]].add(ws)
                ws.send(envelope("joined", message["room"]))
    finally:
        for members in rooms.values():
            members.discard(ws)


if __name__ == "__main__":
    server = serve(converse, port=0)
    announce(server.port)
    gevent.wait()
