"""Calls of clients with sessions: missed by the others at once, waited for, and no ghost for who comes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from session_peer import SessionPeer
from signaling_peers import ANSWER, OFFER, Connect, InThread, Peer, connecting, serve, stats_of, wait_until

from realtime import Limits, WebRTCSignalingBridge


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


class Call:
    """A call with Alice, who has no session, and Bob, who has one and has lost his connection."""

    def __init__(self, connect: Connect, in_thread: InThread, *, grace: float = 300.0, **options: Any) -> None:
        self.kernel = serve(WebRTCSignalingBridge(**options), limits=Limits(session_grace=grace))
        self.connect = connect
        self.in_thread = in_thread
        self.alice = self.newcomer()
        self.alice.join_call("lobby")
        self.bob = SessionPeer(self.kernel.transports[0].url)
        in_thread(self.bob.connect)
        self.bob_id = self.bob.welcome["id"]
        asked = {"room": "lobby", "metadata": "Bob"}
        self.place: str = in_thread(self.bob.ask, "webrtc:join", payload=asked)["resume"]
        self.alice.receive("webrtc:peer-joined")
        in_thread(self.bob.drop)
        self.bye = self.alice.receive("webrtc:bye")["payload"]

    def newcomer(self) -> Peer:
        return self.connect(self.kernel)

    def bob_is_back(self) -> None:
        assert self.in_thread(self.bob.resume)["resumed"]


def test_who_joins_while_a_client_is_away_meets_it_once_it_is_back(connect: Connect, in_thread: InThread) -> None:
    call = Call(connect, in_thread)
    carol = call.newcomer()
    assert [peer["id"] for peer in carol.join_call("lobby")["peers"]] == [call.alice.id]
    carol.expect_nothing()
    call.alice.receive("webrtc:peer-joined")
    call.bob_is_back()
    for peer in (call.alice, carol):
        shown = {"room": "lobby", "id": call.bob_id, "polite": peer.id < call.bob_id, "metadata": "Bob"}
        assert peer.receive("webrtc:peer-joined")["payload"] == shown
    assert in_thread(call.bob.until, "webrtc:peer-joined")["payload"]["id"] == carol.id
    beside = {"room": "lobby", "negotiation": "1"}
    carol.send("webrtc:offer", {"target": call.bob_id, **beside, "offer": OFFER})
    assert in_thread(call.bob.until, "webrtc:offer")["payload"]["from"] == carol.id
    in_thread(call.bob.ask, "webrtc:answer", payload={"target": carol.id, **beside, "answer": ANSWER})
    assert carol.receive("webrtc:answer")["payload"]["from"] == call.bob_id
    in_thread(call.bob.close)


def test_who_is_away_shuts_nobody_out_and_has_its_own_place_all_the_same(connect: Connect, in_thread: InThread) -> None:
    call = Call(connect, in_thread, max_participants=2)
    carol, dave = call.newcomer(), call.newcomer()
    carol.join_call("lobby")
    assert dave.refused("webrtc:join", {"room": "lobby"})["reason"] == "ROOM_FULL"
    call.bob_is_back()
    assert carol.receive("webrtc:peer-joined")["payload"]["id"] == call.bob_id
    in_thread(call.bob.close)


def test_who_stays_away_is_lost_and_leaves_nothing(connect: Connect, in_thread: InThread) -> None:
    call = Call(connect, in_thread, grace=0.3, keep_place=0.2)
    assert call.bye == {"room": "lobby", "from": call.bob_id, "reason": "lost", "code": 1006, "returns_within": 0.3}
    last = {"room": "lobby", "from": call.bob_id, "reason": "lost", "code": 1006}
    assert call.alice.receive("webrtc:bye")["payload"] == last
    assert stats_of(call.kernel)["places"] == 0
    back = call.newcomer()
    assert back.join_call("lobby", resume=call.place)["resumed"] is False


def test_a_place_that_is_kept_longer_than_the_session_can_still_be_taken(connect: Connect, in_thread: InThread) -> None:
    call = Call(connect, in_thread, grace=0.1, keep_place=60.0)
    assert call.bye["returns_within"] == 60.0
    assert call.alice.receive("webrtc:bye")["payload"]["returns_within"] == 60.0
    back = call.newcomer()
    assert back.join_call("lobby", resume=call.place)["resumed"] is True
    assert call.alice.receive("webrtc:peer-joined")["payload"]["replaces"] == call.bob_id


def test_the_place_of_one_that_is_away_can_be_taken_and_its_session_is_over(
    connect: Connect, in_thread: InThread
) -> None:
    call = Call(connect, in_thread)
    back = call.newcomer()
    assert back.join_call("lobby", resume=call.place)["resumed"] is True
    assert call.alice.receive("webrtc:peer-joined")["payload"]["replaces"] == call.bob_id
    wait_until(lambda: not call.kernel.presence.has(call.bob_id))
    call.alice.expect_nothing()  # no bye of one that is there
    assert in_thread(call.bob.resume)["resumed"] is False
    in_thread(call.bob.close)
