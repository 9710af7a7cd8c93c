"""Asking a whole room: answers as they come, who is missing, and nothing that stays behind."""

from __future__ import annotations

import threading
from typing import Any

import gevent
import pytest
from gevent.event import Event

from realtime import BadMessage, BadRoom, CallFailed, ConfigurationError, KiB, Limits, MessageTooBig, RealtimeKernel
from realtime.message import Message
from realtime.protocols.mesh_calls import PART, pack_answers, unpack_answers, unpack_result
from realtime.testing import KernelTest, MemoryClient

QUESTION = {"type": "ready?", "payload": 1}


def in_room(test: KernelTest, count: int, **options: Any) -> list[MemoryClient]:
    clients = [test.connect(**options) for _ in range(count)]
    for client in clients:
        test.kernel.rooms.join("tea", client.id)
    return clients


def open_calls(test: KernelTest) -> int:
    return sum(len(connection.calls or ()) for connection in test.kernel.hub.connections.values())


def test_every_member_is_asked_and_answers_come_in_the_order_given(kernel_test: KernelTest) -> None:
    clients = in_room(kernel_test, 3)
    outsider = kernel_test.connect()
    call = kernel_test.kernel.call_room("tea", QUESTION)
    questions = [client.receive() for client in clients]
    for question in questions:
        assert (question["type"], question["payload"], question["room"]) == ("ready?", 1, "tea")
    assert call.missing == [client.id for client in clients]
    for index in (2, 0, 1):
        clients[index].answer(questions[index], f"answer {index}")
    assert list(call) == [(clients[index].id, f"answer {index}") for index in (2, 0, 1)]
    assert (call.missing, open_calls(kernel_test), outsider.received) == ([], 0, [])


def test_an_answer_is_there_before_the_others_are(kernel_test: KernelTest) -> None:
    first, second = in_room(kernel_test, 2)
    call = kernel_test.kernel.call_room("tea", QUESTION)
    second.answer(second.receive(), "at once")
    assert next(call) == (second.id, "at once")
    assert call.missing == [first.id]
    waiting = gevent.spawn(next, call)
    first.answer(first.receive(), "later")
    assert waiting.get(timeout=20) == (first.id, "later")
    assert list(call) == []


def test_an_error_is_an_answer(kernel_test: KernelTest) -> None:
    (client,) = in_room(kernel_test, 1)
    call = kernel_test.kernel.call_room("tea", QUESTION)
    client.refuse(client.receive(), "no", code="busy")
    ((client_id, result),) = call
    assert (client_id, call.missing) == (client.id, [])
    assert isinstance(result, CallFailed)
    assert (result.message, result.code) == ("no", "busy")


def test_who_is_silent_until_the_timeout_is_missing(kernel_test: KernelTest) -> None:
    (silent,) = in_room(kernel_test, 1)
    call = kernel_test.kernel.call_room("tea", QUESTION, timeout=0.05)
    question = silent.receive()
    assert list(call) == []
    assert (call.missing, open_calls(kernel_test)) == ([silent.id], 0)
    silent.answer(question, "too late")
    kernel_test.settle()
    assert kernel_test.kernel.stats()["counters"]["late_answers"] == 1
    assert list(call) == []


def test_who_goes_away_is_missing_and_not_waited_for(kernel_test: KernelTest) -> None:
    going, answering = in_room(kernel_test, 2)
    call = kernel_test.kernel.call_room("tea", QUESTION)
    answering.answer(answering.receive(), True)
    going.kill()
    assert list(call) == [(answering.id, True)]
    assert call.missing == [going.id]


def test_an_empty_room_answers_at_once(kernel_test: KernelTest) -> None:
    call = kernel_test.kernel.call_room("nobody is here", QUESTION)
    assert (list(call), call.missing) == ([], [])


def test_nobody_is_waited_for_after_close(kernel_test: KernelTest) -> None:
    in_room(kernel_test, 2)
    call = kernel_test.kernel.call_room("tea", QUESTION)
    call.close()
    assert (list(call), open_calls(kernel_test), len(call.missing)) == ([], 0, 2)


def test_members_of_both_codecs_are_asked_and_told_apart_from_a_call_of_their_own(kernel_test: KernelTest) -> None:
    clients = in_room(kernel_test, 1) + in_room(kernel_test, 1, codec="msgpack")
    kernel = kernel_test.kernel
    own = gevent.spawn(kernel.call, clients[0].id, {"type": "you"}, timeout=20)
    other = clients[0].receive()
    calls = [kernel.call_room("tea", {"type": "ready?", "payload": number}) for number in range(3)]
    for client in clients:
        for _ in calls:
            question = client.receive()
            client.answer(question, question["payload"])
    for number, call in enumerate(calls):
        assert dict(call) == {client.id: number for client in clients}
    clients[0].answer(other, "mine")
    assert own.get(timeout=20) == "mine"


def test_a_handler_asks_its_room_itself_included_or_not(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("vote")
    def vote(message: Any, context: Any, toolkit: Any) -> Any:
        answers = toolkit.rooms.call("tea", QUESTION, timeout=20, except_self=message.payload)
        return sorted(result for _, result in answers)

    clients = in_room(kernel_test, 3)
    for without in (False, True):
        clients[0].send({"type": "vote", "payload": without, "ack": "vote"})
        asked = clients[1:] if without else clients
        for client in asked:
            client.answer(client.receive_until("ready?"), client.id)
        result = clients[0].receive_until("system:ack")["payload"]["result"]
        assert result == sorted(client.id for client in asked)


def test_it_works_from_another_native_thread(kernel_test: KernelTest) -> None:
    threads: list[int] = []

    @kernel_test.kernel.on("vote", threadpool=True)
    def vote(message: Any, context: Any, toolkit: Any) -> Any:
        threads.append(threading.get_ident())
        call = toolkit.rooms.call("tea", QUESTION, timeout=20, except_ids=context.id)
        return [[*answer] for answer in call] + call.missing

    caller, client = kernel_test.connect(), *in_room(kernel_test, 1)
    caller.send({"type": "vote", "ack": 1})
    client.answer(client.receive(), "yes")
    assert caller.receive()["payload"]["result"] == [[client.id, "yes"]]
    assert threads != [threading.get_ident()]


def test_a_client_whose_inbox_is_full_is_read_for_its_answer() -> None:
    kernel = RealtimeKernel(limits=Limits(inbox=2))
    go = Event()
    kernel.on("wait", lambda message, context, toolkit: go.wait(20))
    with KernelTest(kernel) as test:
        (client,) = in_room(test, 1)
        for _ in range(2 + 2):
            client.send({"type": "wait"})
        call = kernel.call_room("tea", QUESTION, timeout=20)
        client.answer(client.receive(), "here")
        assert list(call) == [(client.id, "here")]
        go.set()


def test_the_end_of_the_kernel_is_the_end_of_a_call() -> None:
    kernel = RealtimeKernel()
    with KernelTest(kernel) as test:
        (client,) = in_room(test, 1)
        call = kernel.call_room("tea", QUESTION)
    assert (list(call), call.missing) == ([], [client.id])


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "5"])
def test_a_timeout_that_cannot_be_is_refused(kernel_test: KernelTest, timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout="):
        kernel_test.kernel.call_room("tea", QUESTION, timeout=timeout)


def test_what_cannot_be_sent_leaves_nothing_behind() -> None:
    with KernelTest(RealtimeKernel(limits=Limits(outbox=10 * KiB))) as test:
        in_room(test, 1)
        with pytest.raises(BadRoom):
            test.kernel.call_room("", QUESTION)
        with pytest.raises(BadMessage):
            test.kernel.call_room("tea", {"type": "x", "payload": object()})
        with pytest.raises(MessageTooBig):
            test.kernel.call_room("tea", {"type": "x", "payload": "x" * 20 * KiB})
        assert open_calls(test) == 0


def test_a_received_message_can_be_asked_on(kernel_test: KernelTest) -> None:
    (client,) = in_room(kernel_test, 1)
    call = kernel_test.kernel.call_room("tea", Message("ready?", payload=7, ack="of another"))
    question = client.receive()
    assert (question["payload"], question["room"]) == (7, "tea")
    client.answer(question)
    assert list(call) == [(client.id, None)]


# Between nodes ----------------------------------------------------------------------------------------------


def test_answers_cross_in_parts_of_bounded_size() -> None:
    answers: list[tuple[str, Any]] = [(f"c{number}", {"text": "x" * 1000 * (number % 5)}) for number in range(100)]
    answers.insert(50, ("big", "x" * 3 * PART))
    parts = list(pack_answers(answers))
    assert [client for clients, _ in parts for client in clients] == [client for client, _ in answers]
    for clients, body in parts:
        assert clients == ["big"] or len(body) < PART + 2 * KiB
    assert [answer for _, body in parts for answer in unpack_answers(unpack_result(body))] == answers


def test_an_error_crosses_as_what_it_is() -> None:
    ((_, body),) = pack_answers([("c", CallFailed("no", code="busy"))])
    ((client, failure),) = unpack_answers(unpack_result(body))
    assert (client, type(failure), failure.message, failure.code) == ("c", CallFailed, "no", "busy")


_HOSTILE = [b"", b"\x07", b"\x93\x01", b"\x91\x01", b"\x93\x01\xc3\xc0", b"\x93\xa1a\xc2\xc0", "text"]


@pytest.mark.parametrize("hostile", [7, None, *([item] for item in _HOSTILE)])
def test_what_is_no_answer_is_refused(hostile: Any) -> None:
    with pytest.raises(BadMessage):
        unpack_answers(hostile)
