"""Negotiations: which candidates pass, which wait and which are too late; what is bounded, and forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.signaling.held import Held
from realtime.signaling.negotiations import Negotiations, Verdict

PASS, WAIT, LATE = Verdict.PASS, Verdict.WAIT, Verdict.LATE
HOLD = 5.0


class Scene:
    """Negotiations with rooms that are a plain set, and a clock that is set by hand."""

    def __init__(self, **bounds: int) -> None:
        self.members: set[tuple[str, str]] = set()
        self.now = 100.0
        options = {"max_pairs": 100, "max_held": 64, "max_held_by_sender": 256, "most_gone": 100, **bounds}
        self.state = Negotiations(is_member=lambda room, id_: (room, id_) in self.members, hold=HOLD, **options)

    def offer(self, sender: str, target: str, negotiation: str | None = None, room: str | None = None) -> None:
        self.state.described("offer", sender, target, room, negotiation, self.now)

    def answer(self, sender: str, target: str, negotiation: str | None = None, room: str | None = None) -> None:
        assert not self.state.is_late_answer(sender, target, negotiation)
        self.state.described("answer", sender, target, room, negotiation, self.now)

    def offer_to_room(self, sender: str, room: str, negotiation: str | None = None) -> None:
        receivers = [client for where, client in self.members if where == room]
        self.state.described("offer", sender, None, room, negotiation, self.now, receivers)

    def judge(self, sender: str, target: str, negotiation: str | None = None) -> Verdict:
        return self.state.judge(sender, target, negotiation, self.now)

    def hold(self, sender: str, target: str, negotiation: str | None = None, ack: int | None = None) -> Held:
        assert self.state.can_hold(sender, target)
        message = {"type": "webrtc:candidate", "payload": {"target": target}}
        return self.state.hold(sender, target, negotiation, message, ack, self.now)

    def expire(self, most: int = 1000) -> list[Held]:
        return self.state.expire(self.now, most)

    def nothing_left(self) -> bool:
        records = (*self.state.counts().values(), self.state._hears, self.state._foreign, self.state._held._senders)
        return not any(records) and self.state.next_end() is None


# What passes ---------------------------------------------------------------------------------------------


def test_a_candidate_passes_once_its_sender_has_described_the_negotiation() -> None:
    scene = Scene()
    assert scene.judge("a", "b", "1") is WAIT
    scene.offer("a", "b", "1")
    assert scene.judge("a", "b", "1") is PASS
    assert scene.judge("b", "a", "1") is WAIT  # b has described nothing yet
    assert scene.judge("a", "c", "1") is WAIT
    scene.answer("b", "a", "1")
    assert scene.judge("b", "a", "1") is PASS


def test_without_a_negotiation_any_description_will_do() -> None:
    scene = Scene()
    assert scene.judge("a", "b") is WAIT
    scene.offer("a", "b", "1")
    assert scene.judge("a", "b") is PASS
    scene.offer("c", "d")
    assert scene.judge("c", "d") is PASS
    assert scene.judge("c", "d", "1") is WAIT  # that one has not been described


def test_a_new_offer_makes_what_belongs_to_the_old_one_late_on_both_sides() -> None:
    scene = Scene()
    scene.offer("a", "b", "1")
    scene.answer("b", "a", "1")
    scene.offer("a", "b", "2")
    assert scene.judge("a", "b", "1") is LATE
    assert scene.judge("a", "b", "2") is PASS
    assert scene.judge("b", "a", "1") is LATE  # the answer is of a negotiation that is over
    assert scene.judge("b", "a", "2") is WAIT
    assert scene.state.is_late_answer("b", "a", "1")
    scene.answer("b", "a", "2")
    assert scene.judge("b", "a", "1") is LATE
    assert scene.judge("b", "a", "2") is PASS


def test_a_candidate_of_an_offer_replaced_before_it_was_answered_is_late() -> None:
    scene = Scene()
    scene.offer("a", "b", "1")
    scene.offer("a", "b", "2")
    assert scene.judge("b", "a", "1") is LATE


def test_offers_may_cross_and_either_may_be_answered() -> None:
    scene = Scene()
    scene.offer("a", "b", "of a")
    scene.offer("b", "a", "of b")
    assert scene.judge("a", "b", "of a") is PASS
    assert scene.judge("b", "a", "of b") is PASS
    scene.answer("b", "a", "of a")  # b was the polite one
    assert scene.judge("b", "a", "of a") is PASS
    assert scene.judge("a", "b", "of a") is PASS
    scene.answer("a", "b", "of b")
    assert scene.judge("a", "b", "of b") is PASS


def test_an_answer_is_late_only_where_another_offer_is_known() -> None:
    scene = Scene()
    assert not scene.state.is_late_answer("b", "a", "1")  # a may be on another node
    scene.offer("a", "b", "1")
    assert not scene.state.is_late_answer("b", "a", "1")
    assert not scene.state.is_late_answer("b", "a", None)
    assert scene.state.is_late_answer("b", "a", "2")
    assert not scene.state.is_late_answer("c", "a", "2")
    scene.offer("d", "b")  # without a negotiation
    assert not scene.state.is_late_answer("b", "d", "2")


def test_a_repeated_description_supersedes_nothing() -> None:
    scene = Scene()
    scene.offer("a", "b", "1")
    scene.state.described("answer", "b", "a", None, "1", scene.now)  # provisional
    scene.state.described("answer", "b", "a", None, "1", scene.now)
    scene.offer("a", "b", "1")
    assert scene.judge("a", "b", "1") is PASS
    assert scene.judge("b", "a", "1") is PASS


def test_a_pair_negotiates_in_each_of_its_calls_for_itself() -> None:
    scene = Scene()
    scene.offer("a", "b", "1", "webrtc:x")
    scene.offer("a", "b", "2", "webrtc:y")
    assert scene.judge("a", "b", "1") is PASS
    assert scene.judge("a", "b", "2") is PASS
    scene.offer("a", "b", "3", "webrtc:x")
    assert scene.judge("a", "b", "1") is LATE
    assert scene.judge("a", "b", "2") is PASS


def test_what_was_described_to_a_room_was_described_to_its_members() -> None:
    scene = Scene()
    scene.members = {("r", "a"), ("r", "b")}
    scene.offer_to_room("a", "r", "1")
    assert scene.judge("a", "b", "1") is PASS
    assert scene.judge("a", "b") is PASS
    assert scene.judge("a", "stranger", "1") is WAIT
    assert scene.state.is_told_to_room("a", "r", "1", ["b"])
    assert not scene.state.is_told_to_room("a", "r", "2", ["b"])
    assert not scene.state.is_told_to_room("b", "r", "1", ["a"])
    assert scene.state.is_late_answer("b", "a", "2")
    scene.answer("b", "a", "1")
    scene.offer_to_room("a", "r", "2")
    assert scene.judge("a", "b", "1") is LATE
    assert scene.judge("b", "a", "1") is LATE


# What waits ------------------------------------------------------------------------------------------------


def test_what_waits_follows_its_description_in_order() -> None:
    scene = Scene()
    held = [scene.hold("a", "b", negotiation, number) for number, negotiation in enumerate(["1", "2", "1", None])]
    scene.hold("a", "c", "1")
    scene.offer("a", "b", "1")
    assert scene.state.release("a", "b", scene.now) == [held[0], held[2], held[3]]
    assert scene.state.release("a", "b", scene.now) == []
    scene.offer("a", "b", "2")
    assert scene.state.release("a", "b", scene.now) == [held[1]]
    assert scene.state.waiting == 1


def test_a_description_to_a_room_releases_what_waits_for_its_members() -> None:
    scene = Scene()
    scene.members = {("r", "b"), ("r", "c")}
    held = [scene.hold("a", target, "1") for target in ("b", "c", "d")]
    scene.offer_to_room("a", "r", "1")
    assert scene.state.release_to_room("a", "r", scene.now) == held[:2]


def test_what_waits_expires_after_its_time_and_not_before() -> None:
    scene = Scene()
    first = scene.hold("a", "b", "1", 7)
    scene.now += 1
    second = scene.hold("a", "b", "1")
    assert scene.state.next_end() == first.until == 105.0
    scene.now = 104.9
    assert scene.expire() == []
    scene.now = 105.0
    assert scene.expire() == [first]
    assert scene.state.next_end() == second.until
    scene.now = 200.0
    assert scene.expire() == [second]
    assert scene.nothing_left()


def test_expiry_takes_no_more_than_it_is_told_at_once() -> None:
    scene = Scene()
    held = [scene.hold("a", "b", "1") for _ in range(5)]
    scene.now += HOLD
    assert [*scene.expire(2), *scene.expire(2), *scene.expire(2)] == held


def test_no_more_wait_than_the_bounds_allow() -> None:
    scene = Scene(max_held=3, max_held_by_sender=5)
    for _ in range(3):
        scene.hold("a", "b")
    assert not scene.state.can_hold("a", "b")
    for _ in range(2):
        scene.hold("a", "c")
    assert not scene.state.can_hold("a", "c")
    assert scene.state.can_hold("d", "b")  # another sender is not affected
    scene.now += HOLD
    assert len(scene.expire()) == 5
    assert scene.state.can_hold("a", "b")


# Memory ------------------------------------------------------------------------------------------------------


def test_a_sender_with_thousands_of_pairs_is_remembered_for_the_latest() -> None:
    scene = Scene(max_pairs=10)
    for number in range(5000):
        scene.offer("a", f"t{number}", "1")
        scene.offer("a", "t0", "1")  # stays, because it is told again and again
    assert scene.state.counts()["pairs"] == 10
    assert len(scene.state._hears) == 10
    assert scene.state.forgotten_pairs == 4990
    assert scene.judge("a", "t0", "1") is PASS
    assert scene.judge("a", "t4999", "1") is PASS
    assert scene.judge("a", "t1", "1") is WAIT


def test_thousands_of_offers_in_many_rooms_leave_a_bounded_record() -> None:
    scene = Scene(max_pairs=10)
    for number in range(5000):
        scene.offer("a", "b", f"n{number}", f"room {number}")
        scene.offer_to_room("a", f"room {number}", "1")
    told = scene.state._clients["a"].heard_by["b"]
    assert len(told.offers) == len(told.past) == 8
    assert len(scene.state._clients["a"].rooms) == 10
    assert scene.judge("a", "b", "n4990") is LATE


def test_of_offers_from_other_nodes_the_latest_are_known_as_long_as_their_target_is_there() -> None:
    scene = Scene(max_pairs=2)
    for sender, negotiation in (("x", "1"), ("y", "1"), ("x", "2"), ("z", "1")):
        scene.state.offered_elsewhere(sender, "a", None, negotiation, scene.now)
    assert scene.state.is_late_answer("a", "x", "1")
    assert not scene.state.is_late_answer("a", "x", "2")
    assert not scene.state.is_late_answer("a", "y", "2")  # forgotten: the oldest
    assert (scene.state.forgotten_pairs, scene.state.counts()["pairs"]) == (1, 2)
    scene.state.gone("a", scene.now, returns=False)
    scene.now += 2 * HOLD
    scene.expire()
    assert scene.nothing_left()


def test_nothing_is_left_of_a_client_some_time_after_it_has_gone() -> None:
    scene = Scene()
    scene.members = {("r", "a"), ("r", "b")}
    scene.offer("a", "b", "1")
    scene.answer("b", "a", "1")
    scene.offer_to_room("a", "r", "1")
    scene.hold("a", "c", "2")
    scene.hold("c", "a", "3")
    assert scene.state.gone("a", scene.now, returns=False)
    assert scene.state.dropped_held == 1
    assert scene.state.is_recent("b", "a", scene.now)
    scene.now += HOLD
    assert [held.sender for held in scene.expire()] == ["c"]
    assert not scene.state.is_recent("b", "a", scene.now)
    assert scene.nothing_left()


def test_a_client_that_never_signaled_leaves_nothing_to_forget() -> None:
    scene = Scene()
    assert not scene.state.gone("a", scene.now, returns=False)
    assert scene.nothing_left()


def test_one_that_may_return_is_remembered_until_it_is_forgotten() -> None:
    scene = Scene()
    scene.offer("a", "b", "1")
    assert not scene.state.gone("a", scene.now, returns=True)
    scene.now += 100
    scene.expire()
    assert scene.judge("a", "b", "1") is PASS
    scene.state.forget("a")
    assert scene.nothing_left()


def test_of_those_that_have_gone_only_so_many_are_remembered() -> None:
    scene = Scene(most_gone=3)
    for number in range(10):
        scene.offer(f"c{number}", "b", "1")
        scene.state.gone(f"c{number}", scene.now, returns=False)
    assert scene.state.counts()["senders"] == 3


def test_a_pair_is_recent_for_as_long_as_a_candidate_is_held() -> None:
    scene = Scene()
    scene.offer("a", "b", "1")
    assert scene.state.is_recent("a", "b", 105.0)
    assert scene.state.is_recent("b", "a", 105.0)
    assert not scene.state.is_recent("a", "b", 105.1)
    scene.now = 110.0
    scene.judge("a", "b", "1")  # a candidate went by
    assert scene.state.is_recent("a", "b", 115.0)
    assert not scene.state.is_recent("a", "c", 110.0)


# Coming back -------------------------------------------------------------------------------------------------


def test_who_comes_back_inherits_what_was_described_and_what_waits() -> None:
    scene = Scene()
    scene.offer("a", "b", "1")
    scene.answer("b", "a", "1")
    scene.state.gone("a", scene.now, returns=True)
    ready, early = scene.hold("b", "a", "1"), scene.hold("b", "a", "2")
    assert scene.state.succeed("a", "new", scene.now) == [ready]
    assert ready.target == early.target == "new"
    assert ready.message["payload"]["target"] == early.message["payload"]["target"] == "new"
    assert scene.judge("new", "b", "1") is PASS
    assert scene.judge("b", "new", "1") is PASS
    assert scene.judge("b", "a", "1") is WAIT
    assert scene.state.waiting == 1
    scene.offer("b", "new", "2")
    assert scene.state.release("b", "new", scene.now) == [early]


def test_the_successor_is_known_for_as_long_as_a_candidate_is_held() -> None:
    scene = Scene()
    scene.state.succeed("a", "b", scene.now)
    scene.state.succeed("b", "c", scene.now)
    assert scene.state.successor("a") == "c"
    assert scene.state.successor("c") is None
    scene.now += HOLD
    scene.expire()
    assert scene.state.successor("a") is None
    assert scene.nothing_left()


def test_two_that_take_each_other_s_place_do_not_send_signals_in_a_circle() -> None:
    scene = Scene()
    scene.state.succeed("a", "b", scene.now)
    scene.state.succeed("b", "a", scene.now)
    assert scene.state.successor("b") == "a"
    assert scene.state.successor("a") is None


ids = st.sampled_from("abcd")
negotiation_ids = st.sampled_from(["1", "2", None])
steps = st.one_of(
    st.tuples(st.just("offer"), ids, ids, negotiation_ids, st.sampled_from([None, "r"])),
    st.tuples(st.just("answer"), ids, ids, negotiation_ids, st.sampled_from([None, "r"])),
    st.tuples(st.just("elsewhere"), st.sampled_from("xyz"), ids, negotiation_ids),
    st.tuples(st.just("room"), ids, negotiation_ids),
    st.tuples(st.just("hold"), ids, ids, negotiation_ids),
    st.tuples(st.just("release"), ids, ids),
    st.tuples(st.just("gone"), ids, st.booleans()),
    st.tuples(st.just("forget"), ids),
    st.tuples(st.just("succeed"), ids, ids),
    st.tuples(st.just("wait"), st.floats(0.1, 6)),
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=40))
def test_whatever_happens_once_all_have_gone_nothing_is_left(script: list[tuple[Any, ...]]) -> None:
    scene = Scene(max_pairs=2, max_held=2, max_held_by_sender=3, most_gone=2)
    scene.members = {("r", "a"), ("r", "b")}
    state = scene.state
    for what, *arguments in script:
        if what in ("offer", "answer"):
            sender, target, negotiation, room = arguments
            state.described(what, sender, target, room, negotiation, scene.now)
        elif what == "elsewhere":
            sender, target, negotiation = arguments
            state.offered_elsewhere(sender, target, None, negotiation, scene.now)
        elif what == "room":
            state.described("offer", arguments[0], None, "r", arguments[1], scene.now)
        elif what == "hold" and state.can_hold(*arguments[:2]):
            scene.hold(*arguments)
        elif what == "release":
            state.release(*arguments, scene.now)
        elif what == "gone":
            state.gone(arguments[0], scene.now, returns=arguments[1])
        elif what == "forget":
            state.gone(arguments[0], scene.now, returns=True)
            state.forget(arguments[0])
        elif what == "succeed" and arguments[0] != arguments[1]:
            state.succeed(*arguments, scene.now)
        elif what == "wait":
            scene.now += arguments[0]
            scene.expire()
        held = state._held
        lines = [line for lines in held._lines.values() for line in lines.values()]
        assert state.waiting == sum(held._counts.values()) == sum(map(len, lines))
        assert {target for client in state._clients.values() for target in client.heard_by} == set(state._hears)
        assert {target for lines in held._lines.values() for target in lines} == set(held._senders)
    for one in "abcd":
        state.gone(one, scene.now, returns=False)
    scene.now += 2 * HOLD
    scene.expire()
    assert scene.nothing_left()


@pytest.mark.parametrize("returns", [True, False])
def test_what_waits_of_one_that_has_gone_is_dropped_and_counted(returns: bool) -> None:
    scene = Scene()
    scene.hold("a", "b")
    scene.hold("a", "c")
    scene.state.gone("a", scene.now, returns=returns)
    assert scene.state.waiting == 0
    assert scene.state.dropped_held == 2
    assert scene.nothing_left()


def test_who_came_into_a_room_after_the_offer_gets_no_candidates_without_it() -> None:
    scene = Scene()
    scene.members = {("r", "b")}
    scene.offer_to_room("a", "r", "1")
    scene.members = {("r", "b"), ("r", "late")}
    assert scene.judge("a", "b", "1") is PASS
    assert scene.judge("a", "late", "1") is WAIT
    assert scene.state.is_told_to_room("a", "r", "1", ["b"])
    assert not scene.state.is_told_to_room("a", "r", "1", ["b", "late"])


def test_what_was_negotiated_in_a_room_is_over_when_one_of_the_two_leaves_it() -> None:
    for leaver in ("a", "b"):
        scene = Scene()
        scene.state.described("offer", "a", "b", "r", "1", scene.now)
        scene.state.described("answer", "b", "a", "r", "1", scene.now)
        scene.state.left(leaver, "r")
        assert scene.judge("a", "b", "1") is LATE
        assert scene.state.is_late_answer("b", "a", "1")
