"""Generators answer with a stream: in order, with backpressure, and closed when the client goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from realtime import KiB, Limits, RealtimeKernel, Reject
from realtime.testing import KernelTest


def test_items_come_in_order_and_the_generators_result_ends_them(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Any:
        yield from range(message.payload)
        return "done"

    client = kernel_test.connect()
    client.send({"type": "count", "payload": 3, "ack": "c"})
    messages = [client.receive() for _ in range(4)]
    assert [message["type"] for message in messages] == ["system:stream"] * 3 + ["system:ack"]
    assert [message["payload"].get("item") for message in messages] == [0, 1, 2, None]
    assert messages[3]["payload"] == {"ack": "c", "result": "done"}
    assert list(client.stream("count", 5)) == [0, 1, 2, 3, 4]


def test_an_empty_stream_is_just_the_ack(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        yield from ()

    client = kernel_test.connect()
    client.send({"type": "count", "ack": 1})
    assert client.receive()["payload"] == {"ack": 1}


def test_a_stream_that_fails_half_way_ends_with_the_error(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        yield 1
        raise Reject("no more", code="enough")

    client = kernel_test.connect()
    client.send({"type": "count", "ack": 1})
    assert client.receive()["payload"] == {"ack": 1, "item": 1}
    assert client.receive()["payload"] == {"ack": 1, "code": "enough", "message": "no more"}


def test_a_stream_needs_an_ack(kernel_test: KernelTest) -> None:
    started: list[int] = []

    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        started.append(1)
        yield 1

    client = kernel_test.connect()
    client.send({"type": "count"})
    payload = client.receive()["payload"]
    assert payload["code"] == "bad_message"
    assert "ack" in payload["message"]
    assert started == []


def test_a_stream_waits_while_its_client_does_not_read_and_goes_on_when_it_does() -> None:
    kernel = RealtimeKernel(limits=Limits(outbox=64 * KiB))
    made: list[int] = []

    @kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[str]:
        for number in range(100):
            made.append(number)
            yield "x" * 4 * KiB

    kernel.on("echo", lambda message, context, toolkit: message.payload)
    with KernelTest(kernel) as kernel_test:
        client, other = kernel_test.connect(), kernel_test.connect()
        client.stop_reading()
        client.send({"type": "count", "ack": 1})
        assert [other.call("echo", number) for number in range(50)] == list(range(50))
        assert 10 < len(made) < 20
        client.resume_reading()
        assert [len(client.receive()["payload"]["item"]) for _ in range(100)] == [4 * KiB] * 100
        assert client.receive()["payload"] == {"ack": 1}
        assert kernel.stats()["counters"].get("closed_slow_consumer", 0) == 0


def test_a_reader_that_never_comes_back_is_cut_off_at_the_deadline() -> None:
    kernel = RealtimeKernel(limits=Limits(outbox=64 * KiB, backpressure_timeout=0.01))

    @kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[str]:
        while True:
            yield "x" * 4 * KiB

    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        client.stop_reading()
        client.send({"type": "count", "ack": 1})
        kernel_test.settle(60)
        client.resume_reading()
        assert client.wait_closed() == 4008
        assert kernel.stats()["counters"]["closed_slow_consumer"] == 1


@pytest.mark.parametrize("leave", ["close", "kill"])
def test_the_generator_is_closed_when_its_client_goes(kernel_test: KernelTest, leave: str) -> None:
    notes: list[str] = []

    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
                gevent.sleep(0)
        finally:
            notes.append("closed")

    client = kernel_test.connect()
    stream = client.stream("count")
    assert [next(stream) for _ in range(3)] == [1, 1, 1]
    getattr(client, leave)()
    kernel_test.settle()
    assert notes == ["closed"]


def test_the_clients_next_message_is_handled_when_the_stream_has_ended(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("count")
    def count(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        for number in range(3):
            gevent.sleep(0)
            yield number

    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect()
    client.send({"type": "count", "ack": 1})
    client.send({"type": "echo", "ack": 2})
    assert [client.receive()["payload"]["ack"] for _ in range(5)] == [1, 1, 1, 1, 2]


def test_a_generator_can_hold_a_conversation(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("guess")
    def guess(message: Any, context: Any, toolkit: Any) -> Any:
        for attempt in range(1, 4):
            yield "your guess?"
            if toolkit.wait_for("guess is", timeout=60).payload == 7:
                return attempt
        return None

    client = kernel_test.connect()
    client.send({"type": "guess", "ack": 1})
    for number in (3, 7):
        assert client.receive()["payload"]["item"] == "your guess?"
        client.send({"type": "guess is", "payload": number})
    assert client.receive()["payload"] == {"ack": 1, "result": 2}


# Cancelled ----------------------------------------------------------------------------------------------


def test_a_cancelled_stream_is_closed_and_the_clients_next_message_is_handled(kernel_test: KernelTest) -> None:
    closed: list[int] = []

    @kernel_test.kernel.on("tail")
    def tail(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        number = 0
        try:
            while True:
                yield (number := number + 1)
                gevent.sleep(0)
        finally:
            closed.append(number)

    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect()
    client.send({"type": "tail", "ack": 0})
    client.receive_until("system:stream")
    client.send({"type": "system:cancel", "payload": {"ack": 0}})
    error = client.receive_until("system:error")["payload"]
    assert (error["ack"], error["code"]) == (0, "cancelled")
    assert len(closed) == 1
    assert client.call("echo", "next") == "next"


def test_a_stream_that_waits_for_its_next_item_is_cancelled_at_once(kernel_test: KernelTest) -> None:
    never, closed = Event(), Event()

    @kernel_test.kernel.on("tail")
    def tail(message: Any, context: Any, toolkit: Any) -> Iterator[str]:
        try:
            yield "first"
            never.wait()
        finally:
            closed.set()

    client = kernel_test.connect()
    client.send({"type": "tail", "ack": "t"})
    client.receive_until("system:stream")
    client.send({"type": "system:cancel", "payload": {"ack": "t"}})
    assert client.receive_until("system:error")["payload"]["code"] == "cancelled"
    assert closed.is_set()


def test_a_stream_in_a_native_thread_ends_with_its_next_item(kernel_test: KernelTest) -> None:
    numbers = iter(range(1_000_000))

    def count(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        yield from numbers

    kernel_test.kernel.on("count", count, threadpool=True)
    client = kernel_test.connect()
    client.send({"type": "count", "ack": 1})
    client.receive_until("system:stream")
    client.send({"type": "system:cancel", "payload": {"ack": 1}})
    assert client.receive_until("system:error")["payload"]["code"] == "cancelled"
    assert next(numbers) < 1_000_000 - 1


def test_what_still_waits_in_line_is_cancelled_before_it_began(kernel_test: KernelTest) -> None:
    ran: list[str] = []
    go_on = Event()

    @kernel_test.kernel.on("first")
    def first(message: Any, context: Any, toolkit: Any) -> None:
        go_on.wait()

    kernel_test.kernel.on("second", lambda message, context, toolkit: ran.append("second"))
    client = kernel_test.connect()
    client.send({"type": "first", "ack": 1})
    client.send({"type": "second", "ack": 2})
    client.send({"type": "system:cancel", "payload": {"ack": 2}})
    assert client.receive_until("system:error")["payload"] == {"ack": 2, "code": "cancelled", "message": "cancelled"}
    go_on.set()
    assert client.receive_until("system:ack")["payload"]["ack"] == 1
    assert ran == []


@pytest.mark.parametrize("payload", [None, {}, {"ack": None}, {"ack": True}, {"ack": 1.5}, [1]])
def test_a_cancellation_of_nothing_is_counted_a_malformed_one_refused(kernel_test: KernelTest, payload: Any) -> None:
    client = kernel_test.connect()
    client.send({"type": "system:cancel", "payload": {"ack": "never asked"}})
    client.send({"type": "system:cancel", "payload": payload})
    assert client.receive_until("system:error")["payload"]["code"] == "bad_message"
    assert kernel_test.kernel.stats()["counters"]["late_cancellations"] == 1
