"""Clients that move between nodes at the very moment that something is sent to them."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from realtime import Context, Limits, Message, RealtimeKernel, Toolkit
from realtime.cluster_node import LocalNode
from realtime.errors import TimedOut
from realtime.testing.live_network import LiveNetwork
from realtime.testing.network_cluster import NetworkTransport
from realtime.testing.peers import PATIENCE, wait_until
from realtime.transports.memory import MemoryTransport
from realtime.transports.memory_client import MemoryClient

ROOM = "tea"
LARGE = "x" * 40_000  # a second one has to wait for room in an outbox


class Node:
    """A kernel whose senders wait for slow members for as long as it takes."""

    def __init__(self, live: LiveNetwork, number: int) -> None:
        self.clients = MemoryTransport()
        joining = NetworkTransport(live, f"node-{number}", seeds=["node-0"])
        limits = Limits(outbox=64 * 1024, stall=PATIENCE)
        self.kernel = RealtimeKernel([self.clients, joining], limits=limits, log_level="warning")
        news = {"type": "news", "payload": LARGE}

        @self.kernel.on("to the room")
        def to_the_room(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.broadcast(news, ROOM)

        @self.kernel.on("to some")
        def to_some(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.broadcast(news, filter=lambda context: ROOM in context.rooms)

    @property
    def local(self) -> LocalNode:
        """The node as its cluster sees it."""
        local: LocalNode = self.kernel.hub.cluster._local  # type: ignore[attr-defined]
        return local

    def connect(self, session: Any = True, codec: str = "json") -> tuple[MemoryClient, dict[str, Any]]:
        """Connect a client with a session, which it asks for; return it with the welcome."""
        client = self.clients.connect(codec=codec)
        client.send({"type": "system:hello", "payload": {"session": session}})
        return client, client.receive_until("system:welcome")["payload"]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    live = LiveNetwork()
    nodes = [Node(live, number) for number in range(3)]
    for node in nodes:
        node.kernel.start()
    wait_until(lambda: all(len(node.kernel.hub.cluster.node_ids()) == 2 for node in nodes))
    yield nodes
    for node in nodes:
        node.kernel.stop(PATIENCE)


def slow_member(node: Node) -> MemoryClient:
    """Return a member of the room for whom the next large message will have to wait."""
    client, _ = node.connect()
    node.kernel.rooms.join(ROOM, client.id)
    client.stop_reading()
    node.kernel.broadcast({"type": "before", "payload": LARGE}, ROOM)
    return client


def a_member(nodes: list[Node]) -> tuple[MemoryClient, dict[str, Any]]:
    """Return a member of the room, at the first node, once all nodes know of it; and its welcome."""
    client, welcome = nodes[0].connect()
    nodes[0].kernel.rooms.join(ROOM, client.id)
    wait_until(lambda: all(client.id in node.kernel.rooms.members(ROOM) for node in nodes))
    return client, welcome


def resuming(welcome: dict[str, Any]) -> dict[str, Any]:
    """Return the wish to go on with the session of a welcome, with all that was sent to it so far still to come."""
    return {"token": welcome["session"]["token"], "received": 0}


@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0)], ids=["it leaves", "it arrives"])
@pytest.mark.parametrize("how", ["to the room", "to some"])
def test_who_moves_while_the_publisher_waits_for_others_gets_the_message_once(
    nodes: list[Node], old: int, new: int, how: str
) -> None:
    publisher = nodes[0].kernel
    slow = slow_member(nodes[0])
    mover, welcome = nodes[old].connect()
    nodes[old].kernel.rooms.join(ROOM, mover.id)
    wait_until(lambda: all(mover.id in node.kernel.rooms.members(ROOM) for node in nodes))

    sender, _ = nodes[0].connect()
    sender.send({"type": how, "ack": "published"})
    wait_until(lambda: publisher.stats()["counters"].get("stalls"))
    again, moved = nodes[new].connect(resuming(welcome))
    assert (moved["id"], moved["session"]["resumed"]) == (welcome["id"], True)
    wait_until(lambda: nodes[old].kernel.hub.connections.get(mover.id) is None)
    assert not sender.received, "the publisher still waits"
    slow.resume_reading()
    assert sender.receive_until("system:ack")["payload"]["ack"] == "published"
    nodes[new].kernel.send(welcome["id"], {"type": "end"})
    kinds = []
    while "end" not in kinds:
        kinds.append(again.receive()["type"])
    assert [kind for kind in kinds if kind == "news"] == ["news"]


def test_what_its_new_node_had_sent_still_reaches_who_moves_to_it(nodes: list[Node]) -> None:
    """It waits at the old node behind a message for somebody slow, while all there is to know of the move is known."""
    slow = slow_member(nodes[0])
    mover, welcome = a_member(nodes)
    again = nodes[1].clients.connect()
    again.send({"type": "system:hello", "payload": {"session": resuming(welcome)}})
    wait_until(lambda: nodes[1].kernel.hub.sessions.arrivals.is_claiming(nodes[1].kernel.hub.connections[again.id]))
    nodes[1].kernel.broadcast({"type": "news", "payload": LARGE}, ROOM)  # behind the question, before its answer
    nodes[1].kernel.broadcast({"type": "more"}, ROOM)
    nodes[1].kernel.send(mover.id, {"type": "told"})
    again.receive_until("system:welcome")
    wait_until(lambda: nodes[0].kernel.hub.connections.get(mover.id) is None)
    slow.resume_reading()
    assert {again.receive()["type"] for _ in range(3)} == {"news", "more", "told"}
    wait_until(lambda: nodes[1].kernel.hub.cluster.home(mover.id) is None)  # the old node has withdrawn it
    nodes[1].kernel.broadcast({"type": "end"}, ROOM)
    assert again.receive()["type"] == "end"


def test_it_comes_home_before_the_old_node_has_seen_where_it_was(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, welcome = a_member(nodes)
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda client_id, node: None)
    _, welcome = nodes[1].connect(resuming(welcome))
    nodes[0].kernel.rooms.join("joined meanwhile", mover.id)
    monkeypatch.undo()
    again, welcome = nodes[0].connect(resuming(welcome))
    assert (welcome["id"], welcome["session"]["resumed"]) == (mover.id, True)
    wait_until(lambda: all(node.kernel.hub.cluster.home(mover.id) in (None, "node-0") for node in nodes))
    for number, node in enumerate(nodes):
        wait_until(lambda node=node: node.kernel.rooms.members("joined meanwhile") == [mover.id])  # type: ignore[misc]
        assert node.kernel.rooms.members(ROOM) == [mover.id]
        node.kernel.broadcast({"type": "said", "payload": number}, ROOM)
    assert sorted(again.receive()["payload"] for _ in range(3)) == [0, 1, 2]
    again.close()
    for node in nodes:
        wait_until(lambda node=node: not node.kernel.presence.list())  # type: ignore[misc]


def test_a_node_that_has_not_seen_a_move_is_asked_again(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    mover, welcome = nodes[0].connect()
    wait_until(lambda: all(node.kernel.presence.list() for node in nodes))
    slow = nodes[2].local
    monkeypatch.setattr("realtime.session_departures.AWARE_TIMEOUT", PATIENCE)
    asked: list[Any] = []

    def blind(arguments: Any) -> bool:
        asked.append(arguments)
        return len(asked) == 2 and nodes[2].kernel.hub.sessions.departures.aware(arguments)

    monkeypatch.setitem(slow._own_operations, "aware", blind)
    nodes[1].connect(resuming(welcome))
    wait_until(lambda: nodes[1].kernel.hub.cluster.home(mover.id) is None)
    assert asked == [{"client": mover.id, "node": "node-0"}] * 2


def test_members_that_are_on_their_way_are_asked_where_they_arrive(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their old node, which has seen nothing of them, and by another, to which they are still at the old one."""
    mover, welcome = a_member(nodes)
    appeared: list[tuple[str, str]] = []
    arrived = nodes[0].local.client_appeared
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda *seen: appeared.append(seen))
    again, welcome = nodes[1].connect(resuming(welcome))
    wait_until(lambda: appeared)
    call = gevent.spawn(lambda: list(nodes[0].kernel.call_room(ROOM, {"type": "who"}, timeout=PATIENCE)))
    gevent.sleep(0)
    arrived(*appeared[0])
    again.answer(again.receive_until("who"), "me")
    assert call.get(timeout=PATIENCE) == [(mover.id, "me")]


def test_a_member_that_has_just_left_the_node_that_was_asked_is_missing(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, welcome = a_member(nodes)
    late = Event()
    monkeypatch.setitem(nodes[2].local._own_operations, "aware", lambda arguments: late.wait(PATIENCE))
    nodes[1].connect(resuming(welcome))
    wait_until(lambda: mover.id not in nodes[0].kernel.hub.connections)
    answers = nodes[0].local.call_room(ROOM, {"type": "who"}, (), PATIENCE)  # as a node asks that has not seen it move
    with pytest.raises(StopIteration) as ended:
        next(answers)
    assert ended.value.value == [mover.id]
    late.set()
    wait_until(lambda: nodes[1].kernel.hub.cluster.home(mover.id) is None)


def test_the_time_that_a_message_is_of_use_goes_along(nodes: list[Node]) -> None:
    mover, welcome = nodes[0].connect()
    wait_until(lambda: nodes[1].kernel.presence.get(mover.id))
    nodes[0].kernel.send(mover.id, {"type": "brief"}, ttl=0.5)
    nodes[0].kernel.send(mover.id, {"type": "told"}, ttl=PATIENCE)
    away, welcome = nodes[1].connect(resuming(welcome))
    over = monotonic() + 0.5  # what is left of it counts from when it arrived here
    away.kill()
    wait_until(lambda: monotonic() > over)
    again, welcome = nodes[1].connect(resuming(welcome))
    assert again.receive()["type"] == "told"


@pytest.mark.parametrize("codecs", [("json", "msgpack"), ("msgpack", "json")], ids="-to-".join)
def test_what_was_sent_to_it_in_another_codec_still_says_how_far_the_room_is(
    nodes: list[Node], codecs: tuple[str, str]
) -> None:
    for node in nodes:
        node.kernel.rooms.configure(ROOM, history=10, recover=True)
    mover, welcome = nodes[0].connect(codec=codecs[0])
    wait_until(lambda: nodes[1].kernel.presence.get(mover.id))
    nodes[0].kernel.rooms.join(ROOM, mover.id)
    nodes[0].kernel.broadcast({"type": "news", "payload": 1}, ROOM)
    sent = mover.receive()
    again, _ = nodes[1].connect(resuming(welcome), codec=codecs[1])
    assert sent["cursor"]
    assert again.receive() == sent


def test_who_moves_at_the_end_of_its_grace_is_not_announced_as_gone(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    for node in nodes:
        node.kernel.on("client:disconnected", lambda message, context, toolkit: gone.append(context.id))
    mover, welcome = nodes[0].connect()
    wait_until(lambda: nodes[1].kernel.presence.get(mover.id))
    appeared: list[tuple[str, str]] = []
    arrived = nodes[0].local.client_appeared
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda *seen: appeared.append(seen))
    sessions = nodes[0].kernel.hub.sessions
    mover.kill()
    wait_until(lambda: sessions.stats()["away"])
    end_of_grace = monotonic() + nodes[0].kernel.limits.session_grace
    nodes[1].connect(resuming(welcome))
    wait_until(lambda: appeared)
    sessions._expire(end_of_grace)  # before the old node has seen it at the new one
    arrived(*appeared[0])
    wait_until(lambda: mover.id not in nodes[0].kernel.hub.connections)
    assert nodes[1].kernel.presence.get(mover.id)
    assert mover.id not in gone


@pytest.mark.parametrize("is_current", [True, False], ids=["which is far ahead", "which is far behind"])
def test_who_goes_on_before_its_node_has_sent_what_it_missed_gets_it_once_at_the_next(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, is_current: bool
) -> None:
    """Its place in a room that keeps its history is its own then, and not that of the node it was at meanwhile."""
    for node in nodes:
        node.kernel.rooms.configure(ROOM, history=100, recover=True)
    mover, welcome = nodes[0].connect()
    nodes[0].kernel.rooms.join(ROOM, mover.id)
    if is_current:
        other, _ = nodes[1].connect()
        nodes[1].kernel.rooms.join(ROOM, other.id)
    wait_until(lambda: all(mover.id in node.kernel.rooms.members(ROOM) for node in nodes))
    nodes[2].kernel.broadcast({"type": "said", "payload": 0}, ROOM)
    assert mover.receive()["payload"] == 0
    middle = nodes[1].kernel.hub.history
    enter, may_go_on = middle.entered, Event()

    def enter_late(room: str, client_id: str) -> None:
        may_go_on.wait(PATIENCE)
        enter(room, client_id)

    monkeypatch.setattr(middle, "entered", enter_late)
    _, welcome = nodes[1].connect({"token": welcome["session"]["token"], "received": 1})
    wait_until(lambda: mover.id not in nodes[0].kernel.hub.connections)
    nodes[2].kernel.broadcast({"type": "said", "payload": 1}, ROOM)
    if is_current:
        assert other.receive_until("said")["payload"] == 0
        assert other.receive_until("said")["payload"] == 1
    again, welcome = nodes[2].connect({"token": welcome["session"]["token"], "received": 1})
    assert (welcome["id"], welcome["session"]["resumed"]) == (mover.id, True)
    assert again.receive()["payload"] == 1
    may_go_on.set()
    wait_until(lambda: mover.id not in nodes[1].kernel.hub.connections and not middle.holds._held)
    nodes[0].kernel.broadcast({"type": "said", "payload": 2}, ROOM)
    assert again.receive()["payload"] == 2


def test_what_is_for_who_goes_on_at_once_is_not_sent_back_to_where_it_came_from(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the cluster it is still at the node before, which has kept it for those who do not know it yet."""
    mover, welcome = a_member(nodes)
    late = Event()
    monkeypatch.setitem(nodes[2].local._own_operations, "aware", lambda arguments: late.wait(PATIENCE))
    _, welcome = nodes[1].connect(resuming(welcome))
    wait_until(lambda: mover.id not in nodes[0].kernel.hub.connections)
    between = nodes[1].kernel.hub.sessions.departures
    part_with = between._part_with

    def publish_after(*arguments: Any) -> Any:
        state = part_with(*arguments)
        assert nodes[1].kernel.hub.cluster.home(mover.id) == "node-0"
        nodes[1].kernel.broadcast({"type": "news"}, ROOM)
        nodes[1].kernel.send(mover.id, {"type": "told"})
        return state

    monkeypatch.setattr(between, "_part_with", publish_after)
    again, _ = nodes[2].connect(resuming(welcome))
    assert [again.receive()["type"] for _ in range(2)] == ["news", "told"]
    assert not nodes[0].kernel.stats()["counters"].get("sessions_forwarded")
    late.set()
    wait_until(lambda: nodes[2].kernel.hub.cluster.home(mover.id) is None)


def test_a_handler_left_behind_reaches_its_client_that_has_come_home(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.session_departures.HANDLERS_FINISH", 0.0)
    may_reply = Event()

    @nodes[0].kernel.on("think")
    def think(message: Message, context: Context, toolkit: Toolkit) -> None:
        may_reply.wait(PATIENCE)
        toolkit.reply({"type": "thought"})

    mover, welcome = nodes[0].connect()
    wait_until(lambda: all(node.kernel.presence.get(mover.id) for node in nodes))
    mover.send({"type": "think"})
    _, welcome = nodes[1].connect(resuming(welcome))
    wait_until(lambda: all(node.kernel.hub.cluster.home(mover.id) in (None, "node-1") for node in nodes))
    again, welcome = nodes[0].connect(resuming(welcome))
    assert (welcome["id"], welcome["session"]["resumed"]) == (mover.id, True)
    wait_until(lambda: nodes[0].kernel.hub.cluster.home(mover.id) is None)
    may_reply.set()
    assert again.receive()["type"] == "thought"


@pytest.mark.parametrize("way", [[1, 0], [1, 0, 1], [1, 2, 0, 1, 2], [1, 2, 1, 2]], ids=str)
def test_a_call_outlives_any_way_that_its_client_takes(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, way: list[int]
) -> None:
    monkeypatch.setattr("realtime.session_departures.HANDLERS_FINISH", 0.0)
    mover, welcome = nodes[0].connect()
    wait_until(lambda: all(node.kernel.presence.get(mover.id) for node in nodes))
    call = gevent.spawn(nodes[0].kernel.call, mover.id, {"type": "who"}, timeout=PATIENCE)
    question = mover.receive_until("who")
    for place in way:
        again, welcome = nodes[place].connect({"token": welcome["session"]["token"], "received": 1})
        assert (welcome["id"], welcome["session"]["resumed"]) == (mover.id, True)
        wait_until(lambda: nodes[place].kernel.hub.cluster.home(mover.id) is None)  # noqa: B023  # at once
    again.answer(question, "me")
    assert call.get(timeout=PATIENCE) == "me"


def test_a_call_waits_for_longer_than_what_was_handed_over_is_remembered(nodes: list[Node]) -> None:
    mover, welcome = nodes[0].connect()
    wait_until(lambda: nodes[1].kernel.presence.get(mover.id))
    call = gevent.spawn(nodes[0].kernel.call, mover.id, {"type": "who"}, timeout=PATIENCE)
    question = mover.receive_until("who")
    again, _ = nodes[1].connect({"token": welcome["session"]["token"], "received": 1})
    calls = nodes[0].kernel.hub.sessions.calls
    calls.forget_old(monotonic() + 2 * nodes[0].kernel.limits.session_grace)
    again.answer(question, "me")
    assert call.get(timeout=PATIENCE) == "me"
    calls.forget_old(monotonic() + 4 * nodes[0].kernel.limits.session_grace)
    assert not calls._departed


@pytest.mark.parametrize("way", [[1], [1, 0, 1, 2, 0]], ids=str)
@pytest.mark.parametrize("how", ["one", "room"])
def test_a_call_that_ends_without_an_answer_is_not_waited_for_anywhere(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, way: list[int], how: str
) -> None:
    """Else far more than usual would be read from a client, wherever it is, until its session ends."""
    monkeypatch.setattr("realtime.session_departures.HANDLERS_FINISH", 0.0)
    mover, welcome = a_member(nodes)
    kernel, clients = nodes[0].kernel, []

    def ask() -> list[str]:
        if how == "room":
            call = kernel.call_room(ROOM, {"type": "who"}, timeout=1.0)
            return [*map(str, call), *call.missing]
        with pytest.raises(TimedOut):
            kernel.call(mover.id, {"type": "who"}, timeout=1.0)
        return [mover.id]

    call = gevent.spawn(ask)
    mover.receive_until("who")
    for place in way:
        _, welcome = nodes[place].connect({"token": welcome["session"]["token"], "received": 1})
        assert (welcome["id"], welcome["session"]["resumed"]) == (mover.id, True)
        wait_until(lambda: nodes[place].kernel.hub.cluster.home(mover.id) is None)  # noqa: B023  # at once
        clients.append(nodes[place].kernel.hub.connections[mover.id])
    assert call.get(timeout=PATIENCE) == [mover.id]
    wait_until(lambda: not any(client.is_awaited for client in clients))
    for node in nodes:
        calls = node.kernel.hub.sessions.calls
        calls.forget_old(monotonic() + 2 * node.kernel.limits.session_grace)
        assert not calls._departed


def test_who_cannot_be_sent_what_was_kept_for_it_begins_anew(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is left of it: whoever were here without an outbox would end every broadcast to all."""
    mover, welcome = nodes[0].connect()
    wait_until(lambda: nodes[1].kernel.presence.get(mover.id))
    nodes[0].kernel.send(mover.id, {"type": "told"})
    part_with = nodes[0].kernel.hub.sessions.departures._part_with
    monkeypatch.setattr(
        nodes[0].kernel.hub.sessions.departures,
        "_part_with",
        lambda *arguments: {**part_with(*arguments), "codec": "of one's own"},
    )
    again, welcome = nodes[1].connect(resuming(welcome))
    assert welcome["session"]["reason"] == "cannot be continued in this codec"
    assert again.id in nodes[1].kernel.hub.connections
    assert mover.id not in nodes[1].kernel.hub.connections
    nodes[1].kernel.broadcast({"type": "news"})
    assert again.receive()["type"] == "news"


def test_where_clients_went_is_forgotten_by_itself(nodes: list[Node]) -> None:
    sessions = nodes[0].kernel.hub.sessions
    moved = monotonic()
    for _ in range(3):
        mover, welcome = nodes[0].connect()
        wait_until(lambda: nodes[1].kernel.presence.get(mover.id))  # noqa: B023  # at once
        nodes[1].connect(resuming(welcome))
        wait_until(lambda: mover.id not in nodes[0].kernel.hub.connections)  # noqa: B023
    grace = nodes[0].kernel.limits.session_grace
    due = sessions._expire(monotonic())
    assert due is not None
    assert moved <= due - grace <= monotonic()
    assert sessions._expire(monotonic() + grace) is None
    assert not sessions.departures._went


def test_members_are_asked_though_one_does_not_arrive_where_it_went(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, welcome = nodes[0].connect()
    member, _ = nodes[0].connect()
    for client in (mover, member):
        nodes[0].kernel.rooms.join(ROOM, client.id)
    wait_until(lambda: len(nodes[1].kernel.rooms.members(ROOM)) == 2)
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda *seen: None)
    nodes[1].connect(resuming(welcome))

    def ask() -> tuple[list[Any], list[str]]:
        call = nodes[0].kernel.call_room(ROOM, {"type": "who"}, timeout=2.0)
        return list(call), call.missing

    asking = gevent.spawn(ask)
    member.answer(member.receive_until("who"), "me")
    assert asking.get(timeout=PATIENCE) == ([(member.id, "me")], [mover.id])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_who_is_cut_off_while_its_session_is_fetched_has_it_where_it_comes_next(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    may_go_on, asked = Event(), Event()
    departures = nodes[0].kernel.hub.sessions.departures
    finish = departures._let_handlers_finish
    monkeypatch.setattr(departures, "_let_handlers_finish", lambda client: (asked.set(), finish(client)))

    @nodes[0].kernel.on("think")
    def think(message: Message, context: Context, toolkit: Toolkit) -> None:
        may_go_on.wait(PATIENCE)  # so that handing over takes a moment

    mover, welcome = nodes[0].connect()
    wait_until(lambda: all(node.kernel.presence.get(mover.id) for node in nodes))
    mover.send({"type": "think"})
    mover.kill()
    arrivals = nodes[1].kernel.hub.sessions.arrivals
    cut = nodes[1].clients.connect()
    cut.send({"type": "system:hello", "payload": {"session": resuming(welcome)}})
    assert asked.wait(PATIENCE)
    assert arrivals.is_coming(welcome["session"]["token"])
    cut.kill()
    again = nodes[place].clients.connect()
    again.send({"type": "system:hello", "payload": {"session": resuming(welcome)}})
    gevent.sleep(0)
    may_go_on.set()
    welcome = again.receive_until("system:welcome")["payload"]
    assert (welcome["id"], welcome["session"]["resumed"]) == (mover.id, True)
    nodes[2].kernel.send(mover.id, {"type": "told"})
    assert again.receive()["type"] == "told"
    wait_until(lambda: not arrivals._waiting_for)


@pytest.mark.parametrize("room", [ROOM, None])
@pytest.mark.parametrize("publisher", [0, 1, 2])
def test_who_moves_to_where_others_are_gets_what_is_sent_to_all_of_them_once(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, publisher: int, room: str | None
) -> None:
    """Also from who sends to both its nodes, as nothing has come there yet of its being at the new one."""
    mover, welcome = nodes[0].connect()
    others = [node.connect()[0] for node in nodes]
    nodes[0].kernel.rooms.join(ROOM, mover.id)
    for node, other in zip(nodes, others, strict=True):
        node.kernel.rooms.join(ROOM, other.id)
    wait_until(lambda: all(len(node.kernel.rooms.members(ROOM)) == 4 for node in nodes))
    sessions = nodes[1].kernel.hub.sessions
    restore = sessions.restore

    def publish(first: int) -> None:
        for number in range(first, first + 3):
            nodes[publisher].kernel.broadcast({"type": "said", "payload": number}, room)

    def restore_and_publish(*arguments: Any) -> Any:
        gevent.spawn(publish, 0)  # in the turn in which it is announced
        return restore(*arguments)

    monkeypatch.setattr(sessions, "restore", restore_and_publish)
    again, _ = nodes[1].connect(resuming(welcome))
    publish(3)
    wait_until(lambda: nodes[1].kernel.hub.cluster.home(mover.id) is None)
    publish(6)
    for client in (again, *others):
        assert sorted(client.receive()["payload"] for _ in range(9)) == list(range(9))
        nodes[1].kernel.send(client.id if client is not again else mover.id, {"type": "end"})
        assert client.receive()["type"] == "end"


class Watcher:
    """A client that is in a room and watches it, with what it knows of who is there."""

    def __init__(self, client: MemoryClient) -> None:
        self.client = client
        self.seen: list[str] = []

    def read_until(self, kind: str) -> dict[str, Any]:
        """Take all up to a message, which is returned; a change that does not fit to what is known fails."""
        while True:
            message = self.client.receive()
            payload = message.get("payload")
            if message["type"] == "presence:state":
                self.seen = list(payload["presences"])
            elif message["type"] == "presence:diff":
                joins, leaves = list(payload["joins"]), list(payload["leaves"])
                assert not set(joins) & set(self.seen), "it was shown already"
                assert set(leaves) <= set(self.seen), "it was not shown"
                self.seen = [key for key in self.seen if key not in leaves] + joins
            if message["type"] == kind:
                return message


def tell_presence(node: Node) -> None:
    """Tell what changed in watched rooms without waiting until it is due."""
    node.kernel.hub.live_presence._tell_due(monotonic() + PATIENCE)


@pytest.mark.parametrize("recover", [False, True], ids=["plain", "recoverable"])
def test_who_moves_is_told_of_members_by_its_new_node_alone(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, recover: bool
) -> None:
    """Also of those that change before its old node has seen it arrive."""
    for node in nodes:
        node.kernel.rooms.configure(ROOM, history=10 if recover else 0, recover=recover)
    mover, welcome = nodes[0].connect()
    staying, _ = nodes[2].connect()
    leaving, _ = nodes[2].connect()
    wait_until(lambda: nodes[0].kernel.presence.get(leaving.id))
    for node, client in ((nodes[2], staying), (nodes[2], leaving), (nodes[0], mover)):
        node.kernel.rooms.join(ROOM, client.id, presence=client is mover)
    wait_until(lambda: all(len(node.kernel.rooms.members(ROOM)) == 3 for node in nodes))
    appeared: list[tuple[str, str]] = []
    arrived = nodes[0].local.client_appeared
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda *seen: appeared.append(seen))
    watcher = Watcher(nodes[1].connect(resuming(welcome))[0])
    wait_until(lambda: appeared)
    watcher.read_until("presence:state")
    coming, _ = nodes[2].connect()
    nodes[2].kernel.rooms.leave(ROOM, leaving.id)
    nodes[2].kernel.rooms.join(ROOM, coming.id)
    expected = {staying.id, coming.id, mover.id}
    others = expected - {mover.id}
    wait_until(lambda: all(set(node.kernel.rooms.members(ROOM)) - {mover.id} == others for node in nodes[:2]))
    for node in (nodes[1], nodes[0]):
        tell_presence(node)
    nodes[0].kernel.send(mover.id, {"type": "end"})  # behind what the old node might have told
    watcher.read_until("end")
    while set(watcher.seen) != expected:
        watcher.read_until("presence:diff")
    assert not nodes[0].kernel.hub.live_presence.stats()["watched_rooms"]
    arrived(*appeared[0])


def test_who_comes_home_at_once_is_told_who_is_there_now(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes[0].kernel.rooms.configure(ROOM, history=10, recover=True)
    nodes[1].kernel.rooms.configure(ROOM, history=10, recover=True)
    mover, welcome = nodes[0].connect()
    other, _ = nodes[0].connect()
    nodes[0].kernel.rooms.join(ROOM, other.id, presence=True)
    nodes[0].kernel.rooms.join(ROOM, mover.id, presence=True)
    wait_until(lambda: len(nodes[1].kernel.rooms.members(ROOM)) == 2)
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda client_id, node: None)
    away, welcome = nodes[1].connect(resuming(welcome))
    received = 0
    while away.receive()["type"] != "presence:state" or received == 0:
        received += 1
    monkeypatch.undo()
    again, welcome = nodes[0].connect({"token": welcome["session"]["token"], "received": received + 1})
    assert welcome["session"]["resumed"]
    watcher = Watcher(again)
    watcher.read_until("presence:state")
    assert set(watcher.seen) == {mover.id, other.id}
    wait_until(lambda: all(node.kernel.hub.cluster.home(mover.id) in (None, "node-0") for node in nodes))


def test_what_a_handler_left_behind_has_its_client_watch_is_watched_at_the_new_node(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, welcome = a_member(nodes)
    appeared: list[tuple[str, str]] = []
    arrived = nodes[0].local.client_appeared
    monkeypatch.setattr(nodes[0].local, "client_appeared", lambda *seen: appeared.append(seen))
    nodes[1].connect(resuming(welcome))
    wait_until(lambda: appeared)
    for room in (ROOM, "joined meanwhile"):
        nodes[0].kernel.rooms.join(room, mover.id, presence=True)
    nodes[0].kernel.rooms.join("not watched", mover.id)
    arrived(*appeared[0])
    wait_until(lambda: nodes[1].kernel.rooms.list(scope="local").get("not watched"))
    watched = nodes[1].kernel.hub.live_presence.watched_by
    wait_until(lambda: sorted(watched(mover.id)) == ["joined meanwhile", ROOM])
    assert not nodes[0].kernel.hub.live_presence.stats()["watched_rooms"]


@pytest.mark.parametrize("at_once", [True, False])
def test_who_says_goodbye_right_after_a_move_is_gone_everywhere(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Though nodes that have seen nothing of the move wait for it to be seen."""
    monkeypatch.setattr("realtime.session_departures.AWARE_TIMEOUT", PATIENCE)
    _, welcome = a_member(nodes)
    late = Event()
    for node in nodes[1:]:
        monkeypatch.setitem(node.local._own_operations, "aware", lambda arguments: late.wait(PATIENCE))
    again = nodes[1].clients.connect()
    again.send({"type": "system:hello", "payload": {"session": resuming(welcome)}})
    if not at_once:
        again.receive_until("system:welcome")
        wait_until(lambda: welcome["id"] not in nodes[0].kernel.hub.connections)
    again.close()
    for node in nodes:
        wait_until(lambda node=node: not node.kernel.presence.list())  # type: ignore[misc]
    assert not nodes[0].kernel.hub.sessions.departures._late
    late.set()
