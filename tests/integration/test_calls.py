"""Calls over real WebSockets: who joins is told of all others, and all others of it; and when it goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent.event
import pytest
from signaling_peers import OFFER, PATIENCE, Connect, InThread, Peer, connecting, serve, stats_of, wait_until

from realtime import ConfigurationError, Limits, RealtimeKernel, Reject, WebRTCSignalingBridge
from realtime.testing import KernelTest


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


def shown(peer: Peer, to: Peer, **more: Any) -> dict[str, Any]:
    """What ``to`` is told of ``peer``."""
    return {"id": peer.id, "polite": to.id < peer.id, **more}


# Joining ------------------------------------------------------------------------------------------------


def test_who_joins_learns_of_the_others_and_they_of_it(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(ice_servers=[{"urls": "stun:stun.example.org"}]))
    alice, bob, carol = (connect(kernel) for _ in range(3))
    first = alice.join_call("lobby", metadata={"name": "Alice"})
    token = first.pop("resume")
    assert isinstance(token, str)
    assert len(token) >= 32
    assert first == {
        "room": "lobby",
        "id": alice.id,
        "peers": [],
        "ice_servers": [{"urls": "stun:stun.example.org"}],
        "resumed": False,
    }
    assert bob.join_call("lobby")["peers"] == [shown(alice, bob, metadata={"name": "Alice"})]
    assert alice.receive("webrtc:peer-joined")["payload"] == {"room": "lobby", **shown(bob, alice)}
    carol.send("webrtc:join", {"metadata": "c"}, room="lobby", ack=1)
    told = carol.receive("webrtc:peers")["payload"]
    assert told["peers"] == [shown(alice, carol, metadata={"name": "Alice"}), shown(bob, carol)]
    assert carol.receive("system:ack")["payload"] == {"ack": 1, "result": told}
    for peer in (alice, bob):
        joined = peer.receive("webrtc:peer-joined")["payload"]
        assert joined == {"room": "lobby", **shown(carol, peer, metadata="c")}
    assert kernel.rooms.members("webrtc:lobby") == [alice.id, bob.id, carol.id]
    assert kernel.rooms.members("lobby") == []


def test_of_each_pair_exactly_one_is_polite_and_both_agree(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    peers = [connect(kernel) for _ in range(4)]
    polite: dict[tuple[str, str], bool] = {}
    for number, peer in enumerate(peers):
        for other in peer.join_call("lobby")["peers"]:
            polite[peer.id, other["id"]] = other["polite"]
        for earlier in peers[:number]:
            joined = earlier.receive("webrtc:peer-joined")["payload"]
            polite[earlier.id, joined["id"]] = joined["polite"]
    assert len(polite) == 12
    assert all(polite[one, other] != polite[other, one] for one, other in polite)


def test_joining_again_answers_the_list_again_and_tells_nobody(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(max_participants=2))
    alice, bob = connect(kernel), connect(kernel)
    alice.join_call("lobby")
    first = bob.join_call("lobby")
    alice.receive("webrtc:peer-joined")
    assert bob.join_call("lobby") == first
    bob.send("webrtc:peers", {"room": "lobby"}, ack=1)
    assert bob.receive("webrtc:peers")["payload"] == first
    assert bob.receive("system:ack")["payload"]["result"] == first
    alice.expect_nothing()


def test_the_joiner_is_told_before_anybody_hears_of_it_though_its_outbox_is_crowded() -> None:
    kernel = serve(WebRTCSignalingBridge(), limits=Limits(outbox=100_000, park_timeout=PATIENCE))

    @kernel.on("flood")
    def flood(message: Any, context: Any, toolkit: Any) -> None:
        for _ in range(9):
            toolkit.reply({"type": "flood", "payload": "x" * 10_000}, overflow="drop_oldest")

    with KernelTest(kernel) as test:
        slow, early, late = (test.connect() for _ in range(3))
        early.send({"type": "webrtc:join", "payload": {"room": "lobby"}})
        assert early.receive()["type"] == "webrtc:peers"
        slow.stop_reading()
        slow.send({"type": "flood"})
        slow.send({"type": "webrtc:join", "payload": {"room": "lobby"}, "ack": 1})
        wait_until(lambda: kernel.rooms.contains("webrtc:lobby", slow.id))
        late.send({"type": "webrtc:join", "payload": {"room": "lobby"}})
        assert [peer["id"] for peer in late.receive()["payload"]["peers"]] == [early.id]
        assert early.receive()["payload"]["id"] == late.id  # and not of the slow one
        late.send({"type": "webrtc:offer", "payload": {"room": "lobby", "offer": OFFER}})
        assert early.receive()["type"] == "webrtc:offer"
        slow.resume_reading()
        received = [slow.receive() for _ in range(12)]
        assert {message["type"] for message in received[:9]} == {"flood"}
        assert [message["type"] for message in received[9:]] == ["webrtc:peers", "webrtc:peers", "system:ack"]
        assert [peer["id"] for peer in received[10]["payload"]["peers"]] == [early.id, late.id]
        for other in (early, late):
            assert other.receive()["payload"]["id"] == slow.id


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        ("INVALID_JOIN", None),
        ("INVALID_JOIN", {}),
        ("INVALID_JOIN", "lobby"),
        ("INVALID_JOIN", {"room": "lobby", "resume": 7}),
        ("BAD_ROOM", {"room": 7}),
        ("BAD_ROOM", {"room": ["lobby"]}),
        ("BAD_ROOM", {"room": "x" * 249}),
        ("BAD_ROOM", {"room": "x" * 900_000}),
        ("BAD_ROOM", {"room": "webrtc:lobby"}),
        ("TOO_LARGE", {"room": "lobby", "metadata": "x" * 4095}),
    ],
)
def test_an_absurd_join_is_refused_and_leaves_nothing(connect: Connect, reason: str, payload: Any) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    bob.join_call("lobby")
    assert alice.refused("webrtc:join", payload)["reason"] == reason
    assert alice.refused("webrtc:join", payload, ack=1)["reason"] == reason
    assert alice.receive("system:error")["payload"]["code"] == reason.lower()
    assert kernel.rooms.rooms_for(alice.id) == []
    bob.expect_nothing()
    assert stats_of(kernel)["participants"] == 1
    assert stats_of(kernel)["counters"][f"refused_{reason.lower()}"] == 2


@pytest.mark.parametrize("event", ["webrtc:leave", "webrtc:peers"])
def test_leave_and_peers_name_a_room_too(connect: Connect, event: str) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice = connect(kernel)
    invalid = event.replace("webrtc:", "INVALID_").upper()
    for payload, reason in ((None, invalid), (["lobby"], invalid), ({"room": {}}, invalid), ({"room": 7}, "BAD_ROOM")):
        assert alice.refused(event, payload)["reason"] == reason


def test_a_call_that_is_full_takes_nobody_until_somebody_leaves(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(max_participants=2))
    alice, bob, carol = (connect(kernel) for _ in range(3))
    alice.join_call("lobby")
    bob.join_call("lobby")
    alice.receive("webrtc:peer-joined")
    assert carol.refused("webrtc:join", {"room": "lobby"}) == {
        "reason": "ROOM_FULL",
        "event": "webrtc:join",
        "room": "lobby",
    }
    alice.expect_nothing()
    bob.send("webrtc:leave", {"room": "lobby"})
    alice.receive("webrtc:bye")
    assert len(carol.join_call("lobby")["peers"]) == 1


def test_calls_count_as_rooms(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True), limits=Limits(rooms_per_client=3))
    alice = connect(kernel)
    alice.join_call("one")
    assert alice.refused("webrtc:join", {"room": "two"})["reason"] == "TOO_MANY_ROOMS"
    assert kernel.rooms.rooms_for(alice.id) == ["webrtc:one", "one"]


def test_authorize_is_asked_before_anything_else_happens(connect: Connect) -> None:
    asked: list[tuple[str, str]] = []

    def authorize(context: Any, target_or_room: str) -> bool:
        asked.append((context.id, target_or_room))
        if target_or_room == "late":
            raise Reject("no calls after ten", code="quiet_hours")
        return target_or_room == "open"

    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True, authorize=authorize))
    alice = connect(kernel)
    assert alice.refused("webrtc:join", {"room": "closed"})["reason"] == "FORBIDDEN"
    assert alice.refused("webrtc:join", {"room": "late"})["reason"] == "QUIET_HOURS"
    assert kernel.rooms.rooms_for(alice.id) == []
    alice.join_call("open")
    assert asked == [(alice.id, room) for room in ("closed", "late", "open")]
    counters = stats_of(kernel)["counters"]
    assert counters["refused_forbidden"] == counters["refused_by_application"] == 1


def test_who_has_gone_while_authorize_waited_joins_nothing(connect: Connect) -> None:
    waiting, gate = gevent.event.Event(), gevent.event.Event()

    def authorize(context: Any, target_or_room: str) -> bool:
        waiting.set()
        return gate.wait(PATIENCE)

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:join", {"room": "lobby"})
    assert waiting.wait(PATIENCE)
    alice.close()
    wait_until(lambda: kernel.presence.get(alice.id) is None)
    gate.set()
    assert bob.join_call("lobby")["peers"] == []
    bob.expect_nothing()
    assert stats_of(kernel)["participants"] == 1


def test_with_auto_join_rooms_a_call_brings_the_room_along_and_takes_it_away(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    alice, bob = connect(kernel), connect(kernel)
    bob.join("lobby")
    alice.join_call("lobby")
    bob.join_call("lobby")
    assert kernel.rooms.members("lobby") == [bob.id, alice.id]
    alice.send("webrtc:leave", {"room": "lobby"}, ack=1)
    bob.receive("webrtc:bye")
    bob.send("webrtc:leave", {"room": "lobby"}, ack=1)
    bob.receive("system:ack")
    assert kernel.rooms.members("lobby") == [bob.id]  # whom the join did not put there
    assert kernel.rooms.members("webrtc:lobby") == []


# Going ------------------------------------------------------------------------------------------------------


def test_who_leaves_is_out_and_the_others_are_told(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.join_call("lobby")
    bob.join_call("lobby")
    alice.receive("webrtc:peer-joined")
    bob.send("webrtc:leave", {"room": "lobby"}, ack=1)
    assert bob.receive("system:ack")["payload"]["result"] == {"left": True}
    assert alice.receive("webrtc:bye")["payload"] == {"room": "lobby", "from": bob.id, "reason": "left"}
    bob.send("webrtc:leave", {"room": "lobby"}, ack=2)
    assert bob.receive("system:ack")["payload"]["result"] == {"left": False}
    assert bob.refused("webrtc:peers", {"room": "lobby"})["reason"] == "NOT_IN_ROOM"
    alice.expect_nothing()


def end_by(how: str, kernel: RealtimeKernel, peer: Peer) -> None:
    if how == "close":
        peer.close()
    elif how == "vanish":
        peer.drop()
    else:
        kernel.disconnect(peer.id, int(how))


@pytest.mark.parametrize(
    ("how", "reason", "code", "returns"),
    [
        ("close", "closed", 1000, False),
        ("vanish", "lost", 1006, True),
        ("4008", "disconnected", 4008, True),
        ("4013", "disconnected", 4013, True),
        ("4009", "lost", 4009, True),
        ("4500", "disconnected", 4500, False),
        ("4503", "disconnected", 4503, False),
        ("1008", "disconnected", 1008, False),
    ],
)
def test_however_a_connection_ends_the_others_are_told_why(
    connect: Connect, how: str, reason: str, code: int, returns: bool
) -> None:
    kernel = serve(WebRTCSignalingBridge(keep_place=70.0))
    alice, bob = connect(kernel), connect(kernel)
    alice.join_call("lobby")
    bob.join_call("lobby")
    alice.receive("webrtc:peer-joined")
    end_by(how, kernel, bob)
    expected = {"room": "lobby", "from": bob.id, "reason": reason, "code": code}
    if returns:
        expected["returns_within"] = 70.0
    assert alice.receive("webrtc:bye")["payload"] == expected
    stats = stats_of(kernel)
    assert (stats["participants"], stats["places"]) == (1, int(returns))


def test_who_is_in_two_calls_ends_in_both(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob, carol = (connect(kernel) for _ in range(3))
    alice.join_call("one")
    bob.join_call("two")
    for room, other in (("one", alice), ("two", bob)):
        carol.join_call(room)
        other.receive("webrtc:peer-joined")
    carol.drop()
    for room, other in (("one", alice), ("two", bob)):
        assert other.receive("webrtc:bye")["payload"]["room"] == room


def test_an_application_may_take_somebody_out(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.join_call("lobby")
    token = bob.join_call("lobby")["resume"]
    alice.receive("webrtc:peer-joined")
    kernel.rooms.leave("webrtc:lobby", bob.id)
    assert bob.refused("webrtc:peers", {"room": "lobby"})["reason"] == "NOT_IN_ROOM"
    assert bob.refused("webrtc:offer", {"room": "lobby", "offer": OFFER})["reason"] == "NOT_IN_ROOM"
    carol = connect(kernel)
    told = carol.join_call("lobby", resume=token)  # is void with the place
    assert (told["resumed"], told["peers"]) == (False, [shown(alice, carol)])
    assert "replaces" not in alice.receive("webrtc:peer-joined")["payload"]
    bob.send("webrtc:leave", {"room": "lobby"}, ack=1)
    assert bob.receive("system:ack")["payload"]["result"] == {"left": False}
    bob.drop()
    wait_until(lambda: kernel.presence.get(bob.id) is None)
    alice.expect_nothing()
    assert stats_of(kernel)["participants"] == 2


def test_an_application_may_put_somebody_into_a_call(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    kernel.rooms.join("webrtc:lobby", bob.id)
    kernel.presence.update(bob.id, {"name": "Bob"})
    assert alice.join_call("lobby")["peers"] == [shown(bob, alice, metadata={"name": "Bob"})]
    bob.receive("webrtc:peer-joined")
    bob.drop()
    bye = alice.receive("webrtc:bye")["payload"]
    assert bye == {"room": "lobby", "from": bob.id, "reason": "lost", "code": 1006}


# Signals in calls --------------------------------------------------------------------------------------------


def test_a_signal_to_the_room_of_a_call_stays_in_the_call(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob, eve = (connect(kernel) for _ in range(3))
    alice.join_call("lobby")
    bob.join_call("lobby")
    alice.receive("webrtc:peer-joined")
    for peer in (alice, eve):
        peer.join("lobby")
    alice.send("webrtc:offer", {"room": "lobby", "offer": OFFER}, ack=1)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    assert bob.receive("webrtc:offer")["payload"] == {"from": alice.id, "room": "lobby", "description": OFFER}
    eve.send("webrtc:offer", {"room": "lobby", "offer": OFFER}, ack=1)  # from the application's room to that room
    assert eve.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    assert alice.receive("webrtc:offer")["payload"]["from"] == eve.id
    error = alice.refused("webrtc:bye", {"target": eve.id, "room": "lobby"})
    assert error["reason"] == "UNKNOWN_TARGET"  # it is not in the call
    bob.expect_nothing()
    eve.expect_nothing()


def test_who_is_not_in_the_call_cannot_signal_into_it(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, eve = connect(kernel), connect(kernel)
    alice.join_call("lobby")
    for room, reason in (("lobby", "NOT_IN_ROOM"), ("webrtc:lobby", "BAD_ROOM")):
        assert eve.refused("webrtc:offer", {"room": room, "offer": OFFER})["reason"] == reason
        assert eve.refused("webrtc:bye", {"room": room, "target": alice.id})["reason"] == reason
    alice.expect_nothing()


def test_no_way_but_joining_leads_into_a_call(connect: Connect) -> None:
    bridges = WebRTCSignalingBridge(auto_join_rooms=True), WebRTCSignalingBridge(namespace="audio")
    kernel = serve(*bridges)
    kernel.rooms.configure("*", join=True)
    alice, eve = connect(kernel), connect(kernel)
    alice.send("audio:join", {"room": "lobby"})
    alice.receive("audio:peers")
    for room in ("audio:lobby", "webrtc:lobby"):
        assert eve.refused("webrtc:offer", {"room": room, "offer": OFFER})["reason"] == "BAD_ROOM"
        assert eve.refused("webrtc:join", {"room": room})["reason"] == "BAD_ROOM"
        eve.send("system:join", room=room, ack=1)
        assert eve.receive("system:error")["payload"]["code"] == "forbidden"
    assert kernel.rooms.rooms_for(eve.id) == []
    alice.expect_nothing()


def test_no_way_but_leaving_leads_out_of_a_call_so_that_the_others_are_told(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice = connect(kernel)
    alice.send("webrtc:join", {"room": "lobby"})
    alice.receive("webrtc:peers")
    alice.send("system:leave", room="webrtc:lobby", ack=1)
    assert alice.receive("system:error")["payload"]["code"] == "forbidden"
    assert kernel.rooms.members("webrtc:lobby") == [alice.id]


@pytest.mark.parametrize("pattern", ["*", "*:lobby", "webrtc:*", "webrtc:lobby"])
@pytest.mark.parametrize("first", ["rule", "bridge"])
def test_no_rule_opens_a_call_that_authorize_closes(connect: Connect, pattern: str, first: str) -> None:
    bridge = WebRTCSignalingBridge(authorize=lambda context, where: False)
    kernel = serve()
    steps = [lambda: kernel.rooms.configure(pattern, join=True), lambda: bridge.attach(kernel)]
    for step in steps if first == "rule" else reversed(steps):
        step()
    eve = connect(kernel)
    eve.send("system:join", room="webrtc:lobby", ack=1)
    assert eve.receive("system:error")["payload"]["code"] == "forbidden"
    assert eve.refused("webrtc:join", {"room": "lobby"})["reason"] == "FORBIDDEN"
    assert kernel.rooms.rooms_for(eve.id) == []


def test_rules_hold_for_rooms_that_signals_and_calls_would_join_by_themselves(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    kernel.rooms.configure("staff:*")
    kernel.rooms.configure("vip", join=lambda context, room: False)
    kernel.rooms.configure("open", join=True)
    eve = connect(kernel)
    for room in ("staff:1", "vip"):
        assert eve.refused("webrtc:bye", {"room": room})["reason"] == "FORBIDDEN"
        assert eve.refused("webrtc:join", {"room": room})["reason"] == "FORBIDDEN"
    assert kernel.rooms.rooms_for(eve.id) == []
    for room in ("open", "no rule"):
        eve.send("webrtc:join", {"room": room})
        eve.receive("webrtc:peers")
    assert kernel.rooms.rooms_for(eve.id) == ["webrtc:open", "open", "webrtc:no rule", "no rule"]


def test_a_namespace_whose_rooms_are_occupied_is_refused(connect: Connect) -> None:
    kernel = serve()
    somebody = connect(kernel)
    kernel.rooms.join("late:lobby", somebody.id)
    with pytest.raises(ConfigurationError, match="late:lobby"):
        WebRTCSignalingBridge(namespace="late").attach(kernel)


def test_calls_of_two_namespaces_do_not_meet(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(), WebRTCSignalingBridge(namespace="audio"))
    alice, bob = connect(kernel), connect(kernel)
    token = alice.join_call("lobby")["resume"]
    bob.send("audio:join", {"room": "lobby", "resume": token})
    told = bob.receive("audio:peers")["payload"]
    assert (told["peers"], told["resumed"]) == ([], False)
    assert bob.refused("webrtc:peers", {"room": "lobby"})["reason"] == "NOT_IN_ROOM"
    bob.drop()
    wait_until(lambda: kernel.presence.get(bob.id) is None)
    alice.expect_nothing()
