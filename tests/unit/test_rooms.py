"""Rooms: two mirrored maps that never disagree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.config import Limits
from realtime.errors import BadRoom, TooManyRooms, UnknownClient
from realtime.rooms import RoomManager

CONNECTED = {"ann", "bob", "eve"}


@pytest.fixture
def rooms() -> RoomManager:
    return RoomManager(Limits(rooms_per_client=3, room_name=10), CONNECTED.__contains__)


def test_a_member_is_listed_on_both_sides(rooms: RoomManager) -> None:
    assert rooms.join("lobby", "ann") is True
    assert rooms.members("lobby") == ["ann"]
    assert rooms.rooms_for("ann") == ["lobby"]
    assert rooms.list() == {"lobby": 1}
    assert rooms.contains("lobby", "ann")
    assert rooms.count("lobby") == 1


def test_joining_twice_changes_nothing(rooms: RoomManager) -> None:
    rooms.join("lobby", "ann")
    assert rooms.join("lobby", "ann") is False
    assert rooms.members("lobby") == ["ann"]


def test_members_and_rooms_are_listed_in_the_order_of_joining(rooms: RoomManager) -> None:
    for client in ("eve", "ann", "bob"):
        rooms.join("lobby", client)
    rooms.join("attic", "ann")
    rooms.leave("lobby", "ann")
    rooms.join("lobby", "ann")
    assert rooms.members("lobby") == ["eve", "bob", "ann"]
    assert rooms.rooms_for("ann") == ["attic", "lobby"]


def test_leaving_tells_whether_one_was_there(rooms: RoomManager) -> None:
    rooms.join("lobby", "ann")
    assert rooms.leave("attic", "ann") is False
    assert rooms.leave("lobby", "bob") is False
    assert rooms.leave("lobby", "ann") is True
    assert rooms.leave("lobby", "ann") is False


def test_an_empty_room_ceases_to_exist(rooms: RoomManager) -> None:
    rooms.join("lobby", "ann")
    rooms.leave("lobby", "ann")
    assert rooms.list() == {}
    assert rooms.members("lobby") == []
    assert rooms.rooms_for("ann") == []
    assert not rooms.contains("lobby", "ann")


def test_leave_all_returns_the_rooms_and_leaves_the_others_members(rooms: RoomManager) -> None:
    for room in ("lobby", "attic"):
        rooms.join(room, "ann")
        rooms.join(room, "bob")
    rooms.join("cellar", "bob")
    assert rooms.leave_all("ann") == ["lobby", "attic"]
    assert rooms.leave_all("ann") == []
    assert rooms.list() == {"lobby": 1, "attic": 1, "cellar": 1}


def test_leaving_costs_the_members_own_rooms_and_looks_at_no_other() -> None:
    rooms = RoomManager(Limits(), lambda _: True)
    for number in range(100):
        rooms.join(f"room {number}", "bob")
    rooms.join("lobby", "ann")
    touched = []

    class Watched(dict):
        def __getitem__(self, room):
            touched.append(room)
            return super().__getitem__(room)

    rooms._members = Watched(rooms._members)
    rooms.leave_all("ann")
    assert set(touched) == {"lobby"}


@pytest.mark.parametrize("name", ["", None, 7, b"lobby", ["lobby"], {}, "x" * 11])
def test_what_is_no_name_is_refused(rooms: RoomManager, name: object) -> None:
    with pytest.raises(BadRoom) as caught:
        rooms.join(name, "ann")
    assert caught.value.code == "bad_room"
    assert rooms.list() == {}


def test_the_longest_name_is_accepted(rooms: RoomManager) -> None:
    assert rooms.join("x" * 10, "ann")


def test_one_room_too_many_is_refused_and_rejoining_is_not(rooms: RoomManager) -> None:
    for room in "abc":
        rooms.join(room, "ann")
    with pytest.raises(TooManyRooms, match="3 rooms") as caught:
        rooms.join("d", "ann")
    assert caught.value.code == "too_many_rooms"
    assert rooms.join("a", "ann") is False
    rooms.leave("a", "ann")
    assert rooms.join("d", "ann") is True


def test_who_is_not_connected_cannot_join(rooms: RoomManager) -> None:
    with pytest.raises(UnknownClient):
        rooms.join("lobby", "nobody")
    assert rooms.list() == {}


def test_lists_are_copies(rooms: RoomManager) -> None:
    rooms.join("lobby", "ann")
    rooms.members("lobby").clear()
    rooms.rooms_for("ann").clear()
    rooms.list().clear()
    assert rooms.members("lobby") == ["ann"]
    assert rooms.list() == {"lobby": 1}


_steps = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "leave_all"]), st.sampled_from("abcd"), st.sampled_from(sorted(CONNECTED))
    )
)


@given(_steps)
def test_any_sequence_of_joins_and_leaves_agrees_with_a_set_of_pairs(steps: list[tuple[str, str, str]]) -> None:
    rooms = RoomManager(Limits(rooms_per_client=3), CONNECTED.__contains__)
    model: set[tuple[str, str]] = set()
    for step, room, client in steps:
        own = {r for r, c in model if c == client}
        if step == "join":
            if room not in own and len(own) == 3:
                with pytest.raises(TooManyRooms):
                    rooms.join(room, client)
                continue
            assert rooms.join(room, client) is (room not in own)
            model.add((room, client))
        elif step == "leave":
            assert rooms.leave(room, client) is (room in own)
            model.discard((room, client))
        else:
            assert set(rooms.leave_all(client)) == own
            model -= {(r, client) for r in own}
        for client_id in CONNECTED:
            assert set(rooms.rooms_for(client_id)) == {r for r, c in model if c == client_id}
        assert rooms.list() == {r: sum(1 for one, _ in model if one == r) for r, _ in model}
        for name in rooms.list():
            assert set(rooms.members(name)) == set(rooms.each_member(name)) == {c for r, c in model if r == name}
