"""Sessions that go on at another node: clients whose way leads to any of three nodes of a mesh."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from gevent.event import Event
from raw import RawClient, frame
from session_peer import PATIENCE, SessionPeer, wait_for_more

from realtime import (
    ConnectionClosed,
    Limits,
    MeshOptions,
    PeerMeshTransport,
    RealtimeKernel,
    WebRTCSignalingBridge,
    WebSocketTransport,
)
from realtime.recovery import Replay
from realtime.signaling import elsewhere

if TYPE_CHECKING:
    from tests.conftest import InThread

QUICK = MeshOptions(ping=0.05, suspect=10.0, down=20.0, backoff=0.05, backoff_max=0.1, authentication=PATIENCE)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a state that nothing announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.005)


def who_is_it(request: Any) -> Any:
    return request.query.get("user")


class Node:
    """A kernel with WebSockets and a mesh, and what became of clients here."""

    def __init__(self, name: str, peers: list[str], authenticate: Any, bridge: bool = False) -> None:
        self.name = name
        self.mesh = PeerMeshTransport(0, node_id=name, peers=peers, options=QUICK)
        self.sockets = WebSocketTransport(0, "/realtime", authenticate=authenticate)
        self.kernel = RealtimeKernel(
            [self.sockets, self.mesh], limits=Limits(session_grace=300.0), log_level="critical"
        )
        if bridge:
            WebRTCSignalingBridge().attach(self.kernel)
        self.events: list[tuple[str, str]] = []
        self.taken: list[Any] = []
        self.kernel.rooms.configure("kept:*", history=5000, ttl=300.0, recover=True)
        self.kernel.on("client:connected", self._note("came"))
        self.kernel.on("client:disconnected", self._note("went"))
        self.kernel.on("join", lambda message, context, toolkit: toolkit.rooms.join(message.room))
        self.kernel.on("echo", lambda message, context, toolkit: message.payload)
        self.kernel.on("number", lambda message, context, toolkit: self.taken.append(message.payload))

    def _note(self, word: str) -> Callable[[Any, Any, Any], None]:
        def handler(message: Any, context: Any, toolkit: Any) -> None:
            if context.transport != "mesh":
                self.events.append((word, context.id))

        return handler

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh.port}"

    def counter(self, name: str) -> int:
        return int(self.kernel.stats()["counters"].get(name, 0))


class Cluster:
    """Three nodes, and a proxy whose connections lead to the one that is chosen."""

    def __init__(self, authenticate: Any = None, size: int = 3, seed: int = 0, *, bridges: bool = False) -> None:
        self.nodes: list[Node] = []
        for number in range(size):
            node = Node(f"n{number}", [one.address for one in self.nodes], authenticate, bridges)
            self.nodes.append(node)
            node.kernel.start()
        self.chosen = 0
        self.proxy = CuttingProxy(lambda: self.nodes[self.chosen].sockets.port, seed=seed)
        self.proxy.__enter__()
        until(lambda: all(len(node.mesh.nodes()) == size - 1 for node in self.nodes), "they know each other")

    def close(self) -> None:
        self.proxy.__exit__()
        for node in self.nodes:
            node.kernel.stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.proxy.port}/realtime"

    def settled_at(self, client_id: str, place: int) -> None:
        """Wait until a client is known at one node alone, everywhere."""

        def settled() -> bool:
            for node in self.nodes:
                home = node.kernel.hub.cluster.home(client_id)
                here = client_id in node.kernel.hub.connections
                if (here, home) != ((True, None) if node is self.nodes[place] else (False, f"n{place}")):
                    return False
                if node.kernel.hub.sessions.departures._late:
                    return False
            return all(node.mesh._engine.core._index.shared == set() for node in self.nodes)  # type: ignore[union-attr]

        until(settled, f"{client_id} is at n{place}")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    running = Cluster()
    yield running
    running.close()


def test_a_client_goes_on_at_another_node(cluster: Cluster, in_thread: InThread) -> None:
    old, new, third = cluster.nodes
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    old.kernel.presence.update(own, {"name": "Ada"})
    entry = old.kernel.presence.get(own)
    until(lambda: third.kernel.presence.get(own) == entry, "it is known")
    cluster.proxy.cut()
    third.kernel.broadcast({"type": "said", "payload": 1}, "tea")
    third.kernel.send(own, {"type": "told", "payload": 2})
    cluster.chosen = 1
    about = in_thread(peer.resume)
    assert (about["resumed"], peer.welcome["id"], about["received"]) == (True, own, 1)
    assert about["token"].startswith("n1.")
    for number, node in enumerate(cluster.nodes, 3):
        assert node.kernel.rooms.members("tea") == [own]
        node.kernel.broadcast({"type": "said", "payload": number}, "tea")
    got = [in_thread(peer.receive)["payload"] for _ in range(5)]
    assert (got[:2], sorted(got[2:])) == ([1, 2], [3, 4, 5])
    cluster.settled_at(own, 1)
    for node in cluster.nodes:
        assert node.kernel.presence.get(own) == entry
        assert node.kernel.rooms.members("tea") == [own]
        assert ("went", own) not in node.events
        node.kernel.send(own, {"type": "told", "payload": node.name})
    assert sorted(in_thread(peer.receive)["payload"] for _ in range(3)) == ["n0", "n1", "n2"]
    assert in_thread(peer.ask, "echo", payload="here") == "here"
    assert (old.counter("sessions_moved_out"), new.counter("sessions_moved_in")) == (1, 1)
    in_thread(peer.close)
    until(lambda: ("went", own) in new.events, "it said goodbye there")
    until(lambda: not third.kernel.rooms.members("tea"), "all know that it is gone")
    assert [("went", own) in node.events for node in cluster.nodes] == [False, True, False]


def test_what_expired_meanwhile_does_not_come_at_another_node(cluster: Cluster, in_thread: InThread) -> None:
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    cluster.proxy.cut()
    kernel = cluster.nodes[0].kernel
    until(lambda: kernel.stats()["sessions"]["away"], "the server noticed")
    kernel.send(own, {"type": "late"}, ttl=0.001)
    kernel.send(own, {"type": "told", "payload": 1}, ttl=300.0)
    gevent.sleep(0.005)  # longer than the one is of use
    cluster.chosen = 1
    assert in_thread(peer.resume)["resumed"]
    assert in_thread(peer.receive)["payload"] == 1
    cluster.settled_at(own, 1)
    assert in_thread(peer.ask, "echo", payload=2) == 2  # and the counts agree
    cluster.proxy.cut()
    assert in_thread(peer.resume)["resumed"]
    in_thread(peer.close)


def test_a_call_goes_on_at_another_node_with_what_it_was_joined_with(
    in_thread: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "ASK_TIMEOUT", PATIENCE)  # the nodes may be held up together while one asks another
    cluster = Cluster(size=2, bridges=True)
    try:
        staying, moving = SessionPeer(cluster.nodes[0].sockets.url), SessionPeer(cluster.url)
        for peer, name in ((staying, "Ada"), (moving, "Grace")):
            in_thread(peer.connect)
            place = in_thread(peer.ask, "webrtc:join", payload={"room": "lobby", "metadata": name})["resume"]
        own = moving.welcome["id"]
        in_thread(staying.until, "webrtc:peer-joined")
        cluster.proxy.cut()
        in_thread(staying.until, "webrtc:bye")
        cluster.chosen = 1
        assert in_thread(moving.resume)["resumed"]
        assert in_thread(staying.until, "webrtc:peer-joined")["payload"]["id"] == own
        cluster.settled_at(own, 1)
        bridges = [node.kernel.stats()["services"][0]["participants"] for node in cluster.nodes]
        assert bridges == [1, 1]
        for asking, shown in ((staying, "Grace"), (moving, "Ada")):
            told = in_thread(asking.ask, "webrtc:peers", payload={"room": "lobby"})["peers"]
            assert [peer["metadata"] for peer in told] == [shown]
        back = SessionPeer(cluster.url)  # and its place is kept where it went
        in_thread(back.connect)
        again = in_thread(back.ask, "webrtc:join", payload={"room": "lobby", "resume": place})
        assert (again["resumed"], [peer["metadata"] for peer in again["peers"]]) == (True, ["Ada"])
        for peer in (staying, back):
            in_thread(peer.close)
    finally:
        cluster.close()


def test_who_says_goodbye_while_it_is_handed_over_is_gone_at_once(cluster: Cluster, in_thread: InThread) -> None:
    old, new, _ = cluster.nodes
    busy, done = Event(), Event()

    @old.kernel.on("busy")
    def handler(message: Any, context: Any, toolkit: Any) -> None:
        busy.set()
        done.wait(PATIENCE)

    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    for room in ("tea", "kept:tea"):
        in_thread(peer.ask, "join", room=room)
    kept = old.kernel.hub.history.log_of("kept:tea")
    assert kept is not None
    cursor = kept.cursor
    in_thread(peer.send, "busy")
    assert busy.wait(PATIENCE)
    cluster.proxy.cut()
    client = RawClient(new.sockets.port)
    client.upgrade("/realtime")
    wish = {"token": peer.token, "received": peer.received}
    client.send_json({"type": "system:hello", "payload": {"session": wish}})
    client.send(frame(8, struct.pack(">H", 1001)))
    assert client.read_close()[0] == 1001
    client.close()
    done.set()  # only now the session can be had
    until(lambda: ("went", own) in new.events, "it is gone")
    until(lambda: not any(node.kernel.rooms.members("tea") for node in cluster.nodes), "all know that it is gone")
    until(lambda: not any(node.kernel.stats()["sessions"]["open"] for node in cluster.nodes), "nobody waits for it")
    assert ("went", own) not in old.events
    until(lambda: not new.kernel.hub.workers.busy, "what it missed was looked for")
    old.kernel.broadcast({"type": "said", "payload": 1}, "kept:tea")  # which goes to no other node
    later = SessionPeer(f"ws://127.0.0.1:{new.sockets.port}/realtime")
    in_thread(later.connect)
    recovery = Replay(new.kernel.hub).join(new.kernel.hub.connections[later.welcome["id"]], "kept:tea", cursor)
    assert (recovery.recovered, recovery.replayed) == (True, 1)
    in_thread(later.close)


def test_it_may_move_on_and_come_home(cluster: Cluster, in_thread: InThread) -> None:
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    for number, place in enumerate([1, 2, 0, 1]):
        cluster.proxy.cut(silently=bool(number % 2))
        cluster.chosen = place
        assert in_thread(peer.resume)["resumed"]
        assert in_thread(peer.ask, "echo", payload=place) == place
    cluster.settled_at(own, 1)
    cluster.nodes[0].kernel.broadcast({"type": "said", "payload": "on"}, "tea")
    assert in_thread(peer.receive)["payload"] == "on"
    in_thread(peer.close)


def test_it_may_come_home_before_all_know_that_it_had_left(cluster: Cluster, in_thread: InThread) -> None:
    slow = cluster.nodes[2].mesh._engine._node  # type: ignore[union-attr]
    asked, answer = Event(), Event()

    def aware(arguments: Any) -> bool:
        asked.set()
        return answer.wait(PATIENCE)

    slow._own_operations["aware"] = aware  # type: ignore[attr-defined]
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    until(lambda: all(node.kernel.rooms.members("tea") for node in cluster.nodes), "its room is known")
    cluster.proxy.cut()
    cluster.chosen = 1
    assert in_thread(peer.resume)["resumed"]
    assert asked.wait(PATIENCE)
    cluster.proxy.cut()
    cluster.chosen = 0
    assert in_thread(peer.resume)["resumed"]
    for number, node in enumerate(cluster.nodes):
        node.kernel.broadcast({"type": "said", "payload": number}, "tea")
        node.kernel.send(own, {"type": "told", "payload": number + 3})
    assert sorted(in_thread(peer.receive)["payload"] for _ in range(6)) == list(range(6))
    answer.set()
    cluster.settled_at(own, 0)
    assert in_thread(peer.ask, "echo", payload=1) == 1
    in_thread(peer.close)


def test_a_token_leads_to_where_its_session_went(cluster: Cluster, in_thread: InThread) -> None:
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    for place in (1, 2, 0):  # none of the welcomes arrives
        lost = SessionPeer(cluster.url)
        lost.confirm = lambda: None  # type: ignore[method-assign]
        cluster.proxy.cut(silently=True)
        cluster.chosen = place
        assert in_thread(lost.connect, {"token": peer.token, "received": 0})["resumed"]
    cluster.proxy.cut()
    assert in_thread(peer.resume)["resumed"]
    assert peer.welcome["id"] == own
    in_thread(peer.close)


@pytest.mark.parametrize("places", [(0, 0, 0), (0, 1, 2), (1, 1, 2), (2, 1, 0)])
def test_of_many_who_come_with_one_token_at_once_one_has_the_session(
    cluster: Cluster, in_thread: InThread, places: tuple[int, ...]
) -> None:
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    in_thread(peer.ask, "join", room="tea")
    wish = {"token": peer.token, "received": peer.received}
    cluster.proxy.cut(silently=True)
    racers = [SessionPeer(f"ws://127.0.0.1:{cluster.nodes[place].sockets.port}/realtime") for place in places]
    for racer in racers:
        racer.received, racer._sent_before = peer.received, 1  # as the one that joined

    def come(racer: SessionPeer) -> bool | int | None:
        try:
            return bool(racer.connect(wish)["resumed"])
        except racer._closed as closed:  # the next was faster
            return closed.rcvd.code if closed.rcvd is not None else None

    racing = [gevent.spawn(in_thread, come, racer) for racer in racers]
    came = [one.get(timeout=PATIENCE) for one in racing]
    assert True in came
    assert set(came) <= {True, False, 4010}
    for racer, resumed in zip(racers, came, strict=True):
        assert resumed == 4010 or resumed == (racer.welcome["id"] == own)

    def homes() -> list[str]:
        return [node.name for node in cluster.nodes if own in node.kernel.hub.connections]

    until(lambda: len(homes()) == 1, "it is at one node")
    (home,) = homes()
    place = int(home[1:])
    cluster.settled_at(own, place)
    carrier = cluster.nodes[place].kernel.hub.connections[own].carrier
    assert carrier is not None
    for number in range(5):
        cluster.nodes[(place + number) % 3].kernel.broadcast({"type": "said", "payload": number}, "tea", confirm=True)
    cluster.nodes[place].kernel.send(own, {"type": "last"})

    def hear(racer: SessionPeer) -> list[Any] | int | None:
        heard = []
        try:
            while (message := racer.receive())["type"] != "last":
                if message["type"] == "said":
                    heard.append(message["payload"])
        except racer._closed as closed:
            return closed.rcvd.code if closed.rcvd is not None else None
        return heard

    outcomes = [in_thread(hear, racer) for racer, resumed in zip(racers, came, strict=True) if resumed is True]
    assert [one for one in outcomes if isinstance(one, list)] == [[0, 1, 2, 3, 4]]
    assert {one for one in outcomes if not isinstance(one, list)} <= {4010}
    assert all(node.kernel.rooms.members("tea") == [own] for node in cluster.nodes)
    for racer in racers:
        in_thread(racer.close)


def test_a_handler_left_behind_gets_its_answer_and_can_reply(cluster: Cluster, in_thread: InThread) -> None:
    old = cluster.nodes[0]

    @old.kernel.on("quiz")
    def quiz(message: Any, context: Any, toolkit: Any) -> Any:
        answer = toolkit.call(context.id, {"type": "question"}, timeout=PATIENCE)
        toolkit.reply({"type": "noted", "payload": answer})
        return answer

    @old.kernel.on("wait")
    def wait(message: Any, context: Any, toolkit: Any) -> None:
        try:
            toolkit.wait_for("word", timeout=PATIENCE)
        except ConnectionClosed as closed:
            old.taken.append(closed.code)

    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    in_thread(peer.send, "quiz", ack=1)
    question = in_thread(peer.until, "question")
    before = old.counter("received")
    in_thread(peer.send, "wait")
    until(lambda: old.counter("received") > before, "it is there, and not sent again to the other node")
    cluster.proxy.cut()
    cluster.chosen = 1
    assert in_thread(peer.resume)["resumed"]
    in_thread(peer.send, "system:ack", payload={"ack": question["ack"], "result": 42})
    assert in_thread(peer.until, "noted")["payload"] == 42
    assert in_thread(peer.until, "system:ack")["payload"] == {"ack": 1, "result": 42}
    until(lambda: old.taken == [4010], "a handler that waits for a message is told")
    in_thread(peer.close)


def test_a_call_is_over_with_its_client_wherever_that_is(cluster: Cluster, in_thread: InThread) -> None:
    old = cluster.nodes[0]

    @old.kernel.on("quiz")
    def quiz(message: Any, context: Any, toolkit: Any) -> None:
        try:
            toolkit.call(context.id, {"type": "question"}, timeout=PATIENCE)
        except ConnectionClosed as closed:
            old.taken.append(closed.code)

    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    in_thread(peer.send, "quiz")
    in_thread(peer.until, "question")
    cluster.proxy.cut()
    cluster.chosen = 1
    assert in_thread(peer.resume)["resumed"]
    in_thread(peer.close)
    until(lambda: old.taken == [1000], "the handler is told")


def test_a_session_of_a_node_that_is_gone_cannot_be_resumed(cluster: Cluster, in_thread: InThread) -> None:
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    cluster.proxy.cut()
    cluster.nodes[0].kernel.stop()
    cluster.chosen = 1
    about = in_thread(peer.resume)
    assert not about["resumed"]
    assert about["reason"] in ("unknown", "its node cannot be reached")
    assert peer.welcome["id"] != own
    assert in_thread(peer.ask, "echo", payload=1) == 1
    in_thread(peer.close)


def test_the_identity_is_compared_across_nodes(in_thread: InThread) -> None:
    cluster = Cluster(who_is_it, size=2)
    try:
        peer = SessionPeer(cluster.url + "?user=ann")
        in_thread(peer.connect)
        cluster.proxy.cut()
        cluster.chosen = 1
        thief = SessionPeer(cluster.url + "?user=bob")
        about = in_thread(thief.connect, {"token": peer.token, "received": 0})
        assert (about["resumed"], about["reason"]) == (False, "unknown")
        assert cluster.nodes[0].counter("sessions_foreign") == 1
        forged = in_thread(thief.connect, {"token": "n0.forged", "received": 0})
        assert (forged["resumed"], forged["reason"]) == (False, "unknown")
        assert in_thread(peer.resume)["resumed"]
        in_thread(thief.close)
        in_thread(peer.close)
    finally:
        cluster.close()


def test_an_identity_that_cannot_cross_keeps_the_session_at_home(in_thread: InThread) -> None:
    cluster = Cluster(lambda request: object, size=2)
    try:
        peer = SessionPeer(cluster.url)
        in_thread(peer.connect)
        cluster.proxy.cut()
        cluster.chosen = 1
        stranger = SessionPeer(cluster.url)
        about = in_thread(stranger.connect, {"token": peer.token, "received": 0})
        assert (about["resumed"], about["reason"]) == (False, "its identity cannot be carried to another node")
        cluster.chosen = 0
        assert in_thread(peer.resume)["resumed"]
        in_thread(stranger.close)
        in_thread(peer.close)
    finally:
        cluster.close()


def test_a_session_goes_on_at_another_node_in_another_codec(cluster: Cluster, in_thread: InThread) -> None:
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    own = peer.welcome["id"]
    cluster.proxy.cut()
    cluster.nodes[0].kernel.send(own, {"type": "told", "payload": {"a": [1, "ä"]}})
    cluster.chosen, peer.subprotocol = 1, "realtime.msgpack.v1"
    assert in_thread(peer.resume)["resumed"]
    assert in_thread(peer.receive)["payload"] == {"a": [1, "ä"]}
    in_thread(peer.close)


def fetching_late(node: Node, *, late: bool = False) -> tuple[Event, Event]:
    """Have a node wait before it fetches what it lacks of a room: return what is set once it does, and its end.

    :param late: or after that, so that what it has fetched is of before.
    """
    history = node.kernel.hub.history
    fetch, is_fetching, may_fetch = history.sync, Event(), Event()

    def fetch_late(room: str) -> None:
        if late:
            fetch(room)
        is_fetching.set()
        assert may_fetch.wait(PATIENCE)
        if not late:
            fetch(room)

    history.sync = fetch_late  # type: ignore[method-assign]
    return is_fetching, may_fetch


def test_what_a_client_missed_is_sent_in_order_though_it_moves_on_before_it_has_it(
    cluster: Cluster, in_thread: InThread
) -> None:
    _, between, third = cluster.nodes
    is_fetching, may_fetch = fetching_late(between)
    peer, witness = SessionPeer(cluster.url), SessionPeer(f"ws://127.0.0.1:{third.sockets.port}/realtime")
    for one in (peer, witness):
        in_thread(one.connect)
        in_thread(one.ask, "join", room="kept:tea")
    until(lambda: len(third.kernel.rooms.members("kept:tea")) == 2, "it is known")
    third.kernel.broadcast({"type": "said", "payload": 1}, "kept:tea")
    assert in_thread(peer.receive)["payload"] == 1
    cluster.proxy.cut()
    cluster.chosen = 1
    assert in_thread(peer.resume)["resumed"]
    assert is_fetching.wait(PATIENCE)
    for number in (2, 3):
        third.kernel.broadcast({"type": "said", "payload": number}, "kept:tea")
    cluster.proxy.cut()
    cluster.chosen = 0
    assert in_thread(peer.resume)["resumed"]
    may_fetch.set()
    assert [in_thread(peer.receive)["payload"] for _ in range(2)] == [2, 3]
    cluster.settled_at(peer.welcome["id"], 0)
    third.kernel.broadcast({"type": "said", "payload": 4}, "kept:tea")
    assert in_thread(peer.receive)["payload"] == 4
    assert in_thread(peer.ask, "echo", payload="end") == "end"
    assert not peer.passed
    for one in (peer, witness):
        in_thread(one.close)


@pytest.mark.parametrize("way", [(1,), (1, 0), (1, 2)], ids=["away", "home", "on"])
def test_who_moves_while_it_is_let_in_is_sent_all_that_it_missed(
    cluster: Cluster, in_thread: InThread, way: Sequence[int]
) -> None:
    old, _, third = cluster.nodes
    for node in cluster.nodes:
        node.kernel.rooms.configure("kept:*", join=True, history=5000, ttl=300.0, recover=True)
    witness = SessionPeer(f"ws://127.0.0.1:{third.sockets.port}/realtime")
    in_thread(witness.connect)
    start = in_thread(witness.ask, "system:join", room="kept:tea")["cursor"]
    third.kernel.broadcast({"type": "said", "payload": 1}, "kept:tea")
    is_fetching, may_fetch = fetching_late(old, late=True)
    peer = SessionPeer(cluster.url)
    in_thread(peer.connect)
    peer.send("system:join", room="kept:tea", payload={"since": start}, ack="asked")
    assert is_fetching.wait(PATIENCE)
    for number in (2, 3):
        third.kernel.broadcast({"type": "said", "payload": number}, "kept:tea")
    for place in way:
        cluster.proxy.cut()
        cluster.chosen = place
        assert in_thread(peer.resume)["resumed"]
    may_fetch.set()
    assert [in_thread(peer.receive)["payload"] for _ in range(3)] == [1, 2, 3]
    result = in_thread(peer.receive)["payload"]["result"]
    assert (result["recovered"], result["replayed"]) == (True, 3)
    third.kernel.broadcast({"type": "said", "payload": 4}, "kept:tea")
    assert in_thread(peer.receive)["payload"] == 4
    for one in (peer, witness):
        in_thread(one.close)


@pytest.mark.parametrize("says_where", [False, True], ids=["anew", "since"])
def test_who_asks_to_be_let_in_again_on_its_way_is_told_its_place_after_what_it_missed(
    cluster: Cluster, in_thread: InThread, says_where: bool
) -> None:
    _, new, third = cluster.nodes
    new.kernel.rooms.configure("kept:*", join=True, history=5000, ttl=300.0, recover=True)
    is_fetching, may_fetch = fetching_late(new)
    peer = SessionPeer(cluster.url)
    peer.confirm = lambda: None  # type: ignore[method-assign]  # which the node would count beside what is asked
    in_thread(peer.connect)
    in_thread(peer.ask, "join", room="kept:tea")
    own = peer.welcome["id"]
    until(lambda: third.kernel.rooms.members("kept:tea") == [own], "it is known")
    third.kernel.broadcast({"type": "said", "payload": 1}, "kept:tea")
    place = in_thread(peer.receive)["cursor"]
    cluster.proxy.cut()
    cluster.chosen = 1
    assert in_thread(peer.resume)["resumed"]
    assert is_fetching.wait(PATIENCE)
    for number in (2, 3):
        third.kernel.broadcast({"type": "said", "payload": number}, "kept:tea")
    before = new.counter("received")
    peer.send("system:join", room="kept:tea", payload={"since": place} if says_where else None, ack="again")
    until(lambda: new.counter("received") > before, "it is asked")
    may_fetch.set()
    assert [in_thread(peer.receive)["payload"] for _ in range(2)] == [2, 3]
    result = in_thread(peer.receive)["payload"]["result"]
    assert result.get("recovered") is (True if says_where else None)
    other = SessionPeer(cluster.url)
    in_thread(other.connect)
    joined = in_thread(other.ask, "system:join", room="kept:tea", payload={"since": result["cursor"]})
    assert (joined["recovered"], joined["replayed"], list(other.passed)) == (True, 0, [])
    third.kernel.broadcast({"type": "said", "payload": 4}, "kept:tea")
    for one in (peer, other):
        assert in_thread(one.receive)["payload"] == 4
        in_thread(one.close)


@pytest.mark.parametrize("room", ["numbers", "kept:numbers"])
@pytest.mark.parametrize("seed", [int(text) for text in os.environ.get("REALTIME_SEEDS", "1 2").split()])
def test_numbered_messages_arrive_once_while_a_client_wanders(seed: int, room: str, in_thread: InThread) -> None:
    """Each node publishes to a room; what one node says comes once, and its direct messages as well."""
    count = 400
    print(f"seed {seed}")
    dice = random.Random(seed)
    done = Event()
    cluster = Cluster(seed=seed)
    try:
        peer = SessionPeer(cluster.url)
        in_thread(peer.connect)
        in_thread(peer.ask, "join", room=room)
        own = peer.welcome["id"]
        until(lambda: all(node.kernel.presence.get(own) for node in cluster.nodes), "it is known")
        until(lambda: all(node.kernel.rooms.members(room) for node in cluster.nodes), "its room is known")

        def publish(node: Node) -> None:
            for number in range(count):
                node.kernel.broadcast({"type": "number", "payload": [node.name, number]}, room)
                node.kernel.send(own, {"type": "direct", "payload": [node.name, number]})
                gevent.sleep(dice.uniform(0, 0.01))

        def cut() -> None:
            while not done.is_set():
                wait_for_more(peer, dice.randint(1, 150), done)
                cluster.chosen = dice.randrange(3)
                cluster.proxy.cut(silently=dice.random() < 0.3)

        got: list[tuple[str, str, int]] = []

        def play() -> list[tuple[str, str, int]]:
            for number in range(6 * count):
                if number % 6 == 0:
                    peer.send("number", payload=number // 6)
                message = peer.receive_through_cuts()
                name, value = message["payload"]
                got.append((message["type"], name, value))
            peer.send("echo", ack="end")
            assert peer.receive_through_cuts()["type"] == "system:ack"
            return got

        jobs = [gevent.spawn(publish, node) for node in cluster.nodes] + [gevent.spawn(cut)]
        try:
            got = in_thread(play)
        finally:
            done.set()
            gevent.joinall(jobs, raise_error=True)
        assert not [node.kernel.stats()["counters"] for node in cluster.nodes if node.counter("relayed_to_gone")]
        for node in cluster.nodes:
            for kind in ("number", "direct"):
                values = [value for type_, name, value in got if (type_, name) == (kind, node.name)]
                assert sorted(values) == list(range(count)), (kind, node.name)
                if kind == "number" and room.startswith("kept:"):
                    assert values == list(range(count)), "a room that keeps its history keeps its order"
        assert sorted(value for node in cluster.nodes for value in node.taken) == list(range(count))
        assert sum(node.counter("sessions_moved_in") for node in cluster.nodes) > 0
        assert not any(("went", own) in node.events for node in cluster.nodes)
        in_thread(peer.close)
    finally:
        cluster.close()
