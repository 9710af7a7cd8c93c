"""Live presence on one node: who watches a room is told once who is there, and then what changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from realtime import ConfigurationError, Limits, RealtimeKernel, Reject
from realtime.errors import CallFailed, TimedOut
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until
from realtime.testing.presence_view import PresenceView

FAST = Limits(presence_quiet=0.005, presence_busy=0.01, presence_listed=10)
PATIENCE = 20.0


@pytest.fixture
def rig() -> Iterator[KernelTest]:
    """A kernel whose rooms anybody may join, with small limits."""
    kernel = RealtimeKernel(log_level="warning", limits=FAST)
    kernel.rooms.configure("shown:*", join=True, presence=True)
    kernel.rooms.configure("*", join=True)
    kernel.presence.configure(update=True)
    with KernelTest(kernel) as running:
        yield running


class Watcher:
    """A client that applies what it is told of one room."""

    def __init__(self, rig: KernelTest, room: str = "tea", **options: Any) -> None:
        self.client = rig.connect(**options)
        self.id = self.client.id
        self.room = room
        self.view = PresenceView(room)

    def join(self, **payload: Any) -> Any:
        return self.client.call("system:join", payload or {"presence": True}, room=self.room)

    def take_one(self, timeout: float = PATIENCE) -> dict[str, Any]:
        message = self.client.receive(timeout)
        assert message["room"] == self.room
        self.view.take(message["type"], message["payload"])
        return message

    def sees(self, *ids: str) -> None:
        self.until(lambda view: view.clients == set(ids))

    def until(self, condition: Callable[[PresenceView], bool]) -> None:
        """Apply what comes until something holds."""
        while not condition(self.view):
            try:
                self.take_one()
            except TimedOut:
                raise AssertionError(f"still {self.view.presences}, {self.view.total}") from None


def test_a_watcher_is_told_the_state_before_its_join_is_answered(rig: KernelTest) -> None:
    ada, ben = Watcher(rig, metadata={"name": "Ada"}), Watcher(rig)
    ada.client.send({"type": "system:join", "room": "tea", "payload": {"presence": True}, "ack": 1})
    message = ada.take_one()
    presences = {ada.id: {"metas": [{"id": ada.id, "name": "Ada"}]}}
    assert (message["type"], message["room"]) == ("presence:state", "tea")
    assert message["payload"] == {"room": "tea", "presences": presences, "total": 1}
    answer = ada.client.receive(PATIENCE)
    assert (answer["type"], answer["payload"]["result"]["total"]) == ("system:ack", 1)
    ben.join()
    assert ben.take_one()["payload"]["presences"] == {**presences, ben.id: {"metas": [{"id": ben.id}]}}
    assert ada.take_one()["payload"] == {
        "room": "tea", "joins": {ben.id: {"metas": [{"id": ben.id}]}}, "leaves": {}, "updates": {}, "total": 2,
    }  # fmt: skip
    ada.client.close()
    assert ben.take_one()["payload"] == {
        "room": "tea", "joins": {}, "leaves": presences, "updates": {}, "total": 1,
    }  # fmt: skip


def test_every_way_out_of_a_room_is_a_leave(rig: KernelTest) -> None:
    watcher = Watcher(rig)
    others = [Watcher(rig) for _ in range(4)]
    watcher.join()
    for other in others:
        other.join(presence=False)
    watcher.sees(watcher.id, *(other.id for other in others))
    others[0].client.call("system:leave", room="tea")
    others[1].client.close()
    others[2].client.kill()
    rig.kernel.rooms.leave_all(others[3].id)
    watcher.sees(watcher.id)
    assert sorted(watcher.view.leaves) == sorted(watcher.view.joins) == sorted(other.id for other in others)
    assert watcher.view.states == 1


def test_a_rule_a_payload_a_handler_and_the_kernel_make_watchers(rig: KernelTest) -> None:
    by_rule, not_this_one, neither = Watcher(rig, "shown:tea"), Watcher(rig, "shown:tea"), Watcher(rig, "hall")
    by_rule.client.call("system:join", room="shown:tea")
    not_this_one.join(presence=False)
    neither.client.call("system:join", room="hall")

    @rig.kernel.on("enter")
    def enter(message: Any, context: Any, toolkit: Any) -> bool:
        return bool(toolkit.rooms.join("hall", presence=True))

    by_handler, by_kernel = Watcher(rig, "hall"), Watcher(rig, "hall")
    assert by_handler.client.call("enter") is True
    assert rig.kernel.rooms.join("hall", by_kernel.id, presence=True) is True
    by_rule.sees(by_rule.id, not_this_one.id)
    for watcher in (by_handler, by_kernel):
        watcher.sees(by_handler.id, by_kernel.id, neither.id)
    assert by_handler.client.call("enter") is False, "again: no harm, and no second state"
    neither.join()
    neither.sees(by_handler.id, by_kernel.id, neither.id)
    assert rig.kernel.stats()["presence"] == {"watched_rooms": 2, "watchers": 4}
    assert rig.kernel.hub.live_presence.watched_by(by_kernel.id) == ["hall"]
    assert not_this_one.client.received == []


def test_who_comes_and_goes_at_once_is_not_told_of(rig: KernelTest) -> None:
    watcher, brief, other = Watcher(rig), rig.connect(), rig.connect()
    watcher.join()
    rooms = rig.kernel.rooms
    rooms.join("tea", brief.id)
    rooms.leave("tea", brief.id)
    rooms.join("tea", other.id)
    watcher.sees(watcher.id, other.id)
    assert watcher.view.joins == [other.id]


def test_connections_of_one_identity_are_one_presence(rig: KernelTest) -> None:
    watcher = Watcher(rig, identity=7)
    tabs = [Watcher(rig, identity="ada", metadata={"tab": number}) for number in range(2)]
    watcher.join()
    for tab in tabs:
        tab.join(presence=False)
    watcher.sees(watcher.id, *(tab.id for tab in tabs))
    assert watcher.view.total == 2
    assert watcher.view.presences is not None
    assert watcher.view.presences["7"] == {"metas": [{"id": watcher.id}]}
    assert {meta["tab"] for meta in watcher.view.presences["ada"]["metas"]} == {0, 1}
    tabs[0].client.close()
    watcher.sees(watcher.id, tabs[1].id)
    assert (watcher.view.joins, watcher.view.leaves) == (["ada"], [])
    tabs[1].client.close()
    watcher.sees(watcher.id)
    assert watcher.view.leaves == ["ada"]


def test_an_update_is_neither_leave_nor_join(rig: KernelTest) -> None:
    watcher, other = Watcher(rig), Watcher(rig, metadata={"name": "Ada"})
    watcher.join()
    other.join()
    watcher.sees(watcher.id, other.id)
    other.client.call("system:presence", {"metadata": {"mood": "fine"}})
    while (message := watcher.take_one())["payload"]["updates"] == {}:
        pass
    changed = {"metas": [{"id": other.id, "name": "Ada", "mood": "fine"}]}
    assert message["payload"]["updates"] == {other.id: changed}
    assert (message["payload"]["joins"], message["payload"]["leaves"]) == ({}, {})


def test_many_members_are_a_number_with_pages(rig: KernelTest) -> None:
    watcher = Watcher(rig)
    watcher.join()
    crowd = [rig.connect(metadata={"number": number}) for number in range(25)]
    for client in crowd:
        rig.kernel.rooms.join("tea", client.id)
    watcher.until(lambda view: view.total == 26)
    assert watcher.view.presences is None
    late = Watcher(rig)
    late.join()
    assert late.take_one()["payload"] == {"room": "tea", "total": 27}
    seen: dict[str, Any] = {}
    pages = 0
    page: dict[str, Any] = {"page": None}
    while "page" in page:
        page = late.client.call("system:presence", {"page": page["page"]}, room="tea")
        assert (len(page["presences"]) <= 10, page["total"]) == (True, 27)
        seen |= page["presences"]
        pages += 1
    assert (pages, seen.keys()) == (3, {watcher.id, late.id, *(client.id for client in crowd)})
    assert seen[crowd[3].id] == {"metas": [{"id": crowd[3].id, "number": 3}]}
    for client in crowd[5:]:
        client.close()
    for one in (watcher, late):
        one.sees(watcher.id, late.id, *(client.id for client in crowd[:5]))


def test_pages_are_for_members_and_tokens_are_texts(rig: KernelTest) -> None:
    member, stranger = rig.connect(), rig.connect()
    member.call("system:join", room="tea")
    with pytest.raises(CallFailed) as caught:
        stranger.call("system:presence", {"page": None}, room="tea")
    assert caught.value.code == "forbidden"
    for token in (7, ["a"], {}, True):
        with pytest.raises(CallFailed) as caught:
            member.call("system:presence", {"page": token}, room="tea")
        assert caught.value.code == "bad_message"
    forged = member.call("system:presence", {"page": "\U0010ffff" * 300}, room="tea")
    assert forged == {"presences": {}, "total": 1}
    with pytest.raises(CallFailed) as caught:
        member.call("system:join", {"presence": "yes"}, room="hall")
    assert caught.value.code == "bad_message"
    assert rig.kernel.rooms.list() == {"tea": 1}


def test_who_may_not_join_is_told_nothing(rig: KernelTest) -> None:
    def refuse(context: Any, room: str) -> bool:
        raise Reject("no")

    rig.kernel.rooms.configure("*", join=refuse, presence=True)
    client = rig.connect()
    with pytest.raises(CallFailed):
        client.call("system:join", {"presence": True}, room="tea")
    assert client.received == []
    assert rig.kernel.stats()["presence"] == {"watched_rooms": 0, "watchers": 0}


def test_both_codecs_are_told_the_same(rig: KernelTest) -> None:
    text, packed = Watcher(rig), Watcher(rig, codec="msgpack", metadata={"n": [1, 2.5, None, "ü"]})
    text.join()
    packed.join()
    for watcher in (text, packed):
        watcher.sees(text.id, packed.id)
    assert text.view.presences == packed.view.presences


def test_metadata_that_cannot_be_sent_is_left_out_and_counted(rig: KernelTest) -> None:
    watcher = Watcher(rig)
    watcher.join()
    odd = rig.connect(metadata={"socket": object()})
    rig.kernel.rooms.join("tea", odd.id)
    watcher.sees(watcher.id, odd.id)
    assert watcher.view.presences is not None
    assert watcher.view.presences[odd.id] == {"metas": [{"id": odd.id}]}
    assert rig.kernel.stats()["counters"]["metadata_not_shown"] >= 1


def test_a_watcher_that_does_not_read_is_cut_off_and_harms_nobody() -> None:
    limits = Limits(presence_quiet=0.001, presence_busy=0.001, outbox=20_000)
    kernel = RealtimeKernel(log_level="error", limits=limits)
    kernel.rooms.configure("*", join=True, presence=True)
    with KernelTest(kernel) as rig:
        watcher, slow, third = Watcher(rig), Watcher(rig), rig.connect()
        watcher.join()
        slow.join()
        watcher.sees(watcher.id, slow.id)
        slow.client.stop_reading()
        rig.kernel.rooms.join("tea", third.id, presence=False)
        for number in range(1000):
            if slow.id not in rig.kernel.hub.connections:
                break
            rig.kernel.presence.update(third.id, {"text": f"{number}" * 500})
            watcher.until(
                lambda view, number=number: third.id in view.presences
                and view.presences[third.id]["metas"][0].get("text", "").startswith(f"{number}")
            )
        watcher.sees(watcher.id, third.id)


def test_churn_leaves_nothing_behind(rig: KernelTest) -> None:
    watcher = Watcher(rig)
    watcher.join()
    clients = [rig.connect() for _ in range(5)]
    rooms = rig.kernel.rooms
    for number in range(10_000):
        client = clients[number % 5]
        rooms.join("tea", client.id, presence=number % 2 == 0)
        for one in clients:
            rooms.leave("tea", one.id) if one is not client or number % 3 else None
        if number % 50 == 0:
            gevent.sleep(0)
            for one in clients:
                while one.received:
                    one.receive()
    rooms.leave_all(client.id)
    watcher.sees(watcher.id)
    assert sorted(watcher.view.joins) == sorted(watcher.view.leaves)
    live = rig.kernel.hub.live_presence
    assert rig.kernel.stats()["presence"] == {"watched_rooms": 1, "watchers": 1}
    watcher.client.close()
    wait_until(lambda: rig.kernel.stats()["presence"] == {"watched_rooms": 0, "watchers": 0}, PATIENCE)
    assert (live._rooms, live._due) == ({}, [])


def test_a_kernel_that_stops_forgets_its_watchers(rig: KernelTest) -> None:
    watcher = Watcher(rig)
    watcher.join()
    rig.kernel.stop(1)
    assert rig.kernel.stats()["presence"] == {"watched_rooms": 0, "watchers": 0}


def test_what_a_rule_cannot_be_is_refused_where_it_is_written(rig: KernelTest) -> None:
    with pytest.raises(ConfigurationError, match="presence='yes'"):
        rig.kernel.rooms.configure("x", presence="yes")  # type: ignore[arg-type]
