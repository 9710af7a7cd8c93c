"""What asking clients of other nodes must be, one or all of a room, as tests: a part of ``ClusterConformance``."""

from __future__ import annotations

import gevent

from realtime.errors import CallFailed, ConnectionClosed, TimedOut, UnknownClient
from realtime.testing.cluster_suite import ClusterSuite
from realtime.testing.peers import PATIENCE

__all__ = ["CallConformance"]


class CallConformance(ClusterSuite):
    """The tests of ``call`` and ``call_room``."""

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
