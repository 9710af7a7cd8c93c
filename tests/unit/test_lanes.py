"""Lanes: messages of many clients one at a time, in the order they arrived, and nothing that stays behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realtime import ConfigurationError, Limits, RealtimeKernel, Reject
from realtime.routing import Router
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until

NOTHING = {"held": 0, "waiting": 0}


class Recorder:
    """A handler that waits until it is let go on, and knows who was in it together."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.done: list[Any] = []
        self.inside: dict[Any, int] = defaultdict(int)
        self.most = 0
        self.gates: dict[Any, Event] = defaultdict(Event)

    def __call__(self, message: Any, context: Any, toolkit: Any) -> Any:
        self.begun.append(message.payload)
        self.inside[message.room] += 1
        self.most = max(self.most, self.inside[message.room])
        self.gates[message.payload].wait(20)
        self.inside[message.room] -= 1
        self.done.append(message.payload)
        return message.payload

    def let_go(self, *payloads: Any) -> None:
        """Let these go on, one after the other, and what follows from it begin."""
        for payload in payloads:
            self.gates[payload].set()
            wait_until(lambda payload=payload: payload in self.done)  # type: ignore[misc]
            gevent.sleep(0)


def rest(test: KernelTest) -> None:
    """Wait until every job has begun: it is done then, or waits for something."""
    wait_until(lambda: not test.kernel.hub.workers._ready)


@pytest.fixture
def moves(kernel_test: KernelTest) -> Recorder:
    recorder = Recorder()
    kernel_test.kernel.on("move", recorder, serial="room")
    return recorder


def lanes(test: KernelTest) -> dict[str, int]:
    return test.kernel.stats()["lanes"]  # type: ignore[no-any-return]


def move(number: Any, room: str | None = "chess", **more: Any) -> dict[str, Any]:
    return {"type": "move", "payload": number, "room": room, **more}


# One at a time ------------------------------------------------------------------------------------------


def test_a_room_is_served_one_message_at_a_time_across_clients(kernel_test: KernelTest, moves: Recorder) -> None:
    clients = [kernel_test.connect() for _ in range(10)]
    for number, client in enumerate(clients):
        client.send(move(number, ack=1))
    rest(kernel_test)
    assert (moves.begun, lanes(kernel_test)) == ([0], {"held": 1, "waiting": 9})
    moves.let_go(*range(10))
    assert (moves.done, moves.most) == (list(range(10)), 1)
    for number, client in enumerate(clients):
        assert client.receive()["payload"] == {"ack": 1, "result": number}
    assert lanes(kernel_test) == NOTHING


def test_rooms_do_not_wait_for_each_other(kernel_test: KernelTest, moves: Recorder) -> None:
    for number, room in enumerate(["chess", "go", None]):
        kernel_test.connect().send(move(number, room))
    rest(kernel_test)
    assert moves.begun == [0, 1, 2]
    moves.let_go(0, 1, 2)


def test_messages_without_a_room_share_a_lane(kernel_test: KernelTest, moves: Recorder) -> None:
    for number in range(2):
        kernel_test.connect().send(move(number, None))
    rest(kernel_test)
    assert moves.begun == [0]
    moves.let_go(0, 1)
    assert moves.done == [0, 1]


def test_what_waits_for_a_lane_holds_no_greenlet(kernel_test: KernelTest, moves: Recorder) -> None:
    for number in range(200):
        kernel_test.connect().send(move(number))
    rest(kernel_test)
    assert (kernel_test.kernel.stats()["workers"], lanes(kernel_test)["waiting"]) == (1, 199)
    moves.let_go(*range(200))
    assert moves.done == list(range(200))


def test_handlers_that_name_no_lane_are_as_before(kernel_test: KernelTest, moves: Recorder) -> None:
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    one, other = kernel_test.connect(), kernel_test.connect()
    one.send(move(0))
    assert other.call("echo", 1, room="chess") == 1
    moves.let_go(0)


# Order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("senders", ["aab", "aba", "abab", "aabbaabb", "abcabcabc", "aaabbbccc", "cbaabc"])
def test_the_order_in_a_lane_is_that_of_arrival(kernel_test: KernelTest, moves: Recorder, senders: str) -> None:
    clients = {name: kernel_test.connect() for name in sorted(set(senders))}
    for number, name in enumerate(senders):
        clients[name].send(move(number))
    moves.let_go(*range(len(senders)))
    assert (moves.done, moves.most) == (list(range(len(senders))), 1)
    assert lanes(kernel_test) == NOTHING


def test_a_handler_that_never_waits_keeps_that_order_too(kernel_test: KernelTest) -> None:
    done: list[int] = []
    kernel_test.kernel.on("move", lambda message, context, toolkit: done.append(message.payload), serial="room")
    clients = [kernel_test.connect() for _ in range(3)]
    for number in range(45):  # each client's inbox takes 16 before the rest waits outside
        clients[number * 7 % 3].send(move(number))
    kernel_test.settle()
    assert done == list(range(45))


def test_a_clients_later_messages_wait_for_the_one_in_the_lane(kernel_test: KernelTest, moves: Recorder) -> None:
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    first, second = kernel_test.connect(), kernel_test.connect()
    first.send(move(0))
    second.send(move(1, ack="move"))
    second.send({"type": "echo", "payload": "later", "ack": "echo"})
    moves.gates[1].set()
    rest(kernel_test)
    assert second.received == []
    moves.let_go(0)
    assert [second.receive()["payload"]["ack"] for _ in range(2)] == ["move", "echo"]


def test_a_message_behind_a_slow_one_of_its_client_holds_up_nobody(kernel_test: KernelTest, moves: Recorder) -> None:
    go = Event()
    kernel_test.kernel.on("slow", lambda message, context, toolkit: go.wait(20))
    first, second = kernel_test.connect(), kernel_test.connect()
    first.send({"type": "slow"})
    first.send(move(0))  # arrives first, and is not at the head of its client's line
    second.send(move(1))
    moves.let_go(1)
    assert moves.done == [1]
    go.set()
    moves.let_go(0)
    assert moves.done == [1, 0]


def test_clients_that_cross_in_two_lanes_do_not_deadlock(kernel_test: KernelTest, moves: Recorder) -> None:
    one, other = kernel_test.connect(), kernel_test.connect()
    one.send(move("one a", "a"))
    other.send(move("other b", "b"))
    one.send(move("one b", "b"))
    other.send(move("other a", "a"))
    moves.let_go("one a", "other b", "one b", "other a")
    assert sorted(moves.done) == ["one a", "one b", "other a", "other b"]
    assert lanes(kernel_test) == NOTHING


# Keys ---------------------------------------------------------------------------------------------------


def test_a_function_names_the_lane_and_sees_params_and_context(kernel_test: KernelTest) -> None:
    recorder = Recorder()
    kernel_test.kernel.on(
        "game:[id]:move", recorder, serial=lambda message, context: (message.params["id"], context.identity)
    )
    for number, (game, team) in enumerate([("7", "red"), ("7", "red"), ("8", "red"), ("7", "blue")]):
        kernel_test.connect(identity=team).send({"type": f"game:{game}:move", "payload": number})
    rest(kernel_test)
    assert recorder.begun == [0, 2, 3]
    recorder.let_go(0, 1, 2, 3)


def test_no_key_is_no_lane(kernel_test: KernelTest) -> None:
    recorder = Recorder()
    kernel_test.kernel.on("move", recorder, serial=lambda message, context: None)
    for number in range(2):
        kernel_test.connect().send(move(number))
    rest(kernel_test)
    assert recorder.begun == [0, 1]
    recorder.let_go(0, 1)


def test_handlers_of_several_events_share_the_lane_of_a_room(kernel_test: KernelTest, moves: Recorder) -> None:
    resigned: list[Any] = []
    kernel_test.kernel.on("resign", lambda message, context, toolkit: resigned.append(message.payload), serial="room")
    kernel_test.connect().send(move(0))
    kernel_test.connect().send({"type": "resign", "room": "chess", "payload": 1})
    rest(kernel_test)
    assert resigned == []
    moves.let_go(0)
    wait_until(lambda: resigned == [1])


@pytest.mark.parametrize("result", [Reject("no such game", code="no_game"), ValueError("broken"), ["a", "list"]])
def test_a_key_that_cannot_be_is_answered_and_the_next_message_goes_on(kernel_test: KernelTest, result: Any) -> None:
    def key(message: Any, context: Any) -> Any:
        if message.payload == "bad":
            if isinstance(result, Exception):
                raise result
            return result
        return message.room

    kernel_test.kernel.on("move", lambda message, context, toolkit: message.payload, serial=key)
    client = kernel_test.connect()
    client.send(move("good", ack=0))
    client.send(move("bad", ack=1))
    client.send(move("good", ack=2))
    kernel_test.settle()
    codes = [message["payload"].get("code") for message in client.received]
    assert codes == [None, "no_game" if isinstance(result, Reject) else "internal_error", None]
    assert client.received[1]["payload"]["ack"] == 1
    assert lanes(kernel_test) == NOTHING


# The end of a turn ----------------------------------------------------------------------------------------


def test_errors_let_the_next_one_in(kernel_test: KernelTest) -> None:
    def fail(message: Any, context: Any, toolkit: Any) -> None:
        gevent.sleep(0)
        raise (Reject("no"), ValueError("broken"))[message.payload % 2]

    kernel_test.kernel.on("move", fail, serial="room")
    clients = [kernel_test.connect() for _ in range(4)]
    for number, client in enumerate(clients):
        client.send(move(number, ack=number))
    kernel_test.settle()
    assert [client.receive()["payload"]["code"] for client in clients] == ["rejected", "internal_error"] * 2
    assert lanes(kernel_test) == NOTHING


def test_call_and_wait_for_hold_the_lane_and_their_timeout_releases_it(kernel_test: KernelTest) -> None:
    events: list[str] = []

    def ask(message: Any, context: Any, toolkit: Any) -> None:
        events.append(f"{message.payload} in")
        try:
            if message.payload == "call":
                toolkit.call(context.id, {"type": "sure?"}, timeout=20)
            else:
                toolkit.wait_for("sure", timeout=0.001)
        finally:
            events.append(f"{message.payload} out")

    kernel_test.kernel.on("ask", ask, serial="room")
    one, other = kernel_test.connect(), kernel_test.connect()
    one.send({"type": "ask", "room": "r", "payload": "call"})
    other.send({"type": "ask", "room": "r", "payload": "wait", "ack": 1})
    question = one.receive()
    assert events == ["call in"]
    one.send({"type": "system:ack", "payload": {"ack": question["ack"]}})
    assert other.receive()["payload"]["code"] == "timeout"
    assert events == ["call in", "call out", "wait in", "wait out"]
    assert lanes(kernel_test) == NOTHING


def test_a_stream_holds_its_lane_to_its_last_item(kernel_test: KernelTest, moves: Recorder) -> None:
    go = Event()

    def watch(message: Any, context: Any, toolkit: Any) -> Any:
        yield 1
        go.wait(20)
        yield 2

    kernel_test.kernel.on("watch", watch, serial="room")
    watcher = kernel_test.connect()
    watcher.send({"type": "watch", "room": "chess", "ack": 1})
    assert watcher.receive()["payload"]["item"] == 1
    kernel_test.connect().send(move(0))
    rest(kernel_test)
    assert moves.begun == []
    go.set()
    moves.let_go(0)


def test_middleware_runs_within_the_lane(kernel_test: KernelTest, moves: Recorder) -> None:
    entered: list[Any] = []

    @kernel_test.kernel.middleware
    def note(message: Any, context: Any, toolkit: Any, call_next: Callable[[], Any]) -> Any:
        entered.append(message.payload)
        return call_next()

    for number in range(2):
        kernel_test.connect().send(move(number))
    rest(kernel_test)
    assert entered == [0]
    moves.let_go(0, 1)
    assert entered == [0, 1]


# Clients that go, cancel, wait -----------------------------------------------------------------------------


def test_a_client_that_goes_while_it_waits_is_handled_as_ever_and_then_gone(
    kernel_test: KernelTest, moves: Recorder
) -> None:
    gone: list[str] = []
    kernel_test.kernel.on("client:disconnected", lambda message, context, toolkit: gone.append(context.id))
    first, second = kernel_test.connect(), kernel_test.connect()
    first.send(move(0))
    second.send(move(1))
    second.close()
    rest(kernel_test)
    assert gone == []
    moves.let_go(0, 1)
    wait_until(lambda: gone)
    assert (moves.done, gone) == ([0, 1], [second.id])
    assert lanes(kernel_test) == NOTHING


def test_what_waits_for_a_lane_can_be_cancelled(kernel_test: KernelTest, moves: Recorder) -> None:
    first, second = kernel_test.connect(), kernel_test.connect()
    first.send(move(0))
    second.send(move(1, ack=1))
    second.send(move(2, ack=2))
    second.send({"type": "system:cancel", "payload": {"ack": 1}})
    assert second.receive()["payload"]["code"] == "cancelled"
    moves.let_go(0, 2)
    assert moves.done == [0, 2]
    assert second.receive()["payload"] == {"ack": 2, "result": 2}
    assert lanes(kernel_test) == NOTHING


def test_cancelling_the_last_that_waits_leaves_nothing_behind(kernel_test: KernelTest, moves: Recorder) -> None:
    first, second = kernel_test.connect(), kernel_test.connect()
    first.send(move(0))
    second.send(move(1, ack=1))
    second.send({"type": "system:cancel", "payload": {"ack": 1}})
    assert second.receive()["payload"]["code"] == "cancelled"
    moves.let_go(0)
    assert (moves.done, lanes(kernel_test)) == ([0], NOTHING)
    moves.gates[2].set()
    assert second.call("move", 2, room="chess") == 2


def test_a_message_that_another_handler_waits_for_needs_no_turn(kernel_test: KernelTest, moves: Recorder) -> None:
    got: list[Any] = []
    kernel_test.kernel.on(
        "take",
        lambda message, context, toolkit: got.append(toolkit.wait_for("move", timeout=20).payload),
        concurrent=True,
    )
    first, second = kernel_test.connect(), kernel_test.connect()
    first.send(move(0))
    second.send(move(1))  # waits for its lane, and is taken out of the line
    second.send({"type": "take"})
    second.send(move(2))
    rest(kernel_test)
    assert got == [1]
    moves.let_go(0, 2)
    assert (moves.done, lanes(kernel_test)) == ([0, 2], NOTHING)


# Concurrent ------------------------------------------------------------------------------------------------


def test_concurrent_messages_wait_for_their_lane_and_hold_up_no_others_of_their_client(kernel_test: KernelTest) -> None:
    recorder = Recorder()
    kernel_test.kernel.on("move", recorder, serial="room", concurrent=True)
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect()
    for number in range(5):
        client.send(move(number))
    client.send(move("go", "go"))
    assert client.call("echo", 1) == 1
    assert (recorder.begun, lanes(kernel_test)) == ([0, "go"], {"held": 2, "waiting": 4})
    recorder.let_go("go", 0, 1, 2, 3, 4)
    assert (recorder.done, recorder.most) == (["go", 0, 1, 2, 3, 4], 1)
    assert lanes(kernel_test) == NOTHING


def test_concurrent_messages_past_the_limit_keep_to_the_lane_in_line() -> None:
    kernel = RealtimeKernel(limits=Limits(concurrent=3))
    recorder = Recorder()
    kernel.on("move", recorder, serial="room", concurrent=True)
    with KernelTest(kernel) as test:
        client = test.connect()
        for number in range(10):
            client.send(move(number))
        recorder.let_go(*range(10))
        assert (recorder.done, recorder.most) == (list(range(10)), 1)
        assert lanes(test) == NOTHING


def test_a_concurrent_handler_beside_one_in_line_stays_in_the_lane(kernel_test: KernelTest) -> None:
    recorder = Recorder()
    seen: list[Any] = []
    kernel_test.kernel.on("move", lambda message, context, toolkit: seen.append(message.payload))
    kernel_test.kernel.on("move", recorder, serial="room", concurrent=True)
    for number in range(3):
        kernel_test.connect().send(move(number))
    rest(kernel_test)
    assert (seen, recorder.begun) == ([0], [0])
    recorder.let_go(0, 1, 2)
    assert (recorder.done, recorder.most) == ([0, 1, 2], 1)


# Bounds ----------------------------------------------------------------------------------------------------


def test_a_full_lane_refuses_and_counts() -> None:
    kernel = RealtimeKernel(limits=Limits(lane=3))
    recorder = Recorder()
    kernel.on("move", recorder, serial="room")
    kernel.on("echo", lambda message, context, toolkit: message.payload)
    with KernelTest(kernel) as test:
        clients = [test.connect() for _ in range(6)]
        for number, client in enumerate(clients):
            client.send(move(number, ack="move"))
        for client in clients[4:]:
            payload = client.receive()["payload"]
            assert (payload["code"], payload["ack"]) == ("lane_full", "move")
            assert client.call("echo", 1) == 1  # and goes on
        recorder.let_go(0, 1, 2, 3)
        assert recorder.done == [0, 1, 2, 3]
        assert kernel.stats()["counters"]["refused_lane_full"] == 2
        assert lanes(test) == NOTHING


def test_lanes_end_with_the_kernel_and_begin_anew() -> None:
    kernel = RealtimeKernel(log_level="error")
    recorder = Recorder()
    kernel.on("move", recorder, serial="room")
    with KernelTest(kernel, stop_timeout=0.1) as test:
        for number in range(3):
            test.connect().send(move(number))
        rest(test)
        assert recorder.begun == [0]
    with KernelTest(kernel) as test:
        assert lanes(test) == NOTHING
        recorder.gates["again"].set()
        assert test.connect().call("move", "again", room="chess") == "again"


# Registration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serial", ["client", "", 7, True, lambda message: 1, lambda message, context, more: 1])
def test_a_serial_that_cannot_be_is_refused(serial: Any) -> None:
    with pytest.raises(ConfigurationError, match="serial"):
        RealtimeKernel().on("move", lambda message, context, toolkit: None, serial=serial)


@pytest.mark.parametrize("event", ["client:connected", "client:disconnected", "mesh:joined"])
def test_only_messages_of_clients_have_lanes(event: str) -> None:
    with pytest.raises(ConfigurationError, match="serial"):
        RealtimeKernel().on(event, lambda message, context, toolkit: None, serial="room")


def _handler(message: Any, context: Any, toolkit: Any) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("move", "move", True),
        ("move", "*", True),
        ("*", "game:[id]", True),
        ("game:[id]", "game:7", True),
        ("game:7", "game:[id]", True),
        ("game:[id]", "game:[id]", True),
        ("move", "resign", False),
        ("game:[id]", "game:7:move", False),
    ],
)
def test_two_lanes_for_one_message_are_refused(one: str, other: str, meet: bool) -> None:
    router = Router()
    router.on(one, _handler, concurrent=False, threadpool=False, serial="room")
    router.on(other, _handler, concurrent=False, threadpool=False, serial="room")  # the same lane is fine
    if meet:
        with pytest.raises(ConfigurationError, match="serial"):
            router.on(other, _handler, concurrent=False, threadpool=False, serial=lambda message, context: 1)
    else:
        router.off(other)
        router.on(other, _handler, concurrent=False, threadpool=False, serial=lambda message, context: 1)


# Whatever happens ----------------------------------------------------------------------------------------------

_steps = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab-"), st.integers(0, 3), st.booleans()), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_steps)
def test_whatever_clients_send_lanes_are_exclusive_and_clients_keep_their_order(
    kernel_test: KernelTest, steps: list[tuple[int, str, int, bool]]
) -> None:
    kernel_test.kernel.off("move")
    inside: dict[str, int] = defaultdict(int)
    done: dict[str, list[int]] = defaultdict(list)

    def handle(message: Any, context: Any, toolkit: Any) -> None:
        number, pauses, fails = message.payload
        inside[message.room] += 1
        assert inside[message.room] == 1 or message.room == "-"
        for _ in range(pauses):
            gevent.sleep(0)
        inside[message.room] -= 1
        done[context.id].append(number)
        if fails:
            raise Reject("no")

    kernel_test.kernel.on(
        "move", handle, serial=lambda message, context: None if message.room == "-" else message.room
    )
    clients = [kernel_test.connect() for _ in range(4)]
    sent: dict[str, list[int]] = defaultdict(list)
    for number, (who, room, pauses, fails) in enumerate(steps):
        clients[who].send({"type": "move", "room": room, "payload": [number, pauses, fails]})
        sent[clients[who].id].append(number)
        if number % 3 == 0:
            gevent.sleep(0)
    kernel_test.settle(20)
    assert done == sent
    assert lanes(kernel_test) == NOTHING
    assert "handler_errors" not in kernel_test.kernel.stats()["counters"]
    for client in clients:
        client.close()
