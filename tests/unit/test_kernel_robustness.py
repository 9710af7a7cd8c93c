"""What handlers may do wrong, and what may happen at the same moment: nobody is stuck and nothing is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from realtime import ConfigurationError, ConnectionClosed, RealtimeKernel, Reject, TimedOut, event_name
from realtime.testing import KernelTest
from realtime.transports.base import Transport


def time_out() -> None:
    with gevent.Timeout(0.001):
        gevent.sleep(5)


def raise_(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


WAYS_TO_END = {
    "a timeout of gevent's": time_out,
    "GreenletExit": raise_(gevent.GreenletExit()),
    "sys.exit()": lambda: sys.exit(3),
    "a Reject of an exception": raise_(Reject(ValueError("why"))),  # type: ignore[arg-type]
    "a Reject with a code that is no text": raise_(Reject("why", code=object())),  # type: ignore[arg-type]
    "a Reject that UTF-8 cannot carry": raise_(Reject("\ud800")),
    "an exception of the interpreter's": raise_(RecursionError()),
}


@pytest.mark.parametrize("end", WAYS_TO_END.values(), ids=WAYS_TO_END)
@pytest.mark.parametrize("concurrent", [False, True])
def test_however_a_handler_ends_the_client_is_answered_and_served_on(
    kernel_test: KernelTest, end: Callable[[], None], concurrent: bool
) -> None:
    kernel_test.kernel.on("end", lambda message, context, toolkit: end(), concurrent=concurrent)
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect()
    client.send({"type": "end", "ack": 1})
    error = client.receive()
    assert (error["type"], error["payload"]["ack"]) == ("system:error", 1)
    assert client.call("echo", 7) == 7


def test_a_stream_that_ends_in_a_timeout_is_answered(kernel_test: KernelTest) -> None:
    def stream(message: Any, context: Any, toolkit: Any) -> Iterator[int]:
        yield 1
        time_out()

    kernel_test.kernel.on("stream", stream)
    client = kernel_test.connect()
    client.send({"type": "stream", "ack": 1})
    assert [client.receive()["type"] for _ in range(2)] == ["system:stream", "system:error"]
    client.send({"type": "nothing", "ack": 2})
    assert client.receive()["payload"]["code"] == "unknown_type"


def test_a_concurrent_message_does_not_wait_for_one_in_line(kernel_test: KernelTest) -> None:
    release, order = Event(), []

    def in_line(message: Any, context: Any, toolkit: Any) -> None:
        order.append(f"begin {message.payload}")
        release.wait(2)
        order.append(f"end {message.payload}")

    kernel_test.kernel.on("line", in_line)
    kernel_test.kernel.on("beside", lambda *_: order.append("beside"), concurrent=True)
    client = kernel_test.connect()
    client.send({"type": "line", "payload": 1})
    client.send({"type": "line", "payload": 2})
    client.send({"type": "beside", "ack": 1})
    assert client.receive()["payload"] == {"ack": 1}
    release.set()
    kernel_test.settle()
    assert order == ["begin 1", "beside", "end 1", "begin 2", "end 2"]


def test_the_greeting_comes_before_a_concurrent_message(kernel_test: KernelTest) -> None:
    order: list[str] = []

    @kernel_test.kernel.on("client:connected", concurrent=True)
    def connected(message: Any, context: Any, toolkit: Any) -> None:
        gevent.sleep(0.01)
        order.append("connected")

    kernel_test.kernel.on("beside", lambda *_: order.append("beside"), concurrent=True)
    client = kernel_test.connect()
    client.call("beside")
    assert order == ["connected", "beside"]


def test_a_message_for_a_wait_that_was_given_up_goes_to_its_handler(kernel_test: KernelTest) -> None:
    """The caller's own timeout strikes in the very turn in which the message arrives."""
    waiting: list[Any] = []
    entered = Event()

    @kernel_test.kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> str:
        with gevent.Timeout(60, False) as timer:
            waiting[:] = [gevent.getcurrent(), timer]
            entered.set()
            toolkit.wait_for("next")
        return "given up"

    kernel_test.kernel.on("next", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect()
    client.send({"type": "wait", "ack": 1})
    assert entered.wait(2)
    hub = kernel_test.kernel.hub

    def both_at_once() -> None:
        hub.receive(hub.find(client.id), b'{"type": "next", "payload": "kept", "ack": 2}')
        waiter, timer = waiting
        waiter.throw(timer)

    gevent.get_hub().loop.run_callback(both_at_once)
    answers = [client.receive()["payload"] for _ in range(2)]
    assert answers == [{"ack": 1, "result": "given up"}, {"ack": 2, "result": "kept"}]


def test_a_wait_has_one_deadline_however_many_messages_middleware_stops(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.middleware
    def stop(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        return "stopped" if message.type == "next" else call_next()

    @kernel_test.kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> str:
        with pytest.raises(TimedOut):
            toolkit.wait_for("next", timeout=0.2)
        return "timed out"

    client = kernel_test.connect()
    client.send({"type": "wait", "ack": "w"})
    answers = []
    with gevent.Timeout(5):
        while not answers or answers[-1]["ack"] != "w":
            client.send({"type": "next", "ack": len(answers)})
            answers.append(client.receive()["payload"])
            gevent.sleep(0.01)
    assert answers[0] == {"ack": 0, "result": "stopped"}
    assert answers[-1] == {"ack": "w", "result": "timed out"}


def test_conflation_keeps_the_order_of_what_is_left(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    kernel = kernel_test.kernel
    kernel.broadcast({"type": "price", "payload": 1}, overflow="conflate", key="p")
    kernel.broadcast({"type": "news"})
    kernel.broadcast({"type": "price", "payload": 2}, overflow="conflate", key="p")
    assert [client.receive()["type"] for _ in range(2)] == ["news", "price"]
    assert kernel.stats()["counters"]["dropped_conflated"] == 1


def test_a_generator_is_not_lost_among_several_handlers(kernel_test: KernelTest, caplog: Any) -> None:
    closed: list[str] = []

    def stream(name: str) -> Any:
        def handler(message: Any, context: Any, toolkit: Any) -> Iterator[str]:
            try:
                yield name
            finally:
                closed.append(name)

        return handler

    kernel_test.kernel.on("both", stream("first"))
    kernel_test.kernel.on("both", stream("second"))
    kernel_test.kernel.on("*", lambda *_: "a value")
    client = kernel_test.connect()
    assert list(client.stream("both")) == ["first"]
    assert "left out" in caplog.text


def test_a_transport_that_fails_to_write_costs_nobody_else_a_message() -> None:
    from realtime.connection import Connection

    received: dict[str, list[bytes]] = {"good": [], "bad": []}

    class Client(Connection):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def transmit(self, frame: bytes) -> None:
            if self.name == "bad":
                raise RuntimeError("broken in an unforeseen way")
            received[self.name].append(frame)

        def end(self, code: int, reason: str) -> None:
            self.outbox.close()
            transport.hub.disconnect(self, reason, code=code)

    class Queues(Transport):
        def on_start(self) -> None:
            """Nothing listens."""

        def on_stop(self) -> None:
            for connection in list(self.hub.connections.values()):
                self.hub.disconnect(connection, "stopped")

    transport = Queues()
    kernel = RealtimeKernel([transport], log_level="critical")
    kernel.start()
    for name in ("bad", "good"):
        transport.hub.connect(Client(name))
    for number in range(3):
        kernel.broadcast({"type": "x", "payload": number})
        gevent.sleep(0)
    assert len(received["good"]) == 3
    assert kernel.stats()["clients"] == 1
    kernel.stop(1)


def test_what_comes_after_a_client_left_is_counted_and_not_handled(kernel_test: KernelTest) -> None:
    handled: list[Any] = []
    kernel_test.kernel.on("late", lambda message, *_: handled.append(message))
    client = kernel_test.connect()
    connection = kernel_test.kernel.hub.find(client.id)
    kernel_test.kernel.hub.disconnect(connection, "gone")
    kernel_test.kernel.hub.receive(connection, b'{"type": "late"}')
    kernel_test.settle()
    assert handled == []
    assert kernel_test.kernel.stats()["counters"]["received_after_close"] == 1


def test_a_list_of_targets_is_served_although_one_goes_away_meanwhile(kernel_test: KernelTest) -> None:
    anna, ben, chris = (kernel_test.connect() for _ in range(3))
    failures: list[BaseException] = []

    @kernel_test.kernel.on("send")
    def send(message: Any, context: Any, toolkit: Any) -> None:
        try:
            toolkit.send(message.target, {"type": "sent"})
        except ConnectionClosed as error:
            failures.append(error)

    # anna's outbox is crowded, so sending to her waits, and she goes away while it does
    anna.stop_reading()
    hub = kernel_test.kernel.hub
    outbox = hub.find(anna.id).outbox
    filler = {"type": "fill", "payload": "x" * 100_000}
    while outbox.has_room(200_000):
        kernel_test.kernel.broadcast(filler, except_ids=(ben.id, chris.id))
        gevent.sleep(0)
    while outbox.has_room(10):
        kernel_test.kernel.broadcast({"type": "fill", "payload": "x" * 1000}, except_ids=(ben.id, chris.id))
    chris.send({"type": "send", "target": [anna.id, ben.id]})
    gevent.sleep(0)
    anna.kill()
    assert ben.receive_until("sent")
    kernel_test.settle()
    assert len(failures) == 1


# Lifecycle ----------------------------------------------------------------------------------------------


class Unstartable(Transport):
    def on_start(self) -> None:
        raise ConfigurationError("cannot start")

    def on_stop(self) -> None:
        """Nothing was started."""


def test_a_kernel_whose_run_failed_can_be_started_and_stopped() -> None:
    kernel = RealtimeKernel(log_level="critical")
    broken = RealtimeKernel([Unstartable()], log_level="critical")
    with pytest.raises(ConfigurationError):
        broken.run()
    broken.stop()
    assert not broken.running
    kernel.start()
    with pytest.raises(ConfigurationError, match="running already"):
        kernel.run()
    kernel.stop(1)
    assert not kernel.running


def test_a_second_stop_returns_when_the_first_is_done() -> None:
    kernel = RealtimeKernel(log_level="critical")
    entered, release = Event(), Event()

    @kernel.on("slow")
    def slow(message: Any, context: Any, toolkit: Any) -> None:
        entered.set()
        release.wait(5)

    kernel_test = KernelTest(kernel)
    kernel_test.start()
    kernel_test.connect().send({"type": "slow"})
    assert entered.wait(2)
    stops = [gevent.spawn(kernel.stop, 5) for _ in range(2)]
    gevent.sleep(0)
    with pytest.raises(ConfigurationError, match="stopping"):
        kernel.start()
    assert not any(stop.ready() for stop in stops)
    release.set()
    gevent.joinall(stops, timeout=5, raise_error=True)
    assert all(stop.successful() for stop in stops)
    kernel_test.stop()


# Templates ----------------------------------------------------------------------------------------------


def test_a_template_with_many_parameters_costs_no_more_than_its_length(kernel_test: KernelTest) -> None:
    """Were it matched by trying, 2**200 ways would be tried here."""
    template = "x:" + "-".join(f"[p{number}]" for number in range(20))
    kernel_test.kernel.on(template, lambda message, *_: message.params)
    client = kernel_test.connect()
    client.send({"type": "x:" + "-" * 220, "ack": 1})
    assert client.receive()["payload"]["code"] == "unknown_type"
    name = event_name(template, *range(20))
    assert client.call(name) == {f"p{number}": str(number) for number in range(20)}


def test_parameters_need_text_between_them() -> None:
    with pytest.raises(ConfigurationError, match="between"):
        RealtimeKernel(log_level="critical").on("x:[a][b]", lambda message, context, toolkit: None)
