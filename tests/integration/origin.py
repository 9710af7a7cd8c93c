"""The example that is read first, as a text of its own: the documentation and examples/basic.py must hold it."""

# What a newcomer reads first. It must run exactly so.
ORIGIN = '''\
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

if __name__ == "__main__":
    kernel.run()          # start(), serve until SIGINT or SIGTERM, drain, stop()
'''
