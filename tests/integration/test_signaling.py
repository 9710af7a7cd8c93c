"""The signaling bridge with real WebSocket clients: who gets a signal, and what who is refused is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gevent
import gevent.event
import pytest
from origin import ORIGIN
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from realtime import (
    ConfigurationError,
    KiB,
    Limits,
    RealtimeKernel,
    Reject,
    WebRTCSignalingBridge,
    WebSocketTransport,
)

PATIENCE = 20.0
SDP = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
OFFER = {"type": "offer", "sdp": SDP}
ANSWER = {"type": "answer", "sdp": SDP}
CANDIDATE = {
    "candidate": "candidate:1 1 udp 2122260223 10.0.0.7 54321 typ host",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
}

R = TypeVar("R")


class InThread(Protocol):
    def __call__(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R: ...


class Peer:
    """A client: the ``websockets`` library in native threads, driven from a greenlet."""

    def __init__(self, url: str, in_thread: InThread) -> None:
        self._in_thread = in_thread
        # entered by hand, as a with-statement would: it lives from one call in a thread to the next
        self.socket: ClientConnection = in_thread(lambda: open_websocket(url, proxy=None).__enter__())
        self.send("system:hello")
        self.id: str = self.receive("system:welcome")["payload"]["id"]

    def send(self, event: str, payload: Any = None, **fields: Any) -> None:
        self.send_all([{"type": event, "payload": payload, **fields}])

    def send_all(self, messages: list[dict[str, Any]]) -> None:
        """Send as fast as the socket takes it."""

        def burst() -> None:
            for message in messages:
                self.socket.send(json.dumps(message))

        self._in_thread(burst)

    def receive(self, event: str) -> dict[str, Any]:
        """Return the next message, which must be of this type."""
        message = json.loads(self._in_thread(self.socket.recv, PATIENCE))
        assert message["type"] == event, message
        return dict(message)

    def refused(self, event: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        """Send a signal; return the payload of the bridge's error."""
        self.send(event, payload, **fields)
        error: dict[str, Any] = self.receive(f"{event.partition(':')[0]}:error")["payload"]
        assert error["event"] == event
        assert isinstance(error.pop("message"), str)
        return error

    def join(self, room: str) -> None:
        self.send("join", room=room, ack="join")
        self.receive("system:ack")

    def close(self) -> None:
        self._in_thread(self.socket.__exit__, None, None, None)


Connect = Callable[[RealtimeKernel], Peer]


def serve(*bridges: WebRTCSignalingBridge, limits: Limits | None = None) -> RealtimeKernel:
    """Return a kernel that is not started, with bridges and a way to join rooms."""
    transport = WebSocketTransport(port=0, path="/realtime")
    kernel = RealtimeKernel([transport], log_level="warning", limits=limits)
    for bridge in bridges:
        assert bridge.attach(kernel) is bridge

    @kernel.on("join")
    def join(message: Any, context: Any, toolkit: Any) -> None:
        toolkit.rooms.join(message.room)

    return kernel


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    """Connect clients to a kernel, which is started for the first; all is stopped when the test ends."""
    kernels: list[RealtimeKernel] = []
    peers: list[Peer] = []

    def connect_one(kernel: RealtimeKernel) -> Peer:
        if not kernel.running:
            kernels.append(kernel)
            kernel.start()
        (transport,) = kernel.transports
        assert isinstance(transport, WebSocketTransport)
        peers.append(Peer(transport.url, in_thread))
        return peers[-1]

    yield connect_one
    for peer in peers:
        peer.close()
    for kernel in kernels:
        kernel.stop()


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


def test_a_forged_from_is_overwritten(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    alice, bob, eve = connect(kernel), connect(kernel), connect(kernel)
    bob.join("call")
    eve.send("webrtc:offer", {"target": bob.id, "from": alice.id, "description": OFFER})
    assert bob.receive("webrtc:offer")["payload"]["from"] == eve.id
    eve.send("webrtc:bye", {"room": "call", "from": {"id": alice.id}})
    assert bob.receive("webrtc:bye")["payload"]["from"] == eve.id


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


def wait_until(done: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE):
        while not done():
            gevent.sleep(0.001)


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


# Rooms and permission ---------------------------------------------------------------------------------


def test_auto_join_rooms_puts_the_sender_into_the_room_it_names(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:offer", {"room": "call", "description": OFFER}, ack=1)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 0}  # first in the room
    bob.send("webrtc:offer", {"room": "call", "description": OFFER}, ack=1)
    assert bob.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    assert alice.receive("webrtc:offer")["payload"]["from"] == bob.id
    assert kernel.rooms.members("call") == [alice.id, bob.id]


def test_auto_join_keeps_the_limits_of_rooms(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True), limits=Limits(rooms_per_client=1))
    alice = connect(kernel)
    assert alice.refused("webrtc:bye", {"room": "x" * 256})["reason"] == "BAD_ROOM"
    alice.join("one")
    assert alice.refused("webrtc:bye", {"room": "two"})["reason"] == "TOO_MANY_ROOMS"
    assert kernel.rooms.members("two") == []


def test_a_refused_signal_joins_no_room(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True))
    alice = connect(kernel)
    assert alice.refused("webrtc:offer", {"room": "call", "description": None})["reason"] == "INVALID_OFFER"
    assert kernel.rooms.members("call") == []


def test_authorize_decides_on_targets_and_on_rooms_before_anyone_joins(connect: Connect) -> None:
    asked: list[tuple[str, str]] = []
    allowed: set[str] = set()

    def authorize(context: Any, target_or_room: str) -> bool:
        asked.append((context.id, target_or_room))
        return target_or_room in allowed

    kernel = serve(WebRTCSignalingBridge(auto_join_rooms=True, authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    bob.join("call")
    assert alice.refused("webrtc:bye", {"room": "call"})["reason"] == "FORBIDDEN"
    assert kernel.rooms.members("call") == [bob.id]
    assert alice.refused("webrtc:bye", {"target": bob.id}, ack=3)["reason"] == "FORBIDDEN"
    assert alice.receive("system:error")["payload"]["code"] == "forbidden"
    allowed.add("call")
    assert alice.refused("webrtc:bye", {"target": bob.id, "room": "call"})["reason"] == "FORBIDDEN"
    allowed.add(bob.id)
    alice.send("webrtc:bye", {"target": bob.id, "room": "call"})
    bob.receive("webrtc:bye")
    assert asked == [(alice.id, name) for name in ("call", bob.id, "call", bob.id, "call", bob.id)]


def test_authorize_is_not_asked_about_a_room_the_sender_is_not_in(connect: Connect) -> None:
    asked: list[str] = []

    def authorize(context: Any, target_or_room: str) -> bool:
        asked.append(target_or_room)
        return False

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice = connect(kernel)
    assert alice.refused("webrtc:bye", {"room": "call"})["reason"] == "NOT_IN_ROOM"
    assert asked == []


def test_who_is_gone_when_its_signal_is_refused_leaves_no_fault_behind(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    waiting, gate = gevent.event.Event(), gevent.event.Event()

    def authorize(context: Any, target_or_room: str) -> bool:
        waiting.set()
        gate.wait(PATIENCE)
        return False

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:bye", {"target": bob.id}, ack=1)
    assert waiting.wait(PATIENCE)
    alice.close()
    wait_until(lambda: kernel.presence.get(alice.id) is None)
    gate.set()
    assert bob.refused("webrtc:bye", {"target": bob.id})["reason"] == "FORBIDDEN"
    assert kernel.stats()["counters"].get("handler_errors", 0) == 0
    assert not caplog.records


def test_authorize_may_reject_in_its_own_words(connect: Connect) -> None:
    def authorize(context: Any, target_or_room: str) -> bool:
        raise Reject("no calls after ten", code="quiet_hours")

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:bye", {"target": bob.id}, ack=1)
    payload = alice.receive("webrtc:error")["payload"]
    assert (payload["reason"], payload["message"]) == ("QUIET_HOURS", "no calls after ten")
    assert alice.receive("system:error")["payload"]["code"] == "quiet_hours"


def test_a_failing_authorize_forwards_nothing_and_tells_no_details(connect: Connect) -> None:
    def authorize(context: Any, target_or_room: str) -> bool:
        if target_or_room == "call":
            return True
        raise ZeroDivisionError("secret")

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    alice.join("call")
    bob.join("call")
    alice.send("webrtc:bye", {"target": bob.id})
    error = alice.receive("system:error")
    assert error["payload"]["code"] == "internal_error"
    assert "secret" not in json.dumps(error)
    alice.send("webrtc:bye", {"room": "call", "metadata": "nothing before this"})
    assert bob.receive("webrtc:bye")["payload"]["metadata"] == "nothing before this"


def test_who_leaves_the_room_while_authorize_waits_is_not_in_it(connect: Connect) -> None:
    waiting, gate = gevent.event.Event(), gevent.event.Event()

    def authorize(context: Any, target_or_room: str) -> bool:
        waiting.set()
        return gate.wait(PATIENCE)

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice = connect(kernel)
    alice.join("call")
    alice.send("webrtc:bye", {"room": "call"})
    assert waiting.wait(PATIENCE)
    kernel.rooms.leave("call", alice.id)
    gate.set()
    assert alice.receive("webrtc:error")["payload"]["reason"] == "NOT_IN_ROOM"


def test_a_target_that_leaves_while_authorize_waits_is_unknown(connect: Connect) -> None:
    waiting, gate = gevent.event.Event(), gevent.event.Event()

    def authorize(context: Any, target_or_room: str) -> bool:
        waiting.set()
        return gate.wait(PATIENCE)

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:bye", {"target": bob.id})
    assert waiting.wait(PATIENCE)
    bob.close()
    wait_until(lambda: kernel.presence.get(bob.id) is None)
    gate.set()
    assert alice.receive("webrtc:error")["payload"]["reason"] == "UNKNOWN_TARGET"


def test_require_shared_room_keeps_strangers_apart(connect: Connect) -> None:
    kernel = serve(WebRTCSignalingBridge(require_shared_room=True))
    alice, bob = connect(kernel), connect(kernel)
    alice.join("a")
    bob.join("b")
    error = alice.refused("webrtc:offer", {"target": bob.id, "description": OFFER})
    assert error == {"reason": "FORBIDDEN", "event": "webrtc:offer", "target": bob.id}
    alice.join("b")
    alice.send("webrtc:offer", {"target": bob.id, "description": OFFER, "metadata": "now"})
    assert bob.receive("webrtc:offer")["payload"]["metadata"] == "now"


# Namespaces and attaching -------------------------------------------------------------------------------


def test_bridges_of_two_namespaces_do_not_meet(connect: Connect) -> None:
    strict = WebRTCSignalingBridge(namespace="audio", authorize=lambda context, where: False)
    kernel = serve(WebRTCSignalingBridge(), strict)
    alice, bob = connect(kernel), connect(kernel)
    assert alice.refused("audio:bye", {"target": bob.id})["reason"] == "FORBIDDEN"
    alice.send("webrtc:bye", {"target": bob.id}, ack=1)
    assert alice.receive("system:ack")["payload"]["result"] == {"delivered": 1}
    bob.receive("webrtc:bye")
    alice.send("video:bye", {"target": bob.id})
    assert alice.receive("system:error")["payload"]["code"] == "unknown_type"


@pytest.mark.parametrize(
    "namespace", ["", "system", "client", "mesh", "a:b", "system:x", ":", "[room]", "x" * 65, None, 7]
)
def test_a_namespace_that_cannot_work_is_refused(namespace: Any) -> None:
    with pytest.raises(ConfigurationError, match="namespace="):
        WebRTCSignalingBridge(namespace=namespace)


@pytest.mark.parametrize("options", [{"max_sdp": 0}, {"max_candidate": "4k"}, {"max_metadata": -1}])
def test_a_bound_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        WebRTCSignalingBridge(**options)


async def authorize_later(context: Any, target_or_room: str) -> bool:
    return True


@pytest.mark.parametrize("authorize", ["yes", lambda: True, authorize_later])
def test_an_authorize_that_cannot_be_called_is_refused(authorize: Any) -> None:
    with pytest.raises(ConfigurationError, match="authorize"):
        WebRTCSignalingBridge(authorize=authorize)


def test_attaching_twice_is_refused() -> None:
    kernel, other = serve(), serve()
    bridge = WebRTCSignalingBridge().attach(kernel)
    not_a_kernel: Any = None
    for one, where in (
        (bridge, kernel),
        (bridge, other),
        (WebRTCSignalingBridge(), kernel),
        (WebRTCSignalingBridge(), not_a_kernel),
    ):
        with pytest.raises(ConfigurationError):
            one.attach(where)
    WebRTCSignalingBridge().attach(other)
    WebRTCSignalingBridge(namespace="audio").attach(kernel)


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
