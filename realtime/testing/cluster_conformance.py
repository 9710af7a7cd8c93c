"""What everything that joins nodes must do, as tests: subclass ``ClusterConformance`` and run it with pytest.

The suite knows only kernels and in-process clients, so that it proves the mesh and any engine that takes its place.
It imports no test framework: its methods are plain functions named ``test_*`` that assert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent
from gevent.event import AsyncResult

from realtime.connection import Context
from realtime.errors import NotConfirmed, UnknownClient
from realtime.message import Message
from realtime.testing.call_conformance import CallConformance
from realtime.testing.peers import PATIENCE, wait_until
from realtime.testing.presence_conformance import LivePresenceConformance
from realtime.testing.return_conformance import ReturnConformance
from realtime.toolkit import Toolkit

__all__ = ["ClusterConformance"]


class ClusterConformance(CallConformance, ReturnConformance, LivePresenceConformance):
    """Subclass it in a test module, as ``class TestMine(ClusterConformance)``, and run pytest.

    To be implemented are ``make_nodes`` and ``vanish``.
    """

    # Rooms -----------------------------------------------------------------------------------------------

    def test_a_broadcast_reaches_members_on_every_node_once(self) -> None:
        with self.cluster(3) as nodes:
            members = [node.connect() for node in nodes]
            outsider = nodes[1].connect()
            self._join(nodes, "tea", *zip(nodes, members, strict=True))
            assert members[0].call("say", "hello", room="tea", timeout=PATIENCE) == 2
            for member in members[1:]:
                message = member.receive(PATIENCE)
                assert (message["type"], message["payload"], message["room"]) == ("said", "hello", "tea")
            for client in (*members, outsider):
                # and nothing came before this answer
                assert client.call("say", room="nobody is here", timeout=PATIENCE) == 0

    def test_messages_of_one_sender_arrive_in_order(self) -> None:
        with self.cluster() as nodes:
            sender, receiver = nodes[0].connect(), nodes[1].connect()
            self._join(nodes, "tea", (nodes[0], sender), (nodes[1], receiver))
            for number in range(500):
                sender.send({"type": "say", "room": "tea", "payload": number})
            assert [receiver.receive(PATIENCE)["payload"] for _ in range(500)] == list(range(500))

    def test_excepted_clients_are_left_out_wherever_they_are(self) -> None:
        with self.cluster() as nodes:
            here, there, third = nodes[0].connect(), nodes[1].connect(), nodes[1].connect()
            self._join(nodes, "tea", (nodes[0], here), (nodes[1], there), (nodes[1], third))
            count = nodes[0].kernel.broadcast({"type": "news"}, "tea", except_ids=[here.id, there.id])
            assert count == 1
            assert third.receive(PATIENCE)["type"] == "news"
            nodes[1].kernel.send(there.id, {"type": "after"})
            assert there.receive(PATIENCE)["type"] == "after"

    def test_a_broadcast_to_all_reaches_every_client(self) -> None:
        with self.cluster() as nodes:
            clients = [node.connect() for node in nodes]
            self._know(nodes, 2)
            assert nodes[1].kernel.broadcast({"type": "news"}) == 2
            for client in clients:
                assert client.receive(PATIENCE)["type"] == "news"

    def test_a_filter_sees_clients_of_other_nodes(self) -> None:
        with self.cluster() as nodes:
            sender = nodes[0].connect()
            wanted, other = nodes[1].connect(metadata={"team": "red"}), nodes[1].connect()
            self._know(nodes, 3)

            @nodes[0].kernel.on("rally")
            def rally(message: Message, context: Context, toolkit: Toolkit) -> int:
                return toolkit.broadcast({"type": "rally"}, lambda one: one.metadata.get("team") == "red")

            assert sender.call("rally", timeout=PATIENCE) == 1
            assert wanted.receive(PATIENCE)["type"] == "rally"
            nodes[1].kernel.send(other.id, {"type": "after"})
            assert other.receive(PATIENCE)["type"] == "after"

    def test_members_and_rooms_are_those_of_the_cluster_or_of_this_node(self) -> None:
        with self.cluster() as nodes:
            here, there = nodes[0].connect(), nodes[1].connect()
            self._join(nodes, "tea", (nodes[0], here), (nodes[1], there))
            rooms = nodes[0].kernel.rooms
            assert rooms.members("tea") == [here.id, there.id]
            assert rooms.members("tea", scope="local") == [here.id]
            assert rooms.list() == {"tea": 2}
            assert rooms.list(scope="local") == {"tea": 1}

    def test_a_client_of_another_node_is_put_into_a_room_and_taken_out(self) -> None:
        with self.cluster() as nodes:
            there = nodes[1].connect()
            self._know(nodes, 1)
            rooms = nodes[0].kernel.rooms
            assert rooms.join("tea", there.id) is True
            assert nodes[1].kernel.rooms.members("tea", scope="local") == [there.id]
            wait_until(lambda: rooms.members("tea") == [there.id])
            assert rooms.join("tea", there.id) is False
            assert rooms.leave("tea", there.id) is True
            wait_until(lambda: rooms.members("tea") == [])
            assert rooms.leave("tea", there.id) is False

    # One client ------------------------------------------------------------------------------------------

    def test_a_message_reaches_one_client_wherever_it_is(self) -> None:
        with self.cluster(3) as nodes:
            clients = [node.connect() for node in nodes]
            self._know(nodes, 3)
            for number, client in enumerate(clients):
                nodes[0].kernel.send(client.id, {"type": "note", "payload": number})
                assert client.receive(PATIENCE)["payload"] == number
            for unknown in ("nobody", ""):
                try:
                    nodes[0].kernel.send(unknown, {"type": "note"})
                except UnknownClient:
                    continue
                raise AssertionError("sent to a client that is not there")

    def test_a_client_elsewhere_can_be_disconnected(self) -> None:
        with self.cluster() as nodes:
            there = nodes[1].connect()
            self._know(nodes, 1)
            nodes[0].kernel.disconnect(there.id, 4503, reason="not you")
            assert there.wait_closed(PATIENCE) == 4503
            assert there.close_reason == "not you"

    # Presence --------------------------------------------------------------------------------------------

    def test_presence_is_the_same_on_every_node(self) -> None:
        with self.cluster() as nodes:
            there = nodes[1].connect(metadata={"name": "Ada"})
            self._join(nodes, "tea", (nodes[1], there))
            presence = nodes[0].kernel.presence
            assert presence.get(there.id) == nodes[1].kernel.presence.get(there.id)
            assert [entry["id"] for entry in presence.list("tea")] == [there.id]
            assert presence.list(scope="local") == []
            nodes[1].kernel.presence.update(there.id, {"mood": "fine"})
            wait_until(lambda: (presence.get(there.id) or {})["metadata"] == {"name": "Ada", "mood": "fine"})
            there.close()
            wait_until(lambda: presence.get(there.id) is None)
            assert presence.list().total == 0
            assert nodes[0].kernel.rooms.list() == {}

    def test_entries_of_other_nodes_are_copies(self) -> None:
        with self.cluster() as nodes:
            there = nodes[1].connect(metadata={"name": "Ada"})
            self._know(nodes, 1)
            presence = nodes[0].kernel.presence
            entry = presence.get(there.id)
            assert entry is not None
            entry["metadata"]["name"] = "changed"
            entry["rooms"].append("changed")
            again = presence.get(there.id)
            assert again is not None
            assert (again["metadata"], again["rooms"]) == ({"name": "Ada"}, [])

    def test_an_answer_of_a_node_has_its_place_among_the_messages_it_sends(self) -> None:
        with self.cluster() as nodes:
            asking, asked = (node.kernel for node in nodes)
            member = nodes[0].connect()
            self._join(nodes, "tea", (nodes[0], member))

            def say(count: int) -> None:
                for number in range(count):
                    asked.broadcast({"type": "said", "payload": number}, "tea")

            def answer(arguments: Mapping[str, Any]) -> str:
                say(30)
                gevent.spawn(say, 5)  # once the answer has left
                return "said"

            asked.hub.node_operations["say"] = answer
            before = asking.hub.counters["sent"]
            outcome: AsyncResult[Any] = AsyncResult()

            def then(result: Any, error: Exception | None) -> None:
                outcome.set((result, error, asking.hub.counters["sent"] - before))

            asking.hub.cluster.ask_node(asked.hub.cluster.node_id, "say", {}, PATIENCE, then)
            assert outcome.get(timeout=PATIENCE) == ("said", None, 30)
            assert [member.receive()["payload"] for _ in range(35)] == [*range(30), *range(5)]

    def test_clients_of_a_node_that_stops_are_gone_at_once(self) -> None:
        with self.cluster() as nodes:
            there = nodes[1].connect()
            self._join(nodes, "tea", (nodes[1], there))
            nodes[1].kernel.stop(1)
            wait_until(lambda: nodes[0].kernel.presence.list().total == 0)
            assert nodes[0].kernel.rooms.members("tea") == []
            assert nodes[0].kernel.broadcast({"type": "news"}, "tea") == 0

    def test_clients_of_a_node_that_vanishes_are_gone_in_time(self) -> None:
        with self.cluster(3) as nodes:
            clients = [node.connect() for node in nodes]
            self._join(nodes, "tea", *zip(nodes, clients, strict=True))
            self.vanish(nodes[2].joining)
            for node in nodes[:2]:
                wait_until(lambda node=node: node.kernel.presence.get(clients[2].id) is None, 30)  # type: ignore[misc]
                assert node.kernel.rooms.members("tea") == [
                    client.id for client in (clients[:2] if node is nodes[0] else clients[1::-1])
                ]
            assert nodes[0].kernel.broadcast({"type": "news"}, "tea") == 2

    def test_clients_that_are_gone_with_their_node_are_told_as_lost_once(self) -> None:
        with self.cluster(3) as nodes:
            here, quitter, lost = nodes[0].connect(), nodes[2].connect(), nodes[2].connect()
            self._join(nodes, "tea", (nodes[0], here), (nodes[2], quitter), (nodes[2], lost))
            told: list[tuple[str, list[str]]] = []
            for node in nodes:
                node.kernel.hub.on_lost.append(lambda client_id, rooms: told.append((client_id, list(rooms))))
            quitter.close()
            for node in nodes:
                wait_until(lambda node=node: node.kernel.presence.list().total == 2)  # type: ignore[misc]
            self.vanish(nodes[2].joining)
            for node in nodes[:2]:
                wait_until(lambda node=node: node.kernel.presence.get(lost.id) is None, 30)  # type: ignore[misc]
            assert [one for one in told if one[0] != here.id] == [(lost.id, ["tea"])] * 2
            assert told.count((here.id, ["tea"])) <= 1  # by the node that vanished: it has lost the others

    # Delivery options ------------------------------------------------------------------------------------

    def test_options_of_a_message_hold_on_its_members_nodes(self) -> None:
        with self.cluster() as nodes:
            there = nodes[1].connect()
            self._join(nodes, "tea", (nodes[1], there))
            outbox = nodes[1].kernel.hub.connections[there.id].outbox
            kernel = nodes[0].kernel
            there.stop_reading()
            for number in range(3):
                kernel.broadcast({"type": "price", "payload": number}, "tea", conflate="price:EUR")
                kernel.send(there.id, {"type": "soon over", "payload": number}, ttl=0.001)
                kernel.send(there.id, {"type": "good for long", "payload": number}, ttl=600)
            while outbox.has_room():
                kernel.broadcast({"type": "fill", "payload": "x" * 60_000}, "tea", confirm=True, timeout=PATIENCE)
            assert kernel.broadcast({"type": "position"}, "tea", volatile=True, confirm=True, timeout=PATIENCE) == 0
            kernel.send(there.id, {"type": "last"}, overflow="drop_oldest")
            counters = nodes[1].kernel.hub.counters
            there.resume_reading()
            got: list[tuple[str, Any]] = []
            while not got or got[-1][0] != "last":
                message = there.receive(PATIENCE)
                if message["type"] != "fill":
                    got.append((message["type"], message.get("payload")))
            good = [("good for long", number) for number in range(3)]
            assert got == [good[0], good[1], ("price", 2), good[2], ("last", None)]
            assert (counters["dropped_conflated"], counters["expired"], counters["dropped_volatile"]) == (2, 3, 1)

    # Codecs, sizes, confirmation --------------------------------------------------------------------------

    def test_clients_of_both_codecs_get_the_same(self) -> None:
        with self.cluster() as nodes:
            packed_here, text_there, packed_there = (
                nodes[0].connect(codec="msgpack"), nodes[1].connect(), nodes[1].connect(codec="msgpack"),
            )  # fmt: skip
            everybody = ((nodes[0], packed_here), (nodes[1], text_there), (nodes[1], packed_there))
            self._join(nodes, "tea", *everybody)
            payload = {"number": 2**63, "text": "ümläut \U0001f600", "nested": [None, True, 1.5]}
            assert nodes[0].kernel.broadcast({"type": "news", "payload": payload}, "tea") == 3
            for _, client in everybody:
                assert client.receive(PATIENCE)["payload"] == payload

    def test_a_large_message_crosses_whole(self) -> None:
        with self.cluster() as nodes:
            sender, receiver = nodes[0].connect(), nodes[1].connect()
            self._join(nodes, "tea", (nodes[0], sender), (nodes[1], receiver))
            text = "x" * 900_000
            sender.send({"type": "say", "room": "tea", "payload": text})
            assert receiver.receive(PATIENCE)["payload"] == text

    def test_a_confirmed_broadcast_has_been_delivered_when_it_returns(self) -> None:
        with self.cluster(3) as nodes:
            clients = [node.connect() for node in nodes]
            self._join(nodes, "tea", *zip(nodes, clients, strict=True))
            assert nodes[0].kernel.broadcast({"type": "news"}, "tea", confirm=True, timeout=PATIENCE) == 3
            assert nodes[0].kernel.broadcast({"type": "news"}, "nobody is here", confirm=True, timeout=PATIENCE) == 0

    def test_a_node_that_does_not_confirm_is_named(self) -> None:
        with self.cluster(3) as nodes:
            clients = [node.connect() for node in nodes]
            self._join(nodes, "tea", *zip(nodes, clients, strict=True))
            self.vanish(nodes[2].joining)
            failure = self._outcome(nodes[0].kernel.broadcast, {"type": "news"}, "tea", confirm=True, timeout=5.0)
            assert isinstance(failure, NotConfirmed), failure
            assert len(failure.nodes) == 1
            assert failure.delivered == 1
            assert clients[1].receive(PATIENCE)["type"] == "news"
