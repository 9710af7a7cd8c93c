"""Rooms that keep their history: joining from where one was, asking for what was said, and what that may cost."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gevent
import pytest

from realtime import ConfigurationError, Limits, RealtimeKernel
from realtime.cluster import Alone
from realtime.cluster_node import LocalNode
from realtime.config import KiB
from realtime.errors import ConnectionClosed, MessageTooBig, Reject
from realtime.message import Mark, Outbound, Stamped
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until
from realtime.toolkit import Toolkit


@pytest.fixture
def kernel(kernel_test: KernelTest) -> RealtimeKernel:
    kernel_test.kernel.rooms.configure("chat:*", join=True, history=1000, recover=True)
    kernel_test.kernel.on("say", say)
    return kernel_test.kernel


def say(message: Any, context: Any, toolkit: Toolkit) -> None:
    toolkit.rooms.broadcast({"type": "said", "payload": message.payload}, message.room)


def join(client: Any, since: str | None = None, room: str = "chat:tea") -> dict[str, Any]:
    result: dict[str, Any] = client.call("system:join", None if since is None else {"since": since}, room=room)
    return result


def heard(client: Any, count: int) -> list[Any]:
    return [client.receive()["payload"] for _ in range(count)]


# Coming back -------------------------------------------------------------------------------------------------


def test_who_comes_back_gets_what_it_missed_before_the_ack_and_then_what_is_new(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    ada, ben = kernel_test.connect(), kernel_test.connect()
    assert join(ben)["cursor"]
    for number in range(3):
        kernel.broadcast({"type": "said", "payload": number}, "chat:tea")
    last = [ben.receive() for _ in range(3)][-1]
    ben.kill()
    for number in range(3, 6):
        kernel.broadcast({"type": "said", "payload": number}, "chat:tea")
    ada.send({"type": "system:join", "room": "chat:tea", "payload": {"since": last["cursor"]}, "ack": 1})
    assert heard(ada, 3) == [3, 4, 5]
    result = ada.receive()["payload"]["result"]
    assert (result["recovered"], result["replayed"], result["more"]) == (True, 3, False)
    kernel.broadcast({"type": "said", "payload": 6}, "chat:tea")
    message = ada.receive()
    assert message["payload"] == 6
    assert message["cursor"] != result["cursor"] != last["cursor"]


def test_the_cursor_of_the_first_join_covers_what_came_after_it(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    ada = kernel_test.connect()
    cursor = join(ada)["cursor"]
    ada.kill()
    kernel.broadcast({"type": "said", "payload": "first"}, "chat:tea")
    back = kernel_test.connect()
    assert join(back, cursor)["recovered"] is True
    assert heard(back, 1) == ["first"]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_many_come_and_go_while_messages_keep_coming_and_miss_nothing(
    kernel: RealtimeKernel, kernel_test: KernelTest, codec: str
) -> None:
    count, everybody = 600, 5

    def publish() -> None:
        wait_until(lambda: len(kernel.rooms.members("chat:tea")) == everybody)
        for number in range(count):
            kernel.broadcast({"type": "said", "payload": number}, "chat:tea")
            if number % 3 == 0:
                gevent.sleep(0)

    def listen(turns: int) -> list[int]:
        client = kernel_test.connect(codec=codec)
        cursor, numbers = join(client)["cursor"], []
        while len(numbers) < count:
            for _ in range(turns):
                if len(numbers) == count:
                    break
                message = client.receive()
                numbers.append(message["payload"])
                cursor = message["cursor"]
            client.kill()
            client = kernel_test.connect(codec=codec)
            more = True
            while more:
                client.send({"type": "system:join", "room": "chat:tea", "payload": {"since": cursor}, "ack": 1})
                while (message := client.receive())["type"] != "system:ack":
                    numbers.append(message["payload"])
                    cursor = message["cursor"]
                assert message["payload"]["result"]["recovered"] is True
                more = message["payload"]["result"]["more"]
        return numbers

    listeners = [gevent.spawn(listen, turns) for turns in range(1, everybody + 1)]
    publisher = gevent.spawn(publish)
    for listener in listeners:
        assert listener.get(timeout=60) == list(range(count))
    publisher.get(timeout=60)


def test_more_than_300_are_replayed_on_request_and_nothing_new_comes_before_them(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    cursor = join(kernel_test.connect())["cursor"]
    for number in range(650):
        kernel.broadcast({"type": "said", "payload": number}, "chat:tea")
    ada = kernel_test.connect()
    first = join(ada, cursor)
    assert (first["recovered"], first["replayed"], first["more"]) == (True, 300, True)
    assert ada.id not in kernel.rooms.members("chat:tea")
    kernel.broadcast({"type": "said", "payload": 650}, "chat:tea")
    second = join(ada, first["cursor"])
    assert (second["replayed"], second["more"]) == (300, True)
    third = join(ada, second["cursor"])
    assert (third["recovered"], third["replayed"], third["more"]) == (True, 51, False)
    assert heard(ada, 651) == list(range(651))
    assert ada.id in kernel.rooms.members("chat:tea")


def test_who_was_left_out_is_left_out_of_the_replay_too(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    ada = kernel_test.connect()
    cursor = join(ada)["cursor"]
    kernel.rooms.leave("chat:tea", ada.id)
    kernel.broadcast({"type": "said", "payload": "not for ada"}, "chat:tea", except_ids=[ada.id])
    kernel.broadcast({"type": "said", "payload": "for all"}, "chat:tea")
    assert join(ada, cursor)["replayed"] == 1
    assert heard(ada, 1) == ["for all"]


def test_a_member_is_not_sent_again_what_it_got(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    ada = kernel_test.connect()
    cursor = join(ada)["cursor"]
    kernel.broadcast({"type": "said", "payload": 1}, "chat:tea")
    result = join(ada, cursor)
    assert (result["recovered"], result["replayed"]) == (True, 0)
    assert heard(ada, 1) == [1]
    assert not ada.received


def test_handlers_join_with_a_cursor_and_learn_what_came_of_it(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    outcomes: list[Any] = []

    @kernel.on("enter")
    def enter(message: Any, context: Any, toolkit: Toolkit) -> None:
        outcomes.append(toolkit.rooms.join("chat:tea", since=message.payload))
        outcomes.append(toolkit.rooms.join("plain", since=message.payload))

    cursor = join(kernel_test.connect())["cursor"]
    kernel.broadcast({"type": "said", "payload": 1}, "chat:tea")
    ada = kernel_test.connect()
    ada.call("enter", cursor)
    kept, plain = outcomes
    assert (kept.recovered, kept.replayed, kept.joined) == (True, 1, True)
    assert (plain.recovered, plain.joined) == (False, True)
    assert "not recoverable" in plain.reason


def test_who_goes_in_the_middle_of_a_replay_leaves_nothing_behind(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    cursor = join(kernel_test.connect())["cursor"]
    for _ in range(200):
        kernel.broadcast({"type": "said", "payload": "x" * 20_000}, "chat:tea")
    lazy = kernel_test.connect()
    lazy.stop_reading()
    lazy.send({"type": "system:join", "room": "chat:tea", "payload": {"since": cursor}, "ack": 1})
    wait_until(lambda: lazy.id in kernel.rooms.members("chat:tea"))
    lazy.kill()
    kernel_test.settle()
    assert lazy.id not in kernel.rooms.members("chat:tea")
    assert kernel.hub.history.holds._held == {}


def test_who_was_put_into_the_room_before_it_could_say_how_far_it_was_is_told_so(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    ada = kernel_test.connect()
    cursor = join(ada)["cursor"]
    ada.kill()
    kernel.on("client:connected", lambda message, context, toolkit: toolkit.rooms.join("chat:tea"))
    kept_up = kernel_test.connect()
    assert join(kept_up, cursor)["recovered"] is True  # nothing came meanwhile
    kernel.broadcast({"type": "said", "payload": 1}, "chat:tea")
    assert join(kept_up, cursor)["recovered"] is True  # it got that
    late = kernel_test.connect()
    result = join(late, cursor)
    assert (result["recovered"], result["replayed"]) == (False, 0)
    assert "without a cursor" in result["reason"]
    kernel.broadcast({"type": "said", "payload": 2}, "chat:tea")
    assert heard(kept_up, 2) == [1, 2]
    assert heard(late, 1) == [2]


# What cannot be recovered --------------------------------------------------------------------------------------


def foreign(kernel: RealtimeKernel, kernel_test: KernelTest) -> Any:
    return join(kernel_test.connect(), room="chat:coffee")["cursor"]


def of_before_a_restart(kernel: RealtimeKernel, kernel_test: KernelTest) -> Any:
    cursor = join(kernel_test.connect())["cursor"]
    kernel_test.stop()
    kernel_test.start()
    return cursor


def beyond_what_was_kept(kernel: RealtimeKernel, kernel_test: KernelTest) -> Any:
    cursor = join(kernel_test.connect())["cursor"]
    for number in range(1001):
        kernel.broadcast({"type": "said", "payload": number}, "chat:tea")
    return cursor


def from_the_future(kernel: RealtimeKernel, kernel_test: KernelTest) -> Any:
    return join(kernel_test.connect())["cursor"] + "7777"


MADE = [foreign, of_before_a_restart, beyond_what_was_kept, from_the_future]


@pytest.mark.parametrize("since", [*MADE, "", "x", "0" * 100_000, 7, [], {}, True, 1.5])
def test_what_cannot_be_recovered_is_said_and_the_client_is_in_the_room(
    kernel: RealtimeKernel, kernel_test: KernelTest, since: Any
) -> None:
    cursor = since(kernel, kernel_test) if callable(since) else since
    ada = kernel_test.connect()
    result = ada.call("system:join", {"since": cursor}, room="chat:tea")
    assert (result["recovered"], result["replayed"], result["more"]) == (False, 0, False)
    assert isinstance(result["reason"], str)
    kernel.broadcast({"type": "said", "payload": "new"}, "chat:tea")
    assert heard(ada, 1) == ["new"]
    assert join(kernel_test.connect(), result["cursor"])["recovered"] is True


def test_a_cursor_opens_no_room(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    kernel.rooms.configure("secret", history=10, recover=True)
    ada = kernel_test.connect()
    kernel.broadcast({"type": "said", "payload": "hidden"}, "secret")
    for event in ("system:join", "system:history"):
        ada.send({"type": event, "room": "secret", "payload": {"since": "x"}, "ack": 1})
        assert ada.receive()["payload"]["code"] == "forbidden"


# Asking for it -------------------------------------------------------------------------------------------------


def test_members_ask_for_the_last_messages_and_go_on_from_there(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    ada = kernel_test.connect()
    start = join(ada)["cursor"]
    for number in range(10):
        kernel.broadcast({"type": "said", "payload": number}, "chat:tea")
    told = [ada.receive() for _ in range(10)]
    page = ada.call("system:history", {"limit": 3}, room="chat:tea")
    assert page == {"messages": told[-3:], "cursor": told[-1]["cursor"], "more": False}
    page = ada.call("system:history", {"limit": 4, "since": start}, room="chat:tea")
    assert page == {"messages": told[:4], "cursor": told[3]["cursor"], "more": True, "recovered": True}
    page = ada.call("system:history", {"since": "nonsense"}, room="chat:tea")
    assert (page["messages"], page["recovered"]) == (told, False)


@pytest.mark.parametrize("limit", [0, -1, 301, "7", None, 1.5, True])
def test_a_limit_out_of_range_is_refused(kernel: RealtimeKernel, kernel_test: KernelTest, limit: Any) -> None:
    ada = kernel_test.connect()
    join(ada)
    ada.send({"type": "system:history", "room": "chat:tea", "payload": {"limit": limit}, "ack": 1})
    error = ada.receive()["payload"]
    assert error["code"] == "bad_message"
    assert "from 1 to 300" in error["message"]


def test_history_without_recovery_has_no_cursors(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    kernel.rooms.configure("log", join=True, history=2)
    pages: list[Any] = []
    kernel.on("look", lambda message, context, toolkit: pages.append(toolkit.rooms.history("log")))
    ada = kernel_test.connect()
    assert "cursor" not in join(ada, room="log")
    for number in range(3):
        kernel.broadcast({"type": "line", "payload": number}, "log")
        assert "cursor" not in ada.receive()
    ada.call("look")
    assert [message["payload"] for message in pages[0].messages] == [1, 2]
    assert pages[0].cursor is None
    assert join(kernel_test.connect(), "x", room="log")["recovered"] is False


def test_a_room_without_history_has_none(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    page = kernel._history("plain", 50, None)
    assert (list(page.messages), page.reason) == ([], "the room keeps no history")
    assert kernel._history("plain", 50, "x").recovered is False
    with pytest.raises(Reject, match="must not be empty"):
        kernel._history("", 50, None)


def test_bytes_stay_bytes_for_who_can_have_them(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    packed, plain = kernel_test.connect(codec="msgpack"), kernel_test.connect()
    cursor = join(packed)["cursor"]
    kernel.broadcast({"type": "said", "payload": b"\x00\xff"}, "chat:tea")
    back = kernel_test.connect(codec="msgpack")
    join(back, cursor)
    join(plain, cursor)
    assert heard(back, 1) == heard(packed, 1) == [b"\x00\xff"]
    assert heard(plain, 1) == ["AP8="]


# What it may cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"history": -1}, {"history": 1.5}, {"history": True}, {"history": 10, "ttl": 0}, {"history": 10, "ttl": True},
        {"history": 10, "ttl": float("inf")}, {"history": 10, "recover": 1}, {"recover": True},
    ],
)  # fmt: skip
def test_wrong_options_are_named(kernel: RealtimeKernel, options: dict[str, Any]) -> None:
    name = "recover" if options == {"recover": True} else list(options)[-1]
    with pytest.raises(ConfigurationError, match=name):
        kernel.rooms.configure("x", **options)


def test_all_rooms_together_are_bounded_and_the_oldest_messages_go_first() -> None:
    kernel = RealtimeKernel(log_level="warning", limits=Limits(history=100 * KiB))
    kernel.rooms.configure("*", history=1000, recover=True)
    with KernelTest(kernel) as kernel_test:
        for number in range(1000):
            kernel.broadcast({"type": "said", "payload": f"{number}" + "x" * 300}, f"room {number % 10}")
        stats = kernel.stats()
        assert 80 * KiB < stats["history"]["bytes"] <= 100 * KiB
        assert stats["counters"]["history_evicted"] + stats["history"]["messages"] == 1000
        page = kernel._history("room 9", 50, None)
        assert page.messages[-1]["payload"].startswith("999")
        del kernel_test


def test_rooms_that_nobody_fills_take_no_memory_for_long() -> None:
    kernel = RealtimeKernel(log_level="warning", limits=Limits(history=100 * KiB))
    kernel.rooms.configure("*", join=True, history=10, recover=True)
    with KernelTest(kernel) as kernel_test:
        ada = kernel_test.connect()
        for number in range(300):
            ada.call("system:join", room=f"{number}")
            ada.call("system:leave", room=f"{number}")
        stats = kernel.stats()["history"]
        assert stats["rooms"] <= 51
        assert stats["bytes"] <= 100 * KiB


def test_what_has_expired_is_forgotten_and_so_is_a_room_without_members(
    kernel: RealtimeKernel, kernel_test: KernelTest
) -> None:
    kernel.rooms.configure("brief", join=True, history=10, ttl=0.05, recover=True)
    ada = kernel_test.connect()
    join(ada, room="brief")
    kernel.broadcast({"type": "said"}, "brief")
    history = kernel.hub.history
    wait_until(lambda: kernel.stats()["history"]["messages"] == 0)
    assert kernel.stats()["history"]["rooms"] == 1  # it has a member
    ada.kill()
    wait_until(lambda: history.stats() == {"rooms": 0, "messages": 0, "bytes": 0})
    wait_until(lambda: history._sweeper is None)


def test_stopping_ends_its_greenlets_and_forgets_all(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    join(kernel_test.connect())
    sweeper = kernel.hub.history._sweeper
    assert sweeper is not None
    kernel_test.stop()
    assert sweeper.dead
    assert kernel.hub.history.stats() == {"rooms": 0, "messages": 0, "bytes": 0}
    gc.collect()
    kernel_test.start()


def test_what_cannot_be_sent_to_all_is_not_kept(kernel_test: KernelTest) -> None:
    kernel = kernel_test.kernel
    kernel.rooms.configure("chat:*", join=True, history=10, recover=True)
    ada, ben = kernel_test.connect(codec="msgpack"), kernel_test.connect()
    cursor = join(ada)["cursor"]
    join(ben)
    with pytest.raises(MessageTooBig, match="as json"):  # as MessagePack it has a sixth of the bytes
        kernel.broadcast({"type": "said", "payload": "\x01" * 300_000}, "chat:tea")
    kernel.broadcast({"type": "said", "payload": "next"}, "chat:tea")
    assert heard(ada, 1) == heard(ben, 1) == ["next"]
    back = kernel_test.connect()
    assert join(back, cursor)["recovered"] is True
    assert heard(back, 1) == ["next"]


def test_what_a_codec_that_came_later_cannot_carry_is_said_to_be_missing(kernel_test: KernelTest) -> None:
    kernel = kernel_test.kernel
    kernel.rooms.configure("chat:*", join=True, history=10, recover=True)
    ada = kernel_test.connect(codec="msgpack")
    cursor = join(ada)["cursor"]
    kernel.broadcast({"type": "said", "payload": "\x01" * 300_000}, "chat:tea")
    kernel.broadcast({"type": "said", "payload": b"bytes"}, "chat:tea")
    assert len(heard(ada, 2)[0]) == 300_000
    ben = kernel_test.connect()
    result = join(ben, cursor)
    assert (result["recovered"], result["reason"]) == (False, "what was missed cannot be sent to this client")
    kernel.broadcast({"type": "said", "payload": "next"}, "chat:tea")
    assert heard(ben, 1) == ["next"]


def test_300_are_replayed_at_most_though_more_come_meanwhile(
    kernel: RealtimeKernel, kernel_test: KernelTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.rooms.configure("chat:*", join=True, history=10_000, recover=True)
    cursor = join(kernel_test.connect(), room="chat:tea")["cursor"]
    numbers = iter(range(2000))
    wait_for_room = kernel.hub.wait_for_room

    def say_more(count: int) -> None:
        for number in itertools.islice(numbers, count):
            kernel.broadcast({"type": "said", "payload": number}, "chat:tea")

    def wait_longer(connection: Any, outbound: Outbound, **options: Any) -> None:
        wait_for_room(connection, outbound, **options)
        if isinstance(outbound, Stamped):
            say_more(2)  # as if it had parked

    monkeypatch.setattr(kernel.hub, "wait_for_room", wait_longer)
    say_more(250)
    slow = kernel_test.connect()
    got: list[int] = []
    more = True
    while more:
        slow.send({"type": "system:join", "room": "chat:tea", "payload": {"since": cursor}, "ack": 1})
        before = len(got)
        while (message := slow.receive())["type"] != "system:ack":
            got.append(message["payload"])
        result = message["payload"]["result"]
        assert (result["recovered"], result["replayed"]) == (True, len(got) - before)
        assert result["replayed"] <= 300
        cursor, more = result["cursor"], result["more"]
    assert got == list(range(2000))


def test_who_reads_so_slowly_that_all_expires_meanwhile_is_told_that_more_may_be_missing() -> None:
    kernel = RealtimeKernel(limits=Limits(outbox=10 * KiB))
    kernel.rooms.configure("chat:*", join=True, history=100, recover=True)
    with KernelTest(kernel) as kernel_test:
        gone, slow = kernel_test.connect(), kernel_test.connect()
        cursor = join(gone)["cursor"]
        gone.kill()
        for number in range(20):
            kernel.broadcast({"type": "said", "payload": [number, "x" * 1000]}, "chat:tea")
        slow.stop_reading()
        slow.send({"type": "system:join", "room": "chat:tea", "payload": {"since": cursor}, "ack": 1})
        wait_until(lambda: kernel.hub.connections[slow.id].outbox.size > 7000)
        kernel.hub.history.sweep(time.time() + 1000)
        assert kernel.hub.history.stats()["rooms"] == 0
        kernel.broadcast({"type": "said", "payload": [20, ""]}, "chat:tea")  # the log that is read from misses it
        slow.resume_reading()
        assert [slow.receive()["payload"][0] for _ in range(20)] == list(range(20))
        result = slow.receive()["payload"]["result"]
        assert (result["recovered"], result["replayed"]) == (False, 20)


def test_what_is_counted_as_kept_is_kept_also_where_more_rooms_have_members_than_there_is_room_for() -> None:
    kernel = RealtimeKernel(limits=Limits(history=5000, history_room=5000))
    kernel.rooms.configure("chat:*", join=True, history=100, recover=True)
    with KernelTest(kernel) as kernel_test:
        client = kernel_test.connect()
        for name in "abcd":
            join(client, room=f"chat:{name}")
        for name in "efgh":
            for number in range(3):
                kernel.broadcast({"type": "said", "payload": number}, f"chat:{name}")
        client.close()
        kernel_test.settle()
        kernel.hub.history.sweep(time.time() + 1000)
        assert kernel.hub.history.stats() == {"rooms": 0, "messages": 0, "bytes": 0}


def test_who_is_cut_off_by_what_joining_tells_it_is_in_no_room() -> None:
    kernel = RealtimeKernel(limits=Limits(outbox=10 * KiB))
    kernel.rooms.configure("chat:*", history=100, recover=True, presence=True)
    with KernelTest(kernel) as kernel_test:
        slow = kernel_test.connect()
        slow.stop_reading()
        kernel.send(slow.id, {"type": "filler", "payload": "x" * 10_100})
        kernel.rooms.join("chat:tea", slow.id)
        assert slow.id not in kernel.hub.connections
        assert not kernel.hub.history.is_current("chat:tea")


# Between nodes ----------------------------------------------------------------------------------------------------


class OtherNodes(Alone):
    """Answers for another node; counts how often it was asked."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.next: Callable[[], Any] = lambda: self.answer
        self.asked: list[Mapping[str, Any]] = []
        self.answering = gevent.event.Event()
        self.answering.set()

    def gather(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Sequence[Any]:
        self.asked.append(arguments)
        self.answering.wait(timeout)
        return [self.next()]


@pytest.fixture
def others(kernel: RealtimeKernel, monkeypatch: pytest.MonkeyPatch) -> OtherNodes:
    monkeypatch.setattr("realtime.history.SYNC_TIMEOUT", 60.0)  # they answer when the test says so
    others = OtherNodes()
    kernel.hub.join_cluster(others)
    return others


def arrive(kernel: RealtimeKernel, sequence: int, origin: str = "0123abcd", except_ids: Collection[str] = ()) -> int:
    body = b'{"type":"said","payload":%d,"room":"chat:tea","timestamp":1}' % sequence
    message = Outbound.relayed({"json": body}, mark=Mark(origin, sequence, 1e10))
    return LocalNode(kernel.hub).deliver_to_room("chat:tea", message, except_ids)


def shared(
    *sequences: int, latest: int | None = None, origin: str = "0123abcd", at: float = 1e10, more: bool = False
) -> dict[str, Any]:
    entries = [
        [origin, number, at + number, "json", b'{"type":"said","payload":%d,"timestamp":1}' % number, []]
        for number in sequences
    ]
    about = {"node": "other", "names": [origin], "doubts": {}, "current": False, "more": more}
    return {"entries": entries, "position": {origin: latest or max(sequences, default=0)}, **about}


def test_a_message_lost_between_nodes_is_fetched_and_comes_in_its_place(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada = kernel_test.connect()
    others.answer = shared(1)
    join(ada)
    assert arrive(kernel, 2) == 1
    others.answer = shared(3, 4)
    assert arrive(kernel, 5) == 0
    assert heard(ada, 4) == [2, 3, 4, 5]
    assert arrive(kernel, 6) == 1
    assert heard(ada, 1) == [6]
    assert len(others.asked) == 2
    assert kernel.stats()["counters"]["history_gaps"] == 1


def test_members_are_sent_back_where_nobody_has_what_is_missing(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada = kernel_test.connect()
    cursor = join(ada)["cursor"]
    assert arrive(kernel, 1) == 1
    assert arrive(kernel, 4) == 0
    assert heard(ada, 1) == [1]
    with pytest.raises(ConnectionClosed, match="lost between nodes"):
        ada.receive()
    back = kernel_test.connect()
    result = join(back, cursor)
    assert (result["recovered"], result["reason"]) == (False, "more was missed than the room keeps")
    assert arrive(kernel, 5) == 1
    assert heard(back, 1) == [5]
    assert kernel.stats()["counters"]["history_lost"] == 1


def test_what_one_answer_does_not_hold_comes_with_the_next(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    parts = iter([shared(1, 2, more=True), shared(3, 4, more=True), shared(5, latest=5)])
    others.next = lambda: next(parts)
    cursor = join(kernel_test.connect())["cursor"]
    assert cursor.partition(".")[2].endswith("0123abcd5")
    assert [asked["position"].get("0123abcd") for asked in others.asked] == [None, 2, 4]


def test_a_node_that_went_while_nobody_was_here_may_have_taken_messages_with_it(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada, ben = kernel_test.connect(), kernel_test.connect()
    others.answer = shared(1, 2)
    others.node_ids = lambda: ["other"]  # type: ignore[method-assign]
    cursor = join(ada)["cursor"]
    ada.call("system:leave", room="chat:tea")
    others.answer = None  # it is gone, and with it what it said meanwhile
    result = join(ada, cursor)
    assert (result["recovered"], "ended without a word" in result["reason"]) == (False, True)
    result = join(ben, result["cursor"])
    assert (result["recovered"], result["replayed"]) == (True, 0)
    kernel.broadcast({"type": "said", "payload": 3}, "chat:tea")
    for client in (ada, ben):
        message = client.receive()
        assert message["payload"] == 3
        client.kill()
    result = join(kernel_test.connect(), message["cursor"])
    assert result["recovered"] is True


def test_who_was_put_into_the_room_first_was_not_sent_what_was_fetched_for_it(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    others.answer = shared(1, 2)
    cursor = join(kernel_test.connect())["cursor"].replace("0123abcd2", "0123abcd0")
    for member in kernel.rooms.members("chat:tea"):
        kernel.rooms.leave("chat:tea", member)
    others.answer = shared(1, 2, 3)
    late = kernel_test.connect()
    kernel.rooms.join("chat:tea", late.id)
    assert join(late, cursor)["recovered"] is False


def test_members_of_a_node_that_goes_while_they_are_here_have_missed_nothing(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada = kernel_test.connect()
    others.answer = shared(1, 2)
    cursor = join(ada)["cursor"]
    others.answer = None
    ada.call("system:leave", room="chat:tea")  # it was gone by then: all it ever said is here
    assert join(ada, cursor)["recovered"] is True


def test_members_are_not_told_what_was_said_elsewhere_before_they_came(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada = kernel_test.connect()
    cursor = join(ada)["cursor"]
    past = [*range(1, 4)]
    others.answer = shared(*past, at=time.time() - 50)  # of a node that is met only now
    others.answer["entries"] += shared(4)["entries"]
    others.answer["position"] = {"0123abcd": 4}
    assert arrive(kernel, 5) == 0
    assert heard(ada, 2) == [4, 5]
    page = ada.call("system:history", room="chat:tea")
    assert [message["payload"] for message in page["messages"]] == [1, 2, 3, 4, 5]
    assert join(kernel_test.connect(), cursor)["recovered"] is False
    assert join(kernel_test.connect(), page["messages"][-2]["cursor"])["recovered"] is True


def test_what_was_said_elsewhere_before_they_came_goes_to_no_member_also_where_it_comes_in_parts(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada = kernel_test.connect()
    join(ada)
    past = time.time() - 50
    last = shared(5, latest=6, at=past)
    last["entries"] += shared(6)["entries"]
    first, second = shared(1, 2, at=past, more=True), shared(3, 4, at=past, more=True)
    first["position"]["89abcdef"] = second["position"]["89abcdef"] = 0  # another origin, whose messages come last
    last["entries"] += shared(1, 2, origin="89abcdef", at=past)["entries"]
    last["position"]["89abcdef"] = 2
    parts = iter([first, second, last])
    others.next = lambda: next(parts)
    assert arrive(kernel, 7) == 0
    assert heard(ada, 2) == [6, 7]
    assert arrive(kernel, 8) == 1
    assert heard(ada, 1) == [8]
    page = ada.call("system:history", room="chat:tea")
    assert sorted(message["payload"] for message in page["messages"]) == [1, 1, 2, 2, 3, 4, 5, 6, 7, 8]


def test_what_one_fetching_did_not_get_to_the_end_of_goes_to_no_member_either(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    past = time.time() - 50
    others.node_ids = lambda: ["other"]  # type: ignore[method-assign]
    answers = iter([shared(1, 2, at=past, more=True), None, shared(3, at=past)])  # it is late with the second part
    others.next = lambda: next(answers)
    ada = kernel_test.connect()
    join(ada)
    assert arrive(kernel, 4) == 0
    assert heard(ada, 1) == [4]


def test_who_joins_between_two_parts_of_what_was_said_before_is_sent_all_that_it_missed(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada, ben = kernel_test.connect(), kernel_test.connect()
    cursor = join(ada)["cursor"]
    past = time.time() - 50
    parts = [shared(1, 2, at=past, more=True)]

    def answer() -> Any:
        if not parts:
            return shared(3, 4, at=past)  # to whoever asks
        others.answering.clear()  # the next part takes its time
        return parts.pop()

    others.next = answer
    assert arrive(kernel, 5) == 0
    wait_until(lambda: not others.answering.is_set() and len(others.asked) == 3)
    ben.send({"type": "system:join", "room": "chat:tea", "payload": {"since": f"{cursor}-0123abcd1"}, "ack": 1})
    wait_until(lambda: len(others.asked) == 4)
    others.answering.set()
    assert heard(ben, 4) == [2, 3, 4, 5]
    result = ben.receive()["payload"]["result"]
    assert (result["recovered"], result["replayed"]) == (True, 4)
    assert heard(ada, 1) == [5]
    assert arrive(kernel, 6) == 2
    assert heard(ada, 1) == heard(ben, 1) == [6]


@pytest.mark.parametrize(
    "answer",
    [
        None, 7, {}, {"entries": 3, "position": {}}, {"entries": [[1]], "position": {}},
        {"entries": [], "position": {"a": "b"}},
        {"entries": [["o", 1, 0.0, "xml", b"<a/>", []]], "position": {}},
        {"entries": [], "position": {}, "node": "n", "names": ["o"], "doubts": 7},
        {"entries": [], "position": {}, "node": "n", "names": None, "doubts": {}},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_passed_over(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes, answer: Any
) -> None:
    others.answer = answer
    ada = kernel_test.connect()
    assert join(ada)["total"] == 1
    assert kernel.hub.history.stats()["messages"] == 0


def test_the_first_members_wait_until_the_node_knows_what_was_said_and_get_nothing_twice(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    ada, ben = kernel_test.connect(), kernel_test.connect()
    others.answering.clear()
    others.answer = shared(1, 2, 3)
    for client in (ada, ben):
        client.send({"type": "system:join", "room": "chat:tea", "ack": 1})
    wait_until(lambda: len(kernel.rooms.members("chat:tea")) == 2)
    assert arrive(kernel, 3) == 0  # early: 1 and 2 are on their way
    others.answering.set()
    for client in (ada, ben):
        assert client.receive()["type"] == "system:ack"
    assert arrive(kernel, 4) == 2
    for client in (ada, ben):
        assert heard(client, 1) == [4]
    page = ada.call("system:history", room="chat:tea")
    assert [message["payload"] for message in page["messages"]] == [1, 2, 3, 4]


def test_a_client_that_was_faster_than_the_link_is_sent_nothing_twice(
    kernel: RealtimeKernel, kernel_test: KernelTest, others: OtherNodes
) -> None:
    others.answer = shared(1)
    stays = kernel_test.connect()
    cursor = join(stays)["cursor"]
    assert ".0123abcd" in cursor.replace("-", ".")
    seen = cursor.replace("0123abcd1", "0123abcd3")  # on another node it had heard 2 and 3 already
    others.answer = shared(2, 3)
    moved = kernel_test.connect()
    result = join(moved, seen)
    assert (result["recovered"], result["replayed"]) == (True, 0)
    assert heard(stays, 2) == [2, 3]
    assert arrive(kernel, 3) == 0
    assert arrive(kernel, 4) == 2
    assert heard(moved, 1) == heard(stays, 1) == [4]


def test_a_question_without_room_or_position_is_refused(kernel: RealtimeKernel, kernel_test: KernelTest) -> None:
    node = LocalNode(kernel.hub)
    for arguments in ({}, {"room": 1, "position": {}}, {"room": "x"}, {"room": "x", "position": {"a": None}}):
        with pytest.raises(ValueError, match="without room and position"):
            node.perform("", "history", arguments)
    with pytest.raises(ValueError, match="no operation"):
        node.perform("", "format", {})
    assert node.perform("", "history", {"room": "never heard of", "position": {}}) is None
