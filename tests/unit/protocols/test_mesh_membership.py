"""Membership: which news wins, who is suspect, who is down, and for how long that is remembered."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from realtime.config import MeshOptions
from realtime.protocols.mesh_actions import Action, EndLink, IdTaken, NodeJoined, NodeLeft, NodeRefuted, NodeSuspect
from realtime.protocols.mesh_bodies import NodeRecord, Probe, Probed
from realtime.protocols.mesh_dialling import DialPlan
from realtime.protocols.mesh_membership import ALIVE, DOWN, LEFT, Membership

OWN, ONE, TWO = b"o" * 16, b"1" * 16, b"2" * 16
OPTIONS = MeshOptions(known_nodes=3)


class Table(Membership):
    """The table of a node "me", with its events."""

    def __init__(self) -> None:
        self.events: list[Action] = []
        self.counted: Counter[str] = Counter()
        super().__init__("me", OWN, "me:1", OPTIONS, Random(1), self.events, self.counted)

    def hears_of(self, node: str, incarnation: int, state: int, instance: bytes = ONE, now: float = 0.0) -> None:
        self.merge(NodeRecord(node, instance, incarnation, state, f"{node}:1"), "gossip", now)

    def happened(self) -> list[Action]:
        events = self.events.copy()
        self.events.clear()
        return events


def linked(*nodes: str) -> Table:
    table = Table()
    for node in nodes:
        table.link_started(node, ONE, f"{node}:1", 0.0)
        table.hears_of(node, 1, ALIVE)
    table.happened()
    table.rumours()
    return table


# News -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("incarnation", "state", "wins"),
    [
        (5, ALIVE, False),
        (4, ALIVE, False),
        (4, DOWN, False),
        (4, LEFT, False),
        (5, DOWN, True),
        (5, LEFT, True),
        (6, ALIVE, True),
        (6, DOWN, True),
    ],
)
def test_newer_news_wins_and_of_the_same_incarnation_the_worse(incarnation: int, state: int, wins: bool) -> None:
    table = Table()
    table.hears_of("ann", 5, ALIVE)
    assert len(table.rumours()) == 1
    table.hears_of("ann", incarnation, state)
    assert [(told[0].incarnation, told[0].state) for told in table.rumours()] == [(incarnation, state)] * wins


def test_news_is_told_on_once_and_not_to_who_told_it() -> None:
    table = Table()
    table.hears_of("ann", 1, ALIVE)
    assert table.rumours() == [(NodeRecord("ann", ONE, 1, ALIVE, "ann:1"), "gossip")]
    table.hears_of("ann", 1, ALIVE)
    assert table.rumours() == []


@pytest.mark.parametrize(("state", "instance"), [(DOWN, OWN), (LEFT, OWN), (ALIVE, ONE), (DOWN, ONE)])
def test_what_is_wrong_about_us_is_refuted_with_a_higher_incarnation(state: int, instance: bytes) -> None:
    table = Table()
    table.merge(NodeRecord("me", instance, 7, state, "me:1"), "ann", 0.0)
    assert table.rumours() == [(NodeRecord("me", OWN, 8, ALIVE, "me:1"), None)]
    table.merge(NodeRecord("me", instance, 7, state, "me:1"), "bob", 0.0)
    assert table.rumours() == []


def test_two_nodes_of_one_id_do_not_answer_each_other_faster_than_they_ping_and_are_told() -> None:
    table = Table()
    table.tick(0.0)
    for number in range(40):  # the other one is as loud as we are, each time
        now = number * OPTIONS.ping / 10
        for _ in range(10):
            table.merge(NodeRecord("me", ONE, table.own_record().incarnation, ALIVE, "me:2"), "ann", now)
        assert table.tick(now) <= now + OPTIONS.ping
    assert table.counted["claims"] == table.own_record().incarnation == 4
    assert table.happened() == [IdTaken()]
    table.tick(now + OPTIONS.ping)
    assert table.counted["claims"] == 5  # what came last is answered as well


def test_who_leaves_refutes_nothing() -> None:
    table = Table()
    table.leave()
    table.merge(NodeRecord("me", OWN, 7, DOWN, "me:1"), "ann", 0.0)
    assert table.rumours() == [(NodeRecord("me", OWN, 0, LEFT, "me:1"), None)]


def test_nobody_is_told_down_whom_we_hear() -> None:
    table = linked("ann")
    table.hears_of("ann", 1, DOWN)
    assert (table.happened(), table.rumours()) == ([], [])
    assert table.counted["rumours_disbelieved"] == 1


def test_one_that_we_do_not_hear_either_is_taken_as_down() -> None:
    table = linked("ann")
    table.link_ended("ann", 1.0)
    table.hears_of("ann", 1, DOWN, now=2.0)
    assert table.happened() == []
    table.hears_of("ann", 1, DOWN, now=OPTIONS.suspect)
    assert table.happened() == [NodeLeft("ann", "down")]


def test_word_of_a_goodbye_waits_for_the_goodbye_itself() -> None:
    table = linked("ann")
    table.hears_of("ann", 2, LEFT)
    assert table.happened() == []
    table.link_ended("ann", 1.0)
    assert table.happened() == [NodeLeft("ann", "leaving")]
    table.hears_of("ann", 2, ALIVE)
    assert table.members["ann"].state == LEFT


def test_who_says_that_it_stays_does_not_leave_with_its_link() -> None:
    table = linked("ann")
    table.hears_of("ann", 2, LEFT)  # a lie: only the node itself says so, as its last words
    table.hears_of("ann", 3, ALIVE)
    table.link_ended("ann", 1.0)
    assert table.happened() == []


def test_a_new_instance_revives_whatever_was_said_and_the_old_one_left_first() -> None:
    table = linked("ann")
    table.link_started("ann", TWO, "ann:2", 1.0)
    assert table.happened() == [NodeLeft("ann", "restarted"), NodeJoined("ann", "ann:2")]
    table.link_ended("ann", 2.0)
    table.said_goodbye("ann")
    table.link_ended("ann", 2.0)
    table.link_started("ann", ONE, "ann:1", 3.0)
    assert table.happened() == [NodeLeft("ann", "leaving"), NodeJoined("ann", "ann:1")]


def test_news_of_a_new_instance_ends_an_old_one_without_a_link() -> None:
    table = linked("ann")
    table.hears_of("ann", 2, ALIVE, TWO)
    assert table.happened() == []
    table.link_ended("ann", 1.0)
    assert table.happened() == [NodeLeft("ann", "restarted")]


# Silence ------------------------------------------------------------------------------------------------------


def test_silence_makes_suspect_then_others_are_asked_and_then_down() -> None:
    table = linked("ann", "bob", "cyd", "dan", "eve")
    for node in ("bob", "cyd", "dan", "eve"):
        table.heard(table.members[node], OPTIONS.suspect)
    assert table.tick(OPTIONS.suspect - 0.1) == OPTIONS.suspect
    assert table.happened() == []
    due = table.tick(OPTIONS.suspect)
    assert table.happened() == [NodeSuspect("ann")]
    assert due == OPTIONS.suspect + OPTIONS.ping
    asked = [node for node, question in table.questions if question == Probe("ann", ONE)]
    assert len(set(asked)) == len(asked) == 3
    assert "ann" not in asked
    for node in ("bob", "cyd", "dan", "eve"):
        table.heard(table.members[node], OPTIONS.down)
    table.tick(OPTIONS.down)
    assert [type(event) for event in table.happened()] == [EndLink, NodeLeft]
    assert [record.state for record, _ in table.rumours()] == [DOWN]


def test_a_suspect_that_is_heard_refutes() -> None:
    table = linked("ann")
    table.tick(OPTIONS.suspect)
    table.heard(table.members["ann"], 6.0)
    table.tick(7.0)
    assert table.happened() == [NodeSuspect("ann"), NodeRefuted("ann")]


def test_one_that_others_hear_stays_suspect_and_is_asked_about_each_ping() -> None:
    table = linked("ann", "bob")
    ended = 0
    for second in range(1, 60):
        table.heard(table.members["bob"], second)
        table.tick(float(second))
        for _, question in table.questions:
            assert question.node == "ann"
            table.on_probed(Probed("ann", ONE, 0.5), second)
        assert len(table.questions) == (second >= OPTIONS.suspect)
        table.questions.clear()
        ended += sum(isinstance(event, EndLink) for event in table.happened())
    assert ended == 1, "our own link is of no use"
    assert table.members["ann"].joined == ONE
    for second in range(60, 60 + int(OPTIONS.down)):
        table.heard(table.members["bob"], second)
        table.tick(float(second))
        table.questions.clear()
    assert table.happened() == [NodeLeft("ann", "down")]


def test_a_node_answers_from_its_own_link_alone() -> None:
    table = linked("ann", "bob")
    assert table.answer(Probe("ann", ONE), 3.0) == Probed("ann", ONE, 3.0)
    assert table.answer(Probe("ann", TWO), 3.0) == Probed("ann", TWO, None)
    assert table.answer(Probe("zoe", ONE), 3.0) == Probed("zoe", ONE, None)
    table.link_ended("bob", 1.0)
    table.on_probed(Probed("bob", ONE, 0.0), 3.0)
    assert table.answer(Probe("bob", ONE), 3.0) == Probed("bob", ONE, None)


def test_a_process_that_was_held_up_suspects_nobody() -> None:
    table = linked("ann")
    table.late(20.0, 21.0)
    table.tick(21.0)
    assert table.happened() == []


def test_a_lost_link_is_no_end_until_down() -> None:
    table = linked("ann")
    table.link_ended("ann", 1.0)
    table.tick(OPTIONS.down - 0.1)
    assert table.happened() == [NodeSuspect("ann")]
    table.link_started("ann", ONE, "ann:1", OPTIONS.down - 0.1)
    assert table.happened() == [NodeRefuted("ann")]


# Memory --------------------------------------------------------------------------------------------------------


def test_the_dead_are_remembered_for_a_while() -> None:
    table = linked("ann")
    table.tick(OPTIONS.suspect)
    table.tick(OPTIONS.down)
    table.hears_of("ann", 1, ALIVE, now=11.0)
    assert table.members["ann"].state == DOWN
    assert table.tick(20.0) == OPTIONS.down + OPTIONS.tombstones
    table.tick(OPTIONS.down + OPTIONS.tombstones)
    assert table.members == {}


def test_tables_are_bounded_and_nodes_that_prove_themselves_get_in() -> None:
    table = Table()
    for number in range(9):
        table.hears_of(f"alive{number}", 1, ALIVE)
        table.hears_of(f"down{number}", 1, DOWN, now=float(number))
    assert sorted(table.members) == ["alive0", "alive1", "alive2", "down6", "down7", "down8"]
    assert table.counted["nodes_refused"] == 6
    table.link_started("late", ONE, None, 10.0)
    assert "late" in table.members
    assert len(table.members) == 6


# Dialling -------------------------------------------------------------------------------------------------------


def plan(*seeds: str) -> tuple[DialPlan, set[str]]:
    connected: set[str] = set()
    return DialPlan(seeds, "me:1", connected.__contains__, OPTIONS, Random(1)), connected


def test_seeds_are_dialled_at_once_but_not_ourselves() -> None:
    dialling, _ = plan("ann:1", "me:1", "ann:1")
    assert dialling.due(0.0) == (["ann:1"], None)
    assert dialling.due(0.0) == ([], None)


def test_pauses_grow_to_a_bound_with_half_of_it_by_chance() -> None:
    dialling, _ = plan("ann:1")
    now, pauses = 0.0, []
    for _ in range(9):
        [address], _ = dialling.due(now)
        dialling.ended(address, None, now, failed=True)
        due = dialling.due(now)[1]
        assert due is not None
        pauses.append(due - now)
        now = due
    assert all(base / 2 <= pause <= base for base, pause in zip([1, 2, 4, 8, 16, 30, 30, 30, 30], pauses, strict=True))


def test_nobody_is_dialled_who_is_linked_and_again_after_that() -> None:
    dialling, connected = plan("ann:1")
    dialling.due(0.0)
    dialling.linked("ann", "ann:1")
    connected.add("ann")
    assert dialling.due(99.0) == ([], None)
    connected.clear()
    dialling.unlinked("ann", 100.0)
    due = dialling.due(100.0)[1]
    assert due is not None
    assert 100.5 <= due <= 101.0


def test_pauses_go_on_growing_where_a_node_ends_each_link_as_it_does_not_want_it() -> None:
    dialling, connected = plan("ann:1")
    now, pauses = 0.0, []
    for refused in (True, True, True, False, True):
        assert dialling.due(now) == (["ann:1"], None)
        dialling.linked("ann", "ann:1")
        connected.add("ann")
        connected.clear()
        dialling.unlinked("ann", now, refused=refused)
        due = dialling.due(now)[1]
        assert due is not None
        pauses.append(due - now)
        now = due
    assert all(base / 2 <= pause <= base for base, pause in zip([1, 2, 4, 1, 2], pauses, strict=True))


def test_an_address_that_leads_to_ourselves_is_dropped_for_ever() -> None:
    dialling, _ = plan("alias:1")
    dialling.due(0.0)
    dialling.is_own("alias:1")
    dialling.want("ann", "alias:1", 0.0)
    assert dialling.due(99.0) == ([], None)


def test_addresses_of_forgotten_nodes_are_dropped_and_seeds_are_not() -> None:
    dialling, _ = plan("ann:1")
    dialling.want("ann", "ann:1", 0.0)
    dialling.want("bob", "bob:1", 0.0)
    dialling.keep_only(lambda node, address: False)
    assert dialling.due(0.0) == (["ann:1"], None)
