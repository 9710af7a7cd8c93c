"""Presence: one entry per client, given out as copies."""

from __future__ import annotations

import pytest

from realtime.config import Limits
from realtime.errors import Reject, UnknownClient
from realtime.presence import PresenceStore
from realtime.rooms import RoomManager


@pytest.fixture
def presence() -> PresenceStore:
    limits = Limits(presence_listed=2)
    rooms = RoomManager(limits, lambda _: True)
    for room, client_id in (("lobby", "ann"), ("lobby", "bob"), ("attic", "bob")):
        rooms.join(room, client_id)
    store = PresenceStore(limits, rooms)
    store.add("ann", {"name": "Ann"}, 1.5)
    store.add("bob", {}, 2.5)
    return store


def test_an_entry_has_id_metadata_rooms_and_time(presence: PresenceStore) -> None:
    assert presence.get("ann") == {"id": "ann", "metadata": {"name": "Ann"}, "rooms": ["lobby"], "connected_at": 1.5}


def test_nobody_has_no_entry(presence: PresenceStore) -> None:
    assert presence.get("eve") is None


def test_everybody_is_listed_in_the_order_they_came(presence: PresenceStore) -> None:
    listed = presence.list()
    assert [entry["id"] for entry in listed] == ["ann", "bob"]
    assert listed.total == 2


def test_a_room_lists_its_members(presence: PresenceStore) -> None:
    assert [entry["id"] for entry in presence.list("attic")] == ["bob"]
    assert presence.list("nowhere") == []
    assert presence.list("nowhere").total == 0


def test_past_the_limit_members_are_counted_not_listed(presence: PresenceStore) -> None:
    presence.add("eve", {}, 3.5)
    listed = presence.list()
    assert [entry["id"] for entry in listed] == ["ann", "bob"]
    assert listed.total == 3


def test_a_limit_of_ones_own_wins(presence: PresenceStore) -> None:
    presence.add("eve", {}, 3.5)
    assert len(presence.list(limit=3)) == 3
    assert len(presence.list(limit=1)) == 1
    assert presence.list(limit=0).total == 3


def test_an_update_merges_and_returns_the_entry(presence: PresenceStore) -> None:
    entry = presence.update("ann", {"mood": "fine", "name": None})
    assert entry["metadata"] == {"name": None, "mood": "fine"}
    assert presence.get("ann") == entry


def test_an_update_shows_in_the_dict_that_the_context_holds() -> None:
    metadata: dict[str, object] = {}
    presence = PresenceStore(Limits(), RoomManager(Limits(), lambda _: True))
    presence.add("ann", metadata, 0.0)
    presence.update("ann", {"mood": "fine"})
    assert metadata == {"mood": "fine"}


def test_changing_an_entry_changes_nothing_here(presence: PresenceStore) -> None:
    entry = presence.get("ann")
    assert entry is not None
    entry["metadata"]["name"] = "Eve"
    presence.list()[0]["metadata"].clear()
    assert presence.get("ann")["metadata"] == {"name": "Ann"}


@pytest.mark.parametrize("metadata", [None, [], "name", 7, {1: 2}, {"a": 1, None: 2}])
def test_metadata_must_be_an_object_with_string_keys(presence: PresenceStore, metadata: object) -> None:
    with pytest.raises(Reject) as caught:
        presence.update("ann", metadata)
    assert caught.value.code == "bad_message"
    assert presence.get("ann")["metadata"] == {"name": "Ann"}


def test_who_left_cannot_be_updated(presence: PresenceStore) -> None:
    assert presence.remove("ann") is True
    assert presence.remove("ann") is False
    with pytest.raises(UnknownClient):
        presence.update("ann", {"mood": "gone"})
    assert presence.get("ann") is None
