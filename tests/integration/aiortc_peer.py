"""Somebody in a call who knows nothing of realtime's client: aiortc, signaling through the ``websockets`` library.

    python aiortc_peer.py ws://127.0.0.1:8080/realtime room polite|impolite

Joins until the server gives it the part it wants towards the one who is there already. The impolite part makes the
offer and the data channel; the polite one waits for both. It answers every text on the channel with "echo <text>",
and prints a line when something happens.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiortc import RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaBlackhole
from aiortc.sdp import candidate_from_sdp
from websockets.asyncio.client import ClientConnection, connect


def say(*words: object) -> None:
    print(*words, flush=True)


async def join(websocket: ClientConnection, room: str) -> dict[str, Any]:
    """Enter the call; return the list of those who are there."""
    await websocket.send(json.dumps({"type": "webrtc:join", "payload": {"room": room, "metadata": {"name": "aiortc"}}}))
    while True:
        message: dict[str, Any] = json.loads(await websocket.recv())
        if message["type"] == "webrtc:peers":
            payload: dict[str, Any] = message["payload"]
            return payload


class Caller:
    """The connection to the only other peer."""

    def __init__(self, websocket: ClientConnection, peer: str) -> None:
        self._websocket = websocket
        self._peer = peer
        self._negotiation: str | None = None
        self._watching: asyncio.Future[None] | None = None
        self.connection = RTCPeerConnection()
        self.connection.on("datachannel", self.use)
        self.connection.on("track", self._watch)

    def use(self, channel: RTCDataChannel) -> None:
        """Echo what comes in."""

        @channel.on("message")
        def echo(text: str) -> None:
            channel.send(f"echo {text}")

    def _watch(self, track: Any) -> None:
        say("track", track.kind)
        self._watching = asyncio.ensure_future(self._frame(track))

    async def _frame(self, track: Any) -> None:
        frame = await track.recv()
        say("frame", frame.width, frame.height)
        sink = MediaBlackhole()  # or frames would pile up
        sink.addTrack(track)
        await sink.start()

    async def send(self, kind: str, **content: Any) -> None:
        payload = {"target": self._peer, "negotiation": self._negotiation, **content}
        await self._websocket.send(json.dumps({"type": f"webrtc:{kind}", "payload": payload}))

    async def describe(self, make: Callable[[], Awaitable[Any]]) -> None:
        """Set our description and send it; aiortc has gathered its candidates by then."""
        await self.connection.setLocalDescription(await make())
        description = self.connection.localDescription
        await self.send(description.type, description={"type": description.type, "sdp": description.sdp})

    async def offer(self) -> None:
        self._negotiation = "made by aiortc"
        self.use(self.connection.createDataChannel("chat"))
        await self.describe(self.connection.createOffer)

    async def take(self, message: dict[str, Any]) -> None:
        """Handle a signal."""
        payload = message["payload"]
        if message["type"] == "webrtc:offer":
            self._negotiation = payload["negotiation"]
            await self.connection.setRemoteDescription(RTCSessionDescription(**payload["description"]))
            await self.describe(self.connection.createAnswer)
            say("answered")
        elif message["type"] == "webrtc:answer":
            assert payload["negotiation"] == self._negotiation
            await self.connection.setRemoteDescription(RTCSessionDescription(**payload["description"]))
            say("accepted")
        elif message["type"] == "webrtc:candidate" and payload["candidate"] and payload["candidate"]["candidate"]:
            candidate = candidate_from_sdp(payload["candidate"]["candidate"].partition(":")[2])
            candidate.sdpMid = payload["candidate"]["sdpMid"]
            candidate.sdpMLineIndex = payload["candidate"]["sdpMLineIndex"]
            await self.connection.addIceCandidate(candidate)


async def main(url: str, room: str, part: str) -> None:
    while True:
        async with connect(url, proxy=None) as websocket:
            peers = (await join(websocket, room))["peers"]
            (peer,) = [one for one in peers if one["metadata"]["name"] != "aiortc"]  # perhaps our last attempt is there
            if peer["polite"] != (part == "polite"):
                continue  # another connection has another id, and perhaps the other part
            caller = Caller(websocket, peer["id"])
            say("joined", part)
            if part == "impolite":
                await caller.offer()
            async for text in websocket:
                message = json.loads(text)
                if message["type"] == "webrtc:bye":
                    break
                if message["type"] == "webrtc:error":
                    say("error", message["payload"])
                if message["payload"].get("from") == peer["id"]:
                    await caller.take(message)
            await caller.connection.close()
            say("left")
            return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
