"""Handlers that wait for clients: call and wait_for."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest

from realtime import CallFailed, ConnectionClosed, Limits, RealtimeKernel, Reject, TimedOut, UnknownClient
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until


@pytest.fixture
def noted(kernel_test: KernelTest) -> list[Any]:
    """What handlers noted; with handlers that ask, wait and note."""
    notes: list[Any] = []
    kernel = kernel_test.kernel

    @kernel.on("ask")
    def ask(message: Any, context: Any, toolkit: Any) -> Any:
        try:
            return toolkit.call(message.target or context.id, {"type": "question", "payload": message.payload})
        except Exception as error:
            notes.append(error)
            raise

    @kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> Any:
        try:
            got = toolkit.wait_for(message.payload["event"], timeout=message.payload.get("timeout"))
        except Exception as error:
            notes.append(error)
            raise
        return [got.type, got.payload, got.params]

    kernel.on("note", lambda message, context, toolkit: notes.append(message.payload))
    return notes


def code_of(client: Any, ack: Any) -> str:
    message = client.receive()
    assert message["payload"]["ack"] == ack, message
    return message["payload"]["code"]


# call -----------------------------------------------------------------------------------------


def test_a_handler_gets_its_own_clients_answer(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "ask", "payload": {"q": 1}, "ack": "a"})
    question = client.receive()
    assert (question["type"], question["payload"]) == ("question", {"q": 1})
    client.answer(question, {"answer": 42})
    assert client.receive()["payload"] == {"ack": "a", "result": {"answer": 42}}


def test_an_answer_overtakes_the_messages_that_wait(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "ask", "ack": "a"})
    question = client.receive()
    for number in range(100):
        client.send({"type": "note", "payload": number})
    client.answer(question, "answer")
    assert client.receive()["payload"] == {"ack": "a", "result": "answer"}
    kernel_test.settle()
    assert noted == list(range(100))


def test_two_clients_can_ask_each_other_at_once(kernel_test: KernelTest, noted: list[Any]) -> None:
    ann, bob = kernel_test.connect(), kernel_test.connect()
    ann.send({"type": "ask", "target": bob.id, "ack": "ann's"})
    bob.send({"type": "ask", "target": ann.id, "ack": "bob's"})
    for client in (ann, bob):
        client.answer(client.receive(), f"from {client.id}")
    assert ann.receive()["payload"]["result"] == f"from {bob.id}"
    assert bob.receive()["payload"]["result"] == f"from {ann.id}"


def test_many_calls_to_one_client_are_told_apart(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    calls = [gevent.spawn(kernel_test.kernel.call, client.id, {"type": "q", "payload": n}) for n in range(20)]
    questions = [client.receive() for _ in calls]
    assert len({question["ack"] for question in questions}) == 20
    for question in reversed(questions):
        client.answer(question, question["payload"] * 10)
    assert [call.get(timeout=20) for call in calls] == [n * 10 for n in range(20)]


def test_no_answer_in_time_is_timed_out_and_the_late_one_is_counted(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    with pytest.raises(TimedOut, match=r"did not answer within 0\.001 s"):
        kernel_test.kernel.call(client.id, {"type": "q"}, timeout=0.001)
    client.answer(client.receive(), "late")
    assert kernel_test.kernel.stats()["counters"]["late_answers"] == 1


def test_the_default_timeout_is_the_limits() -> None:
    kernel = RealtimeKernel(limits=Limits(ack_timeout=0.001))
    with KernelTest(kernel) as kernel_test, pytest.raises(TimedOut, match=r"0\.001 s"):
        kernel.call(kernel_test.connect().id, {"type": "q"})


def test_a_timeout_of_the_callers_own_is_not_ours_to_swallow(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.001) as own:
        kernel_test.kernel.call(client.id, {"type": "q"}, timeout=60)
    assert caught.value is own


def test_an_error_as_answer_is_call_failed(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "ask", "ack": "a"})
    client.refuse(client.receive(), "I am busy", code="busy")
    assert code_of(client, "a") == "internal_error"  # nobody caught it
    (error,) = noted
    assert isinstance(error, CallFailed)
    assert (error.code, error.message) == ("busy", "I am busy")


def test_a_client_that_goes_wakes_who_asked_it(kernel_test: KernelTest, noted: list[Any]) -> None:
    ann, bob = kernel_test.connect(), kernel_test.connect()
    ann.send({"type": "ask", "target": bob.id, "ack": "a"})
    bob.receive()
    bob.close(4000, "enough")
    assert code_of(ann, "a") == "unknown_client"
    (error,) = noted
    assert isinstance(error, ConnectionClosed)
    assert (error.code, error.reason) == (4000, "enough")


def test_asking_nobody_is_unknown_client(kernel_test: KernelTest) -> None:
    with pytest.raises(UnknownClient, match="no client 'nobody'"):
        kernel_test.kernel.call("nobody", {"type": "q"})


@pytest.mark.parametrize("payload", [None, {}, {"ack": "text"}, {"ack": None}, {"ack": 1.5}, {"ack": [1]}, []])
def test_an_answer_to_nothing_is_refused(kernel_test: KernelTest, payload: Any) -> None:
    client = kernel_test.connect()
    client.send({"type": "system:ack", "payload": payload})
    assert client.receive()["payload"]["code"] == "bad_message"


def test_an_answer_for_another_client_is_not_taken(kernel_test: KernelTest) -> None:
    ann, eve = kernel_test.connect(), kernel_test.connect()
    call = gevent.spawn(kernel_test.kernel.call, ann.id, {"type": "q"}, timeout=60)
    question = ann.receive()
    eve.answer(question, "forged")
    assert not call.ready()
    ann.answer(question, "real")
    assert call.get(timeout=20) == "real"
    assert kernel_test.kernel.stats()["counters"]["late_answers"] == 1


# wait_for -------------------------------------------------------------------------------------


def test_wait_for_returns_the_next_message_of_that_event(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "name"}, "ack": 1})
    client.send({"type": "name", "payload": "Ann", "ack": 2})
    assert client.receive()["payload"] == {"ack": 2}
    assert client.receive()["payload"] == {"ack": 1, "result": ["name", "Ann", {}]}


def test_a_message_that_waits_in_the_inbox_counts_and_others_keep_their_order(
    kernel_test: KernelTest, noted: list[Any]
) -> None:
    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "name"}, "ack": "w"})
    client.send({"type": "note", "payload": 1})
    client.send({"type": "name", "payload": "first"})
    client.send({"type": "note", "payload": 2})
    client.send({"type": "name", "payload": "second", "ack": "unhandled"})
    assert client.receive()["payload"]["result"] == ["name", "first", {}]
    assert code_of(client, "unhandled") == "unknown_type"
    assert noted == [1, 2]


def test_wait_for_takes_templates_and_the_star(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "move:[x]:[y]"}, "ack": 1})
    client.send({"type": "move:3:4"})
    assert client.receive()["payload"]["result"] == ["move:3:4", None, {"x": "3", "y": "4"}]
    client.send({"type": "wait", "payload": {"event": "*"}, "ack": 2})
    client.send({"type": "whatever", "payload": 7})
    assert client.receive()["payload"]["result"] == ["whatever", 7, {}]


def test_the_events_own_handlers_do_not_run_but_star_handlers_and_middleware_do(
    kernel_test: KernelTest, noted: list[Any]
) -> None:
    @kernel_test.kernel.middleware
    def noting(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        noted.append(("middleware", message.type))
        return call_next()

    kernel_test.kernel.on("*", lambda message, context, toolkit: noted.append(("star", message.type)))
    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "note"}, "ack": 1})
    client.send({"type": "note", "payload": "not noted by its handler"})
    client.receive()
    assert noted == [("middleware", "wait"), ("middleware", "note"), ("star", "note"), ("star", "wait")]


def test_a_message_that_middleware_refuses_is_not_what_was_waited_for(
    kernel_test: KernelTest, noted: list[Any]
) -> None:
    @kernel_test.kernel.middleware
    def gate(message: Any, context: Any, toolkit: Any, call_next: Any) -> Any:
        if message.payload == "bad":
            raise Reject("not that")
        return call_next()

    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "name"}, "ack": 1})
    client.send({"type": "name", "payload": "bad", "ack": 2})
    assert code_of(client, 2) == "rejected"
    client.send({"type": "name", "payload": "good"})
    assert client.receive()["payload"] == {"ack": 1, "result": ["name", "good", {}]}


def test_wait_for_times_out_with_a_code_of_its_own(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "name", "timeout": 0.001}, "ack": 1})
    assert code_of(client, 1) == "timeout"
    assert isinstance(noted[0], TimedOut)
    client.send({"type": "name", "ack": 2})
    assert code_of(client, 2) == "unknown_type"


def hold_the_loop_until(due: float) -> None:
    while time.perf_counter() < due:
        pass


def test_a_message_that_comes_together_with_the_timeout_is_not_lost(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    timer = gevent.get_hub().loop.timer(0.01)  # before the other one begins, however long we are held up in between
    timer.start(client.send, {"type": "name", "payload": "just in time"})
    client.send({"type": "wait", "payload": {"event": "name", "timeout": 0.02}, "ack": 1})
    gevent.sleep(0)
    hold_the_loop_until(time.perf_counter() + 0.03)  # now both are due in one turn, the message first
    assert client.receive()["payload"] == {"ack": 1, "result": ["name", "just in time", {}]}
    timer.close()


def test_an_answer_that_comes_together_with_the_timeout_is_not_lost(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    for due in (0.01, 1.0, 10.0):
        call = gevent.spawn(kernel_test.kernel.call, client.id, {"type": "q"}, timeout=2 * due)
        began = time.perf_counter()
        question = client.receive()
        timer = gevent.get_hub().loop.timer(due)
        timer.start(client.answer, question, "just in time")
        if time.perf_counter() < began + 0.5 * due:
            break
        timer.close()  # we were held up, and the answer may be due after the timeout
        call.kill()
    hold_the_loop_until(time.perf_counter() + 2.5 * due)
    assert call.get(timeout=20) == "just in time"
    timer.close()


def test_wait_for_ends_when_the_client_goes(kernel_test: KernelTest, noted: list[Any]) -> None:
    client = kernel_test.connect()
    client.send({"type": "wait", "payload": {"event": "name"}})
    gevent.sleep(0)
    client.kill()
    kernel_test.settle()
    (error,) = noted
    assert isinstance(error, ConnectionClosed)
    assert error.code == 1006


def test_two_concurrent_handlers_each_get_one_message(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("wait", lambda m, c, toolkit: toolkit.wait_for("name").payload, concurrent=True)
    client = kernel_test.connect()
    client.send({"type": "wait", "ack": 1})
    client.send({"type": "wait", "ack": 2})
    wait_until(lambda: kernel_test.kernel.hub.workers.parked_jobs == 2)
    for name in ("Ann", "Bob"):
        client.send({"type": "name", "payload": name})
    answers = [client.receive()["payload"] for _ in range(2)]
    assert sorted((answer["ack"], answer["result"]) for answer in answers) == [(1, "Ann"), (2, "Bob")]


def test_one_clients_message_is_not_anothers(kernel_test: KernelTest, noted: list[Any]) -> None:
    ann, bob = kernel_test.connect(), kernel_test.connect()
    ann.send({"type": "wait", "payload": {"event": "name"}, "ack": 1})
    wait_until(lambda: kernel_test.kernel.hub.workers.parked_jobs == 1)
    bob.send({"type": "name", "ack": 1})
    assert code_of(bob, 1) == "unknown_type"
    assert ann.received == []
    ann.send({"type": "name"})
    assert ann.receive()["payload"]["result"] == ["name", None, {}]


def test_a_whole_conversation_is_straight_line_code(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("order")
    def order(message: Any, context: Any, toolkit: Any) -> Any:
        toolkit.reply("what size?")
        size = toolkit.wait_for("size", timeout=60).payload
        if not toolkit.call(context.id, {"type": "sure?", "payload": size}, timeout=60):
            return "cancelled"
        return f"one {size} pizza"

    client = kernel_test.connect()
    client.send({"type": "order", "ack": 1})
    assert client.receive()["payload"] == {"message": "what size?"}
    client.send({"type": "size", "payload": "large"})
    client.answer(client.receive_until("sure?"), True)
    assert client.receive()["payload"] == {"ack": 1, "result": "one large pizza"}
