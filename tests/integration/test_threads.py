"""The kernel used from native threads that know nothing of gevent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from realtime import (
    CallFailed,
    ConnectionClosed,
    MessageTooBig,
    NotRunning,
    RealtimeKernel,
    TimedOut,
    UnknownClient,
)
from realtime.testing import KernelTest

PATIENCE = 60.0


def in_native_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Start a thread of the standard library's; return what waits for its result, in this greenlet alone."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((function(*args, **kwargs), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        deadline = time.monotonic() + PATIENCE
        while not outcome:
            assert time.monotonic() < deadline, "the thread did not come back"
            gevent.sleep(0.001)
        thread.join()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


@pytest.fixture
def kernel(kernel_test: KernelTest) -> RealtimeKernel:
    return kernel_test.kernel


def test_a_thread_can_send_broadcast_and_change_rooms(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    client = kernel_test.connect()

    def work() -> list[Any]:
        return [
            kernel.rooms.join("lobby", client.id),
            kernel.rooms.members("lobby"),
            kernel.rooms.rooms_for(client.id),
            kernel.rooms.list(),
            kernel.presence.update(client.id, {"mood": "fine"})["metadata"],
            kernel.presence.get(client.id)["rooms"],
            kernel.presence.list("lobby").total,
            kernel.send(client.id, {"type": "sent"}),
            kernel.broadcast({"type": "to all"}),
            kernel.broadcast({"type": "to the room"}, "lobby"),
            kernel.rooms.leave("lobby", client.id),
            kernel.rooms.leave_all(client.id),
            kernel.stats()["clients"],
        ]

    assert in_native_thread(work)() == [
        True,
        [client.id],
        ["lobby"],
        {"lobby": 1},
        {"mood": "fine"},
        ["lobby"],
        1,
        None,
        1,
        1,
        True,
        [],
        1,
    ]
    assert [client.receive()["type"] for _ in range(3)] == ["sent", "to all", "to the room"]


def test_a_thread_can_call_a_client_while_the_loop_goes_on(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    kernel.on("echo", lambda message, context, toolkit: message.payload)
    client, other = kernel_test.connect(), kernel_test.connect()
    result = in_native_thread(kernel.call, client.id, {"type": "question"})
    question = client.receive(PATIENCE)
    assert other.call("echo", 1, timeout=PATIENCE) == 1
    client.answer(question, [42])
    assert result() == [42]


def test_what_goes_wrong_is_raised_in_the_thread(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    client = kernel_test.connect()
    with pytest.raises(UnknownClient):
        in_native_thread(kernel.send, "nobody", {"type": "x"})()
    with pytest.raises(MessageTooBig):
        in_native_thread(kernel.send, client.id, {"type": "x", "payload": "x" * 2_000_000})()
    with pytest.raises(TimedOut):
        in_native_thread(kernel.call, client.id, {"type": "question"}, timeout=0.01)()
    refused = in_native_thread(kernel.call, client.id, {"type": "question 2"})
    client.refuse(client.receive_until("question 2", PATIENCE), "no", code="busy")
    with pytest.raises(CallFailed, match="busy: no"):
        refused()
    lost = in_native_thread(kernel.call, client.id, {"type": "question 3"})
    client.receive_until("question 3", PATIENCE)
    client.kill()
    with pytest.raises(ConnectionClosed):
        lost()


def test_many_threads_at_once_lose_nothing(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    client = kernel_test.connect()

    def work(thread: int) -> None:
        for number in range(100):
            kernel.send(client.id, {"type": "n", "payload": [thread, number]})

    results = [in_native_thread(work, thread) for thread in range(8)]
    for result in results:
        result()
    kernel_test.settle()
    got = [message["payload"] for message in client.received]
    assert len(got) == 800
    for thread in range(8):
        assert [number for one, number in got if one == thread] == list(range(100))


def test_a_thread_can_disconnect_a_client(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    client = kernel_test.connect()
    in_native_thread(lambda: kernel.disconnect(client.id, 4503, reason="rules"))()
    assert client.wait_closed(PATIENCE) == 4503


def test_a_thread_can_stop_the_kernel_and_then_finds_it_stopped(
    kernel_test: KernelTest, kernel: RealtimeKernel
) -> None:
    client = kernel_test.connect()
    in_native_thread(kernel.stop, 1)()
    assert client.wait_closed(PATIENCE) == 4013
    assert not kernel.running
    with pytest.raises(UnknownClient):
        in_native_thread(kernel.send, client.id, {"type": "x"})()


def test_a_call_that_is_under_way_when_the_kernel_stops_ends(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    client = kernel_test.connect()
    result = in_native_thread(kernel.call, client.id, {"type": "question"}, timeout=PATIENCE)
    client.receive(PATIENCE)
    kernel.stop(1)
    with pytest.raises((ConnectionClosed, NotRunning)):
        result()


def test_a_threadpool_handler_has_the_whole_toolkit(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    home = threading.get_ident()

    def work(message: Any, context: Any, toolkit: Any) -> Any:
        assert threading.get_ident() != home
        toolkit.rooms.join("lobby")
        toolkit.presence.update({"mood": "fine"})
        toolkit.reply("in a thread")
        toolkit.rooms.broadcast({"type": "said"}, "lobby")
        toolkit.broadcast({"type": "to me"}, lambda other: other.id == context.id)
        toolkit.send(context.id, {"type": "sent"})
        toolkit.send([context.id], {"type": "sent to each"})
        answer = toolkit.call(context.id, {"type": "question"}, timeout=PATIENCE)
        name = toolkit.wait_for("name", timeout=PATIENCE).payload
        toolkit.log("done")
        return [answer, name, toolkit.rooms.list(), toolkit.rooms.members("lobby") == [context.id], context.rooms]

    kernel.on("work", work, threadpool=True)
    client = kernel_test.connect()
    client.send({"type": "work", "ack": 1})
    types = [client.receive(PATIENCE)["type"] for _ in range(5)]
    assert types == ["system:reply", "said", "to me", "sent", "sent to each"]
    client.answer(client.receive(PATIENCE), 42)
    client.send({"type": "name", "payload": "Ann"})
    assert client.receive(PATIENCE)["payload"] == {"ack": 1, "result": [42, "Ann", ["lobby"], True, ["lobby"]]}


def test_a_threadpool_handler_that_blocks_holds_up_only_its_own_client(
    kernel_test: KernelTest, kernel: RealtimeKernel
) -> None:
    go = threading.Event()
    kernel.on("block", lambda message, context, toolkit: go.wait(PATIENCE), threadpool=True)
    kernel.on("echo", lambda message, context, toolkit: message.payload)
    blocked, other = kernel_test.connect(), kernel_test.connect()
    blocked.send({"type": "block", "ack": 1})
    blocked.send({"type": "echo", "payload": "after", "ack": 2})
    assert [other.call("echo", number, timeout=PATIENCE) for number in range(20)] == list(range(20))
    assert blocked.received == []
    go.set()
    assert [blocked.receive(PATIENCE)["payload"] for _ in range(2)] == [
        {"ack": 1, "result": True},
        {"ack": 2, "result": "after"},
    ]


def test_a_generator_of_a_threadpool_handler_streams(kernel_test: KernelTest, kernel: RealtimeKernel) -> None:
    home = threading.get_ident()

    def count(message: Any, context: Any, toolkit: Any) -> Any:
        for number in range(5):
            assert threading.get_ident() != home
            yield number

    kernel.on("count", count, threadpool=True)
    assert list(kernel_test.connect().stream("count", timeout=PATIENCE)) == [0, 1, 2, 3, 4]


def test_a_kernel_can_run_in_a_thread_of_its_own() -> None:
    """Its loop is that thread's; the main thread is then the foreign one."""
    kernel = RealtimeKernel()
    kernel.on("echo", lambda message, context, toolkit: message.payload)
    ready = threading.Event()
    test = KernelTest(kernel)
    results: list[Any] = []

    def serve() -> None:
        with test:
            results.append(test.connect().id)
            ready.set()
            while results[0] not in kernel.rooms.members("done"):
                gevent.sleep(0.001)
        gevent.get_hub().destroy()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    assert kernel.broadcast({"type": "news"}) == 1
    assert kernel.rooms.join("done", results[0]) is True
    thread.join(PATIENCE)
    assert not thread.is_alive()
