"""Participants: records of calls, tokens that work once, and places that are kept for a time."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.signaling.calls import reason_of_end
from realtime.signaling.participants import Participant, Participants

KEEP = 30.0


def participants(most: int = 100) -> Participants:
    tokens = count(1)
    return Participants(keep=KEEP, most=most, new_token=lambda: f"token {next(tokens)}")


def enter(state: Participants, client_id: str, call: str = "c", identity: Any = None) -> Participant:
    return state.enter(client_id, call, {"name": client_id}, identity, None)


def is_empty(state: Participants) -> bool:
    return not (state._here or state._away or state._away_by_client or state._by_token) and len(state) == 0


def test_who_enters_is_found_until_dropped() -> None:
    state = participants()
    record = enter(state, "a")
    assert state.get("a", "c") is record
    assert state.get("a", "d") is state.get("b", "c") is None
    enter(state, "a", "d")
    assert (len(state), state.calls()) == (2, {"c", "d"})
    assert state.drop("a", "c") is record
    assert state.drop("a", "c") is None
    assert state.get("a", "c") is None
    state.drop_all("a")
    state.drop_all("a")
    assert is_empty(state)


def test_tokens_cannot_be_guessed_and_differ() -> None:
    state = Participants(keep=KEEP, most=1)
    tokens = {enter(state, "a").token for _ in range(1000)}
    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {32}
    assert len(state) == 1  # each replaced the one before


def test_a_token_is_good_for_its_own_call_and_identity() -> None:
    state = participants()
    record = enter(state, "a", identity={"user": 7})
    assert state.find(record.token, "c", {"user": 7}) is record
    assert state.find(record.token, "d", {"user": 7}) is None
    assert state.find(record.token, "c", {"user": 8}) is None
    assert state.find(record.token, "c", None) is None
    assert state.find("token 2", "c", {"user": 7}) is None
    assert state.find(record.token, "c", {"user": 7}) is record  # what was refused used nothing up


def test_a_token_works_once() -> None:
    state = participants()
    record = enter(state, "a")
    state.take(record)
    assert state.find(record.token, "c", None) is None
    assert is_empty(state)


def test_leaving_and_joining_again_void_the_token() -> None:
    state = participants()
    first = enter(state, "a")
    second = enter(state, "a")
    assert state.find(first.token, "c", None) is None
    assert state.find(second.token, "c", None) is second
    state.drop("a", "c")
    assert state.find(second.token, "c", None) is None


def test_a_place_is_kept_for_its_time() -> None:
    state = participants()
    record = enter(state, "a")
    assert state.keep("a", "c", 100.0) == []
    assert state.keep("nobody", "c", 100.0) == []
    assert state.get("a", "c") is None
    assert (len(state), state.places, state.calls()) == (0, 1, set())
    assert state.place("a") == {"c": record}
    assert record.metadata is None
    assert state.find(record.token, "c", None) is record
    assert state.next_end() == 130.0
    assert state.expire(129.9) == []
    assert state.expire(130.0) == ["a"]
    assert state.find(record.token, "c", None) is None
    assert state.next_end() is None
    assert is_empty(state)


def test_a_place_that_was_taken_does_not_expire() -> None:
    state = participants()
    record = enter(state, "a")
    state.keep("a", "c", 100.0)
    state.take(record)
    assert state.expire(200.0) == []
    assert is_empty(state)


def test_a_client_is_forgotten_with_its_last_place() -> None:
    state = participants()
    for call, now in (("c", 100.0), ("d", 101.0)):
        enter(state, "a", call)
        state.keep("a", call, now)
    assert state.expire(130.0) == []
    assert state.expire(131.0) == ["a"]


def test_only_so_many_places_are_kept() -> None:
    state = participants(most=3)
    forgotten: list[str] = []
    for number in range(1000):
        enter(state, f"client {number}")
        forgotten += state.keep(f"client {number}", "c", float(number))
    assert state.places == 3
    assert state.given_up_early == 997
    assert forgotten == [f"client {number}" for number in range(997)]


actions = st.sampled_from(["enter", "drop", "drop_all", "keep", "take", "expire"])
steps = st.tuples(actions, st.sampled_from("ab"), st.sampled_from("cd"))


@given(st.lists(steps, max_size=30))
def test_whatever_happens_no_record_outlives_its_participant(script: list[tuple[str, str, str]]) -> None:
    state = participants(most=2)
    for now, (what, client_id, call) in enumerate(script):
        if what == "enter":
            enter(state, client_id, call)
        elif what == "drop":
            state.drop(client_id, call)
        elif what == "drop_all":
            state.drop_all(client_id)
        elif what == "keep":
            state.keep(client_id, call, float(now))
        elif what == "take" and (record := state.get(client_id, call) or state.place(client_id).get(call)):
            state.take(record)
        elif what == "expire":
            state.expire(float(now))
        assert state.places <= 2
        assert len(state._by_token) == sum(map(len, state._here.values())) + state.places
        assert state.places == sum(map(len, state._away_by_client.values()))
    for client_id in "ab":
        state.drop_all(client_id)
    state.expire(1000.0)
    assert is_empty(state)


@pytest.mark.parametrize("number", [0, 5])
def test_clearing_forgets_everybody(number: int) -> None:
    state = participants()
    for one in range(number):
        enter(state, f"here {one}")
        enter(state, f"away {one}")
        state.keep(f"away {one}", "c", 0.0)
    state.clear()
    assert is_empty(state)


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ((1000, 1001, 1005), "closed"),
        ((1002, 1003, 1006, 1007, 1009, 1011, 4009), "lost"),
        ((1008, 3000, 4000, 4008, 4013, 4500, 4501, 4503, 4999), "disconnected"),
    ],
)
def test_the_reason_of_a_bye_follows_from_the_close_code(codes: tuple[int, ...], reason: str) -> None:
    assert {code: reason_of_end(code) for code in codes} == dict.fromkeys(codes, reason)
