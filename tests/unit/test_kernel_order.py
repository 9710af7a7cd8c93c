"""One message of a client at a time, in order; and the ways out of that."""

from __future__ import annotations

import threading
from typing import Any

import gevent
import pytest
from gevent.event import Event

from realtime import Limits, RealtimeKernel, TimedOut
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until

PATIENCE = 60.0


def test_messages_of_a_client_are_handled_in_order_though_handlers_wait(kernel_test: KernelTest) -> None:
    done: list[int] = []

    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> None:
        for _ in range(5 - message.payload % 5):
            gevent.sleep(0)
        done.append(message.payload)

    client = kernel_test.connect()
    for number in range(100):
        client.send({"type": "count", "payload": number})
    kernel_test.settle()
    assert done == list(range(100))


def test_clients_do_not_wait_for_each_other(kernel_test: KernelTest) -> None:
    go = Event()
    kernel_test.kernel.on("wait", lambda message, context, toolkit: go.wait(PATIENCE))
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    waiting, other = kernel_test.connect(), kernel_test.connect()
    waiting.send({"type": "wait", "ack": 1})
    assert other.call("echo", 1) == 1
    assert waiting.received == []
    go.set()
    assert waiting.receive()["payload"] == {"ack": 1, "result": True}


def test_a_concurrent_handler_lets_later_messages_pass(kernel_test: KernelTest) -> None:
    go = Event()
    kernel_test.kernel.on("wait", lambda message, context, toolkit: go.wait(PATIENCE), concurrent=True)
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect()
    for number in range(3):
        client.send({"type": "wait", "ack": f"wait {number}"})
    assert client.call("echo", 1) == 1
    go.set()
    acks = [client.receive()["payload"]["ack"] for _ in range(3)]
    assert sorted(acks) == ["wait 0", "wait 1", "wait 2"]


def test_concurrent_handlers_of_a_client_are_bounded() -> None:
    kernel = RealtimeKernel(limits=Limits(concurrent=3))
    running, most, go = [0], [0], Event()

    @kernel.on("work", concurrent=True)
    def work(message: Any, context: Any, toolkit: Any) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        go.wait(PATIENCE)
        running[0] -= 1

    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        for number in range(10):
            client.send({"type": "work", "ack": number})
        wait_until(lambda: running == [3])
        go.set()
        assert {client.receive()["payload"]["ack"] for _ in range(10)} == set(range(10))
        assert most == [3]


def test_a_threadpool_handler_runs_in_another_thread_and_its_client_waits_for_it(kernel_test: KernelTest) -> None:
    threads: list[int] = []
    kernel_test.kernel.on(
        "work", lambda message, context, toolkit: threads.append(threading.get_ident()), threadpool=True
    )
    kernel_test.kernel.on("loop", lambda message, context, toolkit: threads.append(threading.get_ident()))
    client = kernel_test.connect()
    for name in ("work", "loop"):
        client.send({"type": name})
    client.call("loop")
    home = threading.get_ident()
    assert [thread == home for thread in threads] == [False, True, True]


def test_what_a_threadpool_handler_returns_or_raises_is_the_answer(kernel_test: KernelTest) -> None:
    def divide(message: Any, context: Any, toolkit: Any) -> float:
        return 1 / message.payload

    kernel_test.kernel.on("divide", divide, threadpool=True)
    client = kernel_test.connect()
    assert client.call("divide", 4) == 0.25
    client.send({"type": "divide", "payload": 0, "ack": 1})
    assert client.receive()["payload"]["code"] == "internal_error"


# A full inbox -----------------------------------------------------------------------------------


def test_past_the_inbox_the_client_is_not_read_from() -> None:
    kernel = RealtimeKernel(limits=Limits(inbox=4))
    go = Event()
    kernel.on("wait", lambda message, context, toolkit: go.wait(PATIENCE))
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.send({"type": "wait"})
        inbox = kernel.hub.connections[client.id].inbox
        wait_until(lambda: not inbox)  # it is being handled
        filler = {"type": "wait", "payload": "x" * 10_000}
        for _ in range(4 + 6):  # into the inbox, and on the way: 64 KiB
            client.send(filler, timeout=0)
        with pytest.raises(TimedOut, match="the server did not read 60186 bytes"):
            client.send(filler, timeout=0)
        assert len(inbox) == 4
        go.set()
        kernel_test.settle()
        assert kernel.stats()["counters"]["received"] == 11


def test_while_a_handler_waits_for_its_client_more_may_come_but_not_without_end() -> None:
    kernel = RealtimeKernel(limits=Limits(inbox=2, inbox_while_waiting=10))
    kernel.on("talk", lambda message, context, toolkit: toolkit.wait_for("end").payload)
    kernel.on("noise", lambda message, context, toolkit: message.payload)
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.send({"type": "talk", "ack": "talk"})
        wait_until(lambda: kernel.hub.connections[client.id].is_awaited)
        for number in range(15):
            client.send({"type": "noise", "payload": number, "ack": number})
        refusals = [client.receive()["payload"] for _ in range(5)]
        assert [(refusal["ack"], refusal["code"]) for refusal in refusals] == [
            (number, "inbox_full") for number in range(10, 15)
        ]
        client.send({"type": "end", "payload": "over"})
        assert client.receive()["payload"] == {"ack": "talk", "result": "over"}
        assert [client.receive()["payload"]["ack"] for _ in range(10)] == list(range(10))
        assert kernel.stats()["counters"]["refused_inbox_full"] == 5


def test_ten_thousand_rooms_are_refused_from_the_129th_on(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("join", lambda message, context, toolkit: toolkit.rooms.join(message.room))
    client = kernel_test.connect()
    codes = []
    for number in range(10_000):
        client.send({"type": "join", "room": f"room {number}", "ack": number})
        codes.append(client.receive()["payload"].get("code"))
    assert codes == [None] * 128 + ["too_many_rooms"] * 9_872
    assert kernel_test.kernel.stats()["rooms"] == 128
