"""From handlers and the application to clients: reply, send, broadcast, and what does not fit."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from realtime import (
    BadMessage,
    BadRoom,
    CallFailed,
    KiB,
    Limits,
    MessageTooBig,
    RealtimeKernel,
    TooManyRooms,
    UnknownClient,
)
from realtime.cluster_node import LocalNode
from realtime.message import JSON, Mark, Outbound
from realtime.room_log import Entry
from realtime.testing import KernelTest, MemoryClient

NEWS = {"type": "news", "payload": 1}


def ids(clients: Any) -> list[str]:
    return [client.id for client in clients]


def news_of(*clients: MemoryClient) -> list[int]:
    """How many messages each has received."""
    return [len(client.received) for client in clients]


# To one ---------------------------------------------------------------------------------------


def test_reply_takes_a_message_or_a_text(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("ask")
    def ask(message: Any, context: Any, toolkit: Any) -> None:
        toolkit.reply("text")
        toolkit.reply({"type": "news", "payload": 1, "room": "lobby"})

    client = kernel_test.connect()
    client.send({"type": "ask"})
    first, second = client.receive(), client.receive()
    assert (first["type"], first["payload"]) == ("system:reply", {"message": "text"})
    assert (second["type"], second["payload"], second["room"]) == ("news", 1, "lobby")


def test_send_reaches_one_client_or_each_of_a_list(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("tell", lambda message, context, toolkit: toolkit.send(message.target, NEWS))
    sender, ann, bob, eve = (kernel_test.connect() for _ in range(4))
    sender.call("tell", target=ann.id)
    sender.call("tell", target=[ann.id, bob.id])
    assert news_of(ann, bob, eve) == [2, 1, 0]


def test_send_to_a_list_with_a_stranger_reaches_nobody(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("tell", lambda message, context, toolkit: toolkit.send(message.target, NEWS))
    sender, ann = kernel_test.connect(), kernel_test.connect()
    with pytest.raises(CallFailed, match="unknown_client"):
        sender.call("tell", target=[ann.id, "nobody"])
    assert news_of(ann) == [0]


def test_the_kernel_sends_outside_of_handlers(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    kernel_test.kernel.send(client.id, NEWS)
    assert client.receive()["payload"] == 1
    with pytest.raises(UnknownClient):
        kernel_test.kernel.send("nobody", NEWS)


def test_a_received_message_can_be_passed_on(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on("pass on", lambda message, context, toolkit: toolkit.broadcast(message, except_self=True))
    ann, bob = kernel_test.connect(), kernel_test.connect(codec="msgpack")
    ann.call("pass on", {"a": [1]}, room="lobby")
    passed = bob.receive()
    assert (passed["type"], passed["payload"], passed["room"]) == ("pass on", {"a": [1]}, "lobby")
    assert "ack" not in passed


@pytest.mark.parametrize("message", ["text", None, {}, {"type": ""}, {"type": "x", "to": "ann"}])
def test_what_is_no_message_is_refused_where_it_is_sent(kernel_test: KernelTest, message: Any) -> None:
    client = kernel_test.connect()
    with pytest.raises(BadMessage):
        kernel_test.kernel.send(client.id, message)
    with pytest.raises(BadMessage):
        kernel_test.kernel.broadcast(message)
    assert client.received == []


# To many --------------------------------------------------------------------------------------


def test_a_broadcast_reaches_everybody_or_a_room_but_for_exceptions(kernel_test: KernelTest) -> None:
    kernel = kernel_test.kernel
    ann, bob, eve = (kernel_test.connect() for _ in range(3))
    for client in (ann, bob):
        kernel.rooms.join("lobby", client.id)
    assert kernel.broadcast(NEWS) == 3
    assert kernel.broadcast(NEWS, "lobby") == 2
    assert kernel.broadcast(NEWS, "lobby", except_ids=[ann.id]) == 1
    assert kernel.broadcast(NEWS, except_ids={ann.id, eve.id}) == 1
    assert kernel.broadcast(NEWS, "nowhere") == 0
    kernel_test.settle()
    assert news_of(ann, bob, eve) == [2, 4, 1]


def test_a_room_broadcast_names_the_room(kernel_test: KernelTest) -> None:
    client = kernel_test.connect()
    kernel_test.kernel.rooms.join("lobby", client.id)
    kernel_test.kernel.broadcast({**NEWS, "room": "elsewhere"}, "lobby")
    assert client.receive()["room"] == "lobby"


def test_toolkit_rooms_broadcast_goes_to_the_messages_room_unless_told_otherwise(kernel_test: KernelTest) -> None:
    kernel_test.kernel.on(
        "say", lambda message, context, toolkit: toolkit.rooms.broadcast(NEWS, **(message.payload or {}))
    )
    ann, bob = kernel_test.connect(), kernel_test.connect()
    for client in (ann, bob):
        kernel_test.kernel.rooms.join("lobby", client.id)
    assert ann.call("say", room="lobby") == 2
    assert ann.call("say", {"room": "lobby"}, room="elsewhere") == 2
    assert ann.call("say", {"except_self": True}, room="lobby") == 1
    assert ann.call("say", {"except_ids": [bob.id], "except_self": True}, room="lobby") == 0
    assert news_of(ann, bob) == [2, 3]
    with pytest.raises(CallFailed, match="bad_room"):
        ann.call("say")


def test_a_filter_chooses_by_context(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("page admins")
    def page(message: Any, context: Any, toolkit: Any) -> int:
        return toolkit.broadcast(NEWS, lambda other: other.identity == "admin", except_self=True)

    admin, other_admin, user = (kernel_test.connect(identity=who) for who in ("admin", "admin", "user"))
    assert admin.call("page admins") == 1
    assert news_of(admin, other_admin, user) == [0, 1, 0]


def test_clients_of_both_codecs_get_the_same_message(kernel_test: KernelTest) -> None:
    clients = [kernel_test.connect(codec=codec) for codec in ("json", "msgpack", "json", "msgpack")]
    payload = {"text": "ü\u2028\U0001f600", "numbers": [1, 2**63, 1.5], "null": None}
    kernel_test.kernel.broadcast({"type": "news", "payload": payload})
    assert [client.receive()["payload"] for client in clients] == [payload] * 4


def test_messages_of_one_sender_reach_each_member_in_order(kernel_test: KernelTest) -> None:
    clients = [kernel_test.connect() for _ in range(5)]
    for number in range(200):
        kernel_test.kernel.broadcast({"type": "n", "payload": number})
    kernel_test.settle()
    for client in clients:
        assert [message["payload"] for message in client.received] == list(range(200))


# Rooms and presence by the kernel ------------------------------------------------------------------


def test_rooms_and_presence_work_outside_of_handlers(kernel_test: KernelTest) -> None:
    kernel = kernel_test.kernel
    client = kernel_test.connect(metadata={"name": "Ann"})
    assert kernel.rooms.join("lobby", client.id) is True
    assert kernel.rooms.members("lobby") == [client.id]
    assert kernel.rooms.rooms_for(client.id) == ["lobby"]
    assert kernel.rooms.list() == {"lobby": 1}
    assert kernel.presence.update(client.id, {"mood": "fine"})["metadata"] == {"name": "Ann", "mood": "fine"}
    assert kernel.presence.list("lobby").total == 1
    assert kernel.rooms.leave("lobby", client.id) is True
    with pytest.raises(UnknownClient):
        kernel.rooms.join("lobby", "nobody")
    with pytest.raises(BadRoom):
        kernel.rooms.join("", client.id)
    for number in range(128):
        kernel.rooms.join(f"room {number}", client.id)
    with pytest.raises(TooManyRooms):
        kernel.rooms.join("one more", client.id)
    assert len(kernel.rooms.leave_all(client.id)) == 128


def test_the_toolkit_sees_rooms_and_presence_from_its_client(kernel_test: KernelTest) -> None:
    @kernel_test.kernel.on("do")
    def do(message: Any, context: Any, toolkit: Any) -> Any:
        return [
            toolkit.rooms.join("lobby"),
            toolkit.rooms.join("lobby"),
            toolkit.rooms.list(),
            toolkit.rooms.members("lobby") == [context.id],
            toolkit.presence.update({"mood": "fine"})["metadata"],
            toolkit.presence.get(context.id)["rooms"],
            toolkit.presence.get("nobody"),
            len(toolkit.presence.list("lobby")),
            len(toolkit.presence.list(limit=0)),
            toolkit.rooms.leave("lobby"),
            toolkit.rooms.leave("lobby"),
        ]

    result = kernel_test.connect().call("do")
    assert result == [True, False, ["lobby"], True, {"mood": "fine"}, ["lobby"], None, 1, 0, True, False]


# What does not fit ----------------------------------------------------------------------------------


@pytest.fixture
def small() -> Any:
    """A kernel whose outboxes hold 10 KiB and whose handlers hardly wait."""
    kernel = RealtimeKernel(limits=Limits(outbox=10 * KiB, park_timeout=0.001, stall=0.0001))
    with KernelTest(kernel) as kernel_test:
        yield kernel_test


def big(number: int = 0, size: int = 1000) -> dict[str, Any]:
    return {"type": "news", "payload": [number, "x" * size]}


def test_a_message_larger_than_an_outbox_is_refused_where_it_is_sent(small: KernelTest) -> None:
    client = small.connect()
    with pytest.raises(MessageTooBig, match=r"does not fit into an outbox of 10240 \(Limits.outbox\)"):
        small.kernel.send(client.id, big(size=11_000))
    with pytest.raises(MessageTooBig):
        small.kernel.broadcast(big(size=11_000))
    small.kernel.send(client.id, big(size=9_000))
    assert client.receive()["payload"] == [0, "x" * 9_000]


def test_a_client_that_does_not_read_is_cut_off_and_the_next_reply_says_so(small: KernelTest) -> None:
    replied: list[int] = []

    @small.kernel.on("go")
    def go(message: Any, context: Any, toolkit: Any) -> None:
        for number in range(20):
            toolkit.reply(big(number))
            replied.append(number)

    client = small.connect()
    client.stop_reading()
    client.send({"type": "go", "ack": 1})
    small.settle()
    counters = small.kernel.stats()["counters"]
    assert counters["closed_slow_consumer"] == 1
    # all but the last, which did not fit, had waited; a twentieth was refused with ConnectionClosed
    assert counters["dropped_undelivered"] == len(replied) - 1 == 9
    client.resume_reading()
    assert client.wait_closed() == 4008
    assert client.close_reason == "slow consumer"


def test_a_slow_member_costs_the_others_nothing(small: KernelTest) -> None:
    slow, *healthy = (small.connect() for _ in range(4))
    slow.stop_reading()
    for number in range(50):
        small.kernel.broadcast(big(number))
    small.settle()
    for client in healthy:
        assert [message["payload"][0] for message in client.received] == list(range(50))
    stats = small.kernel.stats()
    assert stats["clients"] == 3
    assert stats["counters"]["stalls"] > 0


def test_drop_oldest_loses_the_oldest_and_keeps_the_connection(small: KernelTest) -> None:
    client = small.connect()
    client.stop_reading()
    for number in range(50):
        small.kernel.send(client.id, big(number), overflow="drop_oldest")
    client.resume_reading()
    small.settle()
    received = [message["payload"][0] for message in client.received]
    assert received == list(range(50 - len(received), 50))
    assert 5 <= len(received) <= 10
    assert small.kernel.stats()["counters"]["dropped_oldest"] == 50 - len(received)


def test_conflation_keeps_the_newest_of_each_key(small: KernelTest) -> None:
    client = small.connect()
    client.stop_reading()
    for number in range(50):
        for key in ("a", "b"):
            message = {"type": "position", "payload": [key, number]}
            small.kernel.broadcast(message, conflate=key)
    client.resume_reading()
    small.settle()
    assert [message["payload"] for message in client.received] == [["a", 49], ["b", 49]]
    assert small.kernel.stats()["counters"]["dropped_conflated"] == 98


def test_every_way_of_sending_takes_delivery_options(small: KernelTest) -> None:
    @small.kernel.on("go")
    def go(message: Any, context: Any, toolkit: Any) -> None:
        for number in range(5):
            options = {"conflate": "k"}
            toolkit.reply(big(number), **options)
            toolkit.send(context.id, big(number), **options)
            toolkit.send([context.id], big(number), **options)
            toolkit.broadcast(big(number), **options)
            toolkit.rooms.broadcast(big(number), "lobby", **options)

    client = small.connect()
    small.kernel.rooms.join("lobby", client.id)
    client.stop_reading()
    client.send({"type": "go"})
    small.settle()
    client.resume_reading()
    small.settle()
    assert [message["payload"][0] for message in client.received] == [4]


def test_delivery_options_that_make_no_sense_are_refused(small: KernelTest) -> None:
    client = small.connect()
    with pytest.raises(BadMessage, match="ttl=-1"):
        small.kernel.send(client.id, NEWS, ttl=-1)
    with pytest.raises(TypeError, match="key"):
        small.kernel.broadcast(NEWS, key="k")  # type: ignore[call-arg]


def test_a_volatile_message_parks_nobody_and_is_not_counted_where_it_was_dropped(small: KernelTest) -> None:
    slow, healthy = small.connect(), small.connect()
    slow.stop_reading()
    for number in range(20):
        small.kernel.send(slow.id, big(number), overflow="drop_oldest")
    small.settle()
    assert small.kernel.broadcast(NEWS, volatile=True) == 1
    small.kernel.send(slow.id, NEWS, volatile=True)
    counters = small.kernel.stats()["counters"]
    assert ("stalls" in counters, counters["dropped_volatile"]) == (False, 2)
    small.settle()
    assert [message["type"] for message in healthy.received] == ["news"]


def test_what_expires_while_a_client_does_not_read_never_reaches_it(small: KernelTest) -> None:
    client = small.connect()
    client.stop_reading()
    small.kernel.send(client.id, big(1), ttl=0.001)
    small.kernel.send(client.id, big(2), ttl=60)
    small.kernel.send(client.id, big(3))
    gevent.sleep(0.005)  # longer than it is of use
    client.resume_reading()
    small.settle()
    assert [message["payload"][0] for message in client.received] == [2, 3]
    assert small.kernel.stats()["counters"]["expired"] == 1


def test_a_reader_that_comes_back_in_time_loses_nothing() -> None:
    kernel = RealtimeKernel(limits=Limits(outbox=10 * KiB, park_timeout=60))
    done: list[str] = []

    @kernel.on("go")
    def go(message: Any, context: Any, toolkit: Any) -> None:
        for number in range(30):
            toolkit.reply(big(number))
        done.append("done")

    kernel.on("echo", lambda message, context, toolkit: message.payload)
    with KernelTest(kernel) as kernel_test:
        slow, other = kernel_test.connect(), kernel_test.connect()
        slow.stop_reading()
        slow.send({"type": "go"})
        assert other.call("echo", 1) == 1  # the handler is parked meanwhile
        assert done == []
        slow.resume_reading()
        assert [slow.receive()["payload"][0] for _ in range(30)] == list(range(30))
        kernel_test.settle()
        assert done == ["done"]


def fill(test: KernelTest, client: MemoryClient, size: int) -> None:
    """Have so many bytes wait for a client that does not read."""
    client.stop_reading()
    test.kernel.send(client.id, {"type": "filler", "payload": "x" * size}, ttl=60)


def recoverable(**limits: Any) -> KernelTest:
    """A kernel of small outboxes whose room "chat:tea" keeps its history."""
    kernel = RealtimeKernel(limits=Limits(outbox=10 * KiB, **limits))
    kernel.rooms.configure("chat:*", history=100, recover=True)
    return KernelTest(kernel)


def test_a_small_message_of_a_room_does_not_overtake_a_big_one_that_waits_for_room() -> None:
    with recoverable(stall=60.0) as test:
        slow = test.connect()
        test.kernel.rooms.join("chat:tea", slow.id)
        fill(test, slow, 6_000)
        sender = gevent.spawn(test.kernel.broadcast, big(1, 6_000), "chat:tea")
        gevent.idle()
        assert not sender.ready()  # it waits for room
        test.kernel.broadcast(big(2, 10), "chat:tea")
        slow.resume_reading()
        sender.join(60)
        test.settle()
        messages = [message for message in slow.received if message["type"] == "news"]
        assert [message["payload"][0] for message in messages] == [1, 2]
        assert messages[-1]["cursor"] == test.kernel.hub.history.log_of("chat:tea").cursor  # type: ignore[union-attr]


def from_elsewhere(number: int, size: int) -> Outbound:
    """A message that another node published in "chat:tea" as its ``number``-th."""
    message = Outbound(big(number, size), 1, room="chat:tea")
    return Outbound.relayed({"json": message.encoded(JSON)}, mark=Mark("0123abcd", number, 1e10 + number))


def news_and_cursors(client: MemoryClient) -> list[tuple[int, str]]:
    return [(m["payload"][0], m["cursor"].rpartition("0123abcd")[2]) for m in client.received if m["type"] == "news"]


def test_messages_that_waited_for_one_before_them_are_not_overtaken_while_the_first_of_them_waits_for_room() -> None:
    with recoverable(stall=60.0) as test:
        node = LocalNode(test.kernel.hub)
        slow = test.connect()
        test.kernel.rooms.join("chat:tea", slow.id)
        fill(test, slow, 6_000)
        log = test.kernel.hub.history.log_of("chat:tea")
        assert log is not None
        log._keep_early(kept(3, 10))
        log._keep_early(kept(2, 6_000))
        came = gevent.spawn(node.deliver_to_room, "chat:tea", from_elsewhere(1, 10), ())
        gevent.idle()
        assert not came.ready()
        node.deliver_to_room("chat:tea", from_elsewhere(4, 10), ())
        slow.resume_reading()
        came.join(60)
        test.settle()
        assert news_and_cursors(slow) == [(number, str(number)) for number in (1, 2, 3, 4)]


def kept(number: int, size: int) -> Entry:
    message = from_elsewhere(number, size)
    assert message.mark is not None
    return Entry(*message.mark, "json", message.encoded(JSON))


def test_of_messages_that_waited_one_that_does_not_fit_here_is_counted_and_the_others_come() -> None:
    with recoverable() as test:
        client = test.connect()
        test.kernel.rooms.join("chat:tea", client.id)
        log = test.kernel.hub.history.log_of("chat:tea")
        assert log is not None
        for early in (kept(2, 20_000), kept(3, 10)):
            log._keep_early(early)
        LocalNode(test.kernel.hub).deliver_to_room("chat:tea", from_elsewhere(1, 10), ())
        test.settle()
        assert [number for number, _ in news_and_cursors(client)] == [1, 3]
        assert test.kernel.stats()["counters"]["relayed_undeliverable"] == 1
