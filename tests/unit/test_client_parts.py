"""The parts of the Python client that need no socket: the inbox, calls, the queue, the watch over silence."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from realtime.client.calls import Calls, Question
from realtime.client.inbox import Inbox
from realtime.client.options import ClientLimits
from realtime.client.waiting import SendQueue
from realtime.client.watchdog import Due, SilenceWatch
from realtime.client.wire import JSON_WIRE, MSGPACK_WIRE, ClientMessage
from realtime.config import Heartbeat
from realtime.errors import BadMessage, CallFailed, ConnectionClosed, QueueFull, TimedOut

# Inbox ----------------------------------------------------------------------------------------------------------


class Box:
    """An inbox whose handlers listen to "told", and what it has asked of its reader."""

    def __init__(self, **limits: int) -> None:
        self.stats: Counter[str] = Counter()
        self.handled = {"told"}
        self.resumed = 0
        self.inbox = Inbox(
            ClientLimits(**limits), handled=self.handled.__contains__, on_room=self._resume, stats=self.stats
        )

    def _resume(self) -> None:
        self.resumed += 1

    def put(self, type: str, payload: Any = None, size: int = 1, **fields: Any) -> None:
        self.inbox.put(ClientMessage(type, payload, **fields), size, "link")


def test_a_full_inbox_asks_to_read_no_more_until_half_of_it_is_handled() -> None:
    box = Box(inbox=4)
    for number in range(4):
        assert not box.inbox.is_full()
        box.put("told", number)
    assert box.inbox.is_full()
    payloads = []
    for _ in range(2):
        assert box.inbox.is_full()
        entry = box.inbox.take()
        assert entry is not None
        payloads.append(entry.message.payload)
    assert (payloads, box.inbox.is_full(), box.resumed) == ([0, 1], False, 1)


def test_an_inbox_is_full_of_bytes_too() -> None:
    box = Box(inbox_bytes=100)
    box.put("told", size=1000)  # one is always taken
    assert box.inbox.is_full()
    box.inbox.take()
    assert not box.inbox.is_full()


def test_a_wait_takes_what_has_no_handler_first_and_then_what_still_waits_for_one() -> None:
    box = Box()
    box.put("told", 1)
    box.put("else", 2)
    box.put("told", 3, ack=7)  # a question is for the handlers
    assert box.inbox.wait_for("*", 1).payload == 2
    assert box.inbox.wait_for("*", 1).payload == 1
    with pytest.raises(TimedOut, match=r"no '\*' within 0\.01 s"):
        box.inbox.wait_for("*", 0.01)
    first, second = box.inbox.take(), box.inbox.take()
    assert first is not None
    assert second is not None
    assert [(first.message.payload, first.claimed), (second.message.payload, second.claimed)] == [(1, False), (3, True)]


def test_what_nobody_wants_is_bounded_in_bytes_and_counted() -> None:
    box = Box(unclaimed_bytes=10)
    for number in range(5):
        box.put("else", number, size=4)
    assert box.stats["unclaimed"] == 3
    assert [box.inbox.wait_for("else", 1).payload for _ in range(2)] == [3, 4]


def test_after_the_end_what_waits_is_handled_and_no_wait_begins() -> None:
    box = Box()
    box.put("told")
    box.inbox.end(ConnectionClosed)
    assert box.inbox.take() is not None
    assert box.inbox.take() is None
    with pytest.raises(ConnectionClosed):
        box.inbox.wait_for("else", 1)


def test_discarding_counts_what_handlers_will_not_get_and_keeps_what_the_client_says() -> None:
    box = Box(inbox=2)
    box.put("told")
    box.put("told")
    box.inbox.tell(ClientMessage("client:state", {"name": "closed"}))
    assert box.inbox.discard() == 2
    assert not box.inbox.is_full()
    entry = box.inbox.take()
    assert entry is not None
    assert entry.message.type == "client:state"


def test_only_the_handlers_own_wait_fails_when_the_inbox_fills_up() -> None:
    box = Box(inbox=1)
    box.put("told")
    assert box.inbox.take() is not None  # from now on this thread runs the handlers
    question, others = Question(), Question()

    def wait_elsewhere() -> None:
        with box.inbox.waiting(others), pytest.raises(TimedOut):
            others.result(0.01)

    thread = threading.Thread(target=wait_elsewhere)
    thread.start()
    with box.inbox.waiting(question):
        box.put("told")
        assert box.inbox.is_full()
        with pytest.raises(QueueFull, match="1 messages of 1 bytes wait for this handler"):
            question.result(1)
    thread.join()


# Calls ----------------------------------------------------------------------------------------------------------


def answer(kind: str, **payload: Any) -> ClientMessage:
    return ClientMessage(f"system:{kind}", payload)


def test_answers_find_their_calls_and_nothing_else_is_taken() -> None:
    calls = Calls()
    first, second = Question(), Question()
    one, two = calls.add(first), calls.add(second)
    assert one != two
    strays = [
        answer("ack", ack="nobody"),
        answer("ack", ack=["unhashable"]),
        answer("ack"),
        ClientMessage("system:ack"),
        answer("reply", ack=one),
        ClientMessage("chat", {"ack": one}),
    ]
    assert [calls.take(stray) for stray in strays] == [False] * 6
    assert calls.take(answer("ack", ack=two, result="b"))
    assert calls.take(answer("error", ack=one, message="no", code="own", details="why"))
    assert second.result(1) == "b"
    with pytest.raises(CallFailed, match="own: no") as caught:
        first.result(1)
    assert caught.value.details == "why"
    assert not calls.take(answer("ack", ack=two))


def test_a_lost_connection_fails_what_was_sent_and_the_end_all() -> None:
    calls = Calls()
    sent, unsent = Question(), Question()
    sent.was_sent = True
    ids = [calls.add(sent), calls.add(unsent)]
    calls.fail_all(ConnectionClosed, unsent_too=False)
    assert [ack in calls for ack in ids] == [False, True]
    calls.fail_all(ConnectionClosed, unsent_too=True)
    for question in (sent, unsent):
        with pytest.raises(ConnectionClosed):
            question.result(1)


def test_items_are_read_before_the_end_and_overflow_comes_after_them() -> None:
    question = Question(items=2)
    for number in range(4):
        question.item(number)
    question.succeed("too late")
    assert question.next_item(1) == (True, 0)
    assert question.next_item(1) == (True, 1)
    with pytest.raises(CallFailed, match="overflow: more than 2 items"):
        question.next_item(1)


# The queue ------------------------------------------------------------------------------------------------------


def test_the_queue_keeps_the_order_and_its_bounds() -> None:
    queue = SendQueue(ClientLimits(queue=3, queue_bytes=10))
    question = Question()
    queue.put(b"first", None)
    queue.put(b"asks", question)
    with pytest.raises(QueueFull, match="2 messages of 9 bytes wait already: no room for 2 more"):
        queue.put(b"xx", None)
    queue.withdraw(question)
    queue.put(b"last", None)
    first = queue.take()
    assert first is not None
    queue.put_back(first)
    assert [entry.data for entry in iter(queue.take, None)] == [b"first", b"last"]
    queue.put(b"0123456789", None)
    assert queue.clear() == 1
    assert queue.take() is None


# Silence --------------------------------------------------------------------------------------------------------


def test_silence_is_asked_about_and_then_given_up() -> None:
    watch = SilenceWatch(Heartbeat(interval=25, timeout=10))
    assert watch.look(now=100, heard_at=90) == (Due.NOTHING, 25)
    assert watch.look(now=125, heard_at=90) == (Due.PROBE, 10)
    assert watch.look(now=130, heard_at=90) == (Due.NOTHING, 5)
    assert watch.look(now=131, heard_at=130.5) == (Due.NOTHING, 34.5)  # a sign of life
    assert watch.look(now=170, heard_at=130.5) == (Due.PROBE, 10)
    assert watch.look(now=180, heard_at=130.5) == (Due.GIVE_UP, None)
    assert SilenceWatch(None).look(now=10**6, heard_at=0) == (Due.NOTHING, None)


# The wire -------------------------------------------------------------------------------------------------------


def test_both_codecs_leave_out_what_is_not_given() -> None:
    assert JSON_WIRE.request("chat") == b'{"type":"chat"}'
    assert JSON_WIRE.frame(JSON_WIRE.request("chat", [1], room="tea", target="a", ack="c1")) == (
        '{"type":"chat","payload":[1],"room":"tea","target":"a","ack":"c1"}'
    )
    assert MSGPACK_WIRE.frame(MSGPACK_WIRE.request("chat")) == b"\x81\xa4type\xa4chat"


NO_MESSAGES = ["no JSON", "[]", '{"type": 7}', "{}", "[" * 10_000, '{"type":"\\ud800"}', b'{"type": "x"}']


@pytest.mark.parametrize("data", NO_MESSAGES)
def test_what_is_no_message_is_said_to_be_none(data: str | bytes) -> None:
    with pytest.raises(BadMessage):
        JSON_WIRE.message(data)
    with pytest.raises(BadMessage):
        MSGPACK_WIRE.message(data)


@pytest.mark.parametrize("payload", [object(), "\ud800", 2**64])
def test_what_cannot_be_sent_is_refused(payload: Any) -> None:
    with pytest.raises(BadMessage, match=r"cannot be sent as JSON|64-bit"):
        JSON_WIRE.request("chat", payload)
