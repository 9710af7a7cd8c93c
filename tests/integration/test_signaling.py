"""Signals with real WebSocket clients: who gets one, and what who is refused is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent.event
import pytest
from origin import ORIGIN
from signaling_peers import (
    ANSWER,
    CANDIDATE,
    OFFER,
    PATIENCE,
    SDP,
    Connect,
    InThread,
    Peer,
    connecting,
    serve,
    wait_until,
)

from realtime import KiB, Limits, WebRTCSignalingBridge


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


# Where signals go -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "content"),
    [
        ("webrtc:offer", {"description": OFFER, "metadata": {"label": "camera"}}),
        ("webrtc:answer", {"description": ANSWER}),
        ("webrtc:candidate", {"candidate": CANDIDATE}),
        ("webrtc:candidate", {"candidate": None}),
        ("webrtc:bye", {"metadata": "done"}),
        ("webrtc:bye", {}),
    ],
)
def test_a_signal_reaches_its_target_with_the_sender_s_id_and_nobody_else(
    connect: Connect, event: str, content: dict[str, Any]
) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob, eve = connect(kernel), connect(kernel), connect(kernel)
    if event == "webrtc:candidate":
        alice.send("webrtc:offer", {"target": bob.id, "description": OFFER})
        bob.receive("webrtc:offer")
    alice.send(event, {"target": bob.id, **content}, ack=1)
    assert alice.receive("system:ack")["payload"] == {"ack": 1, "result": {"delivered": 1}}
    message = bob.receive(event)
    assert message["payload"] == {"from": alice.id, "target": bob.id, **content}
    assert isinstance(message["timestamp"], int)
    alice.send("webrtc:bye", {"target": eve.id, "metadata": "first for eve"})
    assert eve.receive("webrtc:bye")["payload"]["metadata"] == "first for eve"


def test_a_signal_to_a_room_reaches_its_other_members(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob, carol, eve = (connect(kernel) for _ in range(4))
    for peer in (alice, bob, carol):
        peer.join("call")
    alice.send("webrtc:offer", {"room": "call", "description": OFFER}, ack="a")
    assert alice.receive("system:ack")["payload"] == {"ack": "a", "result": {"delivered": 2}}
    for peer in (bob, carol):
        message = peer.receive("webrtc:offer")
        assert message["payload"] == {"from": alice.id, "room": "call", "description": OFFER}
        assert message["room"] == "call"
    bob.send("webrtc:bye", {"target": alice.id})
    assert alice.receive("webrtc:bye")["payload"]["from"] == bob.id  # its own offer did not come back first
    bob.send("webrtc:bye", {"target": eve.id})
    eve.receive("webrtc:bye")


def test_target_and_room_may_stand_beside_the_payload(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.join("call")
    bob.join("call")
    alice.send("webrtc:offer", {"description": OFFER}, target=bob.id)
    expected = {"from": alice.id, "target": bob.id, "description": OFFER}
    assert bob.receive("webrtc:offer")["payload"] == expected
    alice.send("webrtc:bye", room="call")
    assert bob.receive("webrtc:bye")["payload"] == {"from": alice.id, "room": "call"}


def test_with_target_and_room_it_goes_to_the_target_if_that_is_in_the_room(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob, carol, eve = (connect(kernel) for _ in range(4))
    for peer in (alice, bob, carol):
        peer.join("call")
    alice.send("webrtc:offer", {"target": bob.id, "room": "call", "description": OFFER})
    message = bob.receive("webrtc:offer")
    assert message["payload"] == {"from": alice.id, "target": bob.id, "room": "call", "description": OFFER}
    assert message["room"] == "call"
    error = alice.refused("webrtc:bye", {"target": eve.id, "room": "call"})
    assert error == {"reason": "UNKNOWN_TARGET", "event": "webrtc:bye", "target": eve.id, "room": "call"}
    eve.send("webrtc:bye", {"target": carol.id})
    assert carol.receive("webrtc:bye")["payload"]["from"] == eve.id  # alice's offer was not for carol


def test_the_description_may_be_called_after_its_event(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:offer", {"target": bob.id, "offer": OFFER})
    assert bob.receive("webrtc:offer")["payload"]["description"] == OFFER
    bob.send("webrtc:answer", {"target": alice.id, "answer": ANSWER})
    assert alice.receive("webrtc:answer")["payload"]["description"] == ANSWER


def test_a_forged_from_is_forbidden_and_forwards_nothing(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    alice, bob, eve = connect(kernel), connect(kernel), connect(kernel)
    bob.join("call")
    for where in ({"target": bob.id}, {"room": "call"}):
        for claimed in (alice.id, {"id": alice.id}, 0):
            error = eve.refused("webrtc:offer", {**where, "from": claimed, "description": OFFER})
            assert error == {"reason": "FORBIDDEN", "event": "webrtc:offer", **where}
    assert kernel.rooms.members("call") == [bob.id]
    eve.send("webrtc:bye", {"target": bob.id, "from": eve.id, "metadata": "nothing before this"})
    assert bob.receive("webrtc:bye")["payload"] == {
        "from": eve.id,
        "target": bob.id,
        "metadata": "nothing before this",
    }


def test_signals_of_one_sender_arrive_in_the_order_they_were_sent(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    alice, bob = connect(kernel), connect(kernel)
    bob.join("call")
    signals: list[dict[str, Any]] = [{"type": "webrtc:offer", "payload": {"target": bob.id, "offer": OFFER}}]
    for number in range(200):
        where = {"target": bob.id} if number % 2 else {"room": "call"}
        candidate = {"candidate": f"candidate:{number}", "sdpMid": "0"}
        signals.append({"type": "webrtc:candidate", "payload": {**where, "candidate": candidate}})
    signals.append({"type": "webrtc:bye", "payload": {"target": bob.id}})
    alice.send_all(signals)
    bob.receive("webrtc:offer")
    received = [bob.receive("webrtc:candidate")["payload"]["candidate"]["candidate"] for _ in range(200)]
    assert received == [f"candidate:{number}" for number in range(200)]
    bob.receive("webrtc:bye")


def test_a_bye_sent_right_before_closing_still_reaches_the_room(connect: Connect) -> None:
    gate = gevent.event.Event()

    def slowly(context: Any, target_or_room: str) -> bool:
        return gate.wait(PATIENCE)

    kernel = serve(WebRTCSignalingBridge(authorize=slowly))
    alice, bob = connect(kernel), connect(kernel)
    alice.join("call")
    bob.join("call")
    alice.send("webrtc:bye", {"room": "call", "metadata": 1})
    alice.send("webrtc:bye", {"room": "call", "metadata": 2})
    alice.close()
    wait_until(lambda: kernel.presence.get(alice.id) is None)
    gate.set()
    received = [bob.receive("webrtc:bye")["payload"] for _ in range(2)]
    assert received == [{"from": alice.id, "room": "call", "metadata": number} for number in (1, 2)]


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "event", "payload"),
    [
        ("INVALID_OFFER", "webrtc:offer", {"target": "BOB"}),
        ("INVALID_OFFER", "webrtc:offer", {"target": "BOB", "description": ANSWER}),
        ("INVALID_OFFER", "webrtc:offer", {"room": "call", "description": {"type": "offer", "sdp": None}}),
        ("INVALID_ANSWER", "webrtc:answer", {"target": "BOB", "description": SDP}),
        ("INVALID_ANSWER", "webrtc:answer", {"room": "call", "answer": OFFER}),
        ("INVALID_CANDIDATE", "webrtc:candidate", {"target": "BOB"}),
        ("INVALID_CANDIDATE", "webrtc:candidate", {"room": "call", "candidate": {"candidate": 1}}),
        ("INVALID_CANDIDATE", "webrtc:candidate", {"target": "BOB", "candidate": {**CANDIDATE, "sdpMid": 0}}),
        ("TARGET_OR_ROOM_REQUIRED", "webrtc:offer", {"description": OFFER}),
        ("TARGET_OR_ROOM_REQUIRED", "webrtc:bye", None),
        ("TARGET_OR_ROOM_REQUIRED", "webrtc:bye", {"target": ["BOB"]}),
        ("UNKNOWN_TARGET", "webrtc:answer", {"target": "nobody", "description": ANSWER}),
        ("UNKNOWN_TARGET", "webrtc:bye", {"target": "nobody", "room": "call"}),
        ("NOT_IN_ROOM", "webrtc:offer", {"room": "elsewhere", "description": OFFER}),
        ("NOT_IN_ROOM", "webrtc:bye", {"room": "x" * 100_000}),
        ("TOO_LARGE", "webrtc:offer", {"target": "BOB", "offer": {"type": "offer", "sdp": "x" * 65_537}}),
        ("TOO_LARGE", "webrtc:candidate", {"room": "call", "candidate": {"candidate": "x" * 4_097}}),
        ("TOO_LARGE", "webrtc:bye", {"target": "BOB", "metadata": ["x" * 4_096]}),
    ],
)
def test_what_is_refused_is_told_to_the_sender_alone_and_answers_its_ack(
    connect: Connect, reason: str, event: str, payload: dict[str, Any] | None
) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.join("call")
    bob.join("call")
    if payload is not None:
        payload = {name: bob.id if value == "BOB" else value for name, value in payload.items()}
    echoed = {
        name: payload[name]
        for name in ("target", "room")
        if payload and isinstance(payload.get(name), str) and len(payload[name]) < 256
    }
    assert alice.refused(event, payload) == {"reason": reason, "event": event, **echoed}
    assert alice.refused(event, payload, ack=7) == {"reason": reason, "event": event, "ack": 7, **echoed}
    answer = alice.receive("system:error")["payload"]
    assert (answer["ack"], answer["code"]) == (7, reason.lower())
    alice.send("webrtc:bye", {"target": bob.id, "metadata": "nothing before this"})
    assert bob.receive("webrtc:bye")["payload"]["metadata"] == "nothing before this"


def test_a_megabyte_of_sdp_is_refused_and_the_connection_lives_on(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(), limits=Limits(message_size=2_000_000))
    alice, bob = connect(kernel), connect(kernel)
    description = {"type": "offer", "sdp": "v=0\r\n" * 200_000}
    error = alice.refused("webrtc:offer", {"target": bob.id, "description": description})
    assert error == {"reason": "TOO_LARGE", "event": "webrtc:offer", "target": bob.id}
    alice.send("webrtc:offer", {"target": bob.id, "description": OFFER})
    assert bob.receive("webrtc:offer")["payload"]["description"] == OFFER


def test_the_bounds_are_options(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(max_sdp=100, max_candidate=10, max_metadata=10))
    alice, bob = connect(kernel), connect(kernel)
    for event, content in (
        ("webrtc:offer", {"description": {"type": "offer", "sdp": "x" * 101}}),
        ("webrtc:candidate", {"candidate": {"candidate": "x" * 11}}),
        ("webrtc:bye", {"metadata": "x" * 9}),
    ):
        assert alice.refused(event, {"target": bob.id, **content})["reason"] == "TOO_LARGE"
    alice.send("webrtc:offer", {"target": bob.id, "description": {"type": "offer", "sdp": "x" * 100}})
    bob.receive("webrtc:offer")


def test_a_signal_that_cannot_fit_into_an_outbox_is_too_large(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(), limits=Limits(outbox=4 * KiB))
    alice, bob = connect(kernel), connect(kernel)
    description = {"type": "offer", "sdp": "x" * 5_000}
    error = alice.refused("webrtc:offer", {"target": bob.id, "description": description})
    assert error["reason"] == "TOO_LARGE"


def test_a_target_that_has_left_is_unknown(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    bob.close()
    wait_until(lambda: kernel.presence.get(bob.id) is None)
    error = alice.refused("webrtc:bye", {"target": bob.id})
    assert error == {"reason": "UNKNOWN_TARGET", "event": "webrtc:bye", "target": bob.id}


def test_the_bridge_s_own_error_event_is_not_routed(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge())
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:error", {"target": bob.id, "reason": "FORBIDDEN"})
    assert alice.receive("system:error")["payload"]["code"] == "unknown_type"
    alice.send("webrtc:bye", {"target": bob.id})
    bob.receive("webrtc:bye")


# The documented example -----------------------------------------------------------------------------------

EXAMPLE = ORIGIN.replace("port=8080", "port=0").replace("port=9090", "port=0")


def test_the_documented_example_runs_and_stops_on_sigint(tmp_path: Path, in_thread: InThread) -> None:
    example = tmp_path / "example.py"
    example.write_text(EXAMPLE)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-u", str(example)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    deadline = threading.Timer(3 * PATIENCE, process.kill)
    deadline.start()
    try:
        url = url_told_by(process)
        alice, bob = Peer(url, in_thread), Peer(url, in_thread)
        bob.send("chat:message", "hello", room="lobby", ack=1)
        bob.receive("system:ack")
        alice.send("chat:message", "hi")
        said = bob.receive("chat:message")
        assert said["payload"] == {"from": alice.id, "body": "hi", "room": "lobby"}
        alice.send("webrtc:offer", {"room": "lobby", "description": OFFER})
        assert bob.receive("webrtc:offer")["payload"]["from"] == alice.id
        process.send_signal(signal.SIGINT)
        for peer in (alice, bob):
            peer.close()
        assert in_thread(process.wait, PATIENCE) == 0
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def url_told_by(process: subprocess.Popen[str]) -> str:
    """Return the URL in the example's log."""
    assert process.stderr is not None
    log = ""
    for line in process.stderr:
        log += line
        if found := re.search(r"ws://\S+", line):
            return found.group()
    raise AssertionError(f"the example ended: {log}")
