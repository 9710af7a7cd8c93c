"""Live presence of a room, as state: whatever happens, each watcher that applies what it is told sees who is there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import presence_diff
from realtime.errors import BadMessage
from realtime.presence_diff import DIFF, STATE, Bounds, RoomPresence, key_of, shown
from realtime.testing.presence_view import PresenceView

CLIENTS = [f"c{number}" for number in range(6)]
KEYS = ["ada", "ben"]
BOUNDS = [
    Bounds(clients=6, size=10_000, quiet=0.05, busy=1.5),
    Bounds(clients=3, size=10_000, quiet=0.05, busy=1.5),
    Bounds(clients=6, size=160, quiet=0.05, busy=1.5),
]

clients = st.sampled_from(CLIENTS)


def in_any_order(presence: dict[str, Any]) -> list[str]:
    return sorted(json.dumps(meta, sort_keys=True) for meta in presence["metas"])


class Model:
    """A room, who is in it, and its watchers."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.now = 0.0
        self.metadata: dict[str, dict[str, Any]] = {}
        self.present: dict[str, str] = {}
        self.views: dict[str, PresenceView] = {}
        self.begin()

    def begin(self) -> None:
        """Nobody watches: the room is made anew when somebody does."""
        self.room = RoomPresence(self.bounds, lambda client: shown(client, self.metadata[client]))
        for client, key in self.present.items():
            self.room.put(client, key, self.now)
        assert self.room.due is None, "nobody is to be told"
        self.told_at: float | None = None

    def comes(self, client: str, number: int) -> None:
        if client not in self.present:
            self.metadata[client] = {"text": "x" * number, "id": "forged"}
            self.present[client] = KEYS[number] if number < len(KEYS) else client
        self.room.put(client, self.present[client], self.now)

    def goes(self, client: str, number: int) -> None:
        self.present.pop(client, None)
        self.room.drop(client, self.now)

    def changes(self, client: str, number: int) -> None:
        if client in self.present:
            self.metadata[client] = {"text": "y" * (200 if number == 7 else number)}
            self.room.put(client, self.present[client], self.now)

    def has_another_key(self, client: str, number: int) -> None:
        if client in self.present:
            self.present[client] = KEYS[number % len(KEYS)]
            self.room.put(client, self.present[client], self.now)

    def watches(self, client: str, number: int) -> None:
        if client not in self.views:
            if not self.views:
                self.begin()
            self.views[client] = view = PresenceView()
            view.take(STATE, json.loads(json.dumps(self.room.watch(client, self.now))))
            self.check(view)
        assert self.room.watches(client)

    def watches_no_more(self, client: str, number: int) -> None:
        self.views.pop(client, None)
        self.room.unwatch(client)
        assert not self.room.watches(client)

    def time_passes(self, client: str, number: int) -> None:
        self.now += number / 4
        if self.room.due is not None and self.views:
            assert self.room.due - self.now <= self.bounds.busy
            self.is_flushed()

    def is_flushed(self) -> None:
        assert self.room.due is not None
        self.now = max(self.now, self.room.due)
        notices = self.room.flush(self.now)
        told = [watcher for notice in notices for watcher in notice.watchers]
        assert len(told) == len(set(told)), "one message each"
        assert set(told) <= set(self.views)
        for notice in notices:
            for watcher in notice.watchers:
                self.views[watcher].take(notice.type, json.loads(json.dumps(notice.payload)))
        if notices:
            assert self.told_at is None or self.now >= self.told_at + self.bounds.busy
            self.told_at = self.now
        for view in self.views.values():
            self.check(view)
        assert not self.room._past
        assert self.room.due is None

    def check(self, view: PresenceView) -> None:
        """It sees what is there: every presence while there are few clients and little to show, else their number."""
        truth: dict[str, Any] = {}
        for client, key in self.present.items():
            truth.setdefault(key, {"metas": []})["metas"].append({**self.metadata[client], "id": client})
        size = sum(shown(client, self.metadata[client]).size for client in self.present)
        assert view.total == len(truth)
        if len(self.present) > self.bounds.clients or size > self.bounds.size:
            assert view.presences is None
        else:
            assert view.presences is not None
            assert {key: in_any_order(one) for key, one in view.presences.items()} == {
                key: in_any_order(one) for key, one in truth.items()
            }

    def pages_show_everybody_once(self, client: str, number: int) -> None:
        seen: dict[str, Any] = {}
        page: dict[str, Any] = {"page": ""}
        while "page" in page:
            page = self.room.page(page["page"])
            assert page["total"] == len(set(self.present.values()))
            assert not seen.keys() & page["presences"].keys()
            seen |= page["presences"]
        assert list(seen) == sorted(set(self.present.values()))


STEPS = st.sampled_from(
    [
        Model.comes, Model.comes, Model.comes, Model.goes, Model.goes, Model.changes, Model.has_another_key,
        Model.watches, Model.watches, Model.watches_no_more, Model.time_passes, Model.pages_show_everybody_once,
    ]
)  # fmt: skip


@pytest.mark.parametrize("tidy", [presence_diff.TIDY, 1], ids=["as it is", "tidied all the time"])
@pytest.mark.parametrize("bounds", BOUNDS, ids=["all is shown", "few are shown", "little is shown"])
def test_every_watcher_sees_who_is_there_whatever_happens(
    bounds: Bounds, tidy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_diff, "TIDY", tidy)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(STEPS, clients, st.integers(0, 7)), min_size=20, max_size=80))
    def check(steps: list[Any]) -> None:
        model = Model(bounds)
        for step, client, number in steps:
            step(model, client, number)
            assert model.room.clients == len(model.present)

    check()


# What is told, by example -----------------------------------------------------------------------------------------

WIDE = Bounds(clients=100, size=100_000, quiet=0.05, busy=1.5)


def room_of(*present: str, bounds: Bounds = WIDE) -> RoomPresence:
    """A room of clients that show nothing but their ids, each with its own presence."""
    room = RoomPresence(bounds, lambda client: shown(client, {}))
    for client in present:
        room.put(client, client, 0.0)
    return room


def metas(*present: str) -> dict[str, Any]:
    return {client: {"metas": [{"id": client}]} for client in present}


def told(room: RoomPresence) -> list[tuple[str, dict[str, Any], list[str]]]:
    assert room.due is not None
    return [(one.type, one.payload, list(one.watchers)) for one in room.flush(room.due)]


def diff(total: int, **changes: dict[str, Any]) -> dict[str, Any]:
    return {"joins": {}, "leaves": {}, "updates": {}, "total": total, **changes}


def test_a_watcher_is_told_the_state_and_then_what_changed() -> None:
    room = room_of("a", "b")
    assert room.watch("a", 0.0) == {"presences": metas("a", "b"), "total": 2}
    assert room.due is None
    room.put("c", "c", 10.0)
    room.drop("b", 10.01)
    assert room.due == pytest.approx(10.05)
    assert told(room) == [(DIFF, diff(2, joins=metas("c"), leaves=metas("b")), ["a"])]


def test_who_comes_and_goes_within_a_batch_was_never_there() -> None:
    room = room_of("a")
    room.watch("a", 0.0)
    room.put("b", "b", 10.0)
    room.drop("b", 10.0)
    assert told(room) == []
    room.drop("a", 11.0)
    room.put("a", "a", 11.0)
    assert told(room) == []
    room.put("b", "b", 12.0)
    assert room.due == pytest.approx(12.05), "nothing was told lately"


def test_a_busy_room_is_told_of_in_intervals() -> None:
    room = room_of("a")
    room.watch("a", 0.0)
    for number, due in enumerate((10.05, 11.55, 13.05)):
        room.put(f"c{number}", f"c{number}", 10.0)
        assert room.due == pytest.approx(due)
        room.flush(due)
    room.put("late", "late", 14.52)
    assert room.due == pytest.approx(14.57)


def test_a_watcher_that_comes_between_is_told_of_nothing_twice() -> None:
    room = room_of("a")
    room.watch("a", 0.0)
    room.put("b", "b", 0.0)
    assert room.watch("b", 0.0) == {"presences": metas("a", "b"), "total": 2}
    room.put("c", "c", 0.0)
    room.drop("b", 0.0)
    assert told(room) == [
        (DIFF, diff(2, joins=metas("c")), ["a"]),
        (DIFF, diff(2, joins=metas("c"), leaves=metas("b")), ["b"]),
    ]


def test_clients_of_one_identity_are_one_presence() -> None:
    room = room_of("a")
    room.watch("a", 0.0)
    one, two = {"id": "one"}, {"id": "two"}
    for client, change, presence in (
        ("one", "joins", [one]), ("two", "updates", [one, two]), ("-one", "updates", [two]), ("-two", "leaves", [two]),
    ):  # fmt: skip
        if client.startswith("-"):
            room.drop(client[1:], 0.0)
        else:
            room.put(client, "ada", 0.0)
        total = 1 if change == "leaves" else 2
        assert told(room) == [(DIFF, diff(total, **{change: {"ada": {"metas": presence}}}), ["a"])]
    room.put("one", "ada", 100.0)
    room.flush(100.0)
    room.put("two", "ada", 100.0)
    room.drop("one", 100.0)
    assert told(room) == [(DIFF, diff(2, updates={"ada": {"metas": [two]}}), ["a"])], "came back in time"


def test_more_than_so_many_are_a_number_until_they_are_fewer() -> None:
    few = Bounds(clients=2, size=1000, quiet=0.05, busy=1.5)
    room = room_of("a", "b", bounds=few)
    room.watch("a", 0.0)
    room.put("c", "c", 0.0)
    assert room.watch("c", 0.0) == {"total": 3}
    assert told(room) == [(STATE, {"total": 3}, ["a"])]
    room.put("d", "d", 0.0)
    assert told(room) == [(DIFF, {"total": 4}, ["a", "c"])]
    for client in "bd":
        room.drop(client, 0.0)
    assert told(room) == [(STATE, {"presences": metas("a", "c"), "total": 2}, ["a", "c"])]


def test_changes_that_take_more_than_may_be_shown_are_told_as_the_state() -> None:
    small = Bounds(clients=10, size=100, quiet=0.05, busy=1.5)
    metadata = {f"c{number}": {"x": "x" * 10} for number in range(6)}
    room = RoomPresence(small, lambda client: shown(client, metadata[client]))
    for client in ("c0", "c1", "c2"):
        room.put(client, client, 0.0)
    room.watch("c0", 0.0)
    for gone, come in (("c1", "c3"), ("c2", "c4")):
        room.drop(gone, 0.0)
        room.put(come, come, 0.0)
    [(kind, payload, _)] = told(room)
    assert (kind, sorted(payload["presences"])) == (STATE, ["c0", "c3", "c4"])


def test_what_was_shown_does_not_change_with_what_an_application_keeps() -> None:
    tags = ["a"]
    room = RoomPresence(WIDE, lambda client: shown(client, {"tags": tags}))
    room.put("a", "a", 0.0)
    room.watch("a", 0.0)
    tags.append("b")
    room.put("a", "a", 0.0)
    assert told(room) == [(DIFF, diff(1, updates={"a": {"metas": [{"tags": ["a", "b"], "id": "a"}]}}), ["a"])]


def test_churn_leaves_nothing_behind() -> None:
    room = room_of("a", "b")
    room.watch("a", 0.0)
    most = 0
    for number in range(10_000):
        client = f"c{number}"
        room.put(client, client, 0.0)
        room.watch(client, 0.0)
        if number >= 5:
            gone = f"c{number - 5}"
            room.unwatch(gone)
            room.drop(gone, 0.0)
        most = max(most, len(room._past))
    assert most <= presence_diff.TIDY
    for client in [f"c{number}" for number in range(9_995, 10_000)]:
        room.unwatch(client)
        room.drop(client, 0.0)
    assert told(room) == []
    held = (room._keys, room._groups, room._past, room._fresh, room._settled)
    assert [len(one) for one in held] == [2, 2, 0, 0, 1]
    assert room._size == sum(shown(client, {}).size for client in "ab")


def test_pages_bound_what_is_shown_at_once() -> None:
    few = Bounds(clients=3, size=10_000, quiet=0.05, busy=1.5)
    room = room_of("d", "b", "a", "e", "c", bounds=few)
    for number in range(7):
        room.put(f"x{number}", "bb", 0.0)
    assert room.page("") == {"presences": metas("a", "b"), "total": 6, "page": "b"}
    assert room.page("b")["presences"] == {"bb": {"metas": [{"id": "x0"}, {"id": "x1"}, {"id": "x2"}]}}
    assert room.page("bb") == {"presences": metas("c", "d", "e"), "total": 6}
    assert room.page("no such key") == {"presences": {}, "total": 6}
    large = RoomPresence(Bounds(clients=9, size=100, quiet=1, busy=1), lambda client: shown(client, {"x": "x" * 200}))
    for client in "abc":
        large.put(client, client, 0.0)
    assert [list(large.page(after)["presences"]) for after in ("", "a", "b", "c")] == [["a"], ["b"], ["c"], []]


# Keys and metas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        ("ada", "ada"), (7, "7"), (-1, "-1"), ("Zo\u00eb\u00a0B", "Zo\u00eb\u00a0B"), ("x" * 255, "x" * 255),
        (None, "id"), ("", "id"), (True, "id"), (1.5, "id"), ({"name": "ada"}, "id"), ("x" * 256, "id"),
        (10**999, "id"), ("\ud800", "id"),
    ],
)  # fmt: skip
def test_the_key_is_the_identity_where_that_can_be_one(identity: object, key: str) -> None:
    assert key_of(identity, "id") == key


def test_metadata_cannot_pretend_to_be_another_client() -> None:
    assert shown("a", {"id": "b", "name": "Ada"}).meta == {"id": "a", "name": "Ada"}
    with pytest.raises(BadMessage):
        shown("a", {"x": object()})
