"""Rooms, permission and namespaces of the signaling bridge, with real WebSocket clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gevent.event
import pytest
from signaling_peers import OFFER, PATIENCE, Connect, InThread, connecting, serve, wait_until

from realtime import ConfigurationError, Limits, Reject, WebRTCSignalingBridge


@pytest.fixture
def connect(in_thread: InThread) -> Iterator[Connect]:
    with connecting(in_thread) as connect_one:
        yield connect_one


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

    limits = Limits(blocked_loop=PATIENCE)  # a machine that has no time for us is no fault, nor is it to be logged
    kernel = serve(WebRTCSignalingBridge(authorize=authorize), limits=limits)
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


@pytest.mark.parametrize(
    "options",
    [
        {"max_sdp": 0},
        {"max_candidate": "4k"},
        {"max_metadata": -1},
        {"auto_join_rooms": "no"},
        {"require_shared_room": None},
    ],
)
def test_a_bound_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        WebRTCSignalingBridge(**options)


@pytest.mark.parametrize("answer", ["coroutine", "generator"])
def test_an_authorize_that_answers_nothing_yet_lets_nobody_pass(connect: Connect, answer: str) -> None:
    async def later() -> bool:
        return False

    def in_parts() -> Iterator[bool]:
        yield False

    given: list[Any] = []

    def authorize(context: Any, target_or_room: str) -> Any:
        given.append(later() if answer == "coroutine" else in_parts())
        return given[-1]

    kernel = serve(WebRTCSignalingBridge(authorize=authorize))
    alice, bob = connect(kernel), connect(kernel)
    alice.send("webrtc:offer", {"target": bob.id, "offer": OFFER}, ack=1)
    assert alice.receive("system:error")["payload"]["code"] == "internal_error"
    bob.expect_nothing()
    given[0].close()


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
