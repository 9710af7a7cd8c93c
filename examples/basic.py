"""A kernel with WebSocket clients, a mesh and WebRTC signaling switched on.

    python examples/basic.py

Then open http://127.0.0.1:8080/ in two windows, and chat. WebSocket clients of your own connect to
ws://127.0.0.1:8080/realtime. Ctrl-C stops it.
"""

from realtime import PeerMeshTransport, RealtimeKernel, WebRTCSignalingBridge, WebSocketTransport

kernel = RealtimeKernel(
    transports=[WebSocketTransport(port=8080, path="/realtime"), PeerMeshTransport(port=9090)],
    log_level="info",
)
WebRTCSignalingBridge(auto_join_rooms=True).attach(kernel)

@kernel.on("chat:message")
def chat(message, context, toolkit):
    room = message.room or "lobby"
    toolkit.rooms.join(room)
    toolkit.rooms.broadcast(
        {"type": "chat:message", "payload": {"from": context.id, "body": message.payload, "room": room}},
        room,
        except_self=True,
    )

from console import open_console  # noqa: E402  # the page, and what it needs beside chatting

open_console(kernel)

if __name__ == "__main__":
    kernel.run()          # start(), serve until SIGINT or SIGTERM, drain, stop()
