"""Negotiations over real WebSockets: candidates pass, wait, follow their description, or come back as expired."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from signaling_peers import (
    ANSWER,
    CANDIDATE,
    OFFER,
    PATIENCE,
    Connect,
    InThread,
    connecting,
    serve,
    stats_of,
    wait_until,
)

from realtime import ConfigurationError, WebRTCSignalingBridge


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


def numbered(number: int) -> dict[str, Any]:
    return {**CANDIDATE, "candidate": f"candidate:{number}"}


def test_a_negotiation_s_id_arrives_with_every_signal(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    for event, content in (
        ("webrtc:offer", {"description": OFFER}),
        ("webrtc:candidate", {"candidate": CANDIDATE}),
        ("webrtc:bye", {}),
    ):
        alice.send(event, {"target": bob.id, "negotiation": "n1", **content})
        assert bob.receive(event)["payload"] == {"from": alice.id, "target": bob.id, "negotiation": "n1", **content}


@pytest.mark.parametrize("negotiation", ["n1", None])
def test_candidates_before_their_offer_are_held_and_follow_it_in_order(
    connect: Connect, negotiation: str | None
) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=PATIENCE))
    alice, bob = connect(kernel), connect(kernel)
    beside = {"target": bob.id} if negotiation is None else {"target": bob.id, "negotiation": negotiation}
    for number in range(3):
        alice.send("webrtc:candidate", {**beside, "candidate": numbered(number)}, ack=number)
        assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 0, "held": 1}
    alice.send("webrtc:offer", {**beside, "description": OFFER}, ack=3)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    alice.send("webrtc:candidate", {**beside, "candidate": numbered(3)}, ack=4)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    bob.receive("webrtc:offer")
    for number in range(4):
        assert bob.receive("webrtc:candidate")["payload"] == {"from": alice.id, **beside, "candidate": numbered(number)}
    assert stats_of(kernel)["held"] == 0


def test_the_answerer_s_candidates_wait_for_its_answer(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=PATIENCE))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:offer", {"target": bob.id, "negotiation": "1", "description": OFFER})
    bob.receive("webrtc:offer")
    bob.send("webrtc:candidate", {"target": alice.id, "negotiation": "1", "candidate": CANDIDATE})
    bob.send("webrtc:answer", {"target": alice.id, "negotiation": "1", "description": ANSWER})
    alice.receive("webrtc:answer")
    assert alice.receive("webrtc:candidate")["payload"]["negotiation"] == "1"


def test_a_candidate_whose_description_never_comes_expires_and_repeats_its_ack(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=0.05))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:candidate", {"target": bob.id, "negotiation": "n", "candidate": CANDIDATE}, ack="c")
    assert alice.receive("system:ack")["payload"] == {"ack": "c", "result": {"delivered": 0, "held": 1}}
    error = alice.receive("webrtc:error")["payload"]
    assert error.pop("message")
    assert error == {
        "reason": "EXPIRED",
        "event": "webrtc:candidate",
        "target": bob.id,
        "negotiation": "n",
        "ack": "c",
    }
    bob.expect_nothing()
    stats = stats_of(kernel)
    assert stats["counters"]["expired"] == 1
    assert stats["held"] == stats["senders"] == 0


def test_the_sixty_fifth_that_waits_is_refused_at_once(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=600.0))
    alice, bob = connect(kernel), connect(kernel)
    candidate = {"target": bob.id, "candidate": CANDIDATE}
    alice.send_all([{"type": "webrtc:candidate", "payload": candidate}] * 64)
    error = alice.refused("webrtc:candidate", candidate, ack=65)
    assert error == {"reason": "EXPIRED", "event": "webrtc:candidate", "target": bob.id, "ack": 65}
    assert alice.receive("system:error")["payload"]["code"] == "expired"
    assert stats_of(kernel)["held"] == 64
    bob.expect_nothing()


def test_late_messages_of_an_earlier_negotiation_are_kept_out(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    for negotiation in ("1", "2"):
        alice.send("webrtc:offer", {"target": bob.id, "negotiation": negotiation, "description": OFFER})
        bob.receive("webrtc:offer")
    expired = {"reason": "EXPIRED", "negotiation": "1"}
    error = bob.refused("webrtc:answer", {"target": alice.id, "negotiation": "1", "description": ANSWER})
    assert error == {**expired, "event": "webrtc:answer", "target": alice.id}
    for sender, receiver in ((alice, bob), (bob, alice)):
        candidate = {"target": receiver.id, "negotiation": "1", "candidate": CANDIDATE}
        error = sender.refused("webrtc:candidate", candidate)
        assert error == {**expired, "event": "webrtc:candidate", "target": receiver.id}
    bob.send("webrtc:answer", {"target": alice.id, "negotiation": "2", "description": ANSWER})
    assert alice.receive("webrtc:answer")["payload"]["negotiation"] == "2"
    bob.expect_nothing()


def test_offers_that_cross_both_pass_and_the_one_that_is_answered_wins(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:offer", {"target": bob.id, "negotiation": "a", "description": OFFER})
    bob.send("webrtc:offer", {"target": alice.id, "negotiation": "b", "description": OFFER})
    alice.receive("webrtc:offer")
    bob.receive("webrtc:offer")
    bob.send("webrtc:answer", {"target": alice.id, "negotiation": "a", "description": ANSWER})
    bob.send("webrtc:candidate", {"target": alice.id, "negotiation": "a", "candidate": CANDIDATE})
    alice.receive("webrtc:answer")
    alice.receive("webrtc:candidate")
    alice.send("webrtc:candidate", {"target": bob.id, "negotiation": "a", "candidate": CANDIDATE})
    bob.receive("webrtc:candidate")


def test_candidates_to_a_room_reach_those_who_have_the_description(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=PATIENCE))
    alice, bob, carol = (connect(kernel) for _ in range(3))
    for peer in (alice, bob, carol):
        peer.join("call")
    candidate = {"room": "call", "negotiation": "1", "candidate": CANDIDATE}
    alice.send("webrtc:candidate", candidate, ack=1)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 0, "held": 2}
    alice.send("webrtc:offer", {"target": bob.id, "negotiation": "1", "description": OFFER})
    bob.receive("webrtc:offer")
    bob.receive("webrtc:candidate")
    alice.send("webrtc:candidate", candidate, ack=2)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 1, "held": 1}
    bob.receive("webrtc:candidate")
    carol.expect_nothing()
    alice.send("webrtc:offer", {"room": "call", "negotiation": "1", "description": OFFER})
    carol.receive("webrtc:offer")
    for _ in range(2):
        assert carol.receive("webrtc:candidate")["payload"] == {"from": alice.id, **candidate}
    alice.send("webrtc:candidate", candidate, ack=3)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 2}
    carol.receive("webrtc:candidate")
    carol.send("webrtc:offer", {"room": "call", "negotiation": "2", "description": OFFER})
    carol.send("webrtc:offer", {"room": "call", "negotiation": "3", "description": OFFER})
    assert carol.refused("webrtc:candidate", {**candidate, "negotiation": "2"})["reason"] == "EXPIRED"


def test_a_candidate_that_is_too_late_for_some_of_a_room_says_for_whom(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob, carol = (connect(kernel) for _ in range(3))
    for peer in (alice, bob, carol):
        peer.join("call")
    alice.send("webrtc:offer", {"target": carol.id, "room": "call", "negotiation": "1", "description": OFFER})
    alice.send("webrtc:offer", {"target": carol.id, "room": "call", "negotiation": "2", "description": OFFER})
    alice.send("webrtc:offer", {"target": bob.id, "room": "call", "negotiation": "1", "description": OFFER})
    for _ in range(2):
        carol.receive("webrtc:offer")
    bob.receive("webrtc:offer")
    candidate = {"room": "call", "negotiation": "1", "candidate": CANDIDATE}
    error = alice.refused("webrtc:candidate", candidate, ack=7)
    assert error == {
        "reason": "EXPIRED", "event": "webrtc:candidate", "target": carol.id, "room": "call", "negotiation": "1",
        "ack": 7,
    }  # fmt: skip
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    assert bob.receive("webrtc:candidate")["payload"] == {"from": alice.id, **candidate}
    assert stats_of(kernel)["counters"]["refused_expired"] == 1
    carol.expect_nothing()


def test_a_candidate_for_one_that_has_just_gone_is_held_and_for_a_stranger_not(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=2.0))  # seconds in which who has gone is remembered, too
    alice, bob, eve = (connect(kernel) for _ in range(3))
    alice.send("webrtc:offer", {"target": bob.id, "description": OFFER})
    bob.receive("webrtc:offer")
    bob.close()
    wait_until(lambda: kernel.presence.get(bob.id) is None)
    alice.send("webrtc:candidate", {"target": bob.id, "candidate": CANDIDATE}, ack=1)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 0, "held": 1}
    assert eve.refused("webrtc:candidate", {"target": bob.id, "candidate": CANDIDATE})["reason"] == "UNKNOWN_TARGET"
    assert alice.refused("webrtc:offer", {"target": bob.id, "description": OFFER})["reason"] == "UNKNOWN_TARGET"
    assert alice.receive("webrtc:error")["payload"]["reason"] == "EXPIRED"
    wait_until(lambda: stats_of(kernel)["senders"] == 0)


def test_ten_thousand_candidates_are_each_answered_and_none_forwarded(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(hold=600.0))
    alice, bob = connect(kernel), connect(kernel)
    candidate = {"type": "webrtc:candidate", "payload": {"target": bob.id, "candidate": CANDIDATE}}
    alice.send_all([candidate] * 64)
    for _ in range(0, 10_000, 100):
        alice.send_all([candidate] * 100)
        for _ in range(100):
            assert alice.receive("webrtc:error")["payload"]["reason"] == "EXPIRED"
    stats = stats_of(kernel)
    assert stats["held"] == 64
    assert stats["counters"]["held"] == 64
    assert stats["counters"]["refused_expired"] == 10_000
    bob.expect_nothing()
    alice.close()
    wait_until(lambda: stats_of(kernel)["held"] == 0)
    assert stats_of(kernel)["counters"]["dropped_held"] == 64


@pytest.mark.parametrize("negotiation", [7, "", "x" * 65, ["n"], {"id": "n"}, True])
def test_a_negotiation_s_id_of_the_wrong_kind_is_refused(connect: Connect, negotiation: Any) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    signal = {"target": bob.id, "negotiation": negotiation, "description": OFFER}
    assert alice.refused("webrtc:offer", signal)["reason"] == "INVALID_OFFER"
    bob.expect_nothing()


@pytest.mark.parametrize(
    "options",
    [
        {"hold": 0},
        {"hold": "5 s"},
        {"keep_place": float("nan")},
        {"max_held": 1.5},
        {"max_pairs": True},
        {"max_participants": -1},
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        WebRTCSignalingBridge(**options)
