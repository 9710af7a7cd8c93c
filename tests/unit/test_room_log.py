"""The log of one room: what is kept, what somebody missed, and how logs of several nodes come together."""

from __future__ import annotations

import json
import string
from collections import defaultdict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.cursors import MOST_ORIGINS, new_origin, read_cursor, room_tag, write_cursor
from realtime.message import JSON, MSGPACK, Outbound, Stamped
from realtime.room_log import Entry, RoomLog


def log_of(most: int = 100, most_bytes: int = 1_000_000, ttl: float = 60.0, now: float = 0.0) -> RoomLog:
    return RoomLog("tea", most=most, most_bytes=most_bytes, ttl=ttl, recover=True, now=now)


def say(log: RoomLog, text: str = "x", at: float = 0.0) -> Entry:
    """The log's own node publishes."""
    entry = Entry(log.origin, log.next_sequence(log.origin), at, "json", text.encode())
    assert log.add(entry, at) == [entry]
    return entry


def texts(entries: object) -> list[str]:
    return [entry.body.decode() for entry in entries]  # type: ignore[attr-defined]


def position_of(log: RoomLog) -> dict[str, int]:
    position = read_cursor(log.tag, log.cursor)
    assert position is not None
    return position


# Cursors ---------------------------------------------------------------------------------------------------


@given(
    st.text(min_size=1, max_size=20),
    st.dictionaries(st.text("0123456789abcdef", min_size=8, max_size=8), st.integers(0, 10**15 - 1), max_size=9),
)
def test_a_cursor_is_read_as_it_was_written(room: str, position: dict[str, int]) -> None:
    tag = room_tag(room)
    assert read_cursor(tag, write_cursor(tag, position)) == position


@given(st.one_of(st.text(string.printable), st.none(), st.integers(), st.lists(st.text()), st.binary()))
def test_anything_else_is_no_cursor(text: object) -> None:
    assert read_cursor(room_tag("tea"), text) is None


def test_cursors_of_other_rooms_and_of_too_many_origins_are_none() -> None:
    log = log_of()
    say(log)
    assert read_cursor(room_tag("coffee"), log.cursor) is None
    many = {new_origin(): 1 for _ in range(MOST_ORIGINS + 1)}
    assert read_cursor(log.tag, write_cursor(log.tag, many)) is None
    assert read_cursor(log.tag, f"{log.tag}." + "0" * 100_000) is None


@pytest.mark.parametrize("payload", [None, {}, {"a": [1, "ü"]}, "x" * 100, b"raw"])
@pytest.mark.parametrize("room", [None, "tea"])
def test_a_cursor_is_added_without_decoding_the_message(payload: object, room: str | None) -> None:
    plain = Outbound({"type": "said", "payload": payload}, 7, room=room)
    stamped = Stamped(plain, "c.1")
    for codec, read in ((JSON, json.loads), (MSGPACK, msgspec.msgpack.decode)):
        assert read(stamped.encoded(codec)) == {**read(plain.encoded(codec)), "cursor": "c.1"}  # type: ignore[operator]
        assert "cursor" not in read(plain.encoded(codec))  # type: ignore[operator]


def test_a_foreign_encoder_s_message_gets_a_cursor_too() -> None:
    wide = b"\xde\x00\x02" + b"".join(map(MSGPACK.encode, ("type", "said", "timestamp", 7)))  # a map16
    relayed = Outbound.relayed({"msgpack": wide})
    assert msgspec.msgpack.decode(Stamped(relayed, "c").encoded(MSGPACK)) == {
        "type": "said", "timestamp": 7, "cursor": "c",
    }  # fmt: skip


# What is kept ----------------------------------------------------------------------------------------------


def test_somebody_gets_what_came_after_their_cursor() -> None:
    log = log_of()
    say(log, "a")
    cursor = position_of(log)
    say(log, "b")
    say(log, "c")
    missed = log.missed(cursor, 0.0)
    assert (texts(missed.entries), missed.reason) == (["b", "c"], None)
    assert log.missed(position_of(log), 0.0).entries == []


def test_an_empty_room_has_a_cursor_that_ends_with_the_log() -> None:
    log = log_of()
    cursor = position_of(log)
    say(log, "a")
    assert texts(log.missed(cursor, 0.0).entries) == ["a"]
    assert log_of().missed(cursor, 0.0).reason is not None


@pytest.mark.parametrize("options", [{"most": 2}, {"most_bytes": 450}, {"ttl": 2.0}])
def test_more_than_the_room_keeps_is_said_to_be_lost(options: dict[str, float]) -> None:
    log = log_of(**options)  # type: ignore[arg-type]
    first = position_of(log)
    say(log, "a", at=1.0)
    second = position_of(log)
    say(log, "b", at=2.5)
    say(log, "c", at=2.5)
    assert "more was missed" in (log.missed(first, 3.5).reason or "")
    assert texts(log.missed(second, 3.5).entries) == ["b", "c"]
    assert log.bytes == sum(entry.cost for entry in log.entries)


def test_a_log_is_idle_when_nothing_was_kept_for_its_time() -> None:
    log = log_of(ttl=2.0)
    say(log, at=1.0)
    log.expire(2.9)
    assert not log.is_idle(2.9)
    log.expire(3.1)
    assert log.is_idle(3.1)
    assert log.bytes == 0


# Several origins ---------------------------------------------------------------------------------------------


def entry(origin: str, sequence: int, at: float = 0.0) -> Entry:
    return Entry(origin, sequence, at, "json", f"{origin}{sequence}".encode())


def test_a_message_that_is_early_waits_for_those_before_it_and_doubles_are_dropped() -> None:
    log = log_of()
    assert texts(log.add(entry("a", 1), 0.0)) == ["a1"]
    assert log.add(entry("a", 3), 0.0) == []
    assert log.is_incomplete
    assert log.add(entry("a", 1), 0.0) == []
    assert texts(log.add(entry("b", 1), 0.0)) == ["b1"]
    assert texts(log.add(entry("a", 2), 0.0)) == ["a2", "a3"]
    assert not log.is_incomplete
    assert texts(log.entries) == ["a1", "b1", "a2", "a3"]


def test_too_many_early_ones_are_fetched_with_what_is_missing() -> None:
    ann, bob = log_of(most=5000), log_of(most=5000)
    for sequence in range(1, 2010):
        ann.add(entry("a", sequence), 0.0)
    for sequence in range(2, 2010):
        assert bob.add(entry("a", sequence), 0.0) == []
    assert len(bob.early["a"]) == 1000
    taken: list[Entry] = []
    while bob.is_incomplete:
        taken += bob.merge([ann.share(bob.position, 100_000, 0.0)], 0.0)
    assert texts(taken) == [f"a{sequence}" for sequence in range(1, 2010)]
    assert (bob.gaps, bob.early, bob._early_bytes) == (0, {}, 0)


def test_what_one_node_shares_completes_another_s_log() -> None:
    ann, bob = log_of(), log_of()
    for number in range(5):
        say(ann, f"ann {number}", at=number)
    ann.add(entry("cat", 1, at=2.5), 0.0)
    say(bob, "bob", at=1.5)
    taken = bob.merge([ann.share(bob.position, 10_000, 5.0)], 5.0)
    assert texts(taken) == ["ann 0", "ann 1", "ann 2", "cat1", "ann 3", "ann 4"]
    assert bob.position == {**ann.position, bob.origin: 1}
    assert bob.merge([ann.share(bob.position, 10_000, 5.0)], 5.0) == []
    # and a client of ann's that was told everything there misses only what bob said
    assert texts(bob.missed(ann.position, 5.0).entries) == ["bob"]


def test_a_share_that_is_too_large_comes_in_parts_and_nothing_is_lost() -> None:
    ann, bob = log_of(), log_of()
    start = ann.position
    for number in range(10):
        say(ann, str(number), at=number)
        ann.add(entry("cat", number + 1, at=number + 0.5), 0.0)
    taken: list[str] = []
    parts = 0
    while True:
        parts += 1
        share = ann.share(bob.position, 3 * 210, 0.0)
        taken += texts(bob.merge([share], 0.0))
        if not share.more:
            break
    assert taken == texts(ann.entries)
    assert parts > 5
    assert bob.position == {**ann.position, bob.origin: 0}
    assert texts(bob.missed(start, 0.0).entries) == texts(ann.entries)


def test_a_part_of_a_share_says_nothing_of_what_another_node_has() -> None:
    ann, bob, cat = log_of(), log_of(), log_of()
    for number in range(1, 11):
        ann.add(entry("x", number), 0.0)
    cat.merge([ann.share(cat.position, 10_000, 0.0)], 0.0)
    cat.add(entry("x", 12), 0.0)
    cat.add(entry("x", 11), 0.0)
    part = ann.share(bob.position, 3 * 210, 0.0)
    assert part.more
    everything = cat.share(bob.position, 10_000, 0.0)
    bob.add(entry("x", 12), 0.0)  # early
    taken = bob.merge([part, everything], 0.0)
    taken += bob.merge([ann.share(bob.position, 10_000, 0.0), cat.share(bob.position, 10_000, 0.0)], 0.0)
    assert texts(taken) == [f"x{number}" for number in range(1, 13)]
    assert bob.missed({"x": 0}, 0.0).reason is None


def test_early_ones_take_no_more_bytes_than_a_room_may_keep() -> None:
    log = log_of(most_bytes=10 * 202)
    before = {**log.position, "a": 0}
    for sequence in range(2, 30):
        assert log.add(entry("a", sequence), 0.0) == []
    assert log._early_bytes <= 10 * 202
    taken = log.merge([], 0.0)  # nobody has what is missing, nor what did not fit
    assert texts(taken) == [f"a{sequence}" for sequence in range(2, 2 + len(taken))]
    assert 8 < len(taken) <= 10
    assert log.missed(before, 0.0).reason is not None
    assert log._early_bytes == 0


def test_of_an_origin_nobody_answers_for_more_may_be_lost_than_came_here() -> None:
    ann, bob, cat = log_of(), log_of(), log_of()
    say(ann, "known")
    bob.merge([ann.share(bob.position, 10_000, 0.0)], 0.0)
    bob.answered({ann.origin: "ann"})
    before = position_of(bob)
    assert bob.missed(before, 0.0).reason is None
    bob.judge([], {})  # ann is gone, and who knows what it said last
    assert "ended without a word" in (bob.missed(before, 0.0).reason or "")
    told = position_of(bob)
    say(bob, "later")
    assert texts(bob.missed(told, 0.0).entries) == ["later"]
    bob.judge([], {})
    assert texts(bob.missed(told, 0.0).entries) == ["later"]
    # a third node takes over what is doubted: who was told once is not told again
    cat.merge([bob.share(cat.position, 10_000, 0.0)], 0.0)
    cat.answered(dict.fromkeys(bob.names, "bob"))
    cat.judge(bob.names, bob.doubts)
    assert texts(cat.missed(told, 0.0).entries) == ["later"]
    assert cat.missed(before, 0.0).reason is not None
    # and it was alive after all
    say(ann, "more")
    bob.merge([ann.share(bob.position, 10_000, 0.0)], 0.0)
    bob.answered({ann.origin: "ann"})
    assert texts(bob.missed(before, 0.0).entries) == ["later", "more"]


def test_an_origin_that_ended_while_all_came_here_is_not_doubted() -> None:
    ann, bob, cat = log_of(), log_of(), log_of()
    say(ann)
    say(cat)
    bob.merge([other.share(bob.position, 10_000, 0.0) for other in (ann, cat)], 0.0)
    bob.answered({ann.origin: "ann", cat.origin: "cat"})
    before = position_of(bob)
    bob.settle(["cat"])
    bob.judge([cat.origin], {})
    assert bob.missed(before, 0.0).reason is None
    bob.judge([], {})
    assert bob.missed(before, 0.0).reason is not None


def test_who_was_here_before_an_origin_was_met_does_not_recover_what_that_had_said() -> None:
    ann, bob = log_of(), log_of()
    say(ann, "old")
    before = position_of(bob)
    bob.merge([ann.share(bob.position, 10_000, 0.0)], 0.0)
    bob.met([ann.origin])
    assert "nodes have met" in (bob.missed(before, 0.0).reason or "")
    after = position_of(bob)
    say(ann, "new")
    bob.merge([ann.share(bob.position, 10_000, 0.0)], 0.0)
    assert texts(bob.missed(after, 0.0).entries) == ["new"]


def test_what_was_said_elsewhere_before_anybody_came_is_put_in_its_time() -> None:
    ann, bob = log_of(), log_of()
    start = bob.position
    for number in range(3):
        say(bob, f"bob {number}", at=10.0 + number)
        say(ann, f"ann {number}", at=9.5 + number)
    bob.merge([ann.share(bob.position, 10_000, 13.0)], 13.0, in_time=True)
    ordered = ["ann 0", "bob 0", "ann 1", "bob 1", "ann 2", "bob 2"]
    assert texts(bob.entries) == texts(bob.missed({**start, ann.origin: 0}, 13.0).entries) == ordered


def test_clocks_that_were_set_back_do_not_change_an_origin_s_order() -> None:
    ann, bob = log_of(), log_of()
    for number, at in enumerate((9.0, 3.0, 6.0)):
        say(ann, str(number), at=at)
    assert texts(bob.merge([ann.share(bob.position, 10_000, 9.0)], 9.0)) == ["0", "1", "2"]


def test_who_has_seen_more_of_a_dead_origin_than_anybody_else_is_told_so() -> None:
    ann, bob = log_of(), log_of()
    say(ann)
    bob.merge([ann.share(bob.position, 10_000, 0.0)], 0.0)
    assert bob.missed({ann.origin: 1}, 0.0).reason is None
    assert bob.is_behind({ann.origin: 2})
    assert "ended without a word" in (bob.missed({ann.origin: 2}, 0.0).reason or "")


def test_origins_are_bounded_and_the_own_one_stays() -> None:
    log = log_of(most=5000)
    say(log)
    for number in range(3 * MOST_ORIGINS):
        log.add(entry(f"{number:08x}", 1), 0.0)
    assert len(log.position) == MOST_ORIGINS
    assert log.origin in log.position
    assert log.bytes == sum(one.cost for one in log.entries)
    assert read_cursor(log.tag, log.cursor) == log.position


# Against a simple model -----------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["say", "say", "say", "come", "go", "move", "lag", "catch up"]), st.integers(0, 2)),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.sampled_from([3, 1000]))
def test_somebody_who_moves_between_nodes_gets_everything_once_or_is_told(actions: object, most: int) -> None:
    """Three nodes that all are current; one client that loses its connection, moves, and comes back with its cursor."""
    logs = [log_of(most=most) for _ in range(3)]
    lagging: dict[int, list[Entry]] = defaultdict(list)
    published: list[str] = []
    heard: list[str] = []
    lost = False
    place: int | None = 0
    position = logs[0].position

    def take(node: int, one: Entry) -> None:
        for taken in logs[node].add(one, 0.0):
            if place == node:
                position.clear()
                position.update(logs[node].position)
                heard.append(taken.body.decode())

    def sync(node: int) -> None:
        others = [logs[other].share(logs[node].position, 10**9, 0.0) for other in range(3) if other != node]
        for taken in logs[node].merge(others, 0.0):
            if place == node:
                heard.append(taken.body.decode())
        if place == node:
            position.clear()
            position.update(logs[node].position)

    behind = [False] * 3
    for action, node in actions:  # type: ignore[attr-defined]
        if action == "say":
            text = str(len(published))
            published.append(text)
            one = Entry(logs[node].origin, logs[node].next_sequence(logs[node].origin), 0.0, "json", text.encode())
            take(node, one)
            for other in range(3):
                if other != node:
                    (lagging[other].append if behind[other] else lambda one, other=other: take(other, one))(one)
        elif action == "lag":
            behind[node] = True
        elif action == "catch up":
            behind[node] = False
            for one in lagging.pop(node, []):
                take(node, one)
        elif action == "go":
            place = None
        elif place is None and not lost:
            missed = logs[node].missed(position, 0.0)
            if missed.reason is not None or logs[node].is_behind(position):
                sync(node)
                missed = logs[node].missed(position, 0.0)
            if missed.reason is not None:
                lost = True
                break
            heard += texts(missed.entries)
            place = node
            position = logs[node].position
    assert len(heard) == len(set(heard))
    if lost:
        return
    if place is not None:
        for one in lagging.pop(place, []):
            take(place, one)
        assert sorted(heard, key=int) == published
