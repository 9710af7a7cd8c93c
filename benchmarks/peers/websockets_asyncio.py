"""websockets on asyncio: its own ``broadcast`` for rooms, compression off as everywhere here."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.peers.announce import announce

rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)


def envelope(kind: str, payload: object, room: str | None = None) -> str:
    message = {"type": kind, "payload": payload, "timestamp": int(time.time() * 1000)}
    if room is not None:
        message["room"] = room
    return json.dumps(message)


async def converse(ws: ServerConnection) -> None:
    try:
        async for raw in ws:
            message = json.loads(raw)
            if message["type"] == "echo":
                await ws.send(envelope("echo", message["payload"]))
            elif message["type"] == "chat":
                broadcast(rooms[message["room"]], envelope("chat", message["payload"], message["room"]))
            elif message["type"] == "join":
                rooms[message["room"]].add(ws)
                await ws.send(envelope("joined", message["room"]))
    except ConnectionClosed:
        pass  # the client left without a close frame
    finally:
        for members in rooms.values():
            members.discard(ws)


async def main() -> None:
    async with serve(converse, "127.0.0.1", 0, compression=None) as server:
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
