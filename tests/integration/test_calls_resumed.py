"""Coming back to a call over real WebSockets: with its token a lost client takes its place again, nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent.event
import pytest
from signaling_peers import (
    ANSWER,
    CANDIDATE,
    OFFER,
    PATIENCE,
    Connect,
    InThread,
    Peer,
    connecting,
    serve,
    stats_of,
    wait_until,
)
from websockets.exceptions import ConnectionClosed

from realtime import RealtimeKernel, WebRTCSignalingBridge
from realtime.testing import KernelTest


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


class Lobby:
    """A call with Alice and Bob in it, who have negotiated, and Bob's token."""

    def __init__(self, connect: Connect, **options: Any) -> None:
        self.kernel = serve(WebRTCSignalingBridge(**{"hold": PATIENCE, **options}))
        self.connect = connect
        self.alice, self.bob = connect(self.kernel), connect(self.kernel)
        self.alice.join_call("lobby")
        self.token: str = self.bob.join_call("lobby", metadata="Bob")["resume"]
        self.alice.receive("webrtc:peer-joined")
        self.beside = {"room": "lobby", "negotiation": "1"}
        self.alice.send("webrtc:offer", {"target": self.bob.id, **self.beside, "offer": OFFER})
        self.bob.receive("webrtc:offer")
        self.bob.send("webrtc:answer", {"target": self.alice.id, **self.beside, "answer": ANSWER})
        self.alice.receive("webrtc:answer")

    def lose_bob(self) -> None:
        self.bob.drop()
        assert self.alice.receive("webrtc:bye")["payload"]["returns_within"] > 0

    def newcomer(self) -> Peer:
        return self.connect(self.kernel)


def test_with_its_token_a_lost_client_takes_its_place_again(connect: Connect) -> None:
    lobby = Lobby(connect)
    lobby.lose_bob()
    back = lobby.newcomer()
    told = back.join_call("lobby", resume=lobby.token, metadata="Bob again")
    assert told["resumed"] is True
    assert told["resume"] != lobby.token
    assert [peer["id"] for peer in told["peers"]] == [lobby.alice.id]
    assert lobby.alice.receive("webrtc:peer-joined")["payload"] == {
        "room": "lobby",
        "id": back.id,
        "polite": lobby.alice.id < back.id,
        "metadata": "Bob again",
        "replaces": lobby.bob.id,
        "formerly": [lobby.bob.id],
    }
    # both sides go on with the negotiation they had
    for sender, receiver in ((lobby.alice, back), (back, lobby.alice)):
        sender.send("webrtc:candidate", {"target": receiver.id, **lobby.beside, "candidate": CANDIDATE}, ack=1)
        assert sender.receive("system:ack")["payload"]["result"] == {"delivered": 1}
        receiver.receive("webrtc:candidate")


def test_what_was_sent_to_the_old_id_meanwhile_reaches_the_new_one(connect: Connect) -> None:
    lobby = Lobby(connect)
    lobby.lose_bob()
    to_bob = {"target": lobby.bob.id, **lobby.beside}
    lobby.alice.send("webrtc:candidate", {**to_bob, "candidate": CANDIDATE}, ack=1)
    assert lobby.alice.receive("system:ack")["payload"]["result"] == {"delivered": 0, "held": 1}
    assert lobby.alice.refused("webrtc:offer", {**to_bob, "offer": OFFER})["reason"] == "UNKNOWN_TARGET"
    back = lobby.newcomer()
    back.join_call("lobby", resume=lobby.token)
    assert back.receive("webrtc:candidate")["payload"] == {
        "from": lobby.alice.id,
        "target": back.id,
        **lobby.beside,
        "candidate": CANDIDATE,
    }
    # and so does what was under way when it came back
    lobby.alice.send("webrtc:offer", {**to_bob, "negotiation": "2", "offer": OFFER})
    lobby.alice.send("webrtc:candidate", {**to_bob, "negotiation": "2", "candidate": CANDIDATE})
    assert back.receive("webrtc:offer")["payload"]["target"] == back.id
    assert back.receive("webrtc:candidate")["payload"]["target"] == back.id


def test_who_comes_back_before_its_old_connection_is_missed_replaces_it(connect: Connect, in_thread: InThread) -> None:
    lobby = Lobby(connect, auto_join_rooms=True)
    back = lobby.newcomer()
    told = back.join_call("lobby", resume=lobby.token)
    assert told["resumed"] is True
    assert [peer["id"] for peer in told["peers"]] == [lobby.alice.id]
    assert lobby.alice.receive("webrtc:peer-joined")["payload"]["replaces"] == lobby.bob.id
    with pytest.raises(ConnectionClosed) as closed:
        in_thread(lobby.bob.socket.recv, PATIENCE)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4500, "resumed by another connection")
    wait_until(lambda: lobby.kernel.presence.get(lobby.bob.id) is None)
    assert lobby.kernel.rooms.members("webrtc:lobby") == [lobby.alice.id, back.id]
    assert lobby.kernel.rooms.members("lobby") == [lobby.alice.id, back.id]
    lobby.alice.expect_nothing()  # no bye


def test_a_client_in_two_calls_comes_back_to_both(connect: Connect) -> None:
    lobby = Lobby(connect)
    carol = lobby.newcomer()
    carol.join_call("attic")
    attic_token = lobby.bob.join_call("attic")["resume"]
    carol.receive("webrtc:peer-joined")
    back = lobby.newcomer()
    back.join_call("lobby", resume=lobby.token)
    assert lobby.alice.receive("webrtc:peer-joined")["payload"]["replaces"] == lobby.bob.id
    bye = carol.receive("webrtc:bye")["payload"]  # the old connection was closed, but its client is back
    assert (bye["reason"], bye["returns_within"]) == ("lost", 30.0)
    assert back.join_call("attic", resume=attic_token)["resumed"] is True
    assert carol.receive("webrtc:peer-joined")["payload"]["replaces"] == lobby.bob.id


def test_a_token_works_once(connect: Connect) -> None:
    lobby = Lobby(connect)
    lobby.lose_bob()
    back, again = lobby.newcomer(), lobby.newcomer()
    back.join_call("lobby", resume=lobby.token)
    lobby.alice.receive("webrtc:peer-joined")
    assert again.join_call("lobby", resume=lobby.token)["resumed"] is False
    for peer in (lobby.alice, back):
        assert "replaces" not in peer.receive("webrtc:peer-joined")["payload"]


def test_a_place_is_given_up_in_time(connect: Connect) -> None:
    lobby = Lobby(connect, keep_place=0.05)
    lobby.lose_bob()
    wait_until(lambda: stats_of(lobby.kernel)["places"] == 0)
    back = lobby.newcomer()
    told = back.join_call("lobby", resume=lobby.token)
    assert told["resumed"] is False
    assert stats_of(lobby.kernel)["counters"]["tokens_refused"] == 1


@pytest.mark.parametrize("token", ["", "x", "A" * 32, "x" * 100_000])
def test_a_forged_token_is_no_token(connect: Connect, token: str) -> None:
    lobby = Lobby(connect)
    eve = lobby.newcomer()
    told = eve.join_call("lobby", resume=token)
    assert told["resumed"] is False
    assert {peer["id"] for peer in told["peers"]} == {lobby.alice.id, lobby.bob.id}
    for peer in (lobby.alice, lobby.bob):
        assert "replaces" not in peer.receive("webrtc:peer-joined")["payload"]


def test_a_token_is_good_for_its_own_call_only(connect: Connect) -> None:
    lobby = Lobby(connect)
    eve = lobby.newcomer()
    assert eve.join_call("attic", resume=lobby.token)["resumed"] is False
    lobby.bob.send("webrtc:peers", {"room": "lobby"})
    assert lobby.bob.receive("webrtc:peers")["payload"]["resume"] == lobby.token  # it is still good
    lobby.bob.send("webrtc:leave", {"room": "lobby"})
    lobby.alice.receive("webrtc:bye")
    assert eve.join_call("lobby", resume=lobby.token)["resumed"] is False  # but not after leaving


def test_a_client_s_own_token_does_not_replace_itself(connect: Connect) -> None:
    lobby = Lobby(connect)
    assert lobby.bob.join_call("lobby", resume=lobby.token)["resumed"] is False
    lobby.alice.expect_nothing()


def test_a_token_of_another_identity_is_no_token() -> None:
    kernel = RealtimeKernel(log_level="warning")
    WebRTCSignalingBridge().attach(kernel)

    def join(client: Any, **payload: Any) -> dict[str, Any]:
        client.send({"type": "webrtc:join", "payload": {"room": "lobby", **payload}})
        return dict(client.receive_until("webrtc:peers")["payload"])

    with KernelTest(kernel) as test:
        token = join(test.connect(identity="alice"))["resume"]
        assert join(test.connect(identity="eve"), resume=token)["resumed"] is False
        assert join(test.connect(), resume=token)["resumed"] is False
        assert join(test.connect(identity="alice"), resume=token)["resumed"] is True


def test_a_place_that_is_kept_shuts_nobody_out(connect: Connect) -> None:
    lobby = Lobby(connect, max_participants=2)
    lobby.lose_bob()
    carol, back = lobby.newcomer(), lobby.newcomer()
    carol.join_call("lobby")
    lobby.alice.receive("webrtc:peer-joined")
    assert back.refused("webrtc:join", {"room": "lobby", "resume": lobby.token})["reason"] == "ROOM_FULL"
    carol.send("webrtc:leave", {"room": "lobby"})
    lobby.alice.receive("webrtc:bye")
    assert back.join_call("lobby", resume=lobby.token)["resumed"] is True  # the token was not used up


def test_replacing_a_connection_in_a_full_call_is_possible(connect: Connect) -> None:
    lobby = Lobby(connect, max_participants=2)
    assert lobby.newcomer().join_call("lobby", resume=lobby.token)["resumed"] is True


def test_the_others_learn_at_once_of_who_is_lost_and_back_whatever_its_handlers_do(connect: Connect) -> None:
    gate = gevent.event.Event()
    kernel = serve(WebRTCSignalingBridge())
    kernel.on("slow", lambda message, context, toolkit: gate.wait(PATIENCE))
    alice, bob, back = (connect(kernel) for _ in range(3))
    alice.join_call("lobby")
    token = bob.join_call("lobby")["resume"]
    alice.receive("webrtc:peer-joined")
    bob.send("slow")
    bob.drop()
    assert alice.receive("webrtc:bye")["payload"]["reason"] == "lost"
    assert back.join_call("lobby", resume=token)["resumed"] is True
    assert alice.receive("webrtc:peer-joined")["payload"]["replaces"] == bob.id
    gate.set()
    alice.expect_nothing()
