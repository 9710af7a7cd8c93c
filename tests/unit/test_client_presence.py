"""What a client makes of presence:state and presence:diff."""

from __future__ import annotations

from typing import Any, cast

import pytest

from realtime.client.presence import ClientPresence
from realtime.client.wire import ClientMessage


def shown(*ids: str, **more: Any) -> dict[str, Any]:
    return {"metas": [{"id": one, **more} for one in ids]}


def told(kind: str, payload: Any, room: str | None = "tea") -> ClientMessage:
    return ClientMessage(f"presence:{kind}", payload, room)


@pytest.fixture
def presence() -> ClientPresence:
    return ClientPresence(cast("Any", None))


def test_a_state_and_then_diffs(presence: ClientPresence) -> None:
    assert presence.state("tea") is None
    first = {"presences": {"ada": shown("1"), "ben": shown("2")}, "total": 2}
    news = presence.take(told("state", first))
    assert news == {"room": "tea", "joins": first["presences"], "leaves": {}, "updates": {}, "total": 2}
    assert presence.state("tea") == first
    diff = {
        "joins": {"cleo": shown("4")},
        "leaves": {"ben": shown("2")},
        "updates": {"ada": shown("1", "3")},
        "total": 2,
    }
    assert presence.take(told("diff", diff)) == {"room": "tea", **diff}
    assert presence.state("tea") == {"presences": {"ada": shown("1", "3"), "cleo": shown("4")}, "total": 2}


def test_what_changed_while_we_were_away_is_told_as_changes(presence: ClientPresence) -> None:
    presence.take(told("state", {"presences": {"ada": shown("1"), "ben": shown("2")}, "total": 2}))
    presence.forget_all_but(["tea", "other"])
    news = presence.take(told("state", {"presences": {"ada": shown("9"), "cleo": shown("3")}, "total": 2}))
    assert news is not None
    assert news == {
        "room": "tea",
        "joins": {"cleo": shown("3")},
        "leaves": {"ben": shown("2")},
        "updates": {"ada": shown("9")},
        "total": 2,
    }


def test_a_crowded_room_is_a_number(presence: ClientPresence) -> None:
    presence.take(told("state", {"presences": {"ada": shown("1")}, "total": 1}))
    assert presence.take(told("state", {"total": 101})) == {"room": "tea", "total": 101}
    assert presence.take(told("diff", {"total": 150})) == {"room": "tea", "total": 150}
    assert presence.state("tea") == {"total": 150}


def test_rooms_that_were_left_are_forgotten(presence: ClientPresence) -> None:
    for room in ("tea", "coffee", "milk"):
        presence.take(told("state", {"total": 1}, room))
    presence.forget("milk")
    presence.forget_all_but({"tea"})
    assert [room for room in ("tea", "coffee", "milk") if presence.state(room)] == ["tea"]
    assert presence.take(told("diff", {"total": 2}, "coffee")) is None, "a diff before the state"


@pytest.mark.parametrize("payload", [None, 5, {}, {"total": "1"}, {"total": True}])
def test_what_makes_no_sense_changes_nothing(presence: ClientPresence, payload: Any) -> None:
    assert presence.take(told("state", payload)) is None
    assert presence.take(told("state", {"total": 1}, None)) is None
    assert presence.take(ClientMessage("said", {"total": 1}, "tea")) is None
    assert presence.state("tea") is None
