"""What handlers may do wrong, and what may happen at the same moment: nobody is stuck and nothing is lost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import msgpack
import pytest
from gevent.event import Event

from realtime import (
    BadMessage,
    BadRoom,
    ConfigurationError,
    ConnectionClosed,
    NotRunning,
    RealtimeKernel,
    Reject,
    TimedOut,
    drain,
    event_name,
)
from realtime.outbox import Outbox
from realtime.testing import KernelTest
from realtime.transports.base import Transport

PATIENCE = 60.0


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
        release.wait(PATIENCE)
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
    assert entered.wait(20)
    hub = kernel_test.kernel.hub

    def both_at_once() -> None:
        hub.receive(hub.connections[client.id], b'{"type": "next", "payload": "kept", "ack": 2}')
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
            toolkit.wait_for("next", timeout=message.payload)
        return "timed out"

    client = kernel_test.connect()
    answers: list[Any] = []
    for timeout in (0.2, 2.0, 20.0):
        answers.clear()
        client.send({"type": "wait", "ack": "w", "payload": timeout})
        with gevent.Timeout(PATIENCE):
            while not answers or answers[-1]["ack"] != "w":
                client.send({"type": "next", "ack": len(answers)})
                answers.append(client.receive()["payload"])
                gevent.sleep(0.01)
        if len(answers) > 3:  # else we were held up for longer than it waited
            break
        client.receive()  # what came after it
    assert answers[0] == {"ack": 0, "result": "stopped"}
    assert answers[-1] == {"ack": "w", "result": "timed out"}


def test_conflation_keeps_the_order_of_what_is_left(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    kernel = kernel_test.kernel
    kernel.broadcast({"type": "price", "payload": 1}, conflate="p")
    kernel.broadcast({"type": "news"})
    kernel.broadcast({"type": "price", "payload": 2}, conflate="p")
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
    connection = kernel_test.kernel.hub.connections[client.id]
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
    outbox = hub.connections[anna.id].outbox
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


def test_a_concurrent_star_handler_takes_nobody_elses_order(kernel_test: KernelTest) -> None:
    seen: list[int] = []
    beside: list[int] = []

    @kernel_test.kernel.on("*", concurrent=True)
    def watch(message: Any, context: Any, toolkit: Any) -> str:
        beside.append(message.payload)
        gevent.sleep(0)
        return "not the answer"

    @kernel_test.kernel.on("n")
    def in_line(message: Any, context: Any, toolkit: Any) -> int:
        for _ in range(5 - message.payload):
            gevent.sleep(0)
        seen.append(message.payload)
        return int(message.payload)

    client = kernel_test.connect()
    for number in range(5):
        client.send({"type": "n", "payload": number, "ack": number})
    assert [client.receive()["payload"] for _ in range(5)] == [{"ack": n, "result": n} for n in range(5)]
    kernel_test.settle()
    assert seen == [0, 1, 2, 3, 4]
    assert sorted(beside) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_what_is_let_in_can_be_sent_on_and_what_is_deeper_is_refused(kernel_test: KernelTest, codec: str) -> None:
    kernel_test.kernel.on("echo", lambda message, context, toolkit: message.payload)
    client = kernel_test.connect(codec=codec)
    other = kernel_test.connect(codec="msgpack" if codec == "json" else "json")
    deep: Any = "bottom"
    for _ in range(126):
        deep = [deep]
    assert client.call("echo", deep) == deep
    kernel_test.kernel.broadcast({"type": "deep", "payload": deep}, except_ids=client.id)
    assert other.receive()["payload"] == deep
    for _ in range(3):
        deep = {"d": deep}
    client.send({"type": "echo", "payload": deep, "ack": 1})
    assert client.receive()["payload"]["code"] == "bad_message"


@pytest.mark.parametrize("first", ["json", "msgpack"])
def test_what_one_codec_cannot_carry_reaches_nobody(kernel_test: KernelTest, first: str) -> None:
    clients = [kernel_test.connect(codec=codec) for codec in (first, "msgpack" if first == "json" else "json")]
    for payload in (2**70, object(), "\ud800"):
        with pytest.raises(BadMessage):
            kernel_test.kernel.broadcast({"type": "x", "payload": payload})
    kernel_test.kernel.broadcast({"type": "x", "payload": {1: 2}})
    assert [client.receive()["payload"] for client in clients] == [{"1": 2}, {"1": 2}]


def test_keys_that_are_no_strings_are_refused_from_msgpack_clients(kernel_test: KernelTest) -> None:
    client = kernel_test.connect(codec="msgpack")
    for key in (b"k", 7):
        client.send(msgpack.packb({"type": "x", "payload": {key: 1}}))
        assert client.receive()["payload"]["code"] == "bad_message"


def test_a_timeout_that_is_none_leaves_no_call_behind(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    connection = kernel_test.kernel.hub.connections[client.id]
    with pytest.raises(TypeError):
        kernel_test.kernel.call(client.id, {"type": "x"}, timeout="5")  # type: ignore[arg-type]
    assert not connection.is_awaited


@pytest.mark.parametrize("event", ["client:connected", "system:ack", "mesh:x"])
def test_waiting_for_what_no_client_can_send_is_refused(kernel_test: KernelTest, event: str) -> None:
    errors: list[BaseException] = []

    @kernel_test.kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> None:
        try:
            toolkit.wait_for(event)
        except ConfigurationError as error:
            errors.append(error)

    kernel_test.connect().call("wait")
    assert event in str(errors[0])


def test_one_id_may_be_given_as_it_is_and_rooms_are_checked(kernel_test: KernelTest) -> None:
    anna, ben = kernel_test.connect(), kernel_test.connect()
    kernel = kernel_test.kernel
    assert kernel.broadcast({"type": "x"}, except_ids=anna.id) == 1
    assert ben.receive()["type"] == "x"
    assert kernel.broadcast({"type": "y"}, except_ids=(id_ for id_ in (ben.id,))) == 1  # type: ignore[arg-type]
    assert anna.receive()["type"] == "y"
    for room in ("", 5):
        with pytest.raises(BadRoom):
            kernel.broadcast({"type": "x"}, room)  # type: ignore[arg-type]
    with pytest.raises(BadRoom, match="surrogate"):
        kernel.rooms.join("\ud800", anna.id)
    for message in ({"type": "x", "room": 5}, {"type": "x", "timestamp": "now"}):
        with pytest.raises(BadMessage):
            kernel.broadcast(message)


def test_a_broadcast_stalls_for_a_crowded_member(kernel_test: KernelTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others run while the publisher is held: without the stall it would never switch."""
    client = kernel_test.connect()
    client.stop_reading()
    ran: list[int] = []
    others = gevent.spawn(lambda: ran.append(len(ran)))
    for _ in range(8):  # 800 kB: above three quarters of the outbox, but it fits
        kernel_test.kernel.broadcast({"type": "fill", "payload": "x" * 100_000})
    assert ran == [0]
    assert kernel_test.kernel.stats()["counters"]["stalls"] >= 1
    others.join()


def test_a_broadcast_stalls_once_for_full_and_crowded_members_together(
    kernel_test: KernelTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = kernel_test.kernel
    full, crowded = kernel_test.connect(), kernel_test.connect()
    for client in (full, crowded):
        client.stop_reading()
    for client, size in ((full, 1_000_000), (crowded, 600_000)):
        kernel.send(client.id, {"type": "fill", "payload": "x" * size}, overflow="close")
    now = [0.0]
    waited: list[float] = []

    def wait_for_room(outbox: Outbox, timeout: float, size: int = 0) -> bool:
        waited.append(timeout)
        now[0] += max(0.0, timeout)
        return False

    monkeypatch.setattr(Outbox, "wait_for_room", wait_for_room)
    monkeypatch.setattr("realtime.outgoing.time", SimpleNamespace(perf_counter=lambda: now[0], time=time.time))
    monkeypatch.setattr("realtime.outbox.time", SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic))
    kernel.broadcast({"type": "more", "payload": "x" * 300_000})
    assert waited[0] == kernel.limits.stall  # for the one where it did not fit
    assert now[0] == kernel.limits.stall  # and nothing more for the other
    assert kernel.stats()["counters"]["stalls"] == 1


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
        release.wait(PATIENCE)

    kernel_test = KernelTest(kernel)
    kernel_test.start()
    kernel_test.connect().send({"type": "slow"})
    assert entered.wait(20)
    stops = [gevent.spawn(kernel.stop, PATIENCE) for _ in range(2)]
    gevent.sleep(0)
    with pytest.raises(ConfigurationError, match="stopping"):
        kernel.start()
    assert not any(stop.ready() for stop in stops)
    release.set()
    gevent.joinall(stops, timeout=PATIENCE, raise_error=True)
    assert all(stop.successful() for stop in stops)
    kernel_test.stop()


@pytest.mark.parametrize("timeout", [None, "x", -1, True, float("nan")])
def test_a_stop_that_makes_no_sense_changes_nothing(timeout: Any) -> None:
    kernel = RealtimeKernel(log_level="critical")
    kernel.start()
    with pytest.raises(ConfigurationError, match="timeout"):
        kernel.stop(timeout)
    assert kernel.running
    kernel.stop(1)


def test_a_stop_that_is_cut_short_still_stops_the_transports() -> None:
    events: list[str] = []
    own = gevent.Timeout(PATIENCE, False)

    class Noted(Transport):
        def on_start(self) -> None:
            events.append("start")

        def on_stop(self) -> None:
            events.append("stop")

        def closing(self) -> int:
            if not own.pending:
                own.start()
                gevent.get_hub().loop.run_callback(gevent.getcurrent().throw, own)
            return 1  # never done

    kernel = RealtimeKernel([Noted()], log_level="critical")
    kernel.start()
    with pytest.raises(gevent.Timeout) as caught:
        kernel.stop(PATIENCE)
    own.close()
    assert caught.value is own
    assert events == ["start", "stop"]
    assert not kernel.running


def test_a_kernel_that_is_stopped_while_it_starts_stays_stopped() -> None:
    events: list[str] = []
    entered, release = Event(), Event()

    class Slow(Transport):
        def on_start(self) -> None:
            entered.set()
            release.wait(PATIENCE)

        def on_stop(self) -> None:
            events.append("stop")

    class Second(Slow):
        def on_start(self) -> None:
            events.append("second started")

    kernel = RealtimeKernel([Slow(), Second()], log_level="critical")
    starting = gevent.spawn(kernel.start)
    assert entered.wait(20)
    kernel.stop(1)
    release.set()
    with pytest.raises(NotRunning):
        starting.get(timeout=20)
    assert "second started" not in events
    assert not kernel.running


def test_what_is_no_list_of_transports_or_holds_one_twice_is_refused() -> None:
    transport = Unstartable()
    for transports in (transport, [transport, transport], 5):
        with pytest.raises(ConfigurationError):
            RealtimeKernel(transports, log_level="critical")  # type: ignore[arg-type]


def test_on_without_an_event_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="event"):

        @RealtimeKernel(log_level="critical").on  # type: ignore[arg-type]
        def handler(message: Any, context: Any, toolkit: Any) -> None:
            """Never registered."""


def test_starting_says_what_is_not_patched(caplog: Any) -> None:
    kernel = RealtimeKernel(log_level="info")
    kernel.start()
    kernel.stop(1)
    assert "not monkey-patched: socket, time" in caplog.text


def test_clients_are_told_to_go_in_batches_with_hints_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "BATCH", 3)
    kernel_test = KernelTest(RealtimeKernel(log_level="critical"), stop_timeout=PATIENCE)
    kernel_test.start()
    clients = [kernel_test.connect() for _ in range(8)]
    told: list[int] = []
    pause = gevent.sleep

    def noted(seconds: float = 0) -> None:
        if seconds == drain.BATCH_PAUSE:
            told.append(sum(connection.closed for connection in connections))
        pause(min(seconds, 0.001))

    connections = list(kernel_test.kernel.hub.connections.values())
    monkeypatch.setattr(drain.gevent, "sleep", noted)
    kernel_test.stop()
    assert told == [3, 6]
    for client in clients:
        client.wait_closed()
    assert {client.close_code for client in clients} == {4013}
    assert len({client.close_reason for client in clients}) > 1


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
