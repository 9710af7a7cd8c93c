"""Whole nodes on an in-memory network: who sees whom, what crosses which link, and what is said when links break."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from realtime.config import MeshOptions
from realtime.delivery import Delivery
from realtime.errors import BadMessage, ConfigurationError, MeshError, MessageTooBig
from realtime.protocols.mesh_actions import (
    Action,
    CallAnswered,
    CallLost,
    ClientCame,
    ClientFound,
    ClientLost,
    ClientWent,
    Confirmed,
    ConfirmFailed,
    DeliverToClient,
    DeliverToRoom,
    EndLink,
    Gap,
    MeshEvent,
    NodeJoined,
    NodeLeft,
    NodeRefuted,
    NodeSuspect,
    RoomJoined,
    RoomLeft,
    RunCall,
)
from realtime.protocols.mesh_bodies import Came, Delta, Event, NodeRecord, Table, ToClient, encode
from realtime.protocols.mesh_filters import RouteFilter, Routes
from realtime.protocols.mesh_frames import DataReceived, NewsReceived, ResumeReceived
from realtime.protocols.mesh_handshake import Hello, Reason
from realtime.protocols.mesh_membership import DOWN
from realtime.protocols.mesh_session import ACK_DELAY
from realtime.protocols.mesh_state import StateError
from realtime.testing.mesh_network import MeshNetwork, NetworkNode

OPTIONS = MeshOptions()
BOTH = {"json": b'{"n":1}', "msgpack": b"\x81\xa1n\x01"}


def network(
    *names: str, options: MeshOptions = OPTIONS, delay: tuple[float, float] = (0.001, 0.01), **more: Routes
) -> MeshNetwork:
    """Nodes that know the first one, and have found each other."""
    made = MeshNetwork(7, options=options, delay=delay)
    for name in names:
        made.add(name, seeds=names[:1], routes=more.get(name))
    made.run(3.0)
    assert all(len(node.core.nodes()) == len(names) - 1 for node in made.nodes.values())
    return made


def populate(made: MeshNetwork, room: str, *clients: str, codec: str = "json") -> None:
    """Clients, named after their nodes and a number, in a room."""
    for client in clients:
        node = made.nodes[client.rstrip("0123456789")]
        node.come(client, codec=codec)
        node.join(room, client)
    made.flush()
    made.run(0.1)


def told(node: NetworkNode, *kinds: type) -> list[Action]:
    return [action for action in node.told if isinstance(action, kinds)]


def forget(nodes: Iterable[NetworkNode]) -> None:
    for node in nodes:
        node.told.clear()


# Nodes -------------------------------------------------------------------------------------------------------


def test_knowing_one_node_is_enough() -> None:
    made = network("ann", "bob", "cyd", "dan")
    for node in made.nodes.values():
        assert sorted(action.node for action in told(node, NodeJoined)) == sorted(set(made.nodes) - {node.id})  # type: ignore[union-attr]
        assert node.errors == []


def test_a_node_does_not_dial_itself() -> None:
    made = MeshNetwork(1)
    ann = made.add("ann", seeds=["ann"])
    made.run(60.0)
    assert ann.core.counters["dials"] == 0


def test_an_address_that_leads_to_the_node_itself_is_tried_once() -> None:
    made = MeshNetwork(1)
    ann = made.add("ann", seeds=["alias"])
    made.run(0.0)
    ann.core.dial_ended("alias", Reason.SELF, made.now)
    made.run(60.0)
    assert ann.core.counters["dials"] == 1


def test_a_graceful_leave_is_immediate_everywhere() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "bob1")
    made.leave("bob")
    made.run(0.1)
    for name in ("ann", "cyd"):
        assert made.nodes[name].told[-2:] == [ClientWent("bob", "bob1"), NodeLeft("bob", "leaving")]
    assert told(made.nodes["bob"], NodeLeft) == [NodeLeft("ann", "leaving"), NodeLeft("cyd", "leaving")]
    dials = made.nodes["ann"].core.counters["dials"]
    made.run(60.0)
    assert made.nodes["ann"].core.counters["dials"] <= dials + 1


def test_a_node_that_has_left_dials_nobody_and_tells_nothing() -> None:
    made = network("ann", "bob")
    core = made.nodes["bob"].core
    made.leave("bob")
    core.client_came("late", {}, 1.0, "json")
    assert core.tick(made.now + 60.0) > 0
    assert core.take_actions() == []


def test_a_killed_node_is_suspect_then_down_and_welcome_when_it_returns() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "bob1")
    ann = made.nodes["ann"]
    forget([ann])
    made.kill("bob")
    made.run(OPTIONS.down - 1)
    assert ann.told == [NodeSuspect("bob")]
    made.run(2.0)
    assert ann.told[-2:] == [ClientWent("bob", "bob1"), NodeLeft("bob", "down")]
    forget([ann])
    made.add("bob", seeds=["ann"])
    made.run(1.0)
    assert ann.told == [NodeJoined("bob", "bob")]


@pytest.mark.parametrize("first", ["word of another", "the clock", "a new link"])
def test_a_process_that_was_held_up_takes_nobody_for_silent_whatever_wakes_it(first: str) -> None:
    made = network("ann", "bob", "cyd")
    cyd = made.nodes["cyd"].core
    later = made.now + 2 * OPTIONS.down  # in which nobody called it
    bob = cyd._membership.members["bob"].record()
    down = NodeRecord(bob.node, bob.instance, bob.incarnation, DOWN, bob.address)
    if first == "word of another":  # who did not hear bob for a while, and has not heard yet that it lives
        cyd.received("ann", NewsReceived(encode(Table([down]))), later)
        assert cyd.counters["rumours_disbelieved"] == 1
    elif first == "the clock":
        cyd.tick(later)
    else:
        assert cyd.silence("bob", later) <= 2 * OPTIONS.ping  # type: ignore[operator]
    cyd.tick(later)
    assert [action for action in cyd.take_actions() if isinstance(action, NodeLeft | NodeSuspect)] == []
    assert [node.suspect for node in cyd.nodes()] == [False, False]


def test_a_process_that_was_held_up_does_not_give_up_whom_only_others_hear() -> None:
    made = network("ann", "bob", "cyd")
    made.partition(["ann"], ["bob"])
    made.run(2 * OPTIONS.down)
    ann = made.nodes["ann"].core
    assert [(node.node, node.linked) for node in ann.nodes()] == [("bob", False), ("cyd", True)]
    ann.tick(made.now + 2 * OPTIONS.down)
    assert [action for action in ann.take_actions() if isinstance(action, NodeLeft | NodeSuspect)] == []
    assert len(ann.nodes()) == 2


def test_a_restart_that_nobody_had_noticed_takes_the_old_instance_away_and_tells_what_it_lost() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann = made.nodes["ann"]
    forget([ann])
    made.kill("bob")
    made.run(0.1)
    ann.core.publish("r", "x", BOTH)
    ann.core.publish("r", "x", BOTH)
    made.flush()
    made.add("bob", seeds=["ann"])
    made.run(1.0)
    assert [action for action in ann.told if not isinstance(action, ClientWent)] == [
        ClientLost("bob", "bob1", ("r",)),
        RoomLeft("bob", "r", "bob1"),
        NodeLeft("bob", "restarted"),
        NodeJoined("bob", "bob"),
        Gap("bob", "out", 2),
    ]


def test_a_frozen_node_loses_its_clients_for_the_others_and_nobody_for_itself() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "ann1", "bob1")
    forget(made.nodes.values())
    made.freeze("bob")
    made.run(20.0)
    assert told(made.nodes["ann"], NodeLeft) == [NodeLeft("bob", "down")]
    made.thaw("bob")
    made.run(5.0)
    assert told(made.nodes["bob"], NodeLeft, ClientWent, NodeSuspect) == []
    assert told(made.nodes["ann"], ClientWent, ClientCame) == [ClientWent("bob", "bob1"), ClientCame("bob", "bob1")]
    assert told(made.nodes["ann"], ClientLost, ClientFound) == [
        ClientLost("bob", "bob1", ("r",)),
        ClientFound("bob", "bob1", ("r",)),
    ]
    assert made.nodes["ann"].core.home("bob1") == "bob"


def test_who_comes_while_nodes_know_each_other_is_neither_found_nor_lost() -> None:
    made = network("ann", "bob")
    populate(made, "r", "ann1", "bob1")
    made.nodes["bob"].go("bob1")
    made.run(1.0)
    made.leave("bob")
    made.run(1.0)
    for node in made.nodes.values():
        assert told(node, ClientFound, ClientLost) == []


def test_a_link_cut_one_way_leaves_both_suspect_while_others_hear_them() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "ann1", "bob1")
    forget(made.nodes.values())
    made.cut("bob", "ann")
    made.run(60.0)
    for name, other in (("ann", "bob"), ("bob", "ann")):
        assert told(made.nodes[name], NodeSuspect) == [NodeSuspect(other)]
        assert told(made.nodes[name], NodeLeft, ClientWent) == []
    assert told(made.nodes["cyd"], NodeSuspect, NodeLeft) == []
    made.heal()
    made.run(40.0)
    assert told(made.nodes["ann"], NodeRefuted) == [NodeRefuted("bob")]


def test_parts_of_a_cluster_go_on_and_agree_after_healing() -> None:
    made = network("ann", "bob", "cyd", "dan", "eve")
    populate(made, "r", "ann1", "cyd1", "eve1")
    made.partition(["ann", "bob"], ["cyd", "dan", "eve"])
    made.run(20.0)
    assert made.nodes["bob"].core.members("r") == ["ann1"]
    assert sorted(made.nodes["dan"].core.members("r")) == ["cyd1", "eve1"]
    populate(made, "r", "ann2", "dan1")
    made.heal()
    made.run(40.0)
    assert sorted(made.nodes["bob"].core.members("r")) == ["ann1", "ann2", "cyd1", "dan1", "eve1"]
    assert sorted(made.nodes["cyd"].core.members("r")) == ["ann1", "ann2", "dan1", "eve1"]


def test_a_short_loss_of_a_link_is_told_to_nobody() -> None:
    made = network("ann", "bob")
    populate(made, "r", "ann1", "bob1")
    forget(made.nodes.values())
    made.break_link("ann", "bob")
    made.flush()
    populate(made, "r", "ann2")
    made.run(3.0)
    assert made.nodes["bob"].told == [ClientCame("ann", "ann2"), RoomJoined("ann", "r", "ann2")]
    assert made.nodes["ann"].told == []


# Messages ------------------------------------------------------------------------------------------------------


def test_a_room_message_crosses_each_link_to_a_member_once_in_the_codecs_in_use_there() -> None:
    made = network("ann", "bob", "cyd", "dan")
    populate(made, "r", "bob1", "bob2", "bob3")
    populate(made, "r", "cyd1", codec="msgpack")
    populate(made, "other", "dan1")
    ann = made.nodes["ann"]
    assert ann.core.codecs("r") == {"json", "msgpack"}
    made.run(1.0)
    before = made.frames.copy()
    assert ann.core.publish("r", "x", BOTH) == (["bob", "cyd"], 4)
    made.flush()
    assert made.frames - before == {("ann", "bob"): 1, ("ann", "cyd"): 1}
    made.run(0.5)
    message = ("ann", "r")
    assert told(made.nodes["bob"], DeliverToRoom) == [
        DeliverToRoom(*message, {"json": BOTH["json"]}, [], None, None)
    ]
    assert told(made.nodes["cyd"], DeliverToRoom) == [
        DeliverToRoom(*message, {"msgpack": BOTH["msgpack"]}, [], None, None)
    ]
    assert told(made.nodes["dan"], DeliverToRoom) == []


def test_nodes_whose_members_are_all_excepted_get_nothing_and_own_clients_are_not_named() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "ann1", "bob1", "cyd1", "cyd2")
    ann = made.nodes["ann"].core
    assert ann.publish("r", "x", BOTH, ["ann1", "bob1", "cyd2"]) == (["cyd"], 1)
    assert ann.publish("r", "x", BOTH, ["bob1", "cyd1", "cyd2"]) == ([], 0)
    assert ann.publish(None, "x", BOTH, ["bob1"]) == (["cyd"], 2)
    made.flush()
    made.run(0.5)
    first, _ = told(made.nodes["cyd"], DeliverToRoom)
    assert isinstance(first, DeliverToRoom)
    assert first.except_ids == ["bob1", "cyd2"]


def test_who_is_excepted_twice_keeps_nothing_from_the_others() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1", "bob2")
    ann = made.nodes["ann"].core
    assert ann.publish("r", "x", BOTH, ["bob1", "bob1"]) == (["bob"], 1)
    assert ann.publish(None, "x", BOTH, ["bob1", "bob1"]) == (["bob"], 1)


def test_policies_travel_with_the_message() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    made.nodes["ann"].core.publish("r", "x", BOTH, delivery=Delivery(conflate="k"))
    made.nodes["ann"].core.send("bob1", BOTH, delivery=Delivery("drop_oldest"))
    made.flush()
    made.run(0.5)
    room, client = told(made.nodes["bob"], DeliverToRoom, DeliverToClient)
    assert isinstance(room, DeliverToRoom)
    assert room.delivery == Delivery(conflate="k")
    assert client == DeliverToClient("ann", "bob1", BOTH, Delivery("drop_oldest"))


def test_a_volatile_message_is_dropped_for_nodes_that_cannot_take_it_now() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "bob1", "bob2", "cyd1")
    core = made.nodes["ann"].core
    assert core.publish("r", "x", BOTH, delivery=Delivery(volatile=True), busy="bob".__eq__) == (["cyd"], 1)
    assert core.counters["dropped_volatile"] == 2
    made.flush()
    made.run(0.5)
    assert told(made.nodes["bob"], DeliverToRoom) == []
    assert len(told(made.nodes["cyd"], DeliverToRoom)) == 1


def test_what_is_left_of_a_ttl_gets_less_while_a_message_waits_to_be_sent_again() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann = made.nodes["ann"].core
    made.break_link("ann", "bob")
    made.partition(["ann"], ["bob"])
    sent_at = made.now
    for ttl in (10.0, 0.25):
        ann.publish("r", "x", BOTH, delivery=Delivery(ttl=ttl), expires=sent_at + ttl)
        ann.send("bob1", BOTH, delivery=Delivery(ttl=ttl), expires=sent_at + ttl)
    ann.send("bob1", BOTH)
    made.flush()
    made.run(1.0)
    made.heal()
    assert made.run_until(lambda: len(told(made.nodes["bob"], DeliverToRoom, DeliverToClient)) == 5, limit=8.0)
    waited = made.now - sent_at
    arrived = told(made.nodes["bob"], DeliverToRoom, DeliverToClient)
    left = [action.delivery.ttl if action.delivery else None for action in arrived]
    assert left[2:] == [0.0, 0.0, None]
    for ttl in left[:2]:
        assert ttl is not None
        assert 1.0 <= 10.0 - ttl <= waited


def test_what_a_node_does_arrives_in_order_whatever_kind_it_is() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    forget(made.nodes.values())
    ann = made.nodes["ann"]
    ann.come("ann1")
    ann.core.publish("r", "x", BOTH)
    ann.join("r", "ann1")
    ann.core.mesh_event(None, b"event")
    ann.core.send("bob1", BOTH)
    made.flush()
    made.run(0.5)
    kinds = [ClientCame, DeliverToRoom, RoomJoined, MeshEvent, DeliverToClient]
    assert [type(action) for action in made.nodes["bob"].told] == kinds


def test_long_bodies_are_shared_by_all_links() -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "bob1", "cyd1")
    core = made.nodes["ann"].core
    core.publish("r", "x", {"json": b"x" * 100_000})
    bodies = [action.data for action in core.take_actions() if len(getattr(action, "data", b"")) > 1000]
    assert len(bodies) == 2
    assert bodies[0] is bodies[1]


def test_sends_and_calls_find_their_client_and_know_when_there_is_none() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann = made.nodes["ann"]
    assert ann.core.send("bob1", BOTH)
    assert not ann.core.send("nobody", BOTH)
    assert ann.core.call(5, "bob1", b"question", timeout=2.0, now=made.now)
    assert not ann.core.call(6, "nobody", b"question", timeout=2.0, now=made.now)
    made.flush()
    made.run(0.5)
    assert told(made.nodes["bob"], DeliverToClient, RunCall) == [
        DeliverToClient("ann", "bob1", BOTH, None),
        RunCall("ann", 5, "bob1", b"question", 2.0),
    ]
    assert told(ann, CallAnswered, CallLost) == [CallAnswered(5, "bob", True, b"question")]
    made.run(9.0)
    assert len(told(ann, CallAnswered, CallLost)) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda made: made.freeze("bob"), "timeout"),
        (lambda made: made.leave("bob"), "gone"),
        (lambda made: (made.kill("bob"), made.add("bob", seeds=["ann"])), "gone"),
    ],
    ids=["frozen", "left", "restarted"],
)
def test_calls_and_confirmations_that_cannot_come_end(fault: Callable[[MeshNetwork], object], reason: str) -> None:
    made = network("ann", "bob", "cyd")
    populate(made, "r", "bob1", "cyd1", "cyd2")
    ann = made.nodes["ann"]
    made.freeze("bob")
    ann.core.call(5, "bob1", b"question", timeout=4.0, now=made.now)
    assert sorted(ann.core.publish("r", "x", BOTH, confirm=6, deadline=made.now + 4.0).nodes) == ["bob", "cyd"]
    made.flush()
    made.nodes["bob"].frozen = False
    fault(made)
    made.run(6.0)
    assert told(ann, Confirmed) == [Confirmed(6, "cyd", 2)]
    ended = sorted(told(ann, CallLost, ConfirmFailed), key=repr)
    assert ended == [CallLost(5, reason), ConfirmFailed(6, "bob", reason)]


def test_nobody_waits_for_what_is_forgotten() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann = made.nodes["ann"]
    ann.core.call(5, "bob1", b"question", timeout=4.0, now=made.now)
    ann.core.forget(5)
    made.flush()
    made.run(6.0)
    assert told(ann, CallAnswered, CallLost) == []
    assert ann.core.counters["answers_too_late"] == 1


def test_events_between_nodes_go_to_one_or_to_all() -> None:
    made = network("ann", "bob", "cyd")
    core = made.nodes["ann"].core
    assert core.mesh_event(None, b"all") == 2
    assert core.mesh_event("bob", b"one") == 1
    assert core.mesh_event("zoe", b"none") == 0
    made.flush()
    made.run(0.5)
    assert told(made.nodes["bob"], MeshEvent) == [MeshEvent("ann", b"all"), MeshEvent("ann", b"one")]
    assert told(made.nodes["cyd"], MeshEvent) == [MeshEvent("ann", b"all")]


def test_what_is_too_big_is_refused_where_it_is_sent() -> None:
    made = network("ann", "bob", options=MeshOptions(message_size=1000))
    populate(made, "r", "bob1")
    core = made.nodes["ann"].core
    for send in (
        lambda body: core.publish("r", "x", {"json": body}),
        lambda body: core.send("bob1", {"json": body}),
        lambda body: core.call(1, "bob1", body, timeout=1.0, now=made.now),
        lambda body: core.mesh_event(None, body),
    ):
        with pytest.raises(MessageTooBig):
            send(b"x" * 1001)
        send(b"x" * 1000)


# Loss ----------------------------------------------------------------------------------------------------------


def test_a_stream_survives_broken_links_without_loss_or_repetition() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann, bob = made.nodes["ann"], made.nodes["bob"]
    for number in range(2000):
        ann.core.publish("r", "x", {"json": b"%d" % number})
        made.flush()
        made.run(0.002)
        if number % 300 == 150:
            made.break_link("ann", "bob")
    made.run(5.0)
    assert [int(action.bodies["json"]) for action in bob.told if isinstance(action, DeliverToRoom)] == [*range(2000)]
    assert ann.core.counters["frames_resent"] > 0
    assert told(ann, Gap) + told(bob, Gap) == []
    assert ann.core.nodes()[0].kept == 0


@pytest.mark.parametrize("broken", [False, True])
def test_who_was_sent_a_message_at_its_old_node_is_passed_over_at_its_new_one(broken: bool) -> None:
    """Also where the message is sent again by a node that has learned of the move since it made it."""
    made = network("ann", "bob", "cyd", delay=(0.005, 0.006))
    ann, bob, cyd = made.nodes.values()
    for node, client in ((ann, "mover"), (cyd, "other")):
        node.come(client)
        node.join("r", client)
    made.flush()
    made.run(0.1)
    cyd.come("mover")
    cyd.join("r", "mover")
    made.flush()
    made.run(0.004)  # not yet arrived anywhere
    bob.core.publish("r", "x", {"json": b"1"})
    made.flush()
    assert made.run_until(lambda: bob.core.home("mover") == "cyd", limit=1.0)
    assert told(cyd, DeliverToRoom) == []  # it is still on its way
    if broken:
        made.break_link("bob", "cyd")
    made.run(3.0)
    assert bob.core.counters["frames_resent"] == broken
    assert made.run_until(lambda: bool(told(cyd, DeliverToRoom)), limit=1.0)
    [passed_over] = [action.except_ids for action in cyd.told if isinstance(action, DeliverToRoom)]
    assert list(passed_over) == ["mover"]


def test_past_the_buffer_both_sides_learn_how_much_is_lost_and_agree_again() -> None:
    made = network("ann", "bob", options=MeshOptions(resend_frames=10))
    populate(made, "r", "bob1")
    ann, bob = made.nodes["ann"], made.nodes["bob"]
    made.break_link("ann", "bob")
    ann.come("ann1")
    for number in range(30):
        ann.core.publish("r", "x", {"json": b"%d" % number})
    made.flush()
    made.run(3.0)
    assert told(ann, Gap) == [Gap("bob", "out", 21)]
    assert told(bob, Gap) == [Gap("ann", "in", 21)]
    assert [int(action.bodies["json"]) for action in bob.told if isinstance(action, DeliverToRoom)] == [*range(20, 30)]
    assert bob.core.home("ann1") == "ann"


def test_a_call_that_was_lost_in_a_gap_ends_at_once() -> None:
    made = network("ann", "bob", options=MeshOptions(resend_frames=1))
    populate(made, "r", "bob1")
    ann = made.nodes["ann"]
    made.break_link("ann", "bob")
    ann.core.call(5, "bob1", b"lost", timeout=60.0, now=made.now)
    ann.core.call(6, "bob1", b"kept", timeout=60.0, now=made.now)
    made.flush()
    made.run(3.0)
    assert told(ann, CallLost, CallAnswered) == [CallLost(5, "lost"), CallAnswered(6, "bob", True, b"kept")]


def test_a_large_state_crosses_in_pieces_while_messages_go_on() -> None:
    made = MeshNetwork(3)
    ann = made.add("ann")
    for number in range(3000):
        ann.come(f"a{number}", metadata={"text": "x" * 1000})
        ann.join("r", f"a{number}")
    made.flush()
    bob = made.add("bob", seeds=["ann"])
    made.run(0.5)
    ann.go("a0")
    ann.core.mesh_event(None, b"between")
    made.flush()
    assert made.run_until(lambda: len(bob.core.clients()) == 2999, limit=5.0)
    made.run(0.5)
    assert ann.core.counters["snapshot_pieces"] > 10
    assert bob.core.counters["snapshots_received"] == 1
    assert told(bob, MeshEvent) == [MeshEvent("ann", b"between")]


def test_a_digest_finds_a_state_that_differs_and_a_snapshot_repairs_it() -> None:
    made = network("ann", "bob")
    populate(made, "r", "ann1", "ann2")
    state = made.nodes["bob"].core._replicas.state_of("ann")
    assert state is not None
    state._sum += 1
    made.run(2 * OPTIONS.digest)
    core = made.nodes["bob"].core
    assert core.counters["digests_differed"] == core.counters["snapshots_asked"] == 1
    assert state is not core._replicas.state_of("ann")


def test_acks_alone_follow_within_their_delay() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann = made.nodes["ann"].core
    ann.publish("r", "x", BOTH)
    made.flush()
    assert ann.nodes()[0].kept > 0
    made.run(ACK_DELAY + 0.03)
    assert ann.nodes()[0].kept == 0


# Filters --------------------------------------------------------------------------------------------------------


def test_filters_keep_messages_from_all_nodes_or_from_some() -> None:
    routes = Routes(RouteFilter(drop=["debug:*"]), {"c*": RouteFilter(forward=["chat:*"])})
    made = network("ann", "bob", "cyd", ann=routes)
    populate(made, "r", "bob1", "cyd1")
    populate(made, "chat:1", "bob2", "cyd2")
    core = made.nodes["ann"].core
    for room, name, nodes in (
        ("r", "chat:message", {"bob", "cyd"}),
        ("r", "price", {"bob"}),
        ("chat:1", "price", {"bob", "cyd"}),
        ("chat:1", "debug:x", set()),
        (None, "price", {"bob"}),
    ):
        assert set(core.publish(room, name, BOTH).nodes) == nodes
    assert core.counters["filtered"] == 4


def test_patterns_that_are_none_are_refused() -> None:
    for patterns in ("chat:*", [7], [""]):
        with pytest.raises(ConfigurationError):
            RouteFilter(drop=patterns)  # type: ignore[arg-type]


# Bounds and bad peers ------------------------------------------------------------------------------------------


def test_changes_that_cannot_be_are_refused_and_nothing_is_told() -> None:
    core = network("ann", "bob").nodes["ann"].core
    core.client_came("a", {}, 1.0, "json")
    for change in (
        lambda: core.client_came("a", {}, 1.0, "json"),
        lambda: core.client_went("b"),
        lambda: core.room_left("r", "a"),
    ):
        with pytest.raises(StateError):
            change()
    with pytest.raises(BadMessage):
        core.metadata_replaced("a", {"x": object()})
    assert core._own.version == 1


@pytest.mark.parametrize(
    "event",
    [
        DataReceived(999, 0, encode(Event(b"x"))),
        DataReceived(0, 0, b"\xc1"),
        DataReceived(0, 0, b"\x92\x63\x01"),
        DataReceived(0, 0, b"\x91" * 1000),
        DataReceived(0, 0, encode(ToClient("a", {}))),
        DataReceived(0, 0, encode([0, "r", {"json": b""}, [], "explode", None, None])),
        DataReceived(0, 0, encode([0, "r", {"json": "text"}, [], "close", None, None])),
        DataReceived(0, 0, encode([6, -1, []])),
        DataReceived(0, 0, encode([7, 0, 0, True, 0, [["a", b"", float("nan"), "json", []]]])),
        NewsReceived(b"\x00"),
        NewsReceived(encode([0, [["new\nline", b"i" * 16, 0, 0, None]]])),
        NewsReceived(encode([0, [["x", b"i" * 15, 0, 0, None]]])),
        NewsReceived(encode([0, [["x", b"i" * 16, 2**48, 0, None]]])),
        NewsReceived(encode([0, [["x", b"i" * 16, 0, 3, None]]])),
        ResumeReceived(5, 0, 0, False),
    ],
)
def test_what_breaks_the_protocol_is_a_mesh_error(event: object) -> None:
    made = network("ann", "bob")
    core = made.nodes["ann"].core
    peer = core._peers.known["bob"]
    if isinstance(event, DataReceived) and event.sequence == 0:
        event = DataReceived(peer.session.received + 1, peer.session.acknowledged, event.body)
    with pytest.raises(MeshError):
        core.received("bob", event, made.now)  # type: ignore[arg-type]


def test_a_link_that_broke_the_protocol_is_made_anew_without_the_bad_frame() -> None:
    made = network("ann", "bob")
    populate(made, "r", "bob1")
    ann, bob = made.nodes["ann"].core, made.nodes["bob"]
    ann._peers.send(ann._peers.known["bob"], b"\xc1")
    ann.mesh_event("bob", b"after")
    made.flush()
    made.run(5.0)
    assert len(bob.errors) == 1
    assert told(bob, MeshEvent) == [MeshEvent("ann", b"after")]
    assert told(bob, NodeLeft) == []


def test_frames_and_ends_of_links_that_are_gone_are_ignored() -> None:
    made = network("ann", "bob")
    core = made.nodes["ann"].core
    core.received("zoe", DataReceived(1, 0, b"x"), made.now)
    core.link_ended("zoe", Reason.LOST, made.now)
    core.alive("zoe", made.now)
    core.answer("zoe", 1, True, b"")
    core.delivered("zoe", 1, 1)
    assert core.counters["frames_of_nobody"] == 1
    assert core.counters["replies_to_nobody"] == 2
    assert core.silence("zoe", made.now) is None


def test_answers_to_what_was_not_asked_are_counted() -> None:
    made = network("ann", "bob")
    made.nodes["bob"].core.answer("ann", 77, True, b"")
    made.nodes["bob"].core.delivered("ann", 78, 1)
    made.flush()
    made.run(0.5)
    assert made.nodes["ann"].core.counters["answers_too_late"] == 2
    assert told(made.nodes["ann"], CallAnswered, Confirmed) == []


def test_a_newer_link_makes_an_older_one_void() -> None:
    made = network("ann", "bob")
    ann, bob = made.nodes["ann"], made.nodes["bob"]
    ann.core.link_started(Hello("bob", "default", bob.instance, b"n" * 16, "bob"), made.now)
    kinds = [type(action) for action in ann.core.take_actions()]
    assert EndLink not in kinds
    assert NodeJoined not in kinds
    assert ann.core.nodes()[0].linked


def test_large_turns_of_changes_are_told_in_bounded_deltas() -> None:
    made = network("ann", "bob")
    ann, bob = made.nodes["ann"], made.nodes["bob"]
    for number in range(5000):
        ann.come(f"a{number}", metadata={"text": "x" * 200})
    sizes = [len(action.data) for action in ann.core.take_actions() if hasattr(action, "data")]
    assert len(sizes) >= 5
    assert max(sizes) < 600_000
    assert encode(Delta(0, [Came("a", b"\x80", 0.0, "json")]))[0] == 0x93
    assert bob.errors == []
