"""What everything that joins nodes must do, as tests: subclass ``ClusterConformance`` and run it with pytest.

The suite knows only kernels and in-process clients, so that it proves the mesh and any engine that takes its place.
It imports no test framework: its methods are plain functions named ``test_*`` that assert.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.event import AsyncResult

from realtime.connection import Context
from realtime.errors import CallFailed, ConnectionClosed, NotConfirmed, TimedOut, UnknownClient
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.testing.peers import PATIENCE, wait_until
from realtime.testing.presence_conformance import LivePresenceConformance
from realtime.toolkit import Toolkit
from realtime.transports.base import Transport
from realtime.transports.memory import MemoryTransport
from realtime.transports.memory_client import MemoryClient

__all__ = ["ClusterConformance", "ClusterNodeUnderTest"]


class ClusterNodeUnderTest:
    """One node: a kernel with a cluster and in-process clients."""

    def __init__(self, joining: Transport, **options: Any) -> None:
        self.clients = MemoryTransport()
        self.joining = joining
        self.kernel = RealtimeKernel([self.clients, joining], log_level="warning", **options)
        self._register()

    def connect(self, **options: Any) -> MemoryClient:
        """Connect a client to this node."""
        return self.clients.connect(**options)

    def _register(self) -> None:
        kernel = self.kernel
        kernel.rooms.configure("kept:*", join=True, history=50, recover=True)

        @kernel.on("join")
        def join(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.join(message.room or "")

        @kernel.on("say")
        def say(message: Message, context: Context, toolkit: Toolkit) -> int:
            return toolkit.rooms.broadcast({"type": "said", "payload": message.payload}, message.room, except_self=True)

        @kernel.on("ask")
        def ask(message: Message, context: Context, toolkit: Toolkit) -> Any:
            assert isinstance(message.target, str)
            return toolkit.call(message.target, {"type": "question", "payload": message.payload}, timeout=PATIENCE)


class ClusterConformance(LivePresenceConformance):
    """Subclass it in a test module, as ``class TestMine(ClusterConformance)``, and run pytest."""

    @abstractmethod
    def make_nodes(self, count: int) -> Sequence[Transport]:
        """Return so many transports that will find each other once their kernels run, in this order."""

    @abstractmethod
    def vanish(self, joining: Transport) -> None:
        """Have a node vanish from the cluster without a word, as when its machine dies."""

    @contextmanager
    def cluster(self, count: int = 2, **options: Any) -> Iterator[list[ClusterNodeUnderTest]]:
        """Run nodes that know of each other for the length of a ``with`` block, then take them down.

        :param options: of their kernels.
        """
        nodes = [ClusterNodeUnderTest(joining, **options) for joining in self.make_nodes(count)]
        started: list[ClusterNodeUnderTest] = []
        try:
            for node in nodes:
                node.kernel.start()
                started.append(node)
            probes = [node.connect() for node in nodes]
            for node in nodes:  # each sees every other's client: they know each other
                wait_until(lambda node=node: len(node.kernel.presence.list()) == count)  # type: ignore[misc]
            for probe in probes:
                probe.close()
            for node in nodes:
                wait_until(lambda node=node: not node.kernel.presence.list())  # type: ignore[misc]
            yield nodes
        finally:
            for node in started:
                node.kernel.stop(5)

    # Sessions ---------------------------------------------------------------------------------------------

    def test_a_client_goes_on_with_its_session_at_another_node(self) -> None:
        with self.cluster(3) as nodes:
            first = nodes[0].connect(metadata={"name": "Ada"})
            session = self._hello(first, True)
            self._join(nodes, "tea", (nodes[0], first))
            wait_until(lambda: all(node.kernel.rooms.members("tea") == [first.id] for node in nodes))
            entry = nodes[2].kernel.presence.get(first.id)
            first.kill()
            nodes[2].kernel.broadcast({"type": "news", "payload": 1}, "tea", confirm=True)  # it waits at its old node
            second = nodes[1].connect()
            back = self._hello(second, {"token": session["token"], "received": 1})  # the ack of joining
            assert back["resumed"], back
            for number, node in enumerate(nodes, 2):
                node.kernel.broadcast({"type": "news", "payload": number}, "tea")
            news = [second.receive_until("news")["payload"] for _ in range(4)]
            assert (news[0], sorted(news[1:])) == (1, [2, 3, 4])
            wait_until(lambda: not nodes[0].kernel.presence.list(scope="local"))
            for node in nodes:
                assert node.kernel.rooms.members("tea") == [first.id]
                assert node.kernel.presence.get(first.id) == entry
            second.close()
            for node in nodes:
                wait_until(lambda node=node: not node.kernel.presence.list())  # type: ignore[misc]

    def test_whose_node_has_vanished_is_told_so_and_is_a_new_client(self) -> None:
        with self.cluster() as nodes:
            session = self._hello(nodes[1].connect(), True)
            names = [node.kernel.hub.cluster.node_id for node in nodes]
            assert [node.kernel.hub.cluster.reaches(names[1]) for node in nodes] == [True, False]
            self.vanish(nodes[1].joining)
            back = nodes[0].connect()
            about = self._hello(back, {"token": session["token"], "received": 0})
            assert (about["resumed"], bool(about["reason"])) == (False, True)
            wait_until(lambda: not nodes[0].kernel.hub.cluster.reaches(names[1]), 30)

    @staticmethod
    def _hello(client: MemoryClient, session: Any) -> Any:
        """Greet with a wish for a session; return what the welcome says of it."""
        client.send({"type": "system:hello", "payload": {"session": session}})
        return client.receive_until("system:welcome")["payload"]["session"]

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

    def test_a_call_returns_the_answer_of_a_client_elsewhere(self) -> None:
        with self.cluster() as nodes:
            asker, asked = nodes[0].connect(), nodes[1].connect()
            self._know(nodes, 2)
            waiting = gevent.spawn(
                asker.call, "ask", {"deep": [1, "two"]}, target=asked.id, timeout=PATIENCE
            )
            question = asked.receive(PATIENCE)
            assert (question["type"], question["payload"]) == ("question", {"deep": [1, "two"]})
            asked.answer(question, {"yes": True})
            assert waiting.get(timeout=PATIENCE) == {"yes": True}

    def test_a_call_that_is_refused_or_never_answered_says_so(self) -> None:
        with self.cluster() as nodes:
            asked = nodes[1].connect()
            self._know(nodes, 1)
            kernel = nodes[0].kernel
            waiting = gevent.spawn(self._outcome, kernel.call, asked.id, {"type": "question"}, timeout=PATIENCE)
            asked.refuse(asked.receive(PATIENCE), "no", code="busy")
            failure = waiting.get(timeout=PATIENCE)
            assert isinstance(failure, CallFailed), failure
            assert (failure.code, failure.message) == ("busy", "no")
            assert isinstance(self._outcome(kernel.call, asked.id, {"type": "question"}, timeout=0.05), TimedOut)
            assert isinstance(self._outcome(kernel.call, "nobody", {"type": "question"}), UnknownClient)

    def test_a_call_ends_when_the_client_elsewhere_goes(self) -> None:
        with self.cluster() as nodes:
            asked = nodes[1].connect()
            self._know(nodes, 1)
            call = nodes[0].kernel.call
            waiting = gevent.spawn(self._outcome, call, asked.id, {"type": "question"}, timeout=PATIENCE)
            asked.receive(PATIENCE)
            asked.kill()
            assert isinstance(waiting.get(timeout=PATIENCE), (ConnectionClosed, UnknownClient))

    def test_members_on_every_node_are_asked_and_their_answers_come(self) -> None:
        with self.cluster(3) as nodes:
            clients = [node.connect() for node in nodes]
            excepted, refusing = nodes[1].connect(), nodes[2].connect(codec="msgpack")
            self._join(
                nodes, "tea", *zip(nodes, clients, strict=True), (nodes[1], excepted), (nodes[2], refusing)
            )
            question = {"type": "ready?", "payload": 7}
            call = nodes[0].kernel.call_room("tea", question, except_ids=[excepted.id], timeout=PATIENCE)
            for client in reversed(clients):
                asked = client.receive(PATIENCE)
                assert (asked["type"], asked["payload"], asked["room"]) == ("ready?", 7, "tea")
                client.answer(asked, {"of": client.id})
                assert next(call) == (client.id, {"of": client.id})  # before the others have answered
            assert call.missing == [refusing.id]
            refusing.refuse(refusing.receive(PATIENCE), "no", code="busy")
            ((client_id, failure),) = call
            assert isinstance(failure, CallFailed), failure
            assert (client_id, failure.code, failure.message) == (refusing.id, "busy", "no")
            assert call.missing == []
            nodes[1].kernel.send(excepted.id, {"type": "after"})
            assert excepted.receive(PATIENCE)["type"] == "after"

    def test_members_elsewhere_that_do_not_answer_are_missing(self) -> None:
        with self.cluster() as nodes:
            silent, going = nodes[1].connect(), nodes[1].connect()
            self._join(nodes, "tea", (nodes[1], silent), (nodes[1], going))
            call = nodes[0].kernel.call_room("tea", {"type": "ready?"}, timeout=0.2)
            going.receive(PATIENCE)
            going.kill()
            assert list(call) == []
            assert sorted(call.missing) == sorted([silent.id, going.id])

    def test_a_room_is_not_waited_for_when_its_last_members_node_vanishes(self) -> None:
        with self.cluster(3) as nodes:
            clients = [node.connect() for node in nodes]
            self._join(nodes, "tea", *zip(nodes, clients, strict=True))
            call = nodes[0].kernel.call_room("tea", {"type": "ready?"}, timeout=PATIENCE)
            for client in clients[:2]:
                client.answer(client.receive(PATIENCE), "yes")
            clients[2].receive(PATIENCE)
            self.vanish(nodes[2].joining)
            assert sorted(call) == sorted((client.id, "yes") for client in clients[:2])
            assert call.missing == [clients[2].id]

    def test_many_answers_of_any_size_cross(self) -> None:
        with self.cluster() as nodes:
            clients = [nodes[1].connect() for _ in range(30)]
            self._join(nodes, "tea", *((nodes[1], client) for client in clients))
            call = nodes[0].kernel.call_room("tea", {"type": "ready?"}, timeout=PATIENCE)
            for number, client in enumerate(clients):
                client.answer(client.receive(PATIENCE), "x" * 10_000 * number)
            assert {client_id: len(text) for client_id, text in call} == {
                client.id: 10_000 * number for number, client in enumerate(clients)
            }

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

    # Rooms that keep their history -------------------------------------------------------------------------

    def test_who_moves_to_another_node_gets_what_it_missed_first_and_nothing_twice(self) -> None:
        with self.cluster(3) as nodes:
            sender, mover = nodes[0].connect(), nodes[1].connect()
            stays = nodes[2].connect()
            self._join(nodes, "kept:1", (nodes[0], sender), (nodes[1], mover), (nodes[2], stays))
            for number in range(10):
                sender.call("say", number, room="kept:1")
                stays.call("say", f"also {number}", room="kept:1")
            heard = [mover.receive() for _ in range(7)]
            mover.kill()
            for number in range(10, 20):
                sender.call("say", number, room="kept:1")
            again = nodes[2].connect()
            result = again.call("system:join", {"since": heard[-1]["cursor"]}, room="kept:1")
            assert (result["recovered"], result["more"]) == (True, False)  # what is on its way still comes after
            sender.call("say", "new", room="kept:1")
            heard += [again.receive() for _ in range(24)]
            payloads = [message["payload"] for message in heard]
            assert [one for one in payloads if isinstance(one, int)] == list(range(20))
            assert [one for one in payloads if str(one).startswith("also")] == [f"also {n}" for n in range(10)]
            assert payloads[-1] == "new"

    def test_a_node_without_members_has_a_room_s_history_when_it_is_asked(self) -> None:
        with self.cluster() as nodes:
            sender = nodes[0].connect()
            cursor = sender.call("system:join", room="kept:1")["cursor"]
            for number in range(3):
                sender.call("say", number, room="kept:1")
            late = nodes[1].connect()
            result = late.call("system:join", {"since": cursor}, room="kept:1")
            assert (result["recovered"], result["replayed"]) == (True, 3)
            page = late.call("system:history", {"limit": 2}, room="kept:1")
            assert [message["payload"] for message in page["messages"]] == [1, 2]
            assert [late.receive()["payload"] for _ in range(3)] == [0, 1, 2]
            again = nodes[0].connect()
            assert again.call("system:join", {"since": page["cursor"]}, room="kept:1")["replayed"] == 0

    def test_what_a_node_that_vanished_had_told_is_still_kept_by_the_others(self) -> None:
        with self.cluster(3) as nodes:
            sender, other, third = (node.connect() for node in nodes)
            self._join(nodes, "kept:1", (nodes[0], sender), (nodes[1], other), (nodes[2], third))
            for number in range(5):
                sender.call("say", number, room="kept:1")
            heard = [other.receive() for _ in range(5)]
            for _ in range(5):
                third.receive()
            self.vanish(nodes[0].joining)
            back = nodes[2].connect()
            result = back.call("system:join", {"since": heard[1]["cursor"]}, room="kept:1")
            assert (result["recovered"], result["replayed"]) == (True, 3)
            assert [back.receive()["payload"] for _ in range(3)] == [2, 3, 4]

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
            failure = self._outcome(nodes[0].kernel.broadcast, {"type": "news"}, "tea", confirm=True, timeout=0.5)
            assert isinstance(failure, NotConfirmed), failure
            assert len(failure.nodes) == 1
            assert failure.delivered == 1
            assert clients[1].receive(PATIENCE)["type"] == "news"

    # Helpers ---------------------------------------------------------------------------------------------

    @staticmethod
    def _outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what a function returns, or what it raises."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            return error

    @staticmethod
    def _know(nodes: Sequence[ClusterNodeUnderTest], count: int) -> None:
        """Wait until every node sees so many clients."""
        for node in nodes:
            wait_until(lambda node=node: node.kernel.presence.list().total == count)  # type: ignore[misc]

    @staticmethod
    def _join(
        nodes: Sequence[ClusterNodeUnderTest], room: str, *members: tuple[ClusterNodeUnderTest, MemoryClient]
    ) -> None:
        """Put clients into a room, and wait until every node knows."""
        for _, client in members:
            client.call("join", room=room, timeout=PATIENCE)
        for node in nodes:
            wait_until(lambda node=node: len(node.kernel.rooms.members(room)) == len(members))  # type: ignore[misc]
