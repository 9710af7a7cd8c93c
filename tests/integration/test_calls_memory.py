"""What the signaling bridge remembers: nothing of those who have gone, however many they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from signaling_peers import OFFER, PATIENCE, Connect, InThread, connecting, serve, stats_of, wait_until

from realtime import RealtimeKernel, WebRTCSignalingBridge
from realtime.testing import KernelTest


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


def is_forgotten(kernel: RealtimeKernel) -> bool:
    """Whether a bridge remembers nobody."""
    stats = stats_of(kernel)
    names = ("calls", "participants", "places", "pairs", "senders", "held", "gone", "successors")
    return not any(stats[name] for name in names)


def test_thousands_of_joins_and_leaves_leave_no_record(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    bob.join_call("room 0")
    for start in range(0, 3000, 100):
        burst: list[dict[str, Any]] = []
        for number in range(start, start + 100):
            room = f"room {number % 50}"
            burst.append({"type": "webrtc:join", "payload": {"room": room, "metadata": "x" * 1000}})
            burst.append({"type": "webrtc:leave", "payload": {"room": room}})
        alice.send_all(burst)
        for _ in range(100):
            alice.receive("webrtc:peers")
        for event in ("webrtc:peer-joined", "webrtc:bye") * 2:
            assert bob.receive(event)["payload"]["room"] == "room 0"
    assert stats_of(kernel)["participants"] == 1
    assert kernel.rooms.rooms_for(alice.id) == []
    bob.close()
    wait_until(lambda: is_forgotten(kernel))


def test_no_record_is_left_after_everybody_has_gone(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=0.1, keep_place=0.2))
    peers = [connect(kernel) for _ in range(4)]
    for number, peer in enumerate(peers):
        told = peer.join_call("lobby", metadata={"number": number})
        for other in told["peers"]:
            beside = {"target": other["id"], "room": "lobby", "negotiation": "1"}
            peer.send("webrtc:offer", {**beside, "offer": OFFER})
            peer.send("webrtc:candidate", {**beside, "candidate": None})
            peer.send("webrtc:candidate", {**beside, "negotiation": "2", "candidate": None})
        peer.send("webrtc:offer", {"room": "lobby", "negotiation": "all", "offer": OFFER}, ack=1)
    wait_until(lambda: stats_of(kernel)["counters"].get("forwarded_offer") == 10)
    assert not is_forgotten(kernel)
    for number, peer in enumerate(peers):
        if number % 2:
            peer.close()
        else:
            peer.drop()
    wait_until(lambda: is_forgotten(kernel))
    assert kernel.rooms.list() == {}


def test_stopping_forgets_everybody_and_starting_again_serves(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice = connect(kernel)
    token = alice.join_call("lobby")["resume"]
    kernel.stop()
    assert is_forgotten(kernel)
    bob = connect(kernel)
    assert bob.join_call("lobby", resume=token)["resumed"] is False


def test_a_thousand_rooms_of_two_signal_at_once_without_an_error() -> None:
    kernel = serve(WebRTCSignalingBridge())
    with KernelTest(kernel, stop_timeout=PATIENCE) as test:
        clients = [test.connect() for _ in range(2000)]
        for number, client in enumerate(clients):
            client.send({"type": "webrtc:join", "payload": {"room": f"room {number // 2}"}})
        test.settle(PATIENCE)
        for kind, start in (("offer", 1), ("answer", 0)):
            for number in range(start, 2000, 2):
                beside = {"target": clients[number ^ 1].id, "room": f"room {number // 2}", "negotiation": "1"}
                description = {**OFFER, "type": kind}
                clients[number].send({"type": f"webrtc:{kind}", "payload": {**beside, "description": description}})
                for port in range(10):
                    candidate = {"candidate": f"candidate:{port}", "sdpMid": "0"}
                    clients[number].send({"type": "webrtc:candidate", "payload": {**beside, "candidate": candidate}})
        test.settle(PATIENCE)
        for number, client in enumerate(clients):
            types = [message["type"] for message in client.received]
            joined = ["webrtc:peers", "webrtc:peer-joined"] if number % 2 == 0 else ["webrtc:peers"]
            assert types[: len(joined)] == joined
            assert len(types) == len(joined) + 11
            assert types.count("webrtc:candidate") == 10
        counters = stats_of(kernel)["counters"]
        assert counters["forwarded_candidate"] == 20_000
        assert not [name for name in counters if name.startswith("refused")]
