"""What clients must find that come back to another node, as tests: a part of ``ClusterConformance``.

Their session, or what a room has kept for them; also where the node that they were on is no more.
"""

from __future__ import annotations

from typing import Any

from realtime.testing.cluster_suite import ClusterSuite
from realtime.testing.peers import wait_until
from realtime.transports.memory_client import MemoryClient

__all__ = ["ReturnConformance"]


class ReturnConformance(ClusterSuite):
    """The tests of sessions and of recoverable rooms."""

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
